//! Results that others may see: noise flooding against key recovery from approximate results (IND-CPA-D).
//!
//! A decrypted result is f(x) + e, and e depends on the secret key and on what the server computed. Whoever knows f(x) learns e, and
//! enough of it gives the key (Li and Micciancio, EUROCRYPT 2021). Adding Gaussian noise that drowns e bounds what is learnt (Li,
//! Micciancio, Schultz and Sorrell, "Securing Approximate Homomorphic Encryption Using Differential Privacy", CRYPTO 2022).
//!
//! For s bits of statistical security over q results of n elements, element i with a modelled error of standard deviation σᵢ gets
//! noise of
//!
//! ```text
//! φᵢ = σᵢ · z · √(n·q) · 2^s,   z = √(2·ln(2^(s+2)·n·q))
//! ```
//!
//! All n·q errors are below z·σᵢ but with probability n·q·2·exp(−z²/2) = 2^-(s+1) (Chernoff). Given that, the divergence of the flooded
//! result from the flooded exact value is at most n·q·z²σᵢ²/2φᵢ² = 2^-(2s+1), so their statistical distance is at most 2^-(s+1)
//! (Pinsker). Together: nobody tells the q results from ones that do not depend on the key with an advantage above 2^-s. The
//! epilogue and the rounding come after and take nothing back.
//!
//! **What it rests on**: that errors are as the noise model says, for inputs inside their ranges. Values that leave their domain
//! break it, and nobody sees them under encryption; nor does it cover a server that computes another circuit.
//!
//! Thirty bits cost thirty bits of precision and some. A transformer's logits have three or four above their noise, so for most models
//! there is no room, and the answer is a refusal: then share the decision, not the numbers.

use tfhe::core_crypto::commons::math::random::{Gaussian, RandomGenerator};
use tfhe::core_crypto::prelude::{DefaultRandomGenerator, StandardDev, new_seeder};
use thex_circuit::{ClientBundle, Port};

use crate::ciphertext::EncryptedOutputs;
use crate::client::{Named, Rounding, check_origin, decode, phases};
use crate::error::{Result, RuntimeError};
use crate::keys::ClientKey;

/// Bits of a turn of the torus that must be left above the flooding.
const LEAST_BITS_LEFT: f64 = 2.0;
/// The most bits of security that may be asked for.
pub const MAX_BITS: u32 = 64;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// s: bits of statistical security.
    pub bits: u32,
    /// q: results under this key that will be shared in all.
    pub results: u32,
}

/// The noise that it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Flooding {
    /// φ of each element of each port, in units of its value.
    pub deviations: Vec<Vec<f64>>,
    /// Bits of the narrowest element's turn of the torus that stay above it.
    pub bits_left: f64,
}

/// φ/σ.
fn factor(elements: usize, sharing: Sharing) -> f64 {
    let (count, s) = (elements as f64 * f64::from(sharing.results), f64::from(sharing.bits));
    let tail = (2.0 * ((s + 2.0) * std::f64::consts::LN_2 + count.ln())).sqrt();
    tail * count.sqrt() * s.exp2()
}

/// The flooding, whether it leaves anything or not.
fn flooding(ports: &[Port], sharing: Sharing) -> Result<Flooding> {
    let elements = ports.iter().map(|p| p.encodings.len()).sum();
    let factor = factor(elements, sharing);
    let mut bits_left = f64::INFINITY;
    let mut deviations = Vec::new();
    for port in ports {
        if port.noise.len() != port.encodings.len() || port.noise.iter().any(|&sd| sd <= 0.0) {
            let reason =
                format!("the bundle has no modelled error for `{}`, so nothing says how much would hide it", port.name);
            return Err(RuntimeError::NotShareable(reason));
        }
        let port_deviations: Vec<f64> = port.noise.iter().map(|sd| sd * factor).collect();
        for (deviation, encoding) in port_deviations.iter().zip(&port.encodings) {
            bits_left = bits_left.min((encoding.scale.abs() / deviation).log2());
        }
        deviations.push(port_deviations);
    }
    Ok(Flooding { deviations, bits_left })
}

/// The most bits of statistical security that leave something of the result.
fn room(ports: &[Port], results: u32) -> Option<u32> {
    let fits =
        |bits: &u32| flooding(ports, Sharing { bits: *bits, results }).is_ok_and(|f| f.bits_left >= LEAST_BITS_LEFT);
    (1..=MAX_BITS).rev().find(fits)
}

