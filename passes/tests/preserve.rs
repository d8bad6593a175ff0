//! Every pass preserves the clear interpreter's result, unless it says that it approximates.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests fail by panicking, and share a module")]

mod common;

use common::{Mask, Shape, transformer};
use proptest::prelude::*;
use std::sync::Arc;
use thex_ir::{Graph, interpret};
use thex_passes::{PassCx, PassManager, Profile, registry};

fn outputs(graph: &Graph, sample: &[Arc<thex_ir::Tensor>]) -> Vec<f64> {
    let values = interpret::run(graph, sample).unwrap();
    values.iter().flat_map(|v| v.iter().copied().collect::<Vec<_>>()).collect()
}

fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn check(shape: Shape, seed: u64, profile: Profile) {
    let (mut graph, samples) = transformer(shape, seed, 24);
    let mut cx = PassCx::new(profile, samples.clone());
    let manager = PassManager::default();
    for pass in registry::pipeline() {
        let before: Vec<Vec<f64>> = samples.iter().map(|s| outputs(&graph, s)).collect();
        let approximations = cx.approximations.len();
        let name = pass.name();
        manager.run(&[pass], &mut graph, &mut cx).unwrap();
        if cx.approximations.len() > approximations {
            continue;
        }
        for (sample, before) in samples.iter().zip(before) {
            let after = outputs(&graph, sample);
            assert!(difference(&before, &after) < 1e-7, "{name} changed the function: {before:?} {after:?}");
        }
    }
}

#[test]
fn tiny_vit_both_profiles() {
    check(Shape::TINY, 1, Profile::Exact);
    check(Shape::TINY, 1, Profile::TheX);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn random_transformers(
        tokens in 1_usize..4,
        heads in 1_usize..3,
        per_head in 1_usize..4,
        hidden in 1_usize..9,
        layers in 1_usize..3,
        pre_norm: bool,
        class_token: bool,
        causal: bool,
        the_x: bool,
        seed: u64,
    ) {
        let width = heads * per_head + heads;
        let mask = if causal { Mask::Causal } else { Mask::None };
        let shape = Shape { tokens, width, heads, hidden, layers, pre_norm, class_token, mask, ..Shape::TINY };
        check(shape, seed, if the_x { Profile::TheX } else { Profile::Exact });
    }
}
