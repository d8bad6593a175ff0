//! Small transformers on real ciphertexts, against the simulator and the noise model.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests fail by panicking")]

#[path = "../../passes/tests/common/mod.rs"]
mod common;

use std::sync::Arc;

use common::{Mask, Shape, transformer};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use thex::emit::{EmitOptions, Emitted, emit};
use thex_circuit::{CircuitInfo, NoiseModel};
use thex_ir::{Tensor, UnaryFn};
use thex_passes::{PassCx, PassManager, Profile, registry};
use thex_runtime::client::{self, Named, Rounding};
use thex_runtime::executor::CpuBackend;
use thex_runtime::progress::Silent;
use thex_runtime::{Executor, Simulator, keys, simulate};

/// Compiles a random transformer; returns it with samples that calibration did not see.
fn compile(shape: Shape, profile: Profile, seed: u64) -> (Emitted, Vec<Vec<Arc<Tensor>>>) {
    let (mut graph, samples) = transformer(shape, seed, 520);
    let mut cx = PassCx::new(profile, Arc::new(samples[..500].to_vec()));
    PassManager::default().run(&registry::pipeline(), &mut graph, &mut cx).unwrap();
    let info = CircuitInfo { predicted_output_error: cx.predicted_output_error, ..CircuitInfo::default() };
    let options = EmitOptions {
        parameters: cx.parameters,
        info,
        prologue: cx.prologue.unwrap(),
        epilogue: cx.epilogue.unwrap(),
        interface: Default::default(),
    };
    (emit(&graph, options).unwrap(), samples[500..].to_vec())
}

fn named(sample: &[Arc<Tensor>]) -> Vec<Named> {
    ["x", "mask"].iter().zip(sample).map(|(name, value)| ((*name).to_owned(), (**value).clone())).collect()
}

fn values(outputs: &[Named]) -> Vec<f64> {
    outputs[0].1.iter().copied().collect()
}

fn simulated(emitted: &Emitted, input: &[Named], noise: NoiseModel, seed: u64) -> Vec<f64> {
    let simulator = Simulator::new(&emitted.circuit, noise).unwrap();
    values(&simulate::infer(&emitted.bundle, &simulator, input, seed).unwrap().outputs)
}

/// Runs encrypted, and compares each output with the spread of 300 simulations of the same input.
fn agrees_with_the_simulator(shape: Shape, profile: Profile) {
    agrees(shape, profile, 11, 2);
}

fn agrees(shape: Shape, profile: Profile, seed: u64, runs: usize) {
    let (emitted, samples) = compile(shape, profile, seed);
    let parameters = emitted.circuit.parameters;
    let (key, server) = keys::generate(&emitted.bundle, Some(1)).unwrap();
    let backend = CpuBackend::new(server.expand());
    let executor = Executor::new(&emitted.circuit, &backend).unwrap();
    for sample in &samples[..runs] {
        let input = named(sample);
        let (ciphertexts, _) = client::encrypt(&emitted.bundle, &key, &input).unwrap();
        let result = executor.run(&ciphertexts.expand(&parameters).unwrap(), &Silent).unwrap();
        let phases = client::phases(&key, &result);
        let encrypted = values(&client::decode(&emitted.bundle, &phases, Rounding::Raw).unwrap());
        let noise = NoiseModel::new(&parameters);
        let runs: Vec<Vec<f64>> = (0..300).map(|seed| simulated(&emitted, &input, noise, seed)).collect();
        for (o, value) in encrypted.iter().enumerate() {
            let mean = runs.iter().map(|r| r[o]).sum::<f64>() / runs.len() as f64;
            let variance = runs.iter().map(|r| (r[o] - mean).powi(2)).sum::<f64>() / (runs.len() - 1) as f64;
            let deviations = (value - mean) / variance.sqrt();
            assert!(deviations.abs() < 5.0, "{profile:?} output {o}: {value} lies {deviations} sd from {mean}");
        }
    }
}

#[test]
fn a_vision_block_exact() {
    agrees_with_the_simulator(Shape::TINY, Profile::Exact);
}

#[test]
fn a_text_block_the_x() {
    agrees_with_the_simulator(Shape { pre_norm: false, class_token: false, ..Shape::TINY }, Profile::TheX);
}

#[test]
fn a_decoder_block_exact() {
    agrees_with_the_simulator(Shape { mask: Mask::Causal, class_token: false, ..Shape::TINY }, Profile::Exact);
}

#[test]
fn a_padded_block_pooled_by_its_mask() {
    let shape = Shape { mask: Mask::Padding, class_token: false, pre_norm: false, ..Shape::TINY };
    agrees_with_the_simulator(shape, Profile::Exact);
}

