//! The formulas of `thex::scale` against circuits: two exports, and random transformers of two layers.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    unreachable_pub,
    reason = "tests fail by panicking, and share a module"
)]

#[path = "../../passes/tests/common/mod.rs"]
mod common;

use std::fs::File;
use std::path::{Path, PathBuf};

use common::{Random, Shape, transformer};
use ndarray_npy::NpzWriter;
use thex::emit::{EmitOptions, emit};
use thex::import::inputs;
use thex::pipeline::{CompileOptions, compile};
use thex::scale::{Counts, SLOTS, Size, table};
use thex_circuit::{Circuit, CircuitInfo, Instruction, Interface};
use thex_ir::UnaryFn;
use thex_passes::{PassCx, PassManager, Precision, Profile, options, registry};
use thex_runtime::KernelTimes;
use thex_runtime::ranks::volume::Volume;

const PROFILES: [Profile; 2] = [Profile::Exact, Profile::TheX];

/// Products may err as much as they like, so that they share rotations as far as allowed: how many do is the paper's assumption, not
/// its result.
const ANY_ERROR: Precision = Precision { output_error: 1e3, margin: 0.125 };

/// Asserts that the paper is within `tolerance` of the circuit.
fn close(name: &str, what: &str, paper: u64, circuit: u64, tolerance: f64) {
    let ratio = paper as f64 / circuit as f64;
    println!("{name}: {what} {paper} on paper, {circuit} compiled");
    assert!((ratio - 1.0).abs() <= tolerance, "{name}: {what} {paper} on paper, {circuit} compiled");
}

/// Weights of all linear maps, with those that are rounded to zero, which a run skips.
fn weights(circuit: &Circuit) -> u64 {
    let of = |x: &Instruction| match x {
        Instruction::Linear(x) => x.set.len() as u64 * u64::from(x.outputs) * u64::from(x.operands),
        _ => 0,
    };
    circuit.instructions.iter().map(of).sum()
}

/// `head`: look-ups of the model's head, which the formulas leave out.
fn compare(name: &str, paper: Counts, circuit: &Circuit, head: u64) {
    close(name, "PBS", paper.pbs() + head, circuit.pbs_count(), 0.15);
    close(name, "packs", paper.packs, circuit.pack_count(), 0.15);
    close(name, "keyswitches", paper.keyswitches + head, circuit.keyswitch_count(), 0.15);
    close(name, "weights", paper.multiply_adds, weights(circuit), 0.15);
}

/// Random vectors for an export: the one sample that is kept beside it shows no spread of outputs, on which precision depends.
fn calibration(folder: &Path, model: &Path) -> PathBuf {
    let path = folder.join("calibration.npz");
    let mut writer = NpzWriter::new(File::create(&path).unwrap());
    let vectors = Random(7).tensor(&[16, 6, 16], 1.0).mapv(|v| v as f32);
    writer.add_array(&inputs(model).unwrap()[0].name, &vectors).unwrap();
    writer.finish().unwrap();
    path
}

#[test]
fn exports_cost_what_the_paper_says() {
    let size =
        Size { tokens: 6, width: 16, heads: 2, hidden: 24, layers: 1, one_row: false, slots: SLOTS, external: None };
    let folder = tempfile::tempdir().unwrap();
    // The pooler looks 16 tanh up.
    for (name, one_row, head) in [("torch_post_dynamo20", false, 0), ("postln_relu_pooler_legacy17", true, 16)] {
        for profile in PROFILES {
            let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/exports").join(name);
            let model = model.with_extension("onnx");
            let calibration = calibration(folder.path(), &model);
            let compiled = compile(&CompileOptions {
                model,
                calibration,
                profile,
                precision: ANY_ERROR,
                pass_options: vec!["insert-bootstraps:external-products=false".into()],
                ..CompileOptions::default()
            })
            .unwrap();
            let name = format!("{name}, {}", profile.name());
            compare(&name, Size { one_row, ..size }.counts(profile), &compiled.emitted.circuit, head);
        }
    }
}

