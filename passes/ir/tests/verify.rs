//! For each invariant, graphs that break it, and the codes that they break.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::{SIZE, calibrated, named, one_range, placed, summed, transformer};
use ndarray::{ArrayD, IxDyn};
use thex_circuit::Encoding;
use thex_ir::graph::Ranges;
use thex_ir::he::{Domain, Purpose};
use thex_ir::verify::{VerifyOptions, Violation, verify};
use thex_ir::{Address, ClearOp, Graph, HeLinear, HeOp, NodeId, Op, Stage};

const OPTIONS: VerifyOptions = VerifyOptions { polynomial_size: Some(SIZE) };

fn imported() -> Graph {
    transformer(2, 4, 5, 1, 1)
}

fn violations(graph: &Graph) -> Vec<Violation> {
    verify(graph, &OPTIONS).err().unwrap_or_default()
}

/// The change breaks exactly these invariants.
fn breaks(codes: &[&str], mut graph: Graph, change: impl FnOnce(&mut Graph)) {
    assert_eq!(violations(&graph), []);
    change(&mut graph);
    let found = violations(&graph);
    let distinct: BTreeSet<&str> = found.iter().map(|v| v.invariant).collect();
    assert_eq!(distinct, codes.iter().copied().collect(), "{found:#?}");
}

fn he<'a>(graph: &'a mut Graph, name: &str) -> &'a mut HeOp {
    let id = named(graph, name);
    match &mut graph.node_mut(id).op {
        Op::He(op) => op,
        other => panic!("{name} is {}", other.mnemonic()),
    }
}

fn map<'a>(graph: &'a mut Graph, name: &str) -> &'a mut HeLinear {
    match he(graph, name) {
        HeOp::Linear { map, .. } => Arc::make_mut(map),
        other => panic!("{name} is {}", other.mnemonic()),
    }
}

fn gather<'a>(graph: &'a mut Graph, name: &str) -> &'a mut Vec<Address> {
    match he(graph, name) {
        HeOp::Keyswitch { gather, .. } | HeOp::Pack { gather, .. } | HeOp::Decrypt { gather } => Arc::make_mut(gather),
        other => panic!("{name} is {}", other.mnemonic()),
    }
}

fn ranges<'a>(graph: &'a mut Graph, name: &str) -> &'a mut Ranges {
    let id = named(graph, name);
    Arc::make_mut(graph.node_mut(id).facts.ranges.as_mut().unwrap())
}

fn encodings<'a>(graph: &'a mut Graph, name: &str) -> &'a mut Vec<Encoding> {
    let id = named(graph, name);
    Arc::make_mut(graph.node_mut(id).facts.encodings.as_mut().unwrap())
}

fn integers<'a>(graph: &'a mut Graph, name: &str) -> &'a mut Vec<i32> {
    let id = named(graph, name);
    Arc::make_mut(graph.node_mut(id).facts.integers.as_mut().unwrap())
}

fn shorten<T>(array: &mut Vec<T>) {
    array.truncate(array.len() - 1);
}

fn set_operands(graph: &mut Graph, name: &str, operands: &[&str]) {
    let operands: Vec<NodeId> = operands.iter().map(|o| named(graph, o)).collect();
    graph.set_operands(named(graph, name), &operands);
}

#[test]
fn v001_cycle() {
    breaks(&["V001"], imported(), |g| {
        let (norm, add) = (named(g, "layers.0/norm1"), named(g, "layers.0/add2"));
        g.set_operand(norm, 0, add);
    });
}

#[test]
fn v002_operand_counts() {
    breaks(&["V002"], imported(), |g| set_operands(g, "layers.0/add1", &["tokens"]));
    breaks(&["V002"], imported(), |g| set_operands(g, "layers.0/fc1", &["layers.0/scaled", "layers.0/fc1.w"]));
    breaks(&["V002"], placed(), |g| set_operands(g, "pbs", &["keyswitch", "keyswitch"]));
    breaks(&["V002"], placed(), |g| set_operands(g, "product", &["rotated"]));
    breaks(&["V002"], imported(), |g| {
        let (add, x) = (named(g, "layers.0/add1"), named(g, "tokens"));
        g.set_operands(add, &[x]);
        g.set_operand(add, 2, x);
    });
}

