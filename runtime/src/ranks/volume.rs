//! How much ranks exchange, and what more of them would bring, before there are any.
//!
//! **Volume.** Every result of a look-up, product, keyswitch or pack goes once to every rank: of V bytes a circuit has, each of R ranks receives
//! V·(R − 1)/R if it computes V/R. That is exact, and what a run counts.
//!
//! **Time** of one instruction on R ranks, each a machine as the one that was measured, behind a network that gives each rank so many bytes a
//! second each way. Its batch goes in k rounds, which take c to compute and m to exchange, `m = latency·⌈log₂ R⌉ + bytes·(R − 1)/(R·bandwidth)`;
//! one is exchanged while the next is computed: `c + (k − 1)·max(c, m) + m`. Linear maps are repeated on every rank. Left out: what checkpoints
//! and agreeing on parts take, ranks that are not equally fast, and other traffic.

use std::fmt::Write;

use serde::Serialize;
use thex_circuit::{Circuit, Instruction, Parameters};

use super::backend::{Kind, grain};
use super::samples::{Layout, Samples};
use crate::calibrate::KernelTimes;

/// Bytes that a circuit's results travel in, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// Of look-ups.
    pub pbs: u64,
    /// Of products.
    pub lut_product: u64,
    /// Of keyswitches.
    pub keyswitch: u64,
    /// Of packs.
    pub pack: u64,
}

impl Volume {
    /// Of a whole circuit.
    #[must_use]
    pub fn new(circuit: &Circuit) -> Self {
        let mut volume = Self::default();
        for step in circuit.instructions.iter().filter_map(|x| Step::new(x, &circuit.parameters)) {
            *volume.of_mut(step.kind) += step.bytes;
        }
        volume
    }

    /// Of one kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Pbs => self.pbs,
            Kind::LutProduct => self.lut_product,
            Kind::Keyswitch => self.keyswitch,
            Kind::Pack => self.pack,
        }
    }

    fn of_mut(&mut self, kind: Kind) -> &mut u64 {
        match kind {
            Kind::Pbs => &mut self.pbs,
            Kind::LutProduct => &mut self.lut_product,
            Kind::Keyswitch => &mut self.keyswitch,
            Kind::Pack => &mut self.pack,
        }
    }

    /// Of all kinds.
    #[must_use]
    pub fn whole(&self) -> u64 {
        Kind::ALL.iter().map(|&kind| self.of(kind)).sum()
    }
}

/// A batch that ranks share.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// What it is a batch of.
    pub kind: Kind,
    /// ν of its rotations.
    pub extension: u32,
    /// Rotations, keyswitches or packed ciphertexts.
    pub count: u64,
    /// Bytes of its results as they travel.
    pub bytes: u64,
}

impl Step {
    /// `None` for what every rank computes for itself.
    #[must_use]
    pub fn new(x: &Instruction, p: &Parameters) -> Option<Self> {
        let (kind, count, layout) = match x {
            Instruction::Linear(_) => return None,
            Instruction::Keyswitch(_) => {
                (Kind::Keyswitch, x.keyswitch_count(), Layout::Plain(p.lwe_dimension.to_lwe_size().0))
            }
            Instruction::Pbs(_) => (Kind::Pbs, x.pbs_count(), Layout::Plain(p.big_lwe_size())),
            Instruction::Pack(_) => (Kind::Pack, x.pack_count(), Layout::Plain(p.glwe_words())),
            Instruction::LutProduct(l) => {
                let samples = Samples::new(l.slots as usize, l.stride as usize, p);
                (Kind::LutProduct, x.pbs_count(), Layout::Samples(samples))
            }
            Instruction::ExternalProduct(l) => {
                let samples = Samples::new(l.slots as usize, l.stride as usize, p);
                (Kind::LutProduct, x.pbs_count(), Layout::Samples(samples))
            }
        };
        Some(Self { kind, extension: x.extension(), count, bytes: (x.units() * layout.sent() * 8) as u64 })
    }

