//! The program as its user sees it: the round trip, and every kind of bad input.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use ndarray::ArrayD;
use ndarray_npy::NpzWriter;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn thex(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_thex")).args(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn succeed(arguments: &[&str]) -> Output {
    let output = thex(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Asserts an orderly failure that mentions all of `mentions`.
fn fail(arguments: &[&str], mentions: &[&str]) {
    let output = thex(arguments);
    // The report wraps lines and draws a frame; compare words.
    let raw = String::from_utf8_lossy(&output.stderr).into_owned();
    let words = |s: &str| s.replace('│', " ").split_whitespace().collect::<Vec<_>>().join(" ");
    let message = words(&raw);
    let code = output.status.code();
    assert!(matches!(code, Some(2..=5)), "{arguments:?} exited with {code:?}: {raw}");
    assert!(!message.contains("panicked"), "{raw}");
    for mention in mentions {
        assert!(message.contains(&words(mention)), "{arguments:?} does not mention {mention:?}: {raw}");
    }
}

/// One model compiled twice (two profiles), with keys for the first and an encrypted input.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let fixture = Fixture { folder: tempfile::tempdir().unwrap() };
    let (model, data) = (repository("tests/models/digits_vit.onnx"), repository("tests/data/digits_calibration.npz"));
    for (profile, name) in [("the-x", "a"), ("exact", "b")] {
        let out = fixture.path(name);
        let arguments = ["compile", text(&model), "--calibration", text(&data), "--profile", profile, "-o", text(&out)];
        succeed(&arguments);
    }
    succeed(&["keygen", text(&fixture.path("a.client")), "-o", text(&fixture.path("keys"))]);
    succeed(&[
        "encrypt",
        text(&fixture.path("a.client")),
        "--key",
        text(&fixture.path("keys/client.key")),
        "--input",
        text(&repository("tests/data/digits_dev.npz")),
        "-o",
        text(&fixture.path("in.ct")),
    ]);
    fixture
});

fn npz(folder: &Path, name: &str, shape: &[usize], value: f32) -> PathBuf {
    let path = folder.join("data.npz");
    let mut writer = NpzWriter::new(File::create(&path).unwrap());
    writer.add_array(name, &ArrayD::from_elem(shape, value)).unwrap();
    writer.finish().unwrap();
    path
}

#[test]
fn compilation_is_deterministic() {
    let again = FIXTURE.path("again");
    let (model, data) = (repository("tests/models/digits_vit.onnx"), repository("tests/data/digits_calibration.npz"));
    for (profile, first) in [("the-x", "a"), ("exact", "b")] {
        let start = ["compile", text(&model), "--calibration", text(&data), "-o", text(&again)];
        succeed(&[&start[..], &["--profile", profile]].concat());
        for suffix in ["circuit", "client", "graph"] {
            let bytes = |name: &str| std::fs::read(FIXTURE.path(&format!("{name}.{suffix}"))).unwrap();
            assert!(bytes("again") == bytes(first), "{profile}: {suffix} differs between two compilations");
        }
    }
}

