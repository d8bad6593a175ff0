//! How a long run tells where it is.

use std::sync::atomic::{AtomicU64, Ordering};

/// Receives the progress of a run. Called from many threads.
pub trait Progress: Sync {
    /// A step starts; `name` is its provenance. `total` is the number of blind rotations of the whole run.
    fn step(&self, name: &str, total: u64);
    /// `count` more blind rotations are done.
    fn advance(&self, count: u64);
}

/// Listens to nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _name: &str, _total: u64) {}
    fn advance(&self, _count: u64) {}
}

/// Counts blind rotations.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Blind rotations so far.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Progress for Counter {
    fn step(&self, _name: &str, _total: u64) {}
    fn advance(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }
}