#[test]
fn v003_shapes() {
    breaks(&["V003"], imported(), |g| g.node_mut(named(g, "layers.0/fc1")).shape[2] += 1);
    breaks(&["V003"], imported(), |g| g.node_mut(named(g, "layers.0/fc1.w")).shape.reverse());
    breaks(&["V003"], placed(), |g| g.node_mut(named(g, "pbs")).shape = vec![1, 4]);
    breaks(&["V003"], placed(), |g| shorten(gather(g, "keyswitch")));
}

#[test]
fn v004_names() {
    breaks(&["V004"], placed(), |g| g.node_mut(named(g, "pbs")).name = "pack".into());
}

#[test]
fn v005_inputs_and_outputs() {
    breaks(&["V005"], placed(), |g| g.outputs.push(("gone".into(), NodeId::new(99))));
    breaks(&["V005"], placed(), |g| g.inputs.push(NodeId::new(99)));
    breaks(&["V005"], placed(), |g| g.inputs.push(named(g, "pbs")));
    breaks(&["V005"], placed(), |g| g.inputs.push(g.inputs[0]));
    breaks(&["V005"], placed(), |g| g.inputs.clear());
}

#[test]
fn v006_stages() {
    breaks(&["V006"], imported(), |g| g.stage = Stage::Approximated);
    breaks(&["V006"], placed(), |g| g.stage = Stage::Imported);
    breaks(&["V006", "V012"], placed(), |g| g.stage = Stage::Calibrated);
    breaks(&["V006"], calibrated(), |g| g.stage = Stage::Lowered);
    for op in [ClearOp::Softmax { axis: 0 }, ClearOp::LayerNorm { epsilon: 1.0 }, ClearOp::RmsNorm { epsilon: 1.0 }] {
        breaks(&["V006"], calibrated(), |g| g.node_mut(named(g, "relu")).op = Op::Clear(op));
    }
}

#[test]
fn v006_public_tensors_may_use_anything() {
    let mut graph = calibrated();
    let weights = named(&graph, "fc.w");
    graph.add_clear("public", ClearOp::Softmax { axis: 1 }, &[weights], &[]).unwrap();
    assert_eq!(violations(&graph), []);
}

#[test]
fn v007_finite_constants() {
    breaks(&["V007"], imported(), |g| {
        let c = named(g, "layers.0/gain");
        g.node_mut(c).op = Op::Constant(Arc::new(ArrayD::from_elem(IxDyn(&[4]), f64::NAN)));
    });
    breaks(&["V007"], placed(), |g| map(g, "result").bias[1] = f64::INFINITY);
}

#[test]
fn v008_addresses() {
    breaks(&["V008"], placed(), |g| gather(g, "keyswitch")[3].index = 4);
    breaks(&["V008"], placed(), |g| gather(g, "keyswitch")[3].port = 1);
    breaks(&["V008"], placed(), |g| gather(g, "keyswitch")[3] = Address::ABSENT);
    breaks(&["V008"], placed(), |g| gather(g, "decrypt")[0] = Address::ABSENT);
    breaks(&["V008"], placed(), |g| map(g, "operand").gather[0].index = 4);
    breaks(&["V008"], placed(), |g| set_operands(g, "operand", &["keyswitch"]));
    breaks(&[], placed(), |g| map(g, "operand").gather[0] = Address::ABSENT);
    breaks(&[], placed(), |g| gather(g, "pack")[0] = Address::ABSENT);
}

#[test]
fn v009_linear_sizes() {
    breaks(&["V009"], placed(), |g| map(g, "operand").outputs = 0);
    breaks(&["V009"], placed(), |g| map(g, "operand").outputs = 3);
    breaks(&["V009"], placed(), |g| map(g, "operand").operands = usize::MAX);
    breaks(&["V009"], placed(), |g| map(g, "operand").gather.truncate(3));
    breaks(&["V009"], placed(), |g| map(g, "operand").set[0] = 1);
    breaks(&["V009", "V014"], placed(), |g| shorten(&mut map(g, "operand").weights));
    breaks(&["V009"], placed(), |g| shorten(&mut map(g, "operand").bias));
    breaks(&[], placed(), |g| {
        let constant = HeLinear { operands: 0, gather: vec![], weights: vec![], ..map(g, "operand").clone() };
        *map(g, "operand") = constant;
        integers(g, "operand").clear();
    });
}