#[test]
fn inspect_prints_one_json_object_with_the_fixed_fields() {
    let output = succeed(&["inspect", text(&FIXTURE.path("a.circuit")), "--format", "json"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for field in ["digest", "pbs_count", "pack_count", "estimated_seconds", "server_key_bytes", "parameters", "layers"]
    {
        assert!(!value[field].is_null(), "{field} is missing");
    }
    assert!(value["pbs_count"].as_u64().unwrap() <= 12_000);
    assert_eq!(value["security"]["curve_bits"], 132);
    assert!(value["security"]["estimated_bits"].as_f64().unwrap() >= 128.0);
    let key = std::fs::metadata(FIXTURE.path("keys/server.key")).unwrap().len();
    assert_eq!(value["server_key_bytes"].as_u64().unwrap(), key);
    let shown = succeed(&["inspect", text(&FIXTURE.path("a.circuit"))]).stdout;
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(shown.contains("132 bits") && shown.contains("tfhe's curve") && shown.contains("table.csv"), "{shown}");
}

#[test]
fn sharing_adds_noise_or_says_how_much_room_there_is() {
    let (golden, folder) = (repository("tests/golden/v1/text"), tempfile::tempdir().unwrap());
    let key = folder.path().join("client.key");
    let secret = std::fs::read(golden.join("client.key")).unwrap();
    thex_circuit::file::write_atomic(&key, &secret, true).unwrap();
    let (bundle, result) = (golden.join("m.client"), golden.join("out.ct"));
    let start = ["decrypt", text(&bundle), "--key", text(&key), "--input", text(&result), "--json"];
    fail(&[&start[..], &["--share"]].concat(), &["TX0104", "30 bits", "room for is", "instead of the numbers"]);
    fail(&[&start[..], &["--share=65"]].concat(), &["65"]);
    fail(&[&start[..], &["--share", "--raw"]].concat(), &["--raw"]);
    let shared = succeed(&[&start[..], &["--share=1", "--shared-results", "2"]].concat());
    let note = String::from_utf8_lossy(&shared.stderr).into_owned();
    assert!(note.contains("1 bits of statistical security for 2 shared results"), "{note}");
    let value: serde_json::Value = serde_json::from_slice(&shared.stdout).unwrap();
    assert!((value["outputs"]["logits"]["data"][1].as_f64().unwrap() - 1.398).abs() < 1.0, "{value}");
    // Without it, the reader is told what rounding is worth.
    let note = String::from_utf8_lossy(&succeed(&start).stderr).into_owned();
    assert!(note.contains("no proof"), "{note}");
}

#[test]
fn simulation_agrees_with_the_float_model() {
    let (model, data) = (repository("tests/models/digits_vit.onnx"), repository("tests/data/digits_dev.npz"));
    for mode in ["clear", "simulate"] {
        let prefix = FIXTURE.path("b");
        let arguments =
            ["evaluate", text(&prefix), "--model", text(&model), "--data", text(&data), "--mode", mode, "--json"];
        let value: serde_json::Value = serde_json::from_slice(&succeed(&arguments).stdout).unwrap();
        let number = |field: &str| value[field].as_f64().unwrap();
        assert_eq!(number("samples") as usize, 300);
        assert!(number("float_accuracy") > 0.97);
        assert!(number("accuracy") > number("float_accuracy") - 0.01, "{mode}: {value}");
        assert!(number("mean_cosine") > 0.98, "{mode}: {value}");
    }
}

#[test]
fn the_approximated_model_can_be_exported_and_compiled() {
    let folder = tempfile::tempdir().unwrap();
    let data = repository("tests/data/digits_dev.npz");
    let (prefix, out) = (FIXTURE.path("a"), folder.path().join("approximated.onnx"));
    succeed(&["export", text(&prefix), "-o", text(&out), "--expected", text(&data)]);
    let expected = thex_runtime::npz::read(&out.with_extension("npz"), &["image", "expected_logits"]).unwrap();
    assert_eq!(expected[1].1.shape(), [300, 10]);
    let calibration = repository("tests/data/digits_calibration.npz");
    let again = folder.path().join("again");
    succeed(&["compile", text(&out), "--calibration", text(&calibration), "-o", text(&again)]);
    let none = folder.path().join("none");
    fail(&["export", text(&none), "-o", text(&out)], &["none.graph", "thex compile"]);
    fail(&["export", text(&prefix), "-o", "/nonexistent/folder/out.onnx"], &["/nonexistent/folder"]);
    std::fs::copy(FIXTURE.path("a.circuit"), folder.path().join("none.graph")).unwrap();
    fail(&["export", text(&none), "-o", text(&out)], &["none.graph", "graph file"]);
}

#[test]
fn files_that_are_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let data = repository("tests/data/digits_calibration.npz");
    let (bad, cut) = (folder.path().join("bad.onnx"), folder.path().join("cut.onnx"));
    std::fs::write(&bad, "this is no model").unwrap();
    let whole = std::fs::read(repository("tests/models/digits_vit.onnx")).unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let out = folder.path().join("out");
    for (model, name) in [(&bad, "bad.onnx"), (&cut, "cut.onnx"), (&folder.path().join("none.onnx"), "none.onnx")] {
        fail(&["compile", text(model), "--calibration", text(&data), "-o", text(&out)], &[name]);
    }
    assert!(!folder.path().join("out.circuit").exists() && !folder.path().join("out.client").exists());
}

#[test]
fn calibration_that_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let model = repository("tests/models/digits_vit.onnx");
    let out = folder.path().join("out");
    let try_data = |data: &Path, mentions: &[&str]| {
        fail(&["compile", text(&model), "--calibration", text(data), "-o", text(&out)], mentions);
    };
    try_data(&npz(folder.path(), "picture", &[4, 1, 8, 8], 0.5), &["image", "picture"]);
    try_data(&npz(folder.path(), "image", &[4, 1, 7, 8], 0.5), &["image"]);
    try_data(&npz(folder.path(), "image", &[4, 1, 8, 8], f32::NAN), &["image", "NaN"]);
    try_data(&npz(folder.path(), "image", &[0, 1, 8, 8], 0.5), &["no sample"]);
    try_data(&folder.path().join("none.npz"), &["none.npz"]);
    let cut = folder.path().join("cut.npz");
    std::fs::write(&cut, &std::fs::read(repository("tests/data/digits_dev.npz")).unwrap()[..900]).unwrap();
    try_data(&cut, &["cut.npz"]);
}

