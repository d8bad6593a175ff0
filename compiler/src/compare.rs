//! The same model under several profiles, side by side: what each loses and what each costs.
//!
//! Which profile to use is a trade of accuracy for time that depends on the model. Every profile is compiled in memory and run by simulation on the
//! same samples with the same seed, so that rows differ by the profile alone. All profiles have the same parameters, so kernels are
//! timed once.

use std::fmt::Write;

use serde::Serialize;
use thex_passes::Profile;
use thex_runtime::{KernelTimes, calibrate};

use crate::error::{CompileError, Result};
use crate::evaluate::{Evaluation, Workload, evaluate_pair};
use crate::interval::Interval;
use crate::pipeline::{CompileOptions, Compiled, compile};
use crate::report::server_key_bytes;

/// One profile. Units: errors in those of the output, time in seconds on this machine's threads, keys in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub profile: &'static str,
    /// Share of correct classes, where the data have labels.
    pub accuracy: Option<f64>,
    /// Its 95 % interval.
    pub accuracy_interval: Option<Interval>,
    /// Share of samples with the float model's class.
    pub agreement: f64,
    /// Its 95 % interval.
    pub agreement_interval: Interval,
    /// Of the first output, between circuit and float model.
    pub mean_cosine: f64,
    /// Largest difference from the float model, of the output that classes are read from.
    pub max_abs_error: f64,
    /// Root mean square of that difference.
    pub rms_error: f64,
    /// What the noise model predicts of it; approximations are not in it.
    pub predicted_rms_error: Option<f64>,
    /// Values outside the domain of a look-up, and clamped inputs.
    pub overflows: u64,
    /// Blind rotations.
    pub pbs_count: u64,
    /// Packed ciphertexts.
    pub pack_count: u64,
    /// One run, by the kernels' measured times.
    pub estimated_seconds: f64,
    /// `server.key`.
    pub server_key_bytes: u64,
}

/// All profiles.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Samples evaluated.
    pub samples: usize,
    /// Accuracy of the float model.
    pub float_accuracy: Option<f64>,
    /// Its 95 % interval.
    pub float_accuracy_interval: Option<Interval>,
    /// Threads that the estimates are for.
    pub threads: usize,
    /// One row for each profile, in the order asked for.
    pub profiles: Vec<Row>,
}

/// Compiles `options` under each profile (its own is ignored) and evaluates it on `work`.
///
/// # Errors
/// No profile or one twice; or one cannot be compiled or evaluated.
pub fn compare(options: &CompileOptions, profiles: &[Profile], work: &Workload) -> Result<Comparison> {
    check(profiles)?;
    let mut results: Vec<(Compiled, Evaluation)> = Vec::new();
    for &profile in profiles {
        let compiled = compile(&CompileOptions { profile, ..options.clone() })?;
        let evaluation = evaluate_pair(&compiled.emitted.circuit, &compiled.emitted.bundle, work)?;
        results.push((compiled, evaluation));
    }
    let (first, evaluation) =
        results.first().ok_or_else(|| CompileError::Internal("no profile was compared".into()))?;
    let times = calibrate::measure(first.emitted.circuit.parameters, 0)?;
    Ok(Comparison {
        samples: evaluation.samples,
        float_accuracy: evaluation.float_accuracy,
        float_accuracy_interval: evaluation.float_accuracy_interval,
        threads: times.threads,
        profiles: profiles.iter().zip(&results).map(|(p, (c, e))| row(*p, c, e, &times)).collect(),
    })
}

fn check(profiles: &[Profile]) -> Result<()> {
    if profiles.is_empty() {
        return Err(CompileError::Usage("--profiles names no profile".into()));
    }
    let repeated = profiles.iter().enumerate().find(|(i, p)| profiles[..*i].contains(p));
    repeated.map_or(Ok(()), |(_, p)| Err(CompileError::Usage(format!("--profiles names `{}` twice", p.name()))))
}

fn row(profile: Profile, compiled: &Compiled, evaluation: &Evaluation, times: &KernelTimes) -> Row {
    let circuit = &compiled.emitted.circuit;
    Row {
        profile: profile.name(),
        accuracy: evaluation.accuracy,
        accuracy_interval: evaluation.accuracy_interval,
        agreement: evaluation.agreement,
        agreement_interval: evaluation.agreement_interval,
        mean_cosine: evaluation.mean_cosine,
        max_abs_error: evaluation.max_abs_error,
        rms_error: evaluation.class_rms_error(),
        predicted_rms_error: evaluation.predicted_rms_error,
        overflows: evaluation.overflows,
        pbs_count: circuit.pbs_count(),
        pack_count: circuit.pack_count(),
        estimated_seconds: times.estimate(circuit),
        server_key_bytes: server_key_bytes(&circuit.parameters),
    }
}

/// A share with its interval, in percent.
fn share(share: Option<f64>, interval: Option<Interval>) -> String {
    share.zip(interval).map_or_else(|| "-".to_owned(), |(s, i)| format!("{:.1} {}", 100.0 * s, i.percent()))
}

impl Comparison {
    /// For people: one table.
    #[must_use]
    pub fn text(&self) -> String {
        let float = share(self.float_accuracy, self.float_accuracy_interval);
        let mut out = format!("{} samples, simulated; float accuracy {float} %\n\n", self.samples);
        out += &format!(
            "{:<8} {:>19} {:>19} {:>7} {:>10} {:>10} {:>10} {:>9} {:>7} {:>7} {:>9} {:>7}\n",
            "profile",
            "accuracy %",
            "agreement %",
            "cosine",
            "max error",
            "rms error",
            "modelled",
            "overflows",
            "PBS",
            "packs",
            "seconds",
            "key MB"
        );
        for row in &self.profiles {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{}", row.text());
        }
        out + &format!(
            "\nseconds: one encrypted run, estimated from kernels timed on {} threads of this machine\n",
            self.threads
        )
    }
}

impl Row {
    fn text(&self) -> String {
        format!(
            "{:<8} {:>19} {:>19} {:>7.4} {:>10.4} {:>10.4} {:>10} {:>9} {:>7} {:>7} {:>9.1} {:>7.0}",
            self.profile,
            share(self.accuracy, self.accuracy_interval),
            share(Some(self.agreement), Some(self.agreement_interval)),
            self.mean_cosine,
            self.max_abs_error,
            self.rms_error,
            self.predicted_rms_error.map_or_else(|| "-".to_owned(), |e| format!("{e:.4}")),
            self.overflows,
            self.pbs_count,
            self.pack_count,
            self.estimated_seconds,
            self.server_key_bytes as f64 / 1e6,
        )
    }
}
