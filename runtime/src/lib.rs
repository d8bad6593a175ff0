//! The runtime of thex: runs circuits on ciphertexts, and simulates them without.
//!
//! * [`keys`]: client and server keys, their files;
//! * [`client`]: values → ciphertexts → values;
//! * [`source`]: where those values come from: a data set, a [`text`] or an [`image`];
//! * [`share`]: results that others than the key's owner may see;
//! * [`labels`]: names for the classes that come out;
//! * [`executor`]: the circuit on ciphertexts, without any secret;
//! * `cuda` (with that feature): the executor's kernels on an NVIDIA GPU;
//! * [`run`]: one such run: watched, stopped, resumed from a [`checkpoint`]; [`memory`]: what it will need;
//! * [`ranks`]: one run by several processes, on one machine or many;
//! * [`inference`]: all of a run, in memory;
//! * [`simulate`]: the same circuit on phases, with the noise that the model predicts;
//! * [`calibrate`]: how long each kernel takes on this machine; [`mod@bench`]: that, and where a circuit's time goes, for people;
//! * [`commands`]: four commands of both programs, `thex` and `thex-runtime`.
//!
//! **Invariant:** this crate knows no ONNX, no IR and no pass.

pub mod bench;
pub mod calibrate;
pub mod checkpoint;
pub mod ciphertext;
pub mod client;
pub mod commands;
mod container;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod error;
pub mod executor;
pub mod image;
pub mod inference;
mod kernels;
pub mod keys;
pub mod labels;
pub mod memory;
pub mod npz;
pub mod progress;
pub mod ranks;
pub mod run;
pub mod share;
pub mod simulate;
pub mod source;
mod state;
pub mod text;

pub use calibrate::KernelTimes;
pub use checkpoint::{Checkpoint, Identity};
pub use ciphertext::{CiphertextInfo, EncryptedInputs, EncryptedOutputs};
pub use container::check_writable;
pub use error::{ErrorKind, Result, RuntimeError};
pub use executor::{Backend, CpuBackend, Executor};
pub use keys::{ClientKey, ExpandedServerKey, KeyInfo, ServerKey};
pub use memory::Prediction;
pub use progress::Progress;
pub use run::{Run, RunOptions};
pub use simulate::{Simulation, Simulator};

#[cfg(test)]
mod tests;