#[test]
fn shapes_that_make_no_sense() {
    let (model, data) = (repository("tests/models/digits_vit.onnx"), repository("tests/data/digits_calibration.npz"));
    let out = FIXTURE.path("shapes");
    let with = |shape: &str, mentions: &[&str]| {
        let arguments = ["compile", text(&model), "--calibration", text(&data), "--shape", shape, "-o", text(&out)];
        fail(&arguments, mentions);
    };
    with("image", &["NAME=1x16"]);
    with("image=0x1", &["2^28"]);
    with("image=99999999999999999999x1", &["NAME=1x16"]);
    with("image=1099511627776x1x8x8", &["2^28"]);
    with("picture=1x1x8x8", &["picture", "image"]);
}

#[test]
fn output_that_cannot_be_written() {
    let (model, data) = (repository("tests/models/digits_vit.onnx"), repository("tests/data/digits_calibration.npz"));
    let out = "/nonexistent/folder/out";
    fail(&["compile", text(&model), "--calibration", text(&data), "-o", out], &["/nonexistent/folder"]);
    let (circuit, key, input) = (FIXTURE.path("a.circuit"), FIXTURE.path("keys/server.key"), FIXTURE.path("in.ct"));
    let arguments = ["run", text(&circuit), "--key", text(&key), "--input", text(&input), "-o", out];
    fail(&arguments, &["/nonexistent/folder"]);
}

