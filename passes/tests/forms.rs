//! Forms chosen for single nodes: each pass takes its own, and layer norms with constants for 1/σ.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests fail by panicking, and share a module")]

mod common;

use std::sync::Arc;

use common::{Mask, Random, Shape, transformer};
use ndarray::{ArrayD, Axis, IxDyn};
use thex_ir::{ClearOp, Graph, Tensor, interpret};
use thex_passes::{Pass, PassCx, PassError, PassManager, Profile, Samples, options, registry};

const TWO_LAYERS: Shape = Shape { layers: 2, ..Shape::TINY };

/// Runs the pipeline up to a pass under requests.
fn run(graph: &mut Graph, samples: &Samples, profile: Profile, requests: &[&str], stop_after: &str) -> PassCx {
    let mut cx = PassCx::new(profile, samples.clone());
    cx.approximate = requests.iter().map(|r| (*r).to_owned()).collect();
    let manager = PassManager { stop_after: Some(stop_after.to_owned()), ..PassManager::default() };
    manager.run(&registry::pipeline(), graph, &mut cx).unwrap();
    cx
}

fn has(graph: &Graph, name: &str) -> bool {
    graph.ids().any(|id| graph.node(id).name == name)
}

fn pass(name: &str) -> Box<dyn Pass> {
    registry::pipeline().into_iter().find(|p| p.name() == name).unwrap()
}

#[test]
fn every_form_is_taken_by_its_pass() {
    let (mut graph, samples) = transformer(TWO_LAYERS, 3, 16);
    let requests = [
        "layers.0*=relu",
        "layers.0*softmax=cube",
        "layers.1*softmax=row-maximum",
        "layers.0/norm1=affine",
        "layers.1/norm*=constant",
    ];
    let cx = run(&mut graph, &samples, Profile::Exact, &requests, "exact-layer-norm");
    for name in [
        "layers.0/attention.softmax.cube",
        "layers.1/attention.softmax.minus-maximum",
        "layers.0/norm1.affine",
        "layers.0/norm2.rsqrt",
        "layers.1/norm1.factors",
        "layers.1/norm2.factors",
    ] {
        assert!(has(&graph, name), "{name} is missing");
    }
    insta::assert_snapshot!(cx.approximations.join("\n"));
}

#[test]
fn the_x_can_keep_single_nodes_exact() {
    let (mut graph, samples) = transformer(TWO_LAYERS, 3, 16);
    let requests = ["*=exact", "layers.1*softmax=two-pass", "layers.1/norm2=affine"];
    let cx = run(&mut graph, &samples, Profile::TheX, &requests, "exact-layer-norm");
    assert_eq!(cx.approximations.len(), 1, "{:?}", cx.approximations);
    assert!(has(&graph, "layers.0/attention.softmax.exp1") && has(&graph, "layers.1/norm1.rsqrt"));
}

#[test]
fn requests_that_fit_nothing_are_refused() {
    let (mut graph, samples) = transformer(Shape::TINY, 3, 1);
    let mut cx = PassCx::new(Profile::Exact, samples);
    cx.approximate = vec!["*norm9=constant".into()];
    let error = PassManager::default().run(&[pass("choose-forms")], &mut graph, &mut cx).unwrap_err();
    assert!(matches!(&error, PassError::Choice { .. }), "{error}");
    assert!(error.to_string().contains("layers.0/norm1, layers.0/norm2"), "{error}");
}

/// How far a mask goes depends on the softmax that reads it, not on the profile.
#[test]
fn masks_are_bounded_for_the_softmax_that_reads_them() {
    let shape = Shape { tokens: 5, class_token: false, mask: Mask::Padding, ..TWO_LAYERS };
    for (profile, requests, expected) in [
        (Profile::Exact, &["*softmax=cube"][..], [false, true]),
        (Profile::Exact, &["*softmax=cube-network"][..], [false, true]),
        (Profile::Exact, &["*softmax=score"][..], [false, true]),
        (Profile::Exact, &["*softmax=score-network"][..], [false, true]),
        (Profile::TheX, &["*softmax=exact"][..], [true, false]),
        (Profile::TheX, &["layers.0*softmax=exact"][..], [true, true]),
    ] {
        let (mut graph, samples) = transformer(shape, 5, 64);
        let line = run(&mut graph, &samples, profile, requests, "bound-masks").approximations.join("\n");
        assert_eq!(["of a row's attention", "root of the cube"].map(|text| line.contains(text)), expected, "{line}");
    }
}