/// The first-order model that chose the encodings against the simulator that knows every table and carry: the
/// measured error is neither much above the prediction nor so far below it that precision was wasted.
#[test]
fn the_noise_model_predicts_the_simulated_error() {
    let shape = Shape { tokens: 5, width: 16, hidden: 32, layers: 2, ..Shape::TINY };
    for seed in [7, 8, 9] {
        let (emitted, samples) = compile(shape, Profile::Exact, seed);
        let (graph, _) = transformer(shape, seed, 0);
        let noise = NoiseModel::new(&emitted.circuit.parameters);
        let (mut squares, mut count) = (0.0, 0.0);
        for (i, sample) in samples.iter().enumerate() {
            let float: Vec<f64> = thex_ir::interpret::run(&graph, sample).unwrap()[0].iter().copied().collect();
            let input = named(sample);
            let ours = simulated(&emitted, &input, noise, i as u64);
            squares += ours.iter().zip(&float).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
            count += ours.len() as f64;
        }
        let measured = f64::sqrt(squares / count);
        let predicted = emitted.circuit.info.predicted_output_error.unwrap();
        assert!((0.4..2.0).contains(&(measured / predicted)), "seed {seed}: {measured} against {predicted}");
    }
}

/// Transformers of any form, up to `layers` deep, with the profile and the seed of their weights.
fn any_transformer(layers: usize) -> impl Strategy<Value = (Shape, Profile, u64)> {
    // The norm of two channels is a step, which no noise model of first order follows.
    let sizes = (2..=4_usize, 1..=2_usize, prop_oneof![Just(4_usize), Just(6)], 4..=12_usize, 1..=layers);
    let mask = prop_oneof![Just(Mask::None), Just(Mask::Causal), Just(Mask::Padding)];
    let activations = [UnaryFn::Gelu, UnaryFn::GeluTanh, UnaryFn::Relu, UnaryFn::Tanh, UnaryFn::Silu];
    let activation = proptest::sample::select(activations.to_vec());
    let profile = prop_oneof![Just(Profile::Exact), Just(Profile::TheX)];
    let rest = (any::<bool>(), any::<bool>(), mask, activation);
    (sizes, rest, profile, 0..1000_u64).prop_map(|(sizes, rest, profile, seed)| {
        let (tokens, heads, head, hidden, layers) = sizes;
        let (pre_norm, class_token, mask, activation) = rest;
        let class_token = class_token && mask == Mask::None;
        let shape =
            Shape { tokens, width: heads * head, heads, hidden, layers, pre_norm, class_token, mask, activation };
        (shape, profile, seed)
    })
}

/// Median over samples of the root mean square difference of two results. A value that left its range, which the noise model does not
/// cover, spoils one sample and not the median.
fn typical(samples: &[Vec<Arc<Tensor>>], difference: impl Fn(usize, &[Arc<Tensor>]) -> Vec<f64>) -> f64 {
    let rms = |d: Vec<f64>| (d.iter().map(|x| x * x).sum::<f64>() / d.len() as f64).sqrt();
    let mut errors: Vec<f64> = samples.iter().enumerate().map(|(i, s)| rms(difference(i, s))).collect();
    errors.sort_by(f64::total_cmp);
    errors[errors.len() / 2]
}

fn minus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    /// Float against quantised against simulated: no error beyond the model's, on samples that calibration did not see.
    #[test]
    fn random_transformers_simulate_as_modelled((shape, profile, seed) in any_transformer(2)) {
        let (emitted, samples) = compile(shape, profile, seed);
        let (float, _) = transformer(shape, seed, 0);
        let predicted = emitted.circuit.info.predicted_output_error.unwrap();
        let (silent, noise) = (NoiseModel::silent(), NoiseModel::new(&emitted.circuit.parameters));
        let quantised = |sample: &[Arc<Tensor>]| simulated(&emitted, &named(sample), silent, 0);
        let noisy = typical(&samples, |i, s| minus(&simulated(&emitted, &named(s), noise, i as u64), &quantised(s)));
        prop_assert!(noisy > 0.0 && noisy < 3.0 * predicted, "noise {noisy}, modelled {predicted}");
        // What the approximations of `the-x` do is no error of the circuit.
        if profile == Profile::Exact {
            let value = |s: &[Arc<Tensor>]| thex_ir::interpret::run(&float, s).unwrap()[0].iter().copied().collect::<Vec<f64>>();
            let rounding = typical(&samples, |_, s| minus(&quantised(s), &value(s)));
            prop_assert!(rounding < 3.0 * predicted, "quantised {rounding}, modelled {predicted}");
        }
    }
}

/// Three of the same kind on ciphertexts; which ones is decided by a fixed seed.
#[test]
fn random_transformers_encrypted() {
    let mut runner = TestRunner::deterministic();
    for _ in 0..3 {
        let (shape, profile, seed) = any_transformer(1).new_tree(&mut runner).unwrap().current();
        agrees(Shape { tokens: 2, ..shape }, profile, seed, 1);
    }
}
