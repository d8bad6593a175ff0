//! Fuzzing of what reads files from outside: the ONNX frontend (`import`) and the loaders of circuits, bundles, keys and
//! ciphertexts (`files`). Each has a target for libFuzzer and a plain loop that needs no nightly compiler.

pub mod files;
#[cfg(feature = "import")]
pub mod import;
mod random;

pub use random::Random;
