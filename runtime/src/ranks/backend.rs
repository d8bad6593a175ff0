//! A backend that computes one rank's share of every batch, and gathers the others'.
//!
//! A batch is cut into rounds, a round into a share for each rank. While the words of a round travel, the next one is computed. Linear
//! maps are repeated on all ranks.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use thex_circuit::Parameters;
use thex_circuit::instruction::Linear;

use super::samples::{Layout, Samples};
use super::split::{by_cost, equal, rounds};
use super::{Arrival, Exchange};
use crate::error::Result;
use crate::executor::{Backend, Ciphertext, Done, ExternalProducts, LookUps, Products};
use crate::kernels::rotate::batch_of;
use crate::kernels::switch;

/// What travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Results of look-ups.
    Pbs,
    /// Results of products, external ones too.
    LutProduct,
    /// Keyswitched ciphertexts.
    Keyswitch,
    /// Packed ciphertexts.
    Pack,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pbs, Self::LutProduct, Self::Keyswitch, Self::Pack];
}

/// Batches of keyswitches, or of packed ciphertexts, that a rank computes before it sends them.
const SWITCH_BATCHES: usize = 4;

/// Rotations, or packed or keyswitched ciphertexts, that a rank with so many threads computes before it sends them.
pub(crate) fn grain(kind: Kind, extension: u32, threads: usize) -> u64 {
    match kind {
        Kind::Pbs | Kind::LutProduct => (batch_of(extension) * threads) as u64,
        Kind::Keyswitch | Kind::Pack => (SWITCH_BATCHES * switch::BATCH) as u64,
    }
}

/// Bytes and time of the exchange, counted on one rank.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: [AtomicU64; 4],
    received: [AtomicU64; 4],
    waited_ns: AtomicU64,
}

impl Traffic {
    /// Bytes of this kind that other ranks got from this one, counted once.
    #[must_use]
    pub fn sent_bytes(&self, kind: Kind) -> u64 {
        8 * self.sent[kind as usize].load(Ordering::Relaxed)
    }

    /// Bytes of this kind that this rank got from others.
    #[must_use]
    pub fn received_bytes(&self, kind: Kind) -> u64 {
        8 * self.received[kind as usize].load(Ordering::Relaxed)
    }

    /// How long this rank had nothing to do but wait for others and for the network.
    #[must_use]
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited_ns.load(Ordering::Relaxed))
    }
}

/// Shares the work of `inner` with the other ranks of an exchange.
pub struct RankedBackend<'a> {
    inner: &'a dyn Backend,
    exchange: &'a dyn Exchange,
    threads: Vec<usize>,
    traffic: Traffic,
}

/// A batch that is to be shared.
struct Batch {
    kind: Kind,
    extension: u32,
    layout: Layout,
    /// Cost before each unit, and of all.
    before: Vec<u64>,
}

/// A round under way.
struct Round {
    units: Range<usize>,
    own: usize,
    arrival: Arrival,
}

impl<'a> RankedBackend<'a> {
    /// `threads` of each rank, in order of rank: the same list on all.
    #[must_use]
    pub fn new(inner: &'a dyn Backend, exchange: &'a dyn Exchange, threads: Vec<usize>) -> Self {
        Self { inner, exchange, threads, traffic: Traffic::default() }
    }

    /// What was exchanged so far.
    #[must_use]
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Computes this rank's share of each round by `compute`, which is given units and the room for their words.
    fn share(
        &self,
        batch: &Batch,
        out: &mut [u64],
        mut compute: impl FnMut(Range<usize>, &mut [u64]) -> Result<()>,
        done: Done<'_>,
    ) -> Result<()> {
        let grain = self.threads.iter().map(|&threads| grain(batch.kind, batch.extension, threads)).sum();
        let mut under_way: Option<Round> = None;
        for units in rounds(&batch.before, grain) {
            let shares = by_cost(&batch.before[units.start..=units.end], &self.threads);
            let own = shares[self.exchange.rank()].clone();
            let own = units.start + own.start..units.start + own.end;
            let mut words = vec![0; own.len() * batch.layout.whole()];
            if !own.is_empty() {
                compute(own, &mut words)?;
            }
            let words = batch.layout.compress(words);
            let counts: Vec<usize> = shares.iter().map(|share| share.len() * batch.layout.sent()).collect();
            let own = words.len();
            let next = Round { units, own, arrival: self.exchange.gather(words, &counts)? };
            if let Some(round) = under_way.replace(next) {
                self.arrive(batch, round, out, done)?;
            }
        }
        under_way.map_or(Ok(()), |round| self.arrive(batch, round, out, done))
    }

    /// Waits for a round and puts it where it belongs.
    fn arrive(&self, batch: &Batch, round: Round, out: &mut [u64], done: Done<'_>) -> Result<()> {
        let start = Instant::now();
        let words = round.arrival.wait()?;
        self.traffic.waited_ns.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        self.traffic.sent[batch.kind as usize].fetch_add(round.own as u64, Ordering::Relaxed);
        let received = words.len() - round.own;
        self.traffic.received[batch.kind as usize].fetch_add(received as u64, Ordering::Relaxed);
        let whole = batch.layout.whole();
        batch.layout.expand(&words, &mut out[round.units.start * whole..round.units.end * whole]);
        if matches!(batch.kind, Kind::Pbs | Kind::LutProduct) {
            done(batch.before[round.units.end] - batch.before[round.units.start]);
        }
        Ok(())
    }
}

