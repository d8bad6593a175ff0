//! Whether encrypted runs err as the simulation says they do.
//!
//! Each encrypted result is compared with simulations of the same sample: its mean squared difference from the circuit without noise is ranked
//! among theirs. If both have one distribution, every rank is equally likely, however outputs depend on one another and however noise varies
//! from sample to sample (Talts, Betancourt, Simpson, Vehtari and Gelman, "Validating Bayesian inference algorithms with simulation-based
//! calibration", 2018). Whether the ranks of all samples are uniform is then Kolmogorov's test.

use rayon::prelude::*;
use serde::Serialize;
use thex_circuit::{Circuit, ClientBundle, NoiseModel};
use thex_runtime::client::Named;
use thex_runtime::{Simulator, simulate};

use crate::error::Result;
use crate::evaluate::{class_output, sample_seed};

/// Simulations of each sample.
const RUNS: usize = 99;

/// Noise of encrypted runs beside that of simulated ones, on the output that classes are read from.
#[derive(Clone, Debug, Serialize)]
pub struct NoiseCheck {
    /// Samples.
    pub samples: usize,
    /// Simulations of each.
    pub runs: usize,
    /// Root mean square difference of encrypted results from the circuit without noise.
    pub encrypted_rms: f64,
    /// Of simulated ones.
    pub simulated_rms: f64,
    /// Part of the simulations of its sample that erred less than each encrypted run, for each sample.
    pub ranks: Vec<f64>,
    /// Probability that ranks are as far from uniform, if encrypted and simulated runs err alike.
    pub p_value: f64,
}

/// Compares encrypted results, one for each sample, with simulations.
///
/// # Errors
/// The samples do not fit the circuit.
pub(crate) fn check(
    circuit: &Circuit,
    bundle: &ClientBundle,
    samples: &[Vec<Named>],
    encrypted: &[&[Named]],
    seed: u64,
) -> Result<NoiseCheck> {
    let silent = Simulator::new(circuit, NoiseModel::silent())?;
    let noisy = Simulator::new(circuit, NoiseModel::new(&circuit.parameters))?;
    let one = |(i, (sample, ours)): (usize, (&Vec<Named>, &&[Named]))| -> Result<(f64, Vec<f64>)> {
        let clear = simulate::infer(bundle, &silent, sample, 0)?.outputs;
        let run = |r: usize| -> Result<f64> {
            let seed = sample_seed(sample_seed(seed, i), r);
            Ok(square(&simulate::infer(bundle, &noisy, sample, seed)?.outputs, &clear))
        };
        Ok((square(ours, &clear), (0..RUNS).map(run).collect::<Result<_>>()?))
    };
    let pairs: Vec<(usize, _)> = samples.iter().zip(encrypted).enumerate().collect();
    let errors = pairs.into_par_iter().map(one).collect::<Result<Vec<_>>>()?;
    Ok(NoiseCheck::new(&errors))
}

/// Mean squared difference on the output that classes are read from.
fn square(ours: &[Named], clear: &[Named]) -> f64 {
    let (a, b) = (&ours[class_output(ours)].1, &clear[class_output(clear)].1);
    a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum::<f64>() / a.len().max(1) as f64
}

impl NoiseCheck {
    /// From the squared error of each encrypted run and those of its simulations.
    fn new(errors: &[(f64, Vec<f64>)]) -> Self {
        let rank = |(ours, theirs): &(f64, Vec<f64>)| {
            (theirs.iter().filter(|e| *e < ours).count() as f64 + 0.5) / (theirs.len() + 1) as f64
        };
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let ranks: Vec<f64> = errors.iter().map(rank).collect();
        Self {
            samples: errors.len(),
            runs: errors.first().map_or(0, |e| e.1.len()),
            encrypted_rms: mean(errors.iter().map(|e| e.0).collect()).sqrt(),
            simulated_rms: mean(errors.iter().flat_map(|e| &e.1).copied().collect()).sqrt(),
            p_value: uniform_p_value(&ranks),
            ranks,
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        format!(
            "noise: encrypted {:.4} rms, simulated {:.4} ({} runs a sample); equal distributions differ as much with p = {:.2}\n",
            self.encrypted_rms, self.simulated_rms, self.runs, self.p_value
        )
    }
}

/// Probability that as many draws from the uniform distribution are as far from it (Kolmogorov's limit, with Stephens' correction for few draws).
fn uniform_p_value(draws: &[f64]) -> f64 {
    let mut sorted = draws.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len() as f64;
    let off = |(i, u): (usize, &f64)| (u - i as f64 / n).max((i + 1) as f64 / n - u);
    let distance = sorted.iter().enumerate().map(off).fold(0.0, f64::max);
    let x = distance * (n.sqrt() + 0.12 + 0.11 / n.sqrt());
    let term = |j: i32| if j % 2 == 1 { 2.0 } else { -2.0 } * (-2.0 * f64::from(j * j) * x * x).exp();
    (1..=100).map(term).sum::<f64>().clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use rand_distr::{Distribution, StandardNormal};

    use super::*;

    /// Errors of `samples` encrypted runs of this deviation beside simulations of deviation 1.
    fn errors(samples: usize, deviation: f64, seed: u64) -> Vec<(f64, Vec<f64>)> {
        use rand::SeedableRng;
        let mut rng = rand::rngs::Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut draw = |scale: f64| {
            let of = |_| {
                let z: f64 = StandardNormal.sample(&mut rng);
                (scale * z).powi(2)
            };
            (0..10).map(of).sum::<f64>() / 10.0
        };
        (0..samples).map(|_| (draw(deviation), (0..RUNS).map(|_| draw(1.0)).collect())).collect()
    }

    #[test]
    fn equal_noise_passes_and_twice_the_noise_does_not() {
        let p =
            |deviation| (0..40).map(|seed| NoiseCheck::new(&errors(20, deviation, seed)).p_value).collect::<Vec<f64>>();
        let rare = |p: &[f64]| p.iter().filter(|p| **p < 0.01).count();
        assert!(rare(&p(1.0)) <= 2, "one in a hundred");
        assert_eq!(rare(&p(2.0)), 40);
        assert_eq!(rare(&p(0.5)), 40);
    }

    #[test]
    fn p_values_are_those_of_tables() {
        // Half of all draws below ½ in an even grid: as near to uniform as can be.
        let even: Vec<f64> = (0..20).map(|i| (f64::from(i) + 0.5) / 20.0).collect();
        assert!(uniform_p_value(&even) > 0.999);
        // D = 0.294 at n = 20 is the table's 5 %.
        let shifted: Vec<f64> = (0..20).map(|i| (f64::from(i) / 20.0 * (1.0 - 0.294)) + 0.294).collect();
        assert!((uniform_p_value(&shifted) - 0.05).abs() < 0.01, "{}", uniform_p_value(&shifted));
    }
}
