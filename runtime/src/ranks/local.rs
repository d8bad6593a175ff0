//! The exchange among threads of one process, for tests.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};

use super::{Arrival, Exchange};
use crate::error::Result;

/// What ranks have given so far for one call, and whom to tell.
type Call = BTreeMap<usize, (Vec<u64>, Sender<Vec<u64>>)>;

/// One rank of several.
pub(crate) struct Local {
    rank: usize,
    size: usize,
    next: AtomicUsize,
    calls: Arc<Mutex<BTreeMap<usize, Call>>>,
}

impl Local {
    pub(crate) fn ranks(size: usize) -> Vec<Self> {
        let calls = Arc::new(Mutex::new(BTreeMap::new()));
        (0..size).map(|rank| Self { rank, size, next: AtomicUsize::new(0), calls: calls.clone() }).collect()
    }
}

impl Exchange for Local {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn gather(&self, own: Vec<u64>, counts: &[usize]) -> Result<Arrival> {
        assert_eq!(own.len(), counts[self.rank], "what a rank sends is what the others expect");
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel();
        let mut calls = self.calls.lock().unwrap();
        let call = calls.entry(number).or_default();
        call.insert(self.rank, (own, sender));
        if call.len() == self.size {
            let whole: Vec<u64> = call.values().flat_map(|(words, _)| words.iter().copied()).collect();
            assert_eq!(whole.len(), counts.iter().sum::<usize>());
            calls.remove(&number).unwrap().into_values().for_each(|(_, sender)| _ = sender.send(whole.clone()));
        }
        Ok(Arrival::new(receiver))
    }
}