/// The circuit of a random transformer.
fn circuit(shape: Shape, profile: Profile, slots: u64, external: bool) -> Circuit {
    let (mut graph, samples) = transformer(shape, 5, 16);
    let mut cx = PassCx::new(profile, samples);
    cx.precision = ANY_ERROR;
    cx.parameters_fixed = true;
    let mut pipeline = registry::pipeline();
    let plans = [format!("max-slots={slots}"), format!("external-products={external}")];
    options::apply(&mut pipeline, &plans.map(|plan| format!("insert-bootstraps:{plan}"))).unwrap();
    PassManager::default().run(&pipeline, &mut graph, &mut cx).unwrap();
    let (prologue, epilogue) = (cx.prologue.unwrap(), cx.epilogue.unwrap());
    let (info, interface) = (CircuitInfo::default(), Interface::default());
    emit(&graph, EmitOptions { parameters: cx.parameters, info, prologue, epilogue, interface }).unwrap().circuit
}

#[test]
fn two_layers_of_several_tokens_cost_what_the_paper_says() {
    let size = Size { tokens: 10, width: 16, heads: 2, hidden: 32, layers: 2, one_row: true, slots: 4, external: None };
    let shape = Shape {
        tokens: 10,
        width: 16,
        heads: 2,
        hidden: 32,
        layers: 2,
        pre_norm: false,
        class_token: false,
        activation: UnaryFn::Gelu,
        ..Shape::TINY
    };
    for profile in PROFILES {
        for slots in [2, 4] {
            let name = format!("random, {}, {slots} slots", profile.name());
            compare(&name, Size { slots, ..size }.counts(profile), &circuit(shape, profile, slots, false), 0);
        }
        // Two products a rotation leave arguments as much room as two rotations a GGSW.
        let size = Size { slots: 2, external: Some([2, 2]), ..size };
        let circuit = circuit(shape, profile, 2, true);
        assert!(circuit.instructions.iter().any(|x| matches!(x, Instruction::ExternalProduct(_))));
        compare(&format!("random, {}, external", profile.name()), size.counts(profile), &circuit, 0);
    }
}

/// What ranks would exchange, on paper and compiled.
#[test]
fn exact_circuits_travel_in_the_bytes_that_the_paper_says() {
    let size = Size { tokens: 10, width: 16, heads: 2, hidden: 32, layers: 2, one_row: true, slots: 4, external: None };
    let shape = Shape {
        tokens: 10,
        width: 16,
        heads: 2,
        hidden: 32,
        layers: 2,
        pre_norm: false,
        class_token: false,
        activation: UnaryFn::Gelu,
        ..Shape::TINY
    };
    let circuit = circuit(shape, Profile::Exact, 4, false);
    let bytes = size.steps(&circuit.parameters).iter().map(|step| step.bytes).sum();
    close("random, exact", "bytes", bytes, Volume::new(&circuit).whole(), 0.15);
}

const TIMES: KernelTimes = KernelTimes {
    threads: 2,
    pbs_ns: 5e6,
    keyswitch_ns: 0.26e6,
    pack_ns: 0.65e6,
    multiply_add_ns: 200.0,
    lut_product_ns: 5.2e6,
    external_product_ns: 5.6e6,
    lone_pbs_ns: 1e7,
    lane_ns: 5.0e6,
    lone_keyswitch_ns: 3e6,
    lone_pack_ns: 9e6,
};

#[test]
fn the_table_grows_as_attention_does() {
    let rows = table(SLOTS, &TIMES);
    assert_eq!(rows.len(), 40);
    for row in &rows {
        assert!(row.pbs_external <= row.pbs && row.attention_share < 1.0, "{row:?}");
        assert!((row.hours_2 / row.hours_64 - 32.0).abs() < 1e-9);
    }
    let of = |tokens: u64| rows.iter().find(|r| r.size.tokens == tokens && r.size.width == 768).unwrap();
    assert!(of(128).pbs > 5 * of(32).pbs, "more than linear");
    assert!(of(16).attention_share < 0.4 && of(128).attention_share > 0.6, "scores take over");
}
