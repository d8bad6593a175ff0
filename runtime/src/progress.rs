//! How a long run tells where it is.

use std::sync::atomic::{AtomicU64, Ordering};

/// Receives the progress of a run. Called from many threads.
pub trait Progress: Sync {
    /// A step starts; `name` is its provenance. `total` is the number of blind rotations of the whole run.
    fn step(&self, name: &str, total: u64);
    /// `count` more blind rotations are done.
    fn advance(&self, count: u64);
    /// A checkpoint was found. Called once, before the first step.
    fn resumed(&self, _resumed: &Resumed) {}
    /// What was done so far is on disk: so many blind rotations, and so many bytes written for this checkpoint.
    fn kept(&self, _done: u64, _bytes: u64) {}
}

/// What a run starts from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// Blind rotations that need not be done again; 0 where no checkpoint could be used.
    pub done: u64,
    /// Why newer checkpoints were set aside, a sentence each.
    pub damaged: Vec<String>,
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
