//! What `bench` reports: how fast this machine's kernels are, and where the time of a circuit goes.
//!
//! Kernels are measured by [`calibrate`](crate::calibrate) on synthetic keys, so that no key is needed, and a circuit's time follows from
//! them instruction by instruction. What is not blind rotation (keyswitches, packing, linear maps) is overhead, to be watched: the
//! ratio of the whole to PBS count × PBS time says how far a circuit is from the least that its bootstraps allow.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use thex_circuit::{Circuit, Instruction, Parameters};

use crate::calibrate::{KernelTimes, measure};
use crate::error::{Result, RuntimeError};
use crate::memory::Prediction;
use crate::ranks::volume::{Network, Scaling, parse_bandwidth, parse_latency};

/// Measure the kernels on this machine and, given a circuit, say where its time goes.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// The circuit that `compile` wrote: adds the share of each kind of instruction in its time, and its memory.
    #[arg(value_name = "OUT.circuit")]
    pub circuit: Option<PathBuf>,
    /// Threads; as many as there are processors if not given.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub threads: usize,
    /// Cryptographic parameters to measure, as `compile --parameters` takes them; without a circuit the standard set if not given.
    #[arg(long, value_name = "SET", conflicts_with = "circuit")]
    pub parameters: Option<Parameters>,
    /// What the circuit would take if 1 to 256 machines as this one shared it (docs/MPI.md), each behind a network of this bandwidth: 10Gbit.
    #[arg(long, value_name = "BANDWIDTH", value_parser = parse_bandwidth)]
    pub bandwidth: Option<f64>,
    /// With --bandwidth: the latency of a message.
    #[arg(long, value_name = "LATENCY", default_value = "50us", requires = "bandwidth", value_parser = parse_latency)]
    pub latency: f64,
    /// One JSON object on standard output; times in nanoseconds.
    #[arg(long)]
    pub json: bool,
}

impl BenchArgs {
    /// The network that was asked about.
    #[must_use]
    pub fn network(&self) -> Option<Network> {
        self.bandwidth.map(|bytes_per_second| Network { bytes_per_second, latency_seconds: self.latency })
    }
}

/// All instructions of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KindRow {
    /// `pbs`, `lut_product`, `external_product`, `keyswitch`, `pack`, `linear`.
    pub kind: &'static str,
    /// How many instructions.
    pub instructions: usize,
    /// Rotations, keyswitches, packed ciphertexts or multiply-adds.
    pub units: u64,
    /// Their predicted time.
    pub seconds: f64,
    /// Part of the whole, 0 to 1.
    pub share: f64,
}

/// Where the time of a circuit goes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CircuitCost {
    /// Digest of the circuit.
    pub digest: String,
    /// Blind rotations.
    pub pbs_count: u64,
    /// Plain blind rotations that they are as much work as: 2^ν for each of extension ν.
    pub rotation_work: u64,
    /// Time that is predicted for a run.
    pub seconds: f64,
    /// Those × time of a PBS in full batches: the least that the bootstraps take.
    pub pbs_seconds: f64,
    /// The one divided by the other.
    pub over_pbs: f64,
    /// Part of the time that is blind rotation (`pbs`, `lut_product` and `external_product`), 0 to 1.
    pub rotation_share: f64,
    /// Kinds of instructions, the dearest first.
    pub kinds: Vec<KindRow>,
    /// Predicted peak of memory.
    pub peak_memory_bytes: u64,
    /// The expanded keys' part of it.
    pub key_memory_bytes: u64,
}

/// Kernels of a machine, and a circuit on it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchReport {
    /// The parameter set, as text.
    pub parameters: String,
    /// The kernels.
    pub kernels: KernelTimes,
    /// Weights times words of a ciphertext, in linear maps, a nanosecond.
    pub linear_words_per_ns: f64,
    /// The circuit, if one was given.
    pub circuit: Option<CircuitCost>,
    /// That circuit on many machines, if a network was given too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
}

/// `4550 PBS`, and where some have an extension, how many plain ones they are as much work as.
#[must_use]
pub fn rotations_text(pbs: u64, work: u64) -> String {
    if work == pbs {
        format!("{pbs} PBS")
    } else {
        format!("{pbs} PBS (as much work as {work}, since some are extended)")
    }
}

const KINDS: [&str; 6] = ["pbs", "lut_product", "external_product", "keyswitch", "pack", "linear"];

fn units(x: &Instruction) -> u64 {
    x.pbs_count() + x.keyswitch_count() + x.pack_count() + x.multiply_adds()
}