/// Replaces every softmax by a form of THE-X's, with a network that trains fast in builds without optimisation.
fn the_x_softmax(graph: &mut Graph, samples: &Samples, form: &str) -> PassCx {
    let mut passes = registry::pipeline();
    let settings = ["the-x-softmax:hidden=16", "the-x-softmax:steps=600"];
    options::apply(&mut passes, &settings.map(str::to_owned)).unwrap();
    let mut cx = PassCx::new(Profile::Exact, samples.clone());
    cx.approximate = vec![format!("*softmax={form}")];
    let manager = PassManager { stop_after: Some("the-x-softmax".to_owned()), ..PassManager::default() };
    manager.run(&passes, graph, &mut cx).unwrap();
    cx
}

/// What is divided, the cube or the score, and by what. The head reads the first row alone, and the network learns no other.
#[test]
fn the_x_softmax_has_four_forms() {
    let name = |suffix: &str| format!("layers.0/attention.softmax.{suffix}");
    for (form, score, network) in
        [("cube", false, false), ("cube-network", false, true), ("score", true, false), ("score-network", true, true)]
    {
        let (mut graph, samples) = transformer(Shape::TINY, 3, 16);
        let cx = the_x_softmax(&mut graph, &samples, form);
        let line = cx.approximations.join("\n");
        assert_eq!(
            ["do not sum to one", "by a network 1→16→16→1"].map(|t| line.contains(t)),
            [score, network],
            "{line}"
        );
        let node = |suffix: &str| graph.ids().find(|&id| graph.node(id).name == name(suffix)).unwrap();
        let nodes =
            ["reciprocal", "network1.relu", "network2.relu", "network3"].map(|suffix| has(&graph, &name(suffix)));
        assert_eq!(nodes, [!network, network, network, network], "{form}");
        let tolerance = if network { 0.15 } else { 1e-9 };
        for sample in cx.samples.iter() {
            let values = interpret::run_all(&graph, sample).unwrap();
            let [cubes, sums, shares] = ["cube", "sum", "normalise"].map(&node);
            let numerators = if score { graph.operands(cubes)[0] } else { cubes };
            for (at, share) in values[&shares].indexed_iter().filter(|(at, _)| at[2] == 0) {
                let wanted = values[&numerators][&at] / values[&sums][[0, at[1], 0, 0]];
                assert!((share - wanted).abs() <= tolerance * wanted.abs(), "{form} {at:?}: {share} {wanted}");
            }
        }
    }
}

/// Linear maps act on the last axis, which need not be that of the softmax.
#[test]
fn networks_follow_the_axis_of_their_softmax() {
    let (mut graph, mut random) = (Graph::new(), Random(5));
    let x = graph.add_input("x", &[1, 3, 4]);
    let mut linear = |graph: &mut Graph, name: &str, x| {
        let weights = graph.add_constant(&format!("{name}.w"), Arc::new(random.tensor(&[4, 4], 0.2)), &[]);
        let bias = graph.add_constant(&format!("{name}.b"), Arc::new(random.tensor(&[4], 0.1)), &[]);
        graph.add_clear(name, ClearOp::Linear, &[x, weights, bias], &[]).unwrap()
    };
    let scores = linear(&mut graph, "scores", x);
    let softmax = graph.add_clear("softmax", ClearOp::Softmax { axis: 1 }, &[scores], &[]).unwrap();
    let y = linear(&mut graph, "y", softmax);
    graph.outputs.push(("y".to_owned(), y));
    let samples = (0..16).map(|_| vec![Arc::new(random.tensor(&[1, 3, 4], 1.0))]).collect();
    let cx = the_x_softmax(&mut graph, &Arc::new(samples), "cube-network");
    let shares = graph.ids().find(|&id| graph.node(id).name == "softmax.normalise").unwrap();
    for sample in cx.samples.iter() {
        let totals = interpret::run_all(&graph, sample).unwrap()[&shares].sum_axis(Axis(1));
        assert_eq!(totals.shape(), [1, 4]);
        assert!(totals.iter().all(|total| (total - 1.0).abs() < 0.15), "{totals}");
    }
}