fn product(g: &mut Graph) -> (&mut Vec<u32>, &mut Vec<u32>, &mut usize) {
    match he(g, "product") {
        HeOp::LutProduct { argument, accumulator, slots, .. } => {
            (Arc::make_mut(argument), Arc::make_mut(accumulator), slots)
        }
        other => panic!("{}", other.mnemonic()),
    }
}

#[test]
fn v010_operand_kinds() {
    breaks(&["V010"], placed(), |g| set_operands(g, "pbs", &["argument"]));
    breaks(&["V010"], placed(), |g| {
        let public = g.add_constant("public", Arc::new(ArrayD::zeros(IxDyn(&[4]))), &[]);
        g.set_operands(named(g, "encrypt"), &[public]);
    });
    breaks(&["V010"], placed(), |g| set_operands(g, "product", &["pack", "rotated"]));
    breaks(&["V010"], placed(), |g| product(g).0[0] = 4);
    breaks(&["V010"], placed(), |g| product(g).1[0] = 2);
    breaks(&["V010"], placed(), |g| product(g).1.push(0));
    breaks(&["V010"], placed(), |g| product(g).0.push(0));
    breaks(&["V010", "V011"], placed(), |g| *product(g).2 = 3);
}

#[test]
fn v010_and_v011_of_sums() {
    fn sums(g: &mut Graph) -> &mut Vec<u32> {
        match he(g, "product") {
            HeOp::LutProduct { sums: Some(sums), .. } => Arc::make_mut(sums),
            other => panic!("{}", other.mnemonic()),
        }
    }
    breaks(&["V010"], summed(), |g| sums(g)[0] = 1);
    breaks(&["V010"], summed(), |g| sums(g).push(0));
    breaks(&["V010"], summed(), |g| sums(g).truncate(2));
    breaks(&["V011", "V015"], summed(), |g| {
        for name in ["rotated", "factor"] {
            match he(g, name) {
                HeOp::Keyswitch { domain, .. } | HeOp::Linear { purpose: Purpose::Argument { domain }, .. } => {
                    domain.positions = SIZE / 8;
                }
                other => panic!("{}", other.mnemonic()),
            }
        }
    });
}

#[test]
fn v011_slots_and_positions() {
    fn positions(g: &mut Graph, name: &str, wanted: usize) {
        if let HeOp::Keyswitch { domain, .. } = he(g, name) {
            domain.positions = wanted;
        }
    }
    fn slots(g: &mut Graph, wanted: usize) {
        if let HeOp::Pack { slots, .. } = he(g, "pack") {
            *slots = wanted;
        }
    }
    breaks(&["V011"], placed(), |g| positions(g, "keyswitch", SIZE / 2));
    breaks(&["V011"], placed(), |g| positions(g, "keyswitch", 0));
    breaks(&["V011"], placed(), |g| {
        if let HeOp::Keyswitch { domain, .. } = he(g, "keyswitch") {
            domain.extension = 1;
        }
    });
    breaks(&["V011"], placed(), |g| positions(g, "rotated", SIZE));
    breaks(&["V010", "V011"], placed(), |g| slots(g, 3));
    breaks(&["V010", "V011"], placed(), |g| slots(g, 0));
    breaks(&["V010", "V011"], placed(), |g| *product(g).2 = 0);
    let mut graph = placed();
    positions(&mut graph, "keyswitch", 77);
    assert_eq!(verify(&graph, &VerifyOptions::default()), Ok(()));
}

#[test]
fn v012_ranges() {
    for name in ["x", "fc", "relu"] {
        breaks(&["V012"], calibrated(), |g| g.node_mut(named(g, name)).facts.ranges = None);
    }
    breaks(&["V012"], calibrated(), |g| ranges(g, "relu").class[3] = 1);
    breaks(&["V012"], calibrated(), |g| ranges(g, "relu").lo[0] = 4.0);
    breaks(&["V012"], calibrated(), |g| ranges(g, "relu").hi[0] = f64::NAN);
    breaks(&["V012"], calibrated(), |g| ranges(g, "relu").rms.clear());
    breaks(&["V012"], calibrated(), |g| g.node_mut(named(g, "relu")).facts.ranges = Some(one_range(9, 0.0, 1.0)));
    breaks(&["V012"], placed(), |g| g.node_mut(named(g, "pack")).facts.ranges = None);
}

