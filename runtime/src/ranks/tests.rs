//! Ranks as threads: the bytes of one process, and as many of them sent as the model says.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use thex_circuit::Circuit;

use super::local::Local;
use super::volume::Volume;
use super::{Kind, RankedBackend, broadcast, gather_text};
use crate::progress::{Counter, Progress, Silent};
use crate::tests::circuits::{all_five, extended, inputs};
use crate::tests::{SHARED, encrypt};
use crate::{Checkpoint, Executor, Identity, Run, RunOptions, RuntimeError};

/// Runs `work` on each rank, on a pool of so many threads; gives what it gave, in order of rank.
fn on_ranks<T: Send>(threads: &[usize], work: impl Fn(&RankedBackend<'_>) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let rank = |(exchange, &own): (Local, &usize)| {
            let work = &work;
            scope.spawn(move || {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(own).build().unwrap();
                let backend = RankedBackend::new(&SHARED.backend, &exchange, threads.to_vec());
                pool.install(|| work(&backend))
            })
        };
        let ranks: Vec<_> = Local::ranks(threads.len()).into_iter().zip(threads).map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn alone(circuit: &Circuit, lwes: &[u64]) -> Vec<u64> {
    Executor::new(circuit, &SHARED.backend).unwrap().run(lwes, &Silent).unwrap()
}

/// Bytes that were sent and received, by kind.
type Counted = [(u64, u64); 4];

fn counted(backend: &RankedBackend<'_>) -> Counted {
    Kind::ALL.map(|kind| (backend.traffic().sent_bytes(kind), backend.traffic().received_bytes(kind)))
}

#[test]
fn ranks_give_the_bytes_of_one_process_and_send_what_is_modelled() {
    let lwes = encrypt(&inputs()).concat();
    for circuit in [all_five(), extended(1)] {
        let (expected, volume) = (alone(&circuit, &lwes), Volume::new(&circuit));
        for threads in [&[1][..], &[1, 1], &[2, 1, 1], &[1; 5]] {
            let ran = on_ranks(threads, |backend| {
                let counter = Counter::default();
                let outputs = Executor::new(&circuit, backend).unwrap().run(&lwes, &counter).unwrap();
                (outputs == expected, counter.done(), counted(backend))
            });
            for (rank, (same, done, counted)) in ran.iter().enumerate() {
                assert!(same, "rank {rank} of {threads:?}");
                assert_eq!(*done, circuit.pbs_count());
                for (kind, (sent, received)) in Kind::ALL.into_iter().zip(counted) {
                    assert_eq!(sent + received, volume.of(kind), "{kind:?} of rank {rank} of {threads:?}");
                }
            }
            for kind in Kind::ALL {
                let sent: u64 = ran.iter().map(|(.., counted)| counted[kind as usize].0).sum();
                assert_eq!(sent, volume.of(kind), "{kind:?} of {threads:?}");
            }
        }
    }
}

fn identity() -> Identity {
    Identity { circuit: "a".into(), key: "b".into(), input: "c".into() }
}

/// Stops the run that it watches once so many rotations are done.
struct Stopper {
    after: u64,
    done: Counter,
    stop: AtomicBool,
}

impl Progress for Stopper {
    fn step(&self, _name: &str, _total: u64) {}
    fn advance(&self, count: u64) {
        self.done.advance(count);
        let enough = self.done.done() >= self.after;
        self.stop.fetch_or(enough, std::sync::atomic::Ordering::SeqCst);
    }
}

/// Goes on with what the folder has, on so many ranks, of which the one at `stops` stops after `after` more rotations.
fn go_on(folder: &Path, threads: &[usize], lwes: &[u64], (stops, after): (usize, u64)) -> Vec<crate::Result<Vec<u64>>> {
    let circuit = all_five();
    on_ranks(threads, |backend| {
        let rank = crate::Backend::exchange(backend).unwrap().rank();
        let after = if rank == stops { after } else { u64::MAX };
        let stopper = Stopper { after, done: Counter::default(), stop: AtomicBool::new(false) };
        let checkpoint = (rank == 0).then(|| Checkpoint::open(folder, identity(), Duration::ZERO).unwrap());
        let options = RunOptions {
            stop: Some(&stopper.stop),
            checkpoint,
            part: Duration::from_millis(1),
            ..RunOptions::new(&stopper)
        };
        let executor = Executor::new(&circuit, backend)?;
        Run::new(&executor, lwes, options)?.complete()
    })
}

/// Stopped by a rank that keeps nothing, gone on by other numbers of ranks, and at last by one process.
#[test]
fn a_checkpoint_goes_on_on_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let lwes = encrypt(&inputs()).concat();
    let circuit = all_five();
    let expected = alone(&circuit, &lwes);
    // The look-ups are less than a batch, and so are the products: each is one part. What is left at last is a linear map.
    for (threads, stops, kept) in [(&[1, 1][..], (1, 1), 8), (&[1, 1, 1], (2, 1), circuit.pbs_count())] {
        for (rank, ended) in go_on(folder.path(), threads, &lwes, stops).into_iter().enumerate() {
            let Err(RuntimeError::Stopped { done, checkpoint, .. }) = ended else { unreachable!("{ended:?}") };
            assert_eq!(done, kept);
            assert_eq!(checkpoint.is_some(), rank == 0);
        }
    }
    for ended in go_on(folder.path(), &[2, 1], &lwes, (0, u64::MAX)) {
        assert!(ended.unwrap() == expected);
    }
    let executor = Executor::new(&circuit, &SHARED.backend).unwrap();
    let checkpoint = Some(Checkpoint::open(folder.path(), identity(), Duration::ZERO).unwrap());
    let mut run = Run::new(&executor, &lwes, RunOptions { checkpoint, ..RunOptions::new(&Silent) }).unwrap();
    assert!(run.complete().unwrap() == expected);
}

#[test]
fn texts_and_long_words_reach_everybody() {
    let told = on_ranks(&[1, 1, 1], |backend| {
        let exchange = crate::Backend::exchange(backend).unwrap();
        let texts = gather_text(exchange, &"é".repeat(exchange.rank())).unwrap();
        let own = if exchange.rank() == 0 { (0..(1 << 22) + 3).collect() } else { Vec::new() };
        (texts, broadcast(exchange, own).unwrap())
    });
    for (texts, words) in told {
        assert_eq!(texts, ["", "é", "éé"]);
        assert!(words.len() == (1 << 22) + 3 && words.iter().enumerate().all(|(i, &w)| i as u64 == w));
    }
}
