//! From calibrated tensors to homomorphic operations with encodings.
//!
//! * [`affine`]: elements of tensors as affine functions of ciphertexts, merged as far as they go;
//! * [`products`]: which operand of a product rotates, and how many products share a rotation;
//! * [`InsertBootstraps`]: look-ups, products, packs and keyswitches made explicit;
//! * [`sensitivity`]: what an error anywhere does to the outputs;
//! * [`InsertRescale`]: the encoding of every ciphertext.

pub mod affine;
mod insert_bootstraps;
mod insert_rescale;
pub mod products;
pub mod sensitivity;
mod solver;

pub use insert_bootstraps::{InsertBootstraps, Lowered, lower};
pub use insert_rescale::InsertRescale;

use thex_circuit::Parameters;

/// Positions kept free at each edge of a look-up's domain, so that the noise of an argument at the edge does not
/// carry it over: 6σ of the argument noise for a whole table, at most a sixteenth of a small box.
#[must_use]
pub fn guard(positions: usize) -> f64 {
    (positions / 16).min(32) as f64
}

/// Torus length that the range of a look-up argument may fill.
#[must_use]
pub fn usable(parameters: &Parameters, positions: usize) -> f64 {
    (positions as f64 - 2.0 * guard(positions)) / parameters.positions() as f64
}

/// Part of the torus that the range of a decrypted output fills.
pub const OUTPUT_FILL: f64 = 0.75;
