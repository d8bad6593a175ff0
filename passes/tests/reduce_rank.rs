//! `reduce-rank` keeps to its error on samples that it has not seen, and is cheaper.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests fail by panicking, and share a module")]

mod common;

use std::sync::Arc;

use common::{Shape, transformer};
use thex_ir::{Graph, Tensor, interpret};
use thex_passes::{PassCx, PassManager, Profile, Samples, options, registry};

const WIDE: Shape = Shape { tokens: 5, width: 24, heads: 2, hidden: 40, layers: 2, ..Shape::TINY };

/// The graph after `stop_after`, with `reduce-rank` set up.
fn run(settings: &[&str], samples: &Samples, graph: &Graph, stop_after: &str) -> (Graph, PassCx) {
    let mut graph = graph.clone();
    let mut cx = PassCx::new(Profile::Exact, samples.clone());
    let mut pipeline = registry::pipeline();
    let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
    options::apply(&mut pipeline, &settings).unwrap();
    let manager = PassManager { stop_after: Some(stop_after.to_owned()), ..PassManager::default() };
    manager.run(&pipeline, &mut graph, &mut cx).unwrap();
    (graph, cx)
}

fn outputs(graph: &Graph, samples: &[Vec<Arc<Tensor>>]) -> Vec<Vec<f64>> {
    let one = |sample: &Vec<Arc<Tensor>>| -> Vec<f64> {
        interpret::run(graph, sample).unwrap().iter().flat_map(|v| v.iter().copied().collect::<Vec<_>>()).collect()
    };
    samples.iter().map(one).collect()
}

/// Root mean square difference, relative to the spread of `b` over its samples.
fn relative_error(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    let mean: Vec<f64> = (0..b[0].len()).map(|i| b.iter().map(|s| s[i]).sum::<f64>() / b.len() as f64).collect();
    let off = |x: &[Vec<f64>], y: &dyn Fn(usize, usize) -> f64| -> f64 {
        x.iter().enumerate().map(|(s, v)| v.iter().enumerate().map(|(i, v)| (v - y(s, i)).powi(2)).sum::<f64>()).sum()
    };
    (off(a, &|s, i| b[s][i]) / off(b, &|_, i| mean[i])).sqrt()
}

/// Bootstraps of a lowered graph.
fn bootstraps(cx: &PassCx) -> u64 {
    ["pbs", "product-pbs"].iter().map(|name| cx.counters.get(name).copied().unwrap_or(0)).sum()
}

#[test]
fn it_is_off_unless_asked_for() {
    let (graph, samples) = transformer(WIDE, 7, 64);
    let (_, cx) = run(&[], &samples, &graph, "reduce-rank");
    assert!(cx.approximations.is_empty(), "{:?}", cx.approximations);
}

#[test]
fn its_error_holds_on_new_samples_and_it_says_what_it_did() {
    let (graph, samples) = transformer(WIDE, 7, 256);
    let (known, new) = samples.split_at(192);
    let known: Samples = Arc::new(known.to_vec());
    let wanted = outputs(&graph, new);
    let mut last = f64::INFINITY;
    for allowed in [0.02, 0.1, 0.3] {
        let setting = format!("reduce-rank:error={allowed}");
        let (reduced, cx) = run(&[&setting], &known, &graph, "fuse-unary");
        let error = relative_error(&outputs(&reduced, new), &wanted);
        assert!(error <= 1.5 * allowed, "{allowed}: {error}");
        let said = cx.approximations.join("\n");
        assert!(said.contains("together these err by"), "{said}");
        let (_, cx) = run(&[&setting], &known, &graph, "insert-bootstraps");
        let cost = bootstraps(&cx) as f64;
        assert!(cost <= last, "{allowed}: {cost} bootstraps, {last} with less error");
        last = cost;
    }
    let (_, cx) = run(&[], &known, &graph, "insert-bootstraps");
    assert!(last < 0.9 * bootstraps(&cx) as f64, "{last} bootstraps for {}", bootstraps(&cx));
}

#[test]
fn it_is_deterministic() {
    let (graph, samples) = transformer(WIDE, 11, 64);
    let text = || thex_ir::print::print(&run(&["reduce-rank:error=0.1"], &samples, &graph, "reduce-rank").0);
    assert_eq!(text(), text());
}

#[test]
fn balanced_scores_are_the_same_scores() {
    let (graph, samples) = transformer(WIDE, 13, 32);
    let wanted = outputs(&graph, &samples);
    let (balanced, cx) = run(&["reduce-rank:balance=true"], &samples, &graph, "fuse-unary");
    assert!(cx.approximations.is_empty());
    assert!(balanced.ids().any(|id| balanced.node(id).name.ends_with(".queries")));
    let error = relative_error(&outputs(&balanced, &samples), &wanted);
    assert!(error < 1e-9, "{error}");
}

/// Places that could be cut, with every softmax in one form.
fn sites(softmax: &str) -> (Graph, u64) {
    let (mut graph, samples) = transformer(Shape { tokens: 17, ..WIDE }, 5, 32);
    let mut cx = PassCx::new(Profile::Exact, samples);
    cx.approximate = vec![format!("*softmax={softmax}")];
    let mut pipeline = registry::pipeline();
    options::apply(&mut pipeline, &["reduce-rank:error=0.3".into()]).unwrap();
    let manager = PassManager { stop_after: Some("reduce-rank".into()), ..PassManager::default() };
    manager.run(&pipeline, &mut graph, &mut cx).unwrap();
    (graph, cx.counters["sites"])
}

#[test]
fn relus_of_a_maximum_or_a_cube_are_no_activations() {
    let (_, without) = sites("two-pass");
    for form in ["row-maximum", "cube"] {
        let (graph, count) = sites(form);
        let relus = graph.ids().filter(|&id| {
            let name = &graph.node(id).name;
            name.contains(".excess") || name.ends_with(".cube")
        });
        assert!(relus.count() > 0, "{form} has no ReLU");
        assert_eq!(count, without, "{form}");
    }
}
