//! The compiler of thex: ONNX in, a homomorphic-encryption circuit and a client bundle out.
//!
//! * [`import`]: ONNX → IR, checked against tract's own run of the model;
//! * [`pipeline`]: import, passes, emission;
//! * [`emit`]: placed graph → circuit and bundle;
//! * [`export`]: the approximated model as an ONNX file;
//! * [`evaluate`]: a compiled model against its float original, on data;
//! * [`report`]: what a circuit is and costs;
//! * [`demo`]: all of it on a model and image that come with the project.

pub mod demo;
pub mod emit;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod import;
pub mod pipeline;
pub mod report;

pub use error::{CompileError, Result};
