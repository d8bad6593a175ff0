//! The leaf crate of thex: what the compiler writes and the runtime reads.
//!
//! It holds the cryptographic [`Parameters`] and the [noise] that each instruction adds, the
//! [`Circuit`] that a server runs, the [`ClientBundle`] that a client keeps, the [mod@file] container
//! that both travel in, and the few [clear] tensor operations that a bundle may carry (which
//! the compiler's IR reuses, so that there is one interpreter).
//!
//! **Invariant:** this crate knows no ONNX, no IR and no secret key.

pub mod bundle;
pub mod clear;
pub mod error;
pub mod external;
pub mod file;
pub mod instruction;
pub mod interface;
pub mod noise;
pub mod params;
mod part;
pub mod security;

pub use bundle::{ClientBundle, Encoding, Port};
pub use error::CircuitError;
pub use instruction::{Circuit, CircuitInfo, Instruction, LayerInfo};
pub use interface::{FrozenInput, ImageFormat, Interface, TextFormat, TokenRole};
pub use noise::NoiseModel;
pub use params::Parameters;