#[test]
fn things_that_do_not_belong_together() {
    let f = &*FIXTURE;
    let (key, secret, input) = (f.path("keys/server.key"), f.path("keys/client.key"), f.path("in.ct"));
    let out = f.path("never.ct");
    // A server key, and an input, of another circuit.
    let circuit = f.path("b.circuit");
    let arguments = ["run", text(&circuit), "--key", text(&key), "--input", text(&input), "-o", text(&out)];
    fail(&arguments, &["b.circuit", "server.key", "do not belong together"]);
    // A client key of another bundle.
    let (bundle, data) = (f.path("b.client"), repository("tests/data/digits_dev.npz"));
    let arguments = ["encrypt", text(&bundle), "--key", text(&secret), "--input", text(&data), "-o", text(&out)];
    fail(&arguments, &["b.client", "client.key", "do not belong together"]);
    // A circuit and a bundle of different compilations.
    std::fs::copy(f.path("a.circuit"), f.path("mixed.circuit")).unwrap();
    std::fs::copy(f.path("b.client"), f.path("mixed.client")).unwrap();
    let (prefix, model) = (f.path("mixed"), repository("tests/models/digits_vit.onnx"));
    let arguments = ["evaluate", text(&prefix), "--model", text(&model), "--data", text(&data), "--mode", "clear"];
    fail(&arguments, &["mixed.circuit", "mixed.client", "do not belong together"]);
    // One file where another is wanted.
    fail(&["keygen", text(&f.path("a.circuit")), "-o", text(&f.path("k"))], &["a.circuit", "not a client bundle"]);
    fail(&["inspect", text(&key)], &["server.key"]);
    assert!(!out.exists());
}

#[test]
fn damaged_files() {
    let f = &*FIXTURE;
    let folder = tempfile::tempdir().unwrap();
    let cut = |name: &str| {
        let bytes = std::fs::read(f.path(name)).unwrap();
        let path = folder.path().join(Path::new(name).file_name().unwrap());
        std::fs::write(&path, &bytes[..bytes.len() * 2 / 3]).unwrap();
        path
    };
    let (circuit, key, input) = (f.path("a.circuit"), f.path("keys/server.key"), f.path("in.ct"));
    let out = folder.path().join("out.ct");
    let run = |circuit: &Path, key: &Path, input: &Path, mention: &str| {
        let arguments = ["run", text(circuit), "--key", text(key), "--input", text(input), "-o", text(&out)];
        fail(&arguments, &[mention, "truncated"]);
    };
    run(&cut("a.circuit"), &key, &input, "a.circuit");
    run(&circuit, &cut("keys/server.key"), &input, "server.key");
    run(&circuit, &key, &cut("in.ct"), "in.ct");
    assert!(!out.exists());
}

#[test]
fn passes_can_be_looked_at() {
    let (model, data) = (repository("tests/models/digits_vit.onnx"), repository("tests/data/digits_calibration.npz"));
    let (out, dump) = (FIXTURE.path("dumped"), FIXTURE.path("ir"));
    let start = ["compile", text(&model), "--calibration", text(&data), "-o", text(&out)];
    let stopped = succeed(&[&start[..], &["--stop-after", "fold-affine"]].concat());
    let printed = String::from_utf8(stopped.stdout).unwrap();
    assert!(printed.contains("stage approximated") && printed.contains("linear("), "{printed}");
    assert!(!out.with_extension("circuit").exists());
    fail(&[&start[..], &["--stop-after", "fold"]].concat(), &["no pass `fold`", "calibrate, insert-bootstraps"]);
    succeed(&[&start[..], &["--dump-ir", text(&dump)]].concat());
    let files = std::fs::read_dir(&dump).unwrap().count();
    assert!(files > 8, "{files} files");
}

#[test]
fn help_teaches() {
    for arguments in [
        &["--help"][..],
        &["compile", "--help"],
        &["evaluate", "--help"],
        &["report", "--help"],
        &["bench", "--help"],
        &["passes"],
        &["explain"],
    ] {
        let output = succeed(arguments);
        assert!(output.stdout.len() > 300, "{arguments:?}");
    }
}