impl Backend for RankedBackend<'_> {
    fn parameters(&self) -> &Parameters {
        self.inner.parameters()
    }

    fn largest_extension(&self) -> u32 {
        self.inner.largest_extension()
    }

    fn has_external_products(&self) -> bool {
        self.inner.has_external_products()
    }

    fn threads(&self) -> usize {
        self.threads.iter().sum()
    }

    fn exchange(&self) -> Option<&dyn Exchange> {
        Some(self.exchange)
    }

    fn keyswitch(&self, inputs: &[Ciphertext<'_>], out: &mut [u64]) -> Result<()> {
        let layout = Layout::Plain(self.parameters().lwe_dimension.to_lwe_size().0);
        let batch = Batch { kind: Kind::Keyswitch, extension: 0, layout, before: equal(inputs.len()) };
        self.share(&batch, out, |units, out| self.inner.keyswitch(&inputs[units], out), &|_| ())
    }

    fn pbs(&self, x: &LookUps<'_>, out: &mut [u64], done: Done<'_>) -> Result<()> {
        let layout = Layout::Plain(self.parameters().big_lwe_size());
        let batch = Batch { kind: Kind::Pbs, extension: x.extension, layout, before: equal(x.arguments.len()) };
        let compute = |units: Range<usize>, out: &mut [u64]| {
            let (arguments, tables) = (x.arguments[units.clone()].to_vec(), x.tables[units].to_vec());
            self.inner.pbs(&LookUps { arguments, tables, extension: x.extension }, out, &|_| ())
        };
        self.share(&batch, out, compute, done)
    }

    fn pack(&self, inputs: &[Option<Ciphertext<'_>>], slots: usize, stride: usize, out: &mut [u64]) -> Result<()> {
        let mut before = vec![0];
        for group in inputs.chunks(slots) {
            before.push(before[before.len() - 1] + group.iter().flatten().count() as u64);
        }
        let batch =
            Batch { kind: Kind::Pack, extension: 0, layout: Layout::Plain(self.parameters().glwe_words()), before };
        let compute = |units: Range<usize>, out: &mut [u64]| {
            self.inner.pack(&inputs[units.start * slots..units.end * slots], slots, stride, out)
        };
        self.share(&batch, out, compute, &|_| ())
    }

    fn lut_product(&self, products: &Products<'_>, out: &mut [u64], done: Done<'_>) -> Result<()> {
        let x = products.instruction;
        let samples = Samples::new(x.slots as usize, x.stride as usize, self.parameters());
        let (layout, before) = (Layout::Samples(samples), equal(products.arguments.len()));
        let batch = Batch { kind: Kind::LutProduct, extension: x.extension, layout, before };
        let compute = |units: Range<usize>, out: &mut [u64]| {
            let instruction = &x.part(units.clone());
            let arguments = products.arguments[units.clone()].to_vec();
            let accumulators = products.accumulators[units].to_vec();
            self.inner.lut_product(&Products { arguments, accumulators, instruction }, out, &|_| ())
        };
        self.share(&batch, out, compute, done)
    }

    fn external_product(&self, products: &ExternalProducts<'_>, out: &mut [u64], done: Done<'_>) -> Result<()> {
        let x = products.instruction;
        let size = self.parameters().polynomial_size.0;
        let layout = Layout::Samples(Samples::new(x.slots as usize, x.stride as usize, self.parameters()));
        let mut before = vec![0];
        before.extend(x.terms.iter().scan(0, |sum, &n| {
            *sum += u64::from(n) * u64::from(x.rotations);
            Some(*sum)
        }));
        let compute = |units: Range<usize>, out: &mut [u64]| {
            let each = u64::from(x.rotations);
            let terms = (before[units.start] / each) as usize..(before[units.end] / each) as usize;
            let instruction = &x.part(units, size);
            let (arguments, glwes) = (products.arguments[terms.clone()].to_vec(), products.glwes[terms].to_vec());
            self.inner.external_product(&ExternalProducts { arguments, glwes, instruction }, out, &|_| ())
        };
        let batch = Batch { kind: Kind::LutProduct, extension: 0, layout, before: before.clone() };
        self.share(&batch, out, compute, done)
    }

    fn linear(&self, linear: &Linear, gather: &[Option<Ciphertext<'_>>], out: &mut [u64]) -> Result<()> {
        self.inner.linear(linear, gather, out)
    }

    fn summary(&self) -> Option<String> {
        let sum = |bytes: fn(&Traffic, Kind) -> u64| {
            Kind::ALL.iter().map(|&kind| bytes(&self.traffic, kind)).sum::<u64>() as f64 / 1e6
        };
        Some(format!(
            "rank {} sent {:.1} MB and received {:.1} MB; it waited {:.1} s for others and the network",
            self.exchange.rank(),
            sum(Traffic::sent_bytes),
            sum(Traffic::received_bytes),
            self.traffic.waited().as_secs_f64()
        ))
    }
}