/// The flooding for `sharing`, if the precision of these outputs leaves room for it.
///
/// # Errors
/// [`RuntimeError::NotShareable`]: it does not, and how much there is room for; or the errors are not modelled.
pub fn plan(ports: &[Port], sharing: Sharing) -> Result<Flooding> {
    let plan = flooding(ports, sharing)?;
    if plan.bits_left >= LEAST_BITS_LEFT {
        return Ok(plan);
    }
    let worst = plan.deviations.iter().flatten().copied().fold(0.0, f64::max);
    let room = match room(ports, sharing.results) {
        Some(bits) => format!("The most that the precision leaves room for is {bits}"),
        None => "The precision leaves no room for even one bit".to_owned(),
    };
    Err(RuntimeError::NotShareable(format!(
        "{} bits of statistical security for {} results take noise of up to {worst:.3e} rms, which leaves nothing of the values. {room}. \
         Share the decision (the class) instead of the numbers, or compile with a smaller --output-error",
        sharing.bits, sharing.results
    )))
}

/// Decrypts, adds the noise and decodes: outputs that may be shown to others, and the noise that was added.
///
/// # Errors
/// As [`plan`]; or the result belongs to another key or circuit.
pub fn decrypt(
    bundle: &ClientBundle,
    key: &ClientKey,
    outputs: &EncryptedOutputs,
    sharing: Sharing,
) -> Result<(Vec<Named>, Flooding)> {
    check_origin(bundle, key, outputs)?;
    let plan = plan(&bundle.outputs, sharing)?;
    let mut generator = RandomGenerator::<DefaultRandomGenerator>::new(new_seeder().seed());
    let encodings = bundle.outputs.iter().flat_map(|p| &p.encodings);
    let turns = plan.deviations.iter().flatten().zip(encodings).map(|(sd, e)| sd / e.scale.abs());
    let flooded: Vec<u64> = phases(key, &outputs.lwes)
        .into_iter()
        .zip(turns)
        .map(|(phase, turns)| {
            let noise = Gaussian::from_dispersion_parameter(StandardDev(turns), 0.0);
            phase.wrapping_add(generator.random_from_distribution::<u64, _>(noise))
        })
        .collect();
    // Digits below the flooding would only look like precision.
    let mut coarse = bundle.clone();
    for (port, deviations) in coarse.outputs.iter_mut().zip(&plan.deviations) {
        port.noise.clone_from(deviations);
    }
    Ok((decode(&coarse, &flooded, Rounding::Modelled)?, plan))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use thex_circuit::Encoding;

    fn port(elements: usize, scale: f64, noise: f64) -> Port {
        Port {
            name: "y".into(),
            shape: vec![elements],
            encodings: vec![Encoding { scale, offset: 0.0 }; elements],
            ranges: Vec::new(),
            noise: vec![noise; elements],
        }
    }

    #[test]
    fn distance_is_at_most_two_to_the_minus_s() {
        for (elements, bits, results) in [(1, 1, 1), (10, 30, 1), (768, 40, 1000)] {
            let z_and_root = factor(elements, Sharing { bits, results }) / f64::from(bits).exp2();
            let count = elements as f64 * f64::from(results);
            let z = z_and_root / count.sqrt();
            let tail = 2.0 * count * (-z * z / 2.0).exp();
            // Divergence of count elements, each with an error of z·σ under noise of factor·σ.
            let divergence = count * z * z / (2.0 * factor(elements, Sharing { bits, results }).powi(2));
            let distance = tail + (divergence / 2.0).sqrt();
            let bound = (-f64::from(bits)).exp2();
            assert!(distance <= bound * 1.000_001 && distance > bound * 0.99, "{distance} {bound}");
        }
    }

    #[test]
    fn room_is_found_and_its_lack_is_refused() {
        // 60 bits between the error and the turn: room for some 50.
        let precise = [port(4, 1.0, (-60.0_f64).exp2())];
        let plan30 = plan(&precise, Sharing { bits: 30, results: 1 }).unwrap();
        assert!((20.0..30.0).contains(&plan30.bits_left), "{}", plan30.bits_left);
        let text = plan(&precise, Sharing { bits: 64, results: 1 }).unwrap_err().to_string();
        assert!(text.contains("room for is 5"), "{text}");
        // The digits: 10 logits, error 0.19, a turn of 16.
        let error = plan(&[port(10, 16.0, 0.19)], Sharing { bits: 30, results: 1 }).unwrap_err();
        assert_eq!(error.code(), "TX0104");
        assert!(error.to_string().contains("room for is 1."), "{error}");
        let error = plan(&[port(10, 16.0, 0.5)], Sharing { bits: 1, results: 1 }).unwrap_err();
        assert!(error.to_string().contains("no room for even one bit"), "{error}");
    }

    #[test]
    fn more_results_take_more_noise() {
        let of = |results| factor(10, Sharing { bits: 20, results });
        assert!(of(100) > 10.0 * of(1));
    }

    #[test]
    fn errors_that_are_not_modelled_are_refused() {
        let mut unknown = port(2, 1.0, 1e-9);
        unknown.noise.clear();
        assert!(plan(&[unknown], Sharing { bits: 1, results: 1 }).is_err());
        assert!(plan(&[port(2, 1.0, 0.0)], Sharing { bits: 1, results: 1 }).is_err());
    }
}
