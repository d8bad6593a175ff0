//! Attention masks: public ones are structure and cost nothing, private ones are bounded and computed by the client.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests fail by panicking, and share a module")]

mod common;

use std::sync::Arc;

use common::{Mask, Shape, transformer};
use thex_ir::{Graph, HeOp, Op, Tensor, interpret};
use thex_passes::{PassCx, PassManager, Profile, Samples, registry};

const TOKENS: usize = 5;

fn shape(mask: Mask) -> Shape {
    Shape { tokens: TOKENS, class_token: false, mask, ..Shape::TINY }
}

fn run(graph: &mut Graph, samples: &Samples, profile: Profile, stop_after: Option<&str>) -> PassCx {
    let mut cx = PassCx::new(profile, samples.clone());
    let manager = PassManager { stop_after: stop_after.map(str::to_owned), ..PassManager::default() };
    manager.run(&registry::pipeline(), graph, &mut cx).unwrap();
    cx
}

fn flat(values: &[Arc<Tensor>]) -> Vec<f64> {
    values.iter().flat_map(|v| v.iter().copied()).collect()
}

/// Look-ups of nodes whose name ends so.
fn look_ups(graph: &Graph, ending: &str) -> usize {
    let counts = graph.ids().filter(|&id| {
        let node = graph.node(id);
        matches!(node.op, Op::He(HeOp::Pbs { .. })) && node.name.ends_with(ending)
    });
    counts.map(|id| graph.node(id).shape[0]).sum()
}

#[test]
fn what_causality_hides_is_not_computed() {
    for (profile, ending, per_score) in [(Profile::Exact, "exp2.pbs", 1), (Profile::TheX, "cube.pbs", 1)] {
        let (mut graph, samples) = transformer(shape(Mask::Causal), 5, 64);
        // Every row of attention is wanted: the head reads the last token, so keep all tokens of the block as output.
        let attended = graph.ids().find(|&id| graph.node(id).name.ends_with("context")).unwrap();
        graph.outputs = vec![("context".to_owned(), attended)];
        run(&mut graph, &samples, profile, None);
        let scores = shape(Mask::Causal).heads * TOKENS * (TOKENS + 1) / 2;
        assert_eq!(look_ups(&graph, ending), per_score * scores, "{profile:?}");
    }
}

#[test]
fn client_and_server_make_up_the_masked_model() {
    let (whole, samples) = transformer(shape(Mask::Padding), 5, 64);
    let mut server = whole.clone();
    let cx = run(&mut server, &samples, Profile::Exact, Some("fuse-unary"));
    let (prologue, epilogue) = (cx.prologue.unwrap(), cx.epilogue.unwrap());
    for (sample, encrypted) in samples.iter().zip(cx.samples.iter()) {
        assert_eq!(&prologue.run(sample).unwrap(), encrypted);
        let answer = flat(&epilogue.run(&interpret::run(&server, encrypted).unwrap()).unwrap());
        let expected = flat(&interpret::run(&whole, sample).unwrap());
        for (a, b) in answer.iter().zip(&expected) {
            assert!((a - b).abs() < 0.1, "{answer:?} {expected:?}");
        }
    }
    // The mask is encrypted twice, as what is taken from scores and as it is, and handed back for the pooling.
    assert_eq!(server.inputs.len(), 3);
    assert!(server.outputs.iter().any(|(name, _)| name == "mask"));
    assert!(cx.approximations.iter().any(|line| line.contains("mask")), "{:?}", cx.approximations);
}

/// The look-up arguments behind a mask are as wide as it takes, not 10^38.
#[test]
fn bounded_masks_leave_scores_their_precision() {
    let (mut graph, samples) = transformer(shape(Mask::Padding), 5, 64);
    run(&mut graph, &samples, Profile::Exact, Some("calibrate"));
    let shifted = graph.ids().find(|&id| graph.node(id).name.ends_with("softmax.shifted")).unwrap();
    let ranges = graph.node(shifted).facts.ranges.clone().unwrap();
    let width = ranges.hi.iter().zip(&ranges.lo).map(|(hi, lo)| hi - lo).fold(0.0, f64::max);
    assert!((2.0..60.0).contains(&width), "{width}");
}