#[test]
fn v013_encodings() {
    for name in ["encrypt", "operand", "pbs", "product"] {
        breaks(&["V013"], placed(), |g| g.node_mut(named(g, name)).facts.encodings = None);
        breaks(&["V013"], placed(), |g| shorten(encodings(g, name)));
    }
    breaks(&["V013"], placed(), |g| encodings(g, "product")[2].offset = f64::NAN);
    breaks(&["V013", "V014"], placed(), |g| encodings(g, "product")[2].scale = 0.0);
    breaks(&["V013", "V014"], placed(), |g| encodings(g, "product")[2].scale = -4.0);
}

#[test]
fn v014_integer_weights() {
    breaks(&["V014"], placed(), |g| integers(g, "operand")[5] += 3);
    breaks(&["V014"], placed(), |g| integers(g, "operand")[5] -= 3);
    breaks(&["V014"], placed(), |g| shorten(integers(g, "operand")));
    breaks(&["V014"], placed(), |g| g.node_mut(named(g, "operand")).facts.integers = None);
    breaks(&["V014"], placed(), |g| encodings(g, "encrypt")[3].scale = 64.0);
    breaks(&[], placed(), |g| {
        map(g, "operand").gather[1] = Address::ABSENT;
        integers(g, "operand")[1] = 1000;
    });
}

#[test]
fn v015_arguments_in_box() {
    breaks(&["V015"], placed(), |g| encodings(g, "argument")[1].offset += 0.1);
    breaks(&["V015"], placed(), |g| encodings(g, "argument")[1].offset -= 0.1);
    breaks(&["V011", "V015"], placed(), |g| {
        if let HeOp::Linear { purpose, .. } = he(g, "argument") {
            *purpose = Purpose::Argument { domain: Domain::new(SIZE / 2) };
        }
    });
}

#[test]
fn v016_outputs_do_not_wrap() {
    breaks(&["V016"], placed(), |g| ranges(g, "pbs").hi[0] = 2.0);
    breaks(&["V016"], placed(), |g| ranges(g, "pbs").lo[0] = -2.0);
}

#[test]
fn v017_slots_share_a_table() {
    // Another scale also changes what the linear map behind it rounds to.
    breaks(&["V014", "V017"], placed(), |g| {
        let id = named(g, "product");
        let encodings = g.node_mut(id).facts.encodings.as_mut().unwrap();
        Arc::make_mut(encodings)[1].scale *= 2.0;
    });
}

#[test]
fn all_violations_are_collected_and_shown() {
    let mut graph = placed();
    integers(&mut graph, "operand")[5] += 3;
    integers(&mut graph, "result")[0] += 3;
    graph.node_mut(named(&graph, "pbs")).name = "pack".into();
    let shown: Vec<String> = violations(&graph).iter().map(ToString::to_string).collect();
    assert_eq!(shown.len(), 3);
    assert_eq!(shown[0], "V004 `pack`: another node has this name");
    assert!(shown[1].starts_with("V014 `operand`: in group 0, output 1, operand 1, weight "), "{shown:?}");
}

/// A map of a million weights that seventeen groups share.
#[test]
fn large_maps_verify() {
    let (n, groups) = (1000, 17);
    let mut graph = Graph::new();
    graph.stage = Stage::Placed;
    let x = graph.add_input("x", &[n * groups]);
    let encoding = Some(Encoding { scale: 4.0, offset: 0.0 });
    let x = common::add_he(&mut graph, "encrypt", HeOp::Encrypt, n * groups, &[x], encoding);
    let weights: Vec<f64> = (0..n * n).map(|i| (i % 1001) as f64 - 500.0).collect();
    let integers = weights.iter().map(|w| *w as i32).collect();
    let map = HeLinear {
        outputs: n,
        operands: n,
        gather: common::all((n * groups) as u32),
        set: vec![0; groups],
        weights,
        bias: vec![0.0; n * groups],
    };
    let op = HeOp::Linear { map: Arc::new(map), purpose: Purpose::Packed };
    let y = common::add_he(&mut graph, "linear", op, n * groups, &[x], encoding);
    graph.node_mut(y).facts.integers = Some(Arc::new(integers));
    assert_eq!(violations(&graph), []);
}