fn kind_row(kind: &'static str, circuit: &Circuit, times: &KernelTimes, whole: f64) -> KindRow {
    let of_kind: Vec<&Instruction> = circuit.instructions.iter().filter(|x| x.mnemonic() == kind).collect();
    let seconds = of_kind.iter().map(|x| times.instruction_ns(x)).sum::<f64>() * 1e-9;
    KindRow {
        kind,
        instructions: of_kind.len(),
        units: of_kind.iter().map(|x| units(x)).sum(),
        seconds,
        share: if whole > 0.0 { seconds / whole } else { 0.0 },
    }
}

impl CircuitCost {
    /// From kernels measured under the circuit's parameters.
    #[must_use]
    pub fn new(circuit: &Circuit, digest: String, times: &KernelTimes) -> Self {
        let seconds = times.estimate(circuit);
        let pbs_seconds = circuit.rotation_work() as f64 * times.pbs_ns * 1e-9;
        let mut kinds: Vec<KindRow> = KINDS.map(|kind| kind_row(kind, circuit, times, seconds)).into();
        kinds.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let rotations = kinds.iter().filter(|k| matches!(k.kind, "pbs" | "lut_product" | "external_product"));
        let memory = Prediction::new(circuit, times.threads);
        Self {
            digest,
            pbs_count: circuit.pbs_count(),
            rotation_work: circuit.rotation_work(),
            seconds,
            pbs_seconds,
            over_pbs: if pbs_seconds > 0.0 { seconds / pbs_seconds } else { 0.0 },
            rotation_share: rotations.map(|k| k.share).sum(),
            kinds,
            peak_memory_bytes: memory.peak(),
            key_memory_bytes: memory.keys,
        }
    }

    fn text(&self, times: &KernelTimes) -> String {
        let mut out =
            format!("\n{:<17} {:>13} {:>15} {:>9} {:>7}\n", "kind", "instructions", "units", "seconds", "share");
        for k in self.kinds.iter().filter(|k| k.instructions > 0) {
            let share = 100.0 * k.share;
            let _ = writeln!(
                out,
                "{:<17} {:>13} {:>15} {:>9.2} {share:>5.1} %",
                k.kind, k.instructions, k.units, k.seconds
            );
        }
        let work = rotations_text(self.pbs_count, self.rotation_work);
        let _ = writeln!(
            out,
            "\n{work} × {:.2} ms = {:.1} s; the whole is predicted to take {:.1} s, {:.2} times that\n\
             blind rotation {:.1} %, everything else {:.1} %\n\
             memory {:.0} MB at the peak with {} threads, {:.0} MB of it keys",
            times.pbs_ns * 1e-6,
            self.pbs_seconds,
            self.seconds,
            self.over_pbs,
            100.0 * self.rotation_share,
            100.0 * (1.0 - self.rotation_share),
            self.peak_memory_bytes as f64 / 1e6,
            times.threads,
            self.key_memory_bytes as f64 / 1e6,
        );
        out
    }
}

impl BenchReport {
    /// Measures the kernels that the arguments ask for.
    ///
    /// # Errors
    /// The circuit or the parameters are not usable, or threads cannot be started.
    pub fn measure(args: &BenchArgs) -> Result<Self> {
        Self::new(args, None)
    }

    /// From kernels that were measured before, if some are given: of about the same parameters, or times are wrong.
    ///
    /// # Errors
    /// As [`measure`](Self::measure).
    pub fn new(args: &BenchArgs, kept: Option<KernelTimes>) -> Result<Self> {
        let circuit = args.circuit.as_deref().map(Circuit::load).transpose()?;
        let given = circuit.as_ref().map(|(circuit, _)| circuit.parameters);
        let parameters = given.or(args.parameters).unwrap_or_else(Parameters::standard);
        if args.network().is_some() && circuit.is_none() {
            return Err(RuntimeError::Input("--bandwidth says how a circuit scales: give one".into()));
        }
        let kernels = kept.map_or_else(|| measure(parameters, args.threads), Ok)?;
        let scaling = args.network().zip(circuit.as_ref());
        Ok(Self {
            scaling: scaling.map(|(network, (circuit, _))| Scaling::new(circuit, &kernels, network)),
            parameters: parameters.to_string(),
            kernels,
            linear_words_per_ns: parameters.big_lwe_size() as f64 / kernels.multiply_add_ns,
            circuit: circuit.map(|(circuit, digest)| CircuitCost::new(&circuit, digest, &kernels)),
        })
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let k = &self.kernels;
        let row = |name: &str, unit: f64, alone: Option<f64>, what: &str| {
            let ms = |ns: f64| format!("{:.3}", ns * 1e-6);
            format!("{name:<12} {:>12} {:>12}   {what}\n", ms(unit), alone.map_or_else(|| "—".into(), ms))
        };
        let mut out = format!("{}, {} threads\n\n", self.parameters, k.threads);
        out += &format!("{:<12} {:>12} {:>12}\n", "kernel", "batched, ms", "alone, ms");
        out += &row("pbs", k.pbs_ns, Some(k.lone_pbs_ns), "blind rotation and extraction; alone: one on each thread");
        out += &row("extended", k.lane_ns, None, "one lane of a rotation of extension ν, which has 2^ν");
        out +=
            &row("lut_product", k.lut_product_ns, None, "the same on a packed accumulator, times a table, 8 samples");
        let what = "a rotation, the GGSW made of it, and an external product";
        out += &row("external", k.external_product_ns, None, what);
        out += &row("keyswitch", k.keyswitch_ns, Some(k.lone_keyswitch_ns), "big key to small key");
        out += &row("pack", k.pack_ns, Some(k.lone_pack_ns), "packing keyswitch of one ciphertext, 8 to a GLWE");
        let linear = format!("{:.1} ns", k.multiply_add_ns);
        let words = self.linear_words_per_ns;
        let what = "one weight times one ciphertext";
        let _ = writeln!(out, "{:<12} {linear:>12} {:>12}   {what}; {words:.1} words a nanosecond", "linear", "—");
        let circuit = self.circuit.as_ref().map(|c| c.text(k));
        let scaling = self.scaling.as_ref().map(|s| s.text(k.threads));
        [Some(out), circuit, scaling].into_iter().flatten().collect()
    }