    /// Seconds on so many ranks: of all, and of those what is spent waiting for the network.
    fn seconds(&self, ranks: u64, times: &KernelTimes, network: &Network) -> (f64, f64) {
        if ranks == 1 {
            return (1e-9 * times.batch_ns(self.kind, self.count, self.extension), 0.0);
        }
        let round = ranks * grain(self.kind, self.extension, times.threads);
        let rounds = self.count.div_ceil(round).max(1);
        let compute = 1e-9 * times.batch_ns(self.kind, self.count.div_ceil(rounds * ranks), self.extension);
        let exchange = network.seconds(self.bytes as f64 / rounds as f64, ranks);
        let waiting = (rounds - 1) as f64 * (exchange - compute).max(0.0) + exchange;
        (rounds as f64 * compute + waiting, waiting)
    }
}

/// What is between ranks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Network {
    /// What one rank can send, and at the same time receive.
    pub bytes_per_second: f64,
    /// Of one message.
    pub latency_seconds: f64,
}

impl Network {
    /// Until all ranks have `bytes` of which each had a share.
    fn seconds(&self, bytes: f64, ranks: u64) -> f64 {
        let others = 1.0 - 1.0 / ranks as f64;
        (ranks as f64).log2().ceil() * self.latency_seconds + bytes * others / self.bytes_per_second
    }
}

/// `10Gbit` or `100Mbit`, in bytes a second.
///
/// # Errors
/// A sentence that says what it should be.
pub fn parse_bandwidth(text: &str) -> std::result::Result<f64, String> {
    let wrong = || format!("`{text}` is no bandwidth; write for example 10Gbit or 100Mbit");
    let unit =
        [("Gbit", 1e9), ("Mbit", 1e6)].into_iter().find_map(|(name, bits)| Some((text.strip_suffix(name)?, bits)));
    let (number, bits) = unit.ok_or_else(wrong)?;
    let number = number.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0).ok_or_else(wrong)?;
    Ok(number * bits / 8.0)
}

/// `50us` or `0.2ms`, in seconds.
///
/// # Errors
/// A sentence that says what it should be.
pub fn parse_latency(text: &str) -> std::result::Result<f64, String> {
    let wrong = || format!("`{text}` is no latency; write for example 50us or 0.2ms");
    let unit = [("us", 1e-6), ("ms", 1e-3)].into_iter().find_map(|(name, s)| Some((text.strip_suffix(name)?, s)));
    let (number, seconds) = unit.ok_or_else(wrong)?;
    let number = number.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0).ok_or_else(wrong)?;
    Ok(number * seconds)
}

/// Ranks of the table.
pub const RANKS: [u64; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// A run on so many ranks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ScalingRow {
    /// R.
    pub ranks: u64,
    /// Of the whole run.
    pub seconds: f64,
    /// Of those, waiting for the network.
    pub waiting_seconds: f64,
    /// Of those, linear maps, which every rank computes.
    pub repeated_seconds: f64,
    /// How many times as fast as one rank.
    pub speedup: f64,
    /// Bytes that each rank receives.
    pub received_bytes: f64,
}

/// Batches one after another, and seconds of what every rank computes, on more and more ranks.
#[must_use]
pub fn scaling(steps: &[Step], repeated_seconds: f64, times: &KernelTimes, network: &Network) -> Vec<ScalingRow> {
    let bytes: u64 = steps.iter().map(|step| step.bytes).sum();
    let of = |ranks: u64| {
        let (seconds, waiting) = steps
            .iter()
            .map(|step| step.seconds(ranks, times, network))
            .fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        (seconds + repeated_seconds, waiting)
    };
    let (alone, _) = of(1);
    RANKS
        .map(|ranks| {
            let (seconds, waiting_seconds) = of(ranks);
            let received_bytes = bytes as f64 * (1.0 - 1.0 / ranks as f64);
            ScalingRow {
                ranks,
                seconds,
                waiting_seconds,
                repeated_seconds,
                speedup: alone / seconds.max(1e-12),
                received_bytes,
            }
        })
        .into()
}

/// A circuit on many machines.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scaling {
    /// What is between them.
    pub network: Network,
    /// What its results travel in.
    pub volume: Volume,
    /// On more and more ranks.
    pub rows: Vec<ScalingRow>,
}

impl Scaling {
    /// Of a circuit on machines as the one that was measured.
    #[must_use]
    pub fn new(circuit: &Circuit, times: &KernelTimes, network: Network) -> Self {
        let steps: Vec<Step> = circuit.instructions.iter().filter_map(|x| Step::new(x, &circuit.parameters)).collect();
        let linear = circuit.instructions.iter().filter(|x| matches!(x, Instruction::Linear(_)));
        let repeated = 1e-9 * linear.map(|x| times.instruction_ns(x)).sum::<f64>();
        Self { network, volume: Volume::new(circuit), rows: scaling(&steps, repeated, times, &network) }
    }

