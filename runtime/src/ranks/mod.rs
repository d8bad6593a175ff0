//! Runs that several processes share, on one machine or many: the *ranks* of MPI.
//!
//! * [`Exchange`]: how ranks talk; `mpi` (with that feature) does it by an MPI library, tests by threads;
//! * [`RankedBackend`]: a backend that splits each batch over the ranks and gathers what they computed;
//! * [`samples`]: products whose samples share a mask travel with one;
//! * [`start`]: what the ranks of a run must have in common, and how many threads each takes;
//! * [`volume`]: how many bytes that is, and what more ranks would bring.
//!
//! All ranks hold circuit and server key, and every ciphertext that is alive: each rank runs every instruction, and of a batch of rotations,
//! keyswitches or packs computes a share. Every ciphertext is computed by itself, so that the result has the bytes that one process gives,
//! on processors of one type, and any rank can write a checkpoint that any number of ranks goes on from.
//!
//! Alternative rejected: ciphertexts that only the ranks have that read them, tokens apart. What attention packs goes to all ranks anyway,
//! there are fewer tokens than ranks where traffic matters, and checkpoints would have to be collected.

mod backend;
#[cfg(feature = "mpi")]
pub mod mpi;
pub(crate) mod resume;
pub mod samples;
mod split;
pub mod start;
pub mod volume;

use std::sync::mpsc::Receiver;

pub use backend::{Kind, RankedBackend, Traffic};

use crate::error::{Result, RuntimeError};

/// How the ranks of a run exchange words. All ranks make the same calls in the same order.
pub trait Exchange: Sync {
    /// Number of this rank, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn size(&self) -> usize;

    /// Starts to send `own` to all ranks and to receive theirs, `counts[r]` words from rank r, in order of rank.
    ///
    /// # Errors
    /// The exchange has ended, or there are more words than can be sent at once.
    fn gather(&self, own: Vec<u64>, counts: &[usize]) -> Result<Arrival>;
}

/// Words of all ranks that are under way.
pub struct Arrival(Receiver<Vec<u64>>);

impl Arrival {
    /// What arrives through a channel.
    #[must_use]
    pub fn new(receiver: Receiver<Vec<u64>>) -> Self {
        Self(receiver)
    }

    /// Waits for them.
    ///
    /// # Errors
    /// The exchange has ended.
    pub fn wait(self) -> Result<Vec<u64>> {
        self.0.recv().map_err(|_| RuntimeError::Internal("the exchange between ranks ended early".into()))
    }
}

/// Words that go in one call where there are many: 32 MB.
const MOST_WORDS: usize = 1 << 22;

/// One word of each rank, in order of rank.
pub(crate) fn gather_word(exchange: &dyn Exchange, own: u64) -> Result<Vec<u64>> {
    exchange.gather(vec![own], &vec![1; exchange.size()])?.wait()
}

/// Words of rank 0, on all ranks; the others give none.
pub(crate) fn broadcast(exchange: &dyn Exchange, words: Vec<u64>) -> Result<Vec<u64>> {
    let length = gather_word(exchange, words.len() as u64)?[0] as usize;
    let mut out = Vec::with_capacity(length);
    let mut counts = vec![0; exchange.size()];
    for start in (0..length).step_by(MOST_WORDS) {
        counts[0] = MOST_WORDS.min(length - start);
        let own = if exchange.rank() == 0 { words[start..start + counts[0]].to_vec() } else { Vec::new() };
        out.extend(exchange.gather(own, &counts)?.wait()?);
    }
    Ok(out)
}

/// A text of each rank, in order of rank.
pub(crate) fn gather_text(exchange: &dyn Exchange, own: &str) -> Result<Vec<String>> {
    let lengths: Vec<usize> = gather_word(exchange, own.len() as u64)?.into_iter().map(|n| n as usize).collect();
    let words: Vec<u64> = own.bytes().map(u64::from).collect();
    let arrived = exchange.gather(words, &lengths)?.wait()?;
    let mut bytes = arrived.into_iter().map(|word| word as u8);
    Ok(lengths
        .iter()
        .map(|&n| String::from_utf8_lossy(&bytes.by_ref().take(n).collect::<Vec<u8>>()).into_owned())
        .collect())
}

#[cfg(test)]
pub(crate) mod local;
#[cfg(test)]
mod tests;
