//! Read-only analyses.

mod classes;
mod demand;
mod privacy;

pub use classes::{Classes, classes};
pub(crate) use demand::needed_elements;
pub use demand::{Demand, broadcast_map, demand, element_map};
pub use privacy::{client_nodes, private_nodes};