    /// For people.
    #[must_use]
    pub fn text(&self, threads: usize) -> String {
        let mb = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
        let v = &self.volume;
        format!(
            "\nranks exchange {} in all: look-ups {}, products {}, keyswitches {}, packs {}\n{}",
            mb(v.whole()),
            mb(v.pbs),
            mb(v.lut_product),
            mb(v.keyswitch),
            mb(v.pack),
            text(&self.rows, threads, &self.network)
        )
    }
}

/// Rows for people, and what they rest on.
#[must_use]
pub fn text(rows: &[ScalingRow], threads: usize, network: &Network) -> String {
    let mut out = format!(
        "modelled: ranks of {threads} threads as here, {:.2} Gbit/s each way for each, {:.0} us a message\n\n{:>5} {:>11} {:>8} {:>9} {:>12} {:>11}\n",
        network.bytes_per_second * 8e-9,
        network.latency_seconds * 1e6,
        "ranks",
        "seconds",
        "speedup",
        "waiting",
        "linear maps",
        "received"
    );
    for r in rows {
        let share = |seconds: f64| 100.0 * seconds / r.seconds.max(1e-12);
        let _ = writeln!(
            out,
            "{:>5} {:>11.2} {:>8.1} {:>7.1} % {:>10.1} % {:>8.1} MB",
            r.ranks,
            r.seconds,
            r.speedup,
            share(r.waiting_seconds),
            share(r.repeated_seconds),
            r.received_bytes / 1e6
        );
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::bench::TIMES;

    fn look_ups(count: u64) -> Step {
        Step { kind: Kind::Pbs, extension: 0, count, bytes: count * 2049 * 8 }
    }

    /// 64,000 look-ups at 5 ms, and a network so fast that it does not count: time falls with the ranks, to the linear maps.
    #[test]
    fn much_work_scales_and_what_is_repeated_does_not() {
        let network = Network { bytes_per_second: 1e12, latency_seconds: 0.0 };
        let rows = scaling(&[look_ups(64_000)], 10.0, &TIMES, &network);
        assert!((rows[0].seconds - 330.0).abs() < 1e-6, "{rows:?}");
        assert!((rows[3].seconds - 50.0).abs() < 0.1, "{rows:?}");
        assert!((rows[3].received_bytes - 64_000.0 * 2049.0 * 7.0).abs() < 1.0);
        assert!(rows[8].speedup < 33.0 && rows[8].repeated_seconds / rows[8].seconds > 0.8, "{rows:?}");
    }

    /// A round of two ranks of two threads: 64 look-ups, 160 ms, 1.05 MB. Behind 1 MB/s nothing hides half of it, 0.525 s; behind
    /// 100 MB/s only the last round shows.
    #[test]
    fn a_slow_network_shows_and_a_fast_one_hides_behind_the_work() {
        let slow = look_ups(640).seconds(2, &TIMES, &Network { bytes_per_second: 1e6, latency_seconds: 0.0 });
        assert!((slow.0 - (0.16 + 10.0 * 0.524_544)).abs() < 1e-3, "{slow:?}");
        let fast = look_ups(640).seconds(2, &TIMES, &Network { bytes_per_second: 1e8, latency_seconds: 1e-3 });
        assert!((fast.0 - (1.6 + 0.005_245 + 1e-3)).abs() < 1e-3, "{fast:?}");
        assert!((fast.1 - 0.006_245).abs() < 1e-4, "{fast:?}");
    }

    #[test]
    fn networks_are_read() {
        assert_eq!(parse_bandwidth("10Gbit"), Ok(1.25e9));
        assert_eq!(parse_bandwidth("100 Mbit"), Ok(1.25e7));
        assert_eq!((parse_latency("50us"), parse_latency("0.5ms")), (Ok(50.0 * 1e-6), Ok(0.5e-3)));
        for wrong in ["", "10", "Gbit", "-1Gbit", "0Gbit", "nanGbit", "infGbit", "10GB"] {
            assert!(parse_bandwidth(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "5", "us", "-1us", "nanms", "1s"] {
            assert!(parse_latency(wrong).is_err(), "{wrong}");
        }
    }
}
