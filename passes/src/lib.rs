//! The passes of thex.
//!
//! * [`transform`]: rewrites that keep the stage or make high-level operations circuit-friendly;
//! * [`lower`]: from calibrated tensors to homomorphic operations with encodings;
//! * [`params`]: which cryptographic parameters there are, and what they cost;
//! * [`choice`]: which of its forms each non-linear node takes;
//! * [`analysis`]: read-only facts that passes ask for.
//!
//! To add a pass: write a type that implements [`Pass`] in a file named after it, add it to
//! [`registry`], and give it a snapshot test.

pub mod analysis;
pub mod choice;
pub mod error;
pub mod lower;
pub mod manager;
pub mod options;
pub mod params;
pub mod pass;
pub mod registry;
pub mod transform;

pub use error::PassError;
pub use manager::{PassManager, PassRecord};
pub use options::PassOption;
pub use pass::{ErrorSource, Errors, Measured, Pass, PassCx, Precision, Probe, Profile, Samples};