#[test]
fn bench_shares_add_up_and_kept_kernels_price_models() {
    let circuit = FIXTURE.path("a.circuit");
    let output = succeed(&["bench", text(&circuit), "--threads", "1", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["kernels"]["threads"], 1);
    let cost = &value["circuit"];
    assert_eq!(cost["pbs_count"].as_u64().unwrap(), thex_circuit::Circuit::load(&circuit).unwrap().0.pbs_count());
    let share: f64 = cost["kinds"].as_array().unwrap().iter().map(|k| k["share"].as_f64().unwrap()).sum();
    assert!((share - 1.0).abs() < 1e-9 && cost["rotation_share"].as_f64().unwrap() > 0.3, "{cost}");
    let kept = FIXTURE.path("bench.json");
    std::fs::write(&kept, &output.stdout).unwrap();
    let table = succeed(&["bench", "--scale", "--kernels-from", text(&kept)]).stdout;
    assert_eq!(String::from_utf8(table).unwrap().lines().filter(|l| l.contains("the-x")).count(), 20);
    std::fs::write(&kept, String::from_utf8(output.stdout).unwrap().replace("\"pbs_ns\":", "\"pbs_ns\":-")).unwrap();
    fail(&["bench", "--scale", "--kernels-from", text(&kept)], &["file of kernel times", "above zero"]);
    assert_eq!(thex(&["bench", text(&circuit), "--scale"]).status.code(), Some(2), "a usage error");
}

#[test]
fn options_of_passes_are_checked_and_change_the_circuit() {
    let (model, data) = (repository("tests/models/digits_vit.onnx"), repository("tests/data/digits_calibration.npz"));
    let out = FIXTURE.path("tuned");
    let start = ["compile", text(&model), "--calibration", text(&data), "-o", text(&out)];
    let with = |setting: &'static str| [&start[..], &["-x", setting]].concat();
    fail(&with("exact-softmax:beta=1"), &["TX0012", "has no option `beta`", "alpha=0.5"]);
    fail(&with("softmax:alpha=1"), &["TX0012", "no pass `softmax`", "exact-softmax"]);
    fail(&with("exact-softmax:alpha=2"), &["TX0012", "from 0.05 to 1"]);
    assert!(!out.with_extension("circuit").exists());
    let rotations = ["-x", "insert-bootstraps:external-products=false"];
    succeed(&[&with("insert-bootstraps:max-slots=2")[..], &rotations].concat());
    let pbs = |name: &str| thex_circuit::Circuit::load(&FIXTURE.path(name)).unwrap().0.pbs_count();
    assert!(pbs("tuned.circuit") > pbs("b.circuit"), "smaller packs must cost more rotations");
}

#[test]
fn forms_of_nodes_are_checked_and_change_the_circuit() {
    let (model, data) = (repository("tests/models/digits_vit.onnx"), repository("tests/data/digits_calibration.npz"));
    let out = FIXTURE.path("formed");
    let start = ["compile", text(&model), "--calibration", text(&data), "-o", text(&out)];
    let with = |request: &'static str| [&start[..], &["--approximate", request]].concat();
    fail(&with("*Softmax=cubes"), &["TX0016", "no form `cubes`", "two-pass", "blocks.1.Softmax"]);
    fail(&with("*Erf=cube"), &["TX0016", "`cube` is no form of what matches", "relu"]);
    fail(&with("*.ln3.*=affine"), &["TX0016", "no node matches", "constant"]);
    let stopped = [&with("*LayerNorm*=constant")[..], &["--stop-after", "exact-layer-norm"]].concat();
    let shown = String::from_utf8(succeed(&stopped).stdout).unwrap();
    assert!(shown.contains("LayerNormalization.factors") && !shown.contains("rsqrt"), "{shown}");
}

#[test]
fn a_pass_is_shown_with_its_difference() {
    let (model, data) = (repository("tests/models/digits_vit.onnx"), repository("tests/data/digits_calibration.npz"));
    let inspect = |pass: &str, format: &str| {
        let start = ["inspect", text(&model), "--calibration", text(&data), "--profile", "the-x"];
        String::from_utf8(succeed(&[&start[..], &["--pass", pass, "--format", format]].concat()).stdout).unwrap()
    };
    insta::assert_snapshot!(inspect("the-x-gelu", "text"));
    let value: serde_json::Value = serde_json::from_str(&inspect("the-x-softmax", "json")).unwrap();
    let names = |field: &str| value[field].as_array().unwrap().clone();
    assert_eq!(names("removed"), ["blocks.0.Softmax", "blocks.1.Softmax"]);
    assert!(names("added").contains(&"blocks.0.Softmax.cube".into()));
    assert_eq!(names("approximations").len(), 2);
    let nodes = |side: &str| value[side]["nodes"].as_array().unwrap().len();
    assert_eq!(nodes("after") + names("removed").len(), nodes("before") + names("added").len());
    let dot = inspect("the-x-softmax", "dot");
    assert!(
        dot.starts_with("digraph") && dot.contains("#dff3e6") && dot.contains("#fbe3e0") && dot.contains("#fdf0cf")
    );
    let start = ["inspect", text(&model), "--calibration", text(&data), "--pass"];
    fail(&[&start[..], &["fold"]].concat(), &["TX0011", "no pass `fold`", "calibrate, insert-bootstraps"]);
    succeed(&[&start[..], &["the-x-gelu"]].concat());
    fail(&["inspect", text(&FIXTURE.path("b.circuit")), "--format", "dot"], &["TX0011", "--pass"]);
}

#[test]
fn codes_and_passes_are_explained() {
    let shown = |arguments: &[&str]| String::from_utf8(succeed(arguments).stdout).unwrap();
    assert!(shown(&["explain"]).lines().count() > 20);
    assert!(shown(&["explain", "TX0003"]).contains("exit status 3"));
    fail(&["explain", "TX9999"], &["no code `TX9999`"]);
    insta::assert_snapshot!(shown(&["passes", "calibrate"]));
    fail(&["passes", "fold"], &["no pass `fold`", "calibrate, insert-bootstraps"]);
}

#[test]
fn forms_are_searched_within_a_budget() {
    let (model, data) = (repository("tests/models/digits_vit.onnx"), repository("tests/data/digits_calibration.npz"));
    let out = FIXTURE.path("auto");
    // All but the last norm are settled, so that the search is short.
    let settled = ["--approximate", "*Erf*=exact", "--approximate", "*Softmax=cube", "--approximate", "blocks.*=exact"];
    let mut arguments =
        vec!["compile", text(&model), "--calibration", text(&data), "--profile", "auto", "-o", text(&out)];
    arguments.extend(settled);
    arguments.extend(["--budget-accuracy", "100"]);
    let output = succeed(&arguments);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("losses in points of agreement") && shown.contains("← taken"), "{shown}");
    assert!(shown.contains("ln.LayerNormalization"), "{shown}");
    let trials = String::from_utf8_lossy(&output.stderr).lines().filter(|l| l.contains("points lost")).count();
    assert!(trials >= 3, "{trials} trials: exact, affine and constant");
}

#[test]
fn budgets_that_make_no_sense() {
    let (model, data) = (repository("tests/models/digits_vit.onnx"), repository("tests/data/digits_calibration.npz"));
    let compile = |more: &[&str], mentions: &[&str]| {
        let out = FIXTURE.path("none");
        let mut arguments = vec!["compile", text(&model), "--calibration", text(&data), "-o", text(&out)];
        arguments.extend(more);
        fail(&arguments, mentions);
    };
    compile(&["--budget-accuracy", "1"], &["`--profile auto`"]);
    compile(&["--profile", "auto", "--budget-accuracy", "1", "--budget-seconds", "1"], &["cannot be used with"]);
    compile(&["--profile", "auto", "--budget-seconds=-3"], &["0 or more"]);
    compile(&["--parameters", "n=850"], &["no parameter set"]);
    compile(&["--parameters", "n=500,k=1,N=2048,ks=3x5,bs=15x2,pk=12x3"], &["500"]);
    let dev = repository("tests/data/digits_dev.npz");
    let compare =
        ["compare", text(&model), "--calibration", text(&data), "--data", text(&dev), "--profiles", "exact,auto"];
    fail(&compare, &["thex compile"]);
}