    /// For programs: one line.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| RuntimeError::Internal(e.to_string()))
    }
}

/// Measures and prints.
///
/// # Errors
/// As [`BenchReport::measure`], or standard output cannot be written.
pub fn bench(args: &BenchArgs) -> Result<()> {
    use std::io::Write as _;
    let report = BenchReport::measure(args)?;
    let text = if args.json { report.json()? + "\n" } else { report.text() };
    let path = Path::new("standard output").to_owned();
    let write = std::io::stdout().lock().write_all(text.as_bytes());
    write.map_err(|source| RuntimeError::Io { action: "write to", path, source })
}

/// Round times, for tests.
#[cfg(test)]
pub(crate) const TIMES: KernelTimes = KernelTimes {
    threads: 2,
    pbs_ns: 5e6,
    keyswitch_ns: 1e6,
    pack_ns: 1e6,
    multiply_add_ns: 200.0,
    lut_product_ns: 6e6,
    external_product_ns: 6.5e6,
    lone_pbs_ns: 1.2e7,
    lane_ns: 5.5e6,
    lone_keyswitch_ns: 3e6,
    lone_pack_ns: 9e6,
};

#[cfg(test)]
mod tests {
    use super::*;
    use thex_circuit::CircuitInfo;
    use thex_circuit::instruction::{Block, Keyswitch, Pbs, Provenance};

    /// 64 look-ups of one input: 0.32 s of rotations in full batches, and 64 keyswitches of 1 ms.
    fn looked_up() -> Circuit {
        let keyswitch =
            Keyswitch { dst: Block { start: 0, len: 64 }, domain: 2048, extension: 0, gather: (0..64).collect() };
        let (dst, argument) = (Block { start: 64, len: 64 }, (0..64).collect());
        let pbs = Pbs { dst, extension: 0, argument, table_of: vec![0; 64], tables: vec![0; 2048] };
        Circuit {
            info: CircuitInfo::default(),
            parameters: Parameters::standard(),
            inputs: vec![("x".into(), Block { start: 0, len: 64 })],
            outputs: vec![("y".into(), (64..128).collect())],
            instructions: vec![Instruction::Keyswitch(keyswitch), Instruction::Pbs(pbs)],
            provenance: vec![Provenance::default(); 2],
        }
    }

    #[test]
    fn shares_are_of_the_whole_and_sum_to_one() {
        let cost = CircuitCost::new(&looked_up(), "digest".into(), &TIMES);
        assert_eq!((cost.pbs_count, cost.kinds[0].kind, cost.kinds[1].kind), (64, "pbs", "keyswitch"));
        assert!((cost.pbs_seconds - 0.32).abs() < 1e-9 && (cost.seconds - 0.384).abs() < 1e-9, "{cost:?}");
        assert!((cost.rotation_share - 0.32 / 0.384).abs() < 1e-9, "{cost:?}");
        assert!((cost.kinds.iter().map(|k| k.share).sum::<f64>() - 1.0).abs() < 1e-9);
        assert!(cost.peak_memory_bytes > cost.key_memory_bytes);
    }

    #[test]
    fn a_circuit_of_no_bootstrap_has_no_ratio() {
        let mut circuit = looked_up();
        circuit.instructions.clear();
        circuit.provenance.clear();
        let cost = CircuitCost::new(&circuit, String::new(), &TIMES);
        assert!(cost.over_pbs.abs() < 1e-12 && cost.rotation_share.abs() < 1e-12, "{cost:?}");
    }
}
