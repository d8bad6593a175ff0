//! Products by external products: what compiler, keys and kernels must agree on.
//!
//! A GGSW of f(x) is made of one to four blind rotations by x (Wang et al., "Circuit Bootstrapping: Faster and Smaller", EUROCRYPT 2024), and multiplies GLWEs of as
//! many values as there are. Its noise is modelled in [`NoiseModel`](crate::NoiseModel). The decompositions are constants: with them
//! what the conversion adds lies below what the noise of rotations of two to four levels becomes (`runtime/circuit/src/noise.rs` has a test), and the gadget rounds
//! as much off as three levels make noise where the table has 85 (2^-20.8 for each unit, 2^-14.4).

use crate::params::Decomposition;

/// The gadget of the GGSWs. Its levels are looked up in 1, 2 or 4 rotations; arguments keep 1/4, 1/2 or all of the half torus.
pub const GADGET: Decomposition = Decomposition::new(6, 4);

/// The keyswitches of the trace.
pub const TRACE: Decomposition = Decomposition::new(4, 11);

/// The keyswitch from the key's square.
pub const SQUARE: Decomposition = Decomposition::new(7, 6);

/// In how many rotations the levels of the gadget can be looked up.
pub const ROTATIONS: [usize; 3] = [1, 2, 4];

/// Entries of a table, and positions of an argument's domain, in a ring of this size, where a GGSW takes so many rotations.
#[must_use]
pub const fn entries(polynomial_size: usize, rotations: usize) -> usize {
    polynomial_size.saturating_mul(rotations) / GADGET.level.0
}

/// How many rotations a GGSW takes where arguments have so many positions; `None` if no number gives that.
#[must_use]
pub fn rotations(polynomial_size: usize, positions: usize) -> Option<usize> {
    ROTATIONS.into_iter().find(|&r| entries(polynomial_size, r) == positions)
}

/// The power g of the automorphism X → X^g of this stage of the trace, counted from 0: N + 1, N/2 + 1, … 3.
#[must_use]
pub const fn automorphism_of(stage: usize, polynomial_size: usize) -> usize {
    (polynomial_size >> stage) + 1
}

/// GLWEs of the conversion key, in a ring of this size.
#[must_use]
pub const fn key_rows(polynomial_size: usize) -> usize {
    polynomial_size.ilog2() as usize * TRACE.level.0 + SQUARE.level.0
}
