//! Print then parse is the identity, and no text makes the parser panic.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;

use common::{SIZE, calibrated, named, placed, summed, transformer};
use ndarray::ArrayD;
use proptest::prelude::*;
use thex_ir::he::Purpose;
use thex_ir::parse::parse;
use thex_ir::print::{ConstantPool, print, print_with_pool, structurally_eq};
use thex_ir::verify::{VerifyOptions, verify};
use thex_ir::{ClearOp, Graph, HeOp, LookUp, Op, Stage, UnaryChain, UnaryFn, interpret};

fn round_trip(graph: &Graph) -> Graph {
    let (text, pool) = print_with_pool(graph);
    assert_eq!(text, print(graph), "the pool does not change the text");
    let parsed = parse(&text, &pool).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(without_comments(&print(&parsed)), without_comments(&text));
    parsed
}

fn without_comments(text: &str) -> Vec<&str> {
    text.lines().map(|line| line.split(" ; ").next().unwrap_or("")).collect()
}

fn assert_round_trips(graph: &Graph) {
    assert!(structurally_eq(graph, &round_trip(graph)), "{}", print(graph));
}

#[test]
fn the_text_of_a_placed_graph() {
    insta::assert_snapshot!(print(&placed()));
}

#[test]
fn the_text_of_a_calibrated_graph() {
    insta::assert_snapshot!(print(&calibrated()));
}

#[test]
fn fixtures_round_trip() {
    assert_round_trips(&placed());
    assert_round_trips(&calibrated());
    assert_round_trips(&Graph::new());
    assert_round_trips(&over_the_full_torus());
    assert_round_trips(&summed());
    assert!(print(&summed()).contains("sums"));
}

/// A look-up of ReLU less half its argument, with all positions of the torus.
fn over_the_full_torus() -> Graph {
    let mut graph = placed();
    let pbs = named(&graph, "pbs");
    if let Op::He(HeOp::Pbs { function }) = &mut graph.node_mut(pbs).op {
        *function = LookUp { chain: UnaryChain::from(UnaryFn::Relu), slope: 0.5 };
    }
    for name in ["argument", "keyswitch"] {
        let node = named(&graph, name);
        match &mut graph.node_mut(node).op {
            Op::He(HeOp::Keyswitch { domain, .. } | HeOp::Linear { purpose: Purpose::Argument { domain }, .. }) => {
                domain.positions *= 2;
            }
            other => panic!("{other:?}"),
        }
    }
    graph
}

#[test]
fn a_look_up_over_the_full_torus_says_its_slope() {
    let graph = over_the_full_torus();
    assert!(print(&graph).contains("{chain: \"relu\", slope: 0.5}"), "{}", print(&graph));
    let inputs = [Arc::new(ArrayD::from_shape_vec(vec![1, 4], vec![-2.0, -0.5, 1.0, 3.0]).unwrap())];
    let values = interpret::run_all(&graph, &inputs).unwrap();
    let looked_up: Vec<f64> = values[&named(&graph, "pbs")].iter().copied().collect();
    let wanted: Vec<f64> = values[&named(&graph, "argument")].iter().map(|x| x.abs() / 2.0).collect();
    assert!(looked_up.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-12), "{looked_up:?} {wanted:?}");
    assert!(verify(&graph, &VerifyOptions { polynomial_size: Some(SIZE) }).is_ok());
}

#[test]
fn structural_equality_sees_every_part() {
    let changes: [fn(&mut Graph); 8] = [
        |g| g.stage = Stage::Imported,
        |g| g.outputs[0].0.push('x'),
        |g| g.inputs.clear(),
        |g| g.node_mut(named(g, "relu")).name.push('x'),
        |g| g.node_mut(named(g, "relu")).shape.push(1),
        |g| g.node_mut(named(g, "relu")).origin.clear(),
        |g| g.set_operands(named(g, "relu"), &[g.inputs[0]]),
        |g| g.node_mut(named(g, "relu")).op = thex_ir::Op::Clear(ClearOp::Softmax { axis: 0 }),
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let mut changed = calibrated();
        change(&mut changed);
        assert!(!structurally_eq(&calibrated(), &changed), "change {i}");
    }
}

#[test]
fn a_cycle_round_trips() {
    let mut graph = calibrated();
    let (fc, relu) = (named(&graph, "fc"), named(&graph, "relu"));
    graph.set_operand(fc, 0, relu);
    assert_round_trips(&graph);
}

#[test]
fn removed_outputs_print_and_do_not_parse() {
    let mut graph = calibrated();
    graph.outputs[0].1 = thex_ir::NodeId::new(99);
    let (text, pool) = print_with_pool(&graph);
    assert_eq!(parse(&text, &pool).unwrap_err().line, 4);
}

#[test]
fn large_constants_come_from_the_pool() {
    let (text, pool) = print_with_pool(&placed());
    assert_eq!(pool.len(), 1, "the eighteen weights of `result`");
    let error = parse(&text, &ConstantPool::default()).unwrap_err();
    assert!(error.message.contains("is not in the pool"), "{error}");
}

