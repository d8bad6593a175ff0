//! The compiler of thex: ONNX in, a homomorphic-encryption circuit and a client bundle out.
//!
//! * [`import`]: ONNX → IR, checked against tract's own run of the model;
//! * [`pipeline`]: import, passes, emission;
//! * [`interface`]: tokenizer, class names, image normalisation for the bundle;
//! * [`emit`]: placed graph → circuit and bundle;
//! * [`export`]: the approximated model as an ONNX file;
//! * [`evaluate`]: a compiled model against its float original, on data;
//! * [`auto`]: the forms that a budget of accuracy or time allows;
//! * [`trace`]: which node of a circuit loses the accuracy; [`compare`]: profiles side by side; [`interval`]: how sure a share is;
//! * [`distill`]: an approximated model learns to do what its original does;
//! * [`report`]: what a circuit is and costs, as text, as JSON, and as a page; [`bundle_report`]: what a client bundle holds;
//! * [`scale`]: what models of any size would cost, on paper;
//! * [`diff`]: what one pass changes;
//! * [`explain`]: what the codes of errors mean;
//! * [`demo`]: all of it on a model and image that come with the project.

pub mod auto;
pub mod bundle_report;
pub mod compare;
pub mod demo;
pub mod diff;
pub mod distill;
pub mod emit;
pub mod error;
pub mod evaluate;
pub mod explain;
pub mod export;
pub mod freeze;
pub mod import;
pub mod interface;
pub mod interval;
mod missing;
pub mod noise_check;
pub mod pipeline;
mod probe;
pub mod report;
pub mod scale;
pub mod trace;

pub use error::{CompileError, Result};
