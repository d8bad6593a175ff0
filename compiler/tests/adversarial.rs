//! Inputs that are looked for, not drawn: how far can an input inside the ranges that encryption enforces push the result from the
//! model's? A hill is climbed in the simulator. `docs/NOISE.md` has the figures and what they mean.

#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub, reason = "tests fail by panicking")]

#[path = "../../passes/tests/common/mod.rs"]
mod common;

use std::sync::Arc;

use common::{Random, Shape, transformer};
use thex::emit::{EmitOptions, Emitted, emit};
use thex_circuit::{CircuitInfo, NoiseModel};
use thex_ir::{Graph, Tensor};
use thex_passes::{PassCx, PassManager, Profile, registry};
use thex_runtime::{Simulator, simulate};

const STEPS: usize = 600;
/// The largest error of an input that leaves no domain, in units of the modelled rms error.
const PROMISE: f64 = 6.0;

struct Target {
    emitted: Emitted,
    graph: Graph,
    samples: Vec<Tensor>,
    predicted: f64,
}

/// What one input does: its largest error in units of the modelled rms error, and arguments that left their domains.
#[derive(Clone, Copy, Debug)]
struct Effect {
    error: f64,
    overflows: u64,
}

impl Target {
    fn new(seed: u64) -> Self {
        let (graph, samples) = transformer(Shape::TINY, seed, 520);
        let mut placed = graph.clone();
        let mut cx = PassCx::new(Profile::Exact, Arc::new(samples[..500].to_vec()));
        PassManager::default().run(&registry::pipeline(), &mut placed, &mut cx).unwrap();
        let predicted = cx.predicted_output_error.unwrap();
        let options = EmitOptions {
            parameters: cx.parameters,
            info: CircuitInfo::default(),
            prologue: cx.prologue.unwrap(),
            epilogue: cx.epilogue.unwrap(),
            interface: Default::default(),
        };
        let samples = samples[500..].iter().map(|s| (*s[0]).clone()).collect();
        Self { emitted: emit(&placed, options).unwrap(), graph, samples, predicted }
    }

    fn effect(&self, simulator: &Simulator<'_>, x: &Tensor, seed: u64) -> Effect {
        let float = thex_ir::interpret::run(&self.graph, &[Arc::new(x.clone())]).unwrap();
        let ours = simulate::infer(&self.emitted.bundle, simulator, &[("x".into(), x.clone())], seed).unwrap();
        let differences = ours.outputs[0].1.iter().zip(float[0].iter()).map(|(a, b)| (a - b).abs());
        Effect { error: differences.fold(0.0, f64::max) / self.predicted, overflows: ours.simulation.overflow_total() }
    }

    /// Keeps what encryption would clamp inside the calibrated ranges.
    fn clamp(&self, x: &mut Tensor) {
        let ranges = self.emitted.bundle.inputs.iter().flat_map(|p| &p.ranges);
        x.iter_mut().zip(ranges).for_each(|(v, &(lo, hi))| *v = v.clamp(lo, hi));
    }

    /// From a sample uphill in the noiseless error; with `inside`, only over inputs that leave no domain.
    fn climb(&self, random: &mut Random, start: &Tensor, inside: bool) -> (Tensor, Effect) {
        let silent = Simulator::new(&self.emitted.circuit, NoiseModel::silent()).unwrap();
        let mut best = (start.clone(), self.effect(&silent, start, 0));
        for step in 0..STEPS {
            let mut x = best.0.clone();
            let scale = if step % 3 == 0 { 1.0 } else { 0.2 };
            x.mapv_inplace(|v| if random.next() > 0.5 { v + scale * random.next() } else { v });
            self.clamp(&mut x);
            let effect = self.effect(&silent, &x, 0);
            if effect.error > best.1.error && !(inside && effect.overflows > 0) {
                best = (x, effect);
            }
        }
        best
    }
}

#[test]
fn errors_beyond_the_promise_leave_a_domain() {
    for seed in [11, 12] {
        let target = Target::new(seed);
        let noisy =
            Simulator::new(&target.emitted.circuit, NoiseModel::new(&target.emitted.circuit.parameters)).unwrap();
        let held_out: Vec<Effect> =
            target.samples.iter().enumerate().map(|(i, x)| target.effect(&noisy, x, i as u64)).collect();
        let typical = held_out.iter().map(|e| e.error).fold(0.0, f64::max);
        let mut random = Random(seed);
        let mut climbs = |inside: bool| -> Vec<Effect> {
            target.samples[..4].iter().map(|x| target.climb(&mut random, x, inside).1).collect()
        };
        let (inside, free) = (climbs(true), climbs(false));
        println!("seed {seed}, errors in units of the modelled rms error {:.3}", target.predicted);
        println!(
            "  20 held-out samples, noise included: at most {typical:.2}, overflows {}",
            held_out.iter().map(|e| e.overflows).sum::<u64>()
        );
        println!("  climbed, no domain left, without noise: {inside:.2?}");
        println!("  climbed freely, without noise: {free:.2?}");
        // What is promised: inputs like the calibration data err like the model says. And what is looked for either does no worse, or
        // leaves a domain, which `evaluate --mode simulate` counts.
        assert!(typical < PROMISE, "{typical}");
        assert!(inside.iter().all(|e| e.error < PROMISE), "{inside:?}");
        assert!(free.iter().all(|e| e.error < PROMISE || e.overflows > 0), "{free:?}");
        assert!(free.iter().any(|e| e.error > 10.0), "the search finds nothing: {free:?}");
    }
}