#[test]
fn errors_name_line_and_column() {
    let header = "thex-ir 1\nstage imported\ninputs %x\noutputs \"y\" %y\n";
    for (text, line, column, message) in [
        ("", 1, 1, "expected `thex-ir`"),
        ("thex-ir 2", 1, 8, "this is not version 1 of the text form"),
        ("thex-ir 1\nstage cooked", 2, 6, "no such stage"),
        (&format!("{header}\n%x: [2] = input()\n"), 4, 14, "`y` is not defined"),
        (&format!("{header}%x: [2] = input()\n%x: [2] = input()\n"), 6, 1, "`x` is defined twice"),
        (&format!("{header}%x: [2] = bake()\n"), 5, 10, "no such operation: `bake`"),
        (&format!("{header}%x: [2] = input() {{axis: 1}}\n"), 5, 25, "the operation has no `axis`"),
        (&format!("{header}%x: [2] = softmax(%x)\n"), 5, 22, "the operation needs `axis`"),
        (&format!("{header}%x: [2] = softmax(%x) {{axis: 1 2}}\n"), 5, 32, "`axis` has more than one value"),
        (&format!("{header}%x: [2] = constant() {{value: [1.0]}}\n"), 5, 29, "the values do not fill shape [2]"),
        (&format!("{header}%\"é\\q\": [2] = input()\n"), 5, 6, "no such escape"),
        (&format!("{header}%x: [4294967296,4294967296] = input()\n"), 5, 4, "the shape has too many elements"),
    ] {
        let error = parse(text, &ConstantPool::default()).unwrap_err();
        assert_eq!((error.line, error.column, error.message.as_str()), (line, column, message), "{text}");
    }
}

#[test]
fn constants_keep_their_bits() {
    let values = vec![0.1, -0.0, 1e300, f64::MIN_POSITIVE / 3.0, f64::INFINITY, 1.0 / 3.0];
    let mut graph = Graph::new();
    let c = graph.add_constant("c", Arc::new(ArrayD::from_shape_vec(vec![2, 3], values.clone()).unwrap()), &[]);
    graph.outputs.push(("c".into(), c));
    let parsed = round_trip(&graph);
    let bits = parsed.constant(named(&parsed, "c")).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits, values.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
}

/// Changes a text at places that the numbers choose: deletes, repeats, or inserts a character that the grammar uses.
fn mutate(text: &str, edits: &[(usize, usize)]) -> String {
    const MARKS: &[char] =
        &['%', '"', '[', ']', '{', '}', '(', ')', ':', ',', ';', '@', '#', '\\', '-', '9', '\n', 'é'];
    let mut chars: Vec<char> = text.chars().collect();
    for &(place, what) in edits {
        let place = place % chars.len().max(1);
        match what % (MARKS.len() + 2) {
            0 if !chars.is_empty() => drop(chars.remove(place)),
            1 => {
                let piece: Vec<char> = chars[place..].iter().take(40).copied().collect();
                chars.splice(place..place, piece);
            }
            mark => chars.insert(place, MARKS[mark.saturating_sub(2)]),
        }
    }
    chars.into_iter().collect()
}

/// Whatever parses can be verified without a panic, and printed and parsed again.
fn survives(text: &str, pool: &ConstantPool) {
    if let Ok(graph) = parse(text, pool) {
        let _ = verify(&graph, &VerifyOptions { polynomial_size: Some(common::SIZE) });
        round_trip(&graph);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn transformers_round_trip(
        tokens in 1_usize..4,
        width in 1_usize..7,
        hidden in 1_usize..9,
        layers in 0_usize..3,
        seed: u64,
    ) {
        assert_round_trips(&transformer(tokens, width, hidden, layers, seed));
    }

    #[test]
    fn names_round_trip(names in prop::collection::vec(any::<String>(), 3), origins: Vec<String>) {
        let mut graph = placed();
        for (node, name) in ["encrypt", "pbs", "decrypt"].into_iter().zip(&names) {
            let id = named(&graph, node);
            let name = graph.unique_name(name);
            graph.node_mut(id).name = name;
            graph.node_mut(id).origin.clone_from(&origins);
        }
        graph.outputs[0].0.clone_from(&names[0]);
        let (text, pool) = print_with_pool(&graph);
        let parsed = parse(&text, &pool).unwrap_or_else(|e| panic!("{e}\n{text}"));
        prop_assert!(structurally_eq(&graph, &parsed), "{}", text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn mutated_text_never_panics(edits in prop::collection::vec(any::<(usize, usize)>(), 1..6), which in 0..3) {
        let graph = match which {
            0 => placed(),
            1 => calibrated(),
            _ => transformer(2, 3, 4, 1, 5),
        };
        let (text, pool) = print_with_pool(&graph);
        survives(&mutate(&text, &edits), &pool);
    }

    #[test]
    fn garbage_never_panics(text: String, header: bool) {
        let header = if header { "thex-ir 1\nstage placed\ninputs\noutputs\n%x: [" } else { "" };
        survives(&format!("{header}{text}"), &ConstantPool::default());
    }
}
