//! From calibrated tensors to homomorphic operations with encodings.
//!
//! * [`affine`]: elements of tensors as affine functions of ciphertexts, merged as far as they go;
//! * [`products`]: which operand of a product rotates, and how many products share a rotation;
//! * [`InsertBootstraps`]: look-ups, products, packs and keyswitches made explicit;
//! * [`SelectParameters`]: the cheapest cryptographic parameters that the error budget allows;
//! * [`WidenForNoise`]: room in ranges for the errors that reach them;
//! * [`variate`]: lines that look-ups need not carry;
//! * [`sensitivity`]: what an error anywhere does to the outputs;
//! * [`InsertRescale`]: the encoding of every ciphertext.

pub mod affine;
pub(crate) mod budget;
mod insert_bootstraps;
mod insert_rescale;
mod nearest_plane;
pub mod products;
mod select_parameters;
pub mod sensitivity;
mod solver;
pub mod variate;
mod widen_for_noise;

pub use insert_bootstraps::{InsertBootstraps, Lowered, lower};
pub use insert_rescale::{Analysis, InsertRescale};
pub use select_parameters::SelectParameters;
pub use widen_for_noise::WidenForNoise;

use thex_circuit::{NoiseModel, Parameters, external};
use thex_ir::he::Domain;
use thex_ir::{Graph, HeOp, NodeId, Op};

/// Deviations of the argument noise that are kept free at each edge of a whole table, so that the noise of an argument at the edge does
/// not carry it over and flip the sign.
const GUARD_SIGMAS: f64 = 6.5;

/// The least kept free at the edges of a box of a product. Past the edge an argument meets its neighbour's slot, which is wrong but no
/// larger than any product, so rare leaks are borne; at 1σ they are common where probabilities are near 0, which is where the
/// edge is.
const LEAST_GUARD_SIGMAS: f64 = 3.25;

/// Positions kept free at each edge of a look-up's domain, so that the noise of an argument at the edge does not carry it over.
/// Boxes are small, and what is free is lost to precision: a sixteenth, but at least `LEAST_GUARD_SIGMAS`, and never more than a
/// quarter.
#[must_use]
pub fn guard(parameters: &Parameters, domain: Domain) -> f64 {
    let variance = NoiseModel::new(parameters).extended_argument(domain.extension);
    let sigma = variance.sqrt() * parameters.positions() as f64;
    let (least, most) = ((LEAST_GUARD_SIGMAS * sigma).round(), (GUARD_SIGMAS * sigma).round());
    let positions = domain.positions as f64;
    (positions / 16.0).floor().clamp(least, most).min((positions / 4.0).floor())
}

/// Torus length that the range of a look-up argument may fill.
#[must_use]
pub fn usable(parameters: &Parameters, domain: Domain) -> f64 {
    (domain.positions as f64 - 2.0 * guard(parameters, domain)) / parameters.positions() as f64
}

/// Variance of a look-up's argument, relative to the width of the range that fills its domain.
#[must_use]
pub fn relative_noise(parameters: &Parameters, domain: Domain) -> f64 {
    NoiseModel::new(parameters).extended_argument(domain.extension) / usable(parameters, domain).powi(2)
}

/// What making a GGSW costs beside its rotations, and multiplying by it, in rotations: with room, since 0.4 ms beside 5.2 of a rotation of three levels were measured.
pub(crate) const CONVERSION: f64 = 0.2;

/// Blind rotations of a look-up or product of a lowered graph, in a ring of this size; 0 for any other node.
#[must_use]
pub fn rotations_of(graph: &Graph, id: NodeId, polynomial_size: usize) -> usize {
    match &graph.node(id).op {
        Op::He(HeOp::Pbs { .. }) => graph.node(id).shape[0],
        Op::He(HeOp::LutProduct { argument, sums: None, .. }) => argument.len(),
        Op::He(HeOp::LutProduct { argument, sums: Some(_), .. }) => {
            let keyswitch = graph.operands(id).first().map(|k| &graph.node(*k).op);
            let Some(Op::He(HeOp::Keyswitch { domain, .. })) = keyswitch else { return argument.len() };
            argument.len() * external::rotations(polynomial_size, domain.positions).unwrap_or(1)
        }
        _ => 0,
    }
}

/// Part of the torus that the range of a decrypted output fills.
pub const OUTPUT_FILL: f64 = 0.75;