#[test]
fn a_network_needs_samples() {
    let (mut graph, _) = transformer(Shape::TINY, 3, 1);
    let mut cx = PassCx::new(Profile::Exact, Arc::new(Vec::new()));
    cx.approximate = vec!["*softmax=cube-network".into()];
    let passes = [pass("choose-forms"), pass("the-x-softmax")];
    let error = PassManager::default().run(&passes, &mut graph, &mut cx).unwrap_err();
    assert!(error.to_string().contains("no calibration sample reaches `layers.0/attention.softmax`"), "{error}");
}

/// A layer norm over rows whose σ depends on the position alone, and on nothing of the sample.
fn norm_of_steady_rows() -> (Graph, Samples) {
    let (mut graph, mut random) = (Graph::new(), Random(9));
    let x = graph.add_input("x", &[1, 3, 8]);
    let norm = graph.add_clear("norm", ClearOp::LayerNorm { epsilon: 1e-5 }, &[x], &[]).unwrap();
    graph.outputs.push(("y".to_owned(), norm));
    let mut sample = || {
        let row = |position: usize, random: &mut Random| -> Vec<f64> {
            let raw: Vec<f64> = (0..8).map(|_| random.next()).collect();
            let mean = raw.iter().sum::<f64>() / 8.0;
            let deviation = (raw.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 8.0).sqrt();
            let sigma = [0.5, 1.0, 4.0][position];
            raw.iter().map(|v| mean + sigma * (v - mean) / deviation).collect()
        };
        let values = (0..3).flat_map(|position| row(position, &mut random)).collect();
        vec![Arc::new(ArrayD::from_shape_vec(IxDyn(&[1, 3, 8]), values).unwrap())]
    };
    let samples = (0..12).map(|_| sample()).collect();
    (graph, Arc::new(samples))
}

fn output(graph: &Graph, sample: &[Arc<Tensor>]) -> Arc<Tensor> {
    interpret::run(graph, sample).unwrap().remove(0)
}

#[test]
fn constants_are_exact_where_deviations_depend_on_the_position_alone() {
    let (exact, samples) = norm_of_steady_rows();
    let mut graph = exact.clone();
    let mut cx = PassCx::new(Profile::Exact, samples.clone());
    cx.approximate = vec!["norm=constant".into()];
    let passes = [pass("choose-forms"), pass("constant-layer-norm")];
    PassManager::default().run(&passes, &mut graph, &mut cx).unwrap();
    insta::assert_snapshot!(format!("{}\n{}", cx.approximations.join("\n"), thex_ir::print::print(&graph)));
    for sample in samples.iter() {
        let difference = (&*output(&graph, sample) - &*output(&exact, sample)).mapv(f64::abs);
        assert!(difference.iter().all(|d| *d < 1e-9), "{difference}");
    }
}

/// With σ that varies, the constant is the best in least squares: a little more or less of it is worse.
#[test]
fn constants_are_least_squares() {
    let (exact, samples) = norm_of_steady_rows();
    let varied: Vec<Vec<Arc<Tensor>>> =
        samples.iter().enumerate().map(|(i, s)| vec![Arc::new(&*s[0] * (1.0 + 0.1 * i as f64))]).collect();
    let mut graph = exact.clone();
    let mut cx = PassCx::new(Profile::Exact, Arc::new(varied.clone()));
    cx.approximate = vec!["norm=constant".into()];
    PassManager::default().run(&[pass("choose-forms"), pass("constant-layer-norm")], &mut graph, &mut cx).unwrap();
    let error = |scale: f64| -> f64 {
        let of = |s: &Vec<Arc<Tensor>>| (&*output(&graph, s) * scale - &*output(&exact, s)).mapv(|d| d * d).sum();
        varied.iter().map(of).sum()
    };
    assert!(error(1.0) > 0.1 && error(1.0) < error(0.99) && error(1.0) < error(1.01));
}
