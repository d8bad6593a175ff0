//! What the key's owner does with texts, pictures and class names, by the programs.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use ndarray::Array2;
use ndarray_npy::NpzWriter;
use serde_json::Value;

fn repository(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(path).to_str().unwrap().to_owned()
}

fn thex(arguments: &[&str], stdin: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thex"));
    let piped = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Standard error of a run that must succeed, and its standard output.
fn succeed(arguments: &[&str], stdin: &str) -> (String, String) {
    let output = thex(arguments, stdin);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(output.stderr));
    (text(output.stderr), text(output.stdout))
}

/// Asserts an orderly failure that mentions all of `mentions`, whatever the line breaks.
fn fail(arguments: &[&str], mentions: &[&str]) {
    let output = thex(arguments, "");
    let words = |s: &str| s.replace('│', " ").split_whitespace().collect::<Vec<_>>().join(" ");
    let message = words(&String::from_utf8_lossy(&output.stderr));
    assert!(matches!(output.status.code(), Some(2..=5)), "{arguments:?}: {message}");
    for mention in mentions {
        assert!(message.contains(&words(mention)), "{arguments:?} does not mention {mention:?}: {message}");
    }
}

struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Encrypts with the keys of `model`.
    fn encrypt(&self, model: &str, what: &[&str], output: &str, stdin: &str) -> String {
        let (bundle, key, output) =
            (self.path(&format!("{model}.client")), self.path(&format!("{model}-keys/client.key")), self.path(output));
        succeed(&[&["encrypt", &bundle, "--key", &key, "-o", &output], what].concat(), stdin).0
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).unwrap()
    }
}

/// `compile` of the tiny text model with further arguments.
fn compile_text(more: &[&str], output: &str, check: impl Fn(&[&str])) {
    let (model, data) = (repository("models/tiny_text.onnx"), repository("data/tiny_text_calibration.npz"));
    check(&[&["compile", &model, "--calibration", &data, "-o", output], more].concat());
}

/// The tiny text model with everything, and the digits model with labels, compiled and with keys.
static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let fixture = Fixture { folder: tempfile::tempdir().unwrap() };
    let (tokenizer, labels) = (repository("data/tiny_tokenizer.json"), repository("data/tiny_labels.txt"));
    let everything = ["--tokenizer", &tokenizer, "--labels", &labels];
    compile_text(&everything, &fixture.path("text"), |arguments| drop(succeed(arguments, "")));
    let (model, data) = (repository("models/digits_vit.onnx"), repository("data/digits_calibration.npz"));
    let out = fixture.path("digits");
    succeed(&["compile", &model, "--calibration", &data, "--profile", "the-x", "--image-invert", "-o", &out], "");
    for name in ["text", "digits"] {
        let (bundle, keys) = (fixture.path(&format!("{name}.client")), fixture.path(&format!("{name}-keys")));
        succeed(&["keygen", &bundle, "-o", &keys], "");
    }
    fixture
});

/// Encrypts a text, runs the circuit on it, and returns what `decrypt` says.
fn classify(sentence: &str, json: bool) -> String {
    let f = &*FIXTURE;
    f.encrypt("text", &["--text", sentence], "in.ct", "");
    let (circuit, server, client) =
        (f.path("text.circuit"), f.path("text-keys/server.key"), f.path("text-keys/client.key"));
    let (input, output, bundle) = (f.path("in.ct"), f.path("out.ct"), f.path("text.client"));
    succeed(&["run", &circuit, "--key", &server, "--input", &input, "-o", &output], "");
    let mut arguments = vec!["decrypt", &bundle, "--key", &client, "--input", &output];
    arguments.extend(json.then_some("--json"));
    succeed(&arguments, "").1
}

#[test]
fn a_sentence_is_classified_encrypted() {
    let text = classify("The film was great fun!", false);
    assert!(text.starts_with("positive\n  positive ") && text.contains("\n  negative "), "{text}");
    let value: Value = serde_json::from_str(&classify("an awful, dull plot", true)).unwrap();
    assert_eq!(value["label"], "negative");
    assert_eq!(value["outputs"]["logits"]["data"].as_array().unwrap().len(), 2);
}

#[test]
fn texts_are_cut_padded_and_read_from_a_pipe() {
    let f = &*FIXTURE;
    let long = f.encrypt("text", &["--text", "-"], "piped.ct", "The actors and the film was great fun\n");
    assert!(long.contains("11 tokens") && long.contains("3 were cut off"), "{long}");
    assert!(long.contains("8 tokens: [CLS] the actor ##s and the film [SEP]"), "{long}");
    let short = f.encrypt("text", &["--text", "- good"], "short.ct", "");
    assert!(short.contains("no attention mask") && short.contains("4 tokens of padding"), "{short}");
}

#[test]
fn compilation_with_a_tokenizer_is_deterministic() {
    let f = &*FIXTURE;
    let (tokenizer, labels) = (repository("data/tiny_tokenizer.json"), repository("data/tiny_labels.txt"));
    let again = f.path("again");
    compile_text(&["--labels", &labels, "--tokenizer", &tokenizer], &again, |a| drop(succeed(a, "")));
    assert!(f.bytes("again.client") == f.bytes("text.client"));
    let plain = f.path("plain");
    compile_text(&[], &plain, |a| drop(succeed(a, "")));
    assert!(f.bytes("plain.circuit") == f.bytes("text.circuit"), "the server's file depends on the client's options");
    let tokenizer = std::fs::read(tokenizer).unwrap();
    assert!(f.bytes("text.client").windows(tokenizer.len()).any(|w| w == tokenizer), "not stored verbatim");
    // The circuit is the same, so are the keys; the bundle has no tokenizer.
    let (bundle, key, out) = (f.path("plain.client"), f.path("text-keys/client.key"), f.path("never.ct"));
    fail(&["encrypt", &bundle, "--key", &key, "--text", "good", "-o", &out], &["no tokenizer", "--tokenizer"]);
}

#[test]
fn a_picture_is_encrypted_like_its_sample() {
    let f = &*FIXTURE;
    let picture = repository("data/digit_8.png");
    let told = f.encrypt("digits", &["--image", &picture], "picture.ct", "");
    assert!(told.contains("64 ciphertexts") && !told.contains("averaged"), "{told}");
    let (bundle, key, out) = (f.path("text.client"), f.path("text-keys/client.key"), f.path("never.ct"));
    fail(
        &["encrypt", &bundle, "--key", &key, "--image", &picture, "-o", &out],
        &["takes no image", "`input_ids` [1, 8]"],
    );
    let (bundle, key) = (f.path("digits.client"), f.path("digits-keys/client.key"));
    let start = ["encrypt", &bundle, "--key", &key, "-o", &out];
    let with = |more: &[&str], mentions: &[&str]| fail(&[&start[..], more].concat(), mentions);
    with(&["--image", &repository("models/digits_vit.onnx")], &["digits_vit.onnx", "PNG"]);
    with(&["--text", "eight"], &["no tokenizer", "digits_vit.onnx"]);
    with(&["--text", "eight", "--image", &picture], &["cannot be used with"]);
    with(&["--image", &picture, "--sample", "2"], &["cannot be used with", "--sample"]);
    with(&[], &["--input", "--text", "--image"]);
}

#[test]
fn bundles_can_be_inspected() {
    let f = &*FIXTURE;
    let text = succeed(&["inspect", &f.path("text.client")], "").1;
    for part in ["input_ids [1, 8]", "1 gather", "table [26, 2]", "logits", "negative, positive", "fills input_ids"] {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
    let value: Value =
        serde_json::from_str(&succeed(&["inspect", &f.path("text.client"), "--format", "json"], "").1).unwrap();
    assert_eq!(value["kind"], "client bundle");
    assert_eq!(value["inputs"][0]["shape"], serde_json::json!([1, 8]));
    assert_eq!(value["prologue"]["tables"][0]["shape"], serde_json::json!([26, 2]));
    assert_eq!(value["tokenizer"]["roles"], serde_json::json!([["input_ids", "ids"]]));
    assert_eq!(value["labels"], serde_json::json!(["negative", "positive"]));
    let digits = succeed(&["inspect", &f.path("digits.client")], "").1;
    assert!(digits.contains("nothing to compute") && digits.contains("inverted, mean 0, std 1"), "{digits}");
    let cut = f.path("cut.client");
    std::fs::write(&cut, &f.bytes("text.client")[..f.bytes("text.client").len() - 9]).unwrap();
    fail(&["inspect", &cut], &["cut.client", "truncated"]);
}

#[test]
fn things_that_do_not_fit_the_model_are_found_at_compilation() {
    let f = &*FIXTURE;
    let out = f.path("unfit");
    let file = |name: &str, content: &str| {
        let path = f.path(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let with = |more: &[&str], mentions: &[&str]| compile_text(more, &out, |a| fail(a, mentions));
    with(&["--tokenizer", &file("bad.json", "{}")], &["bad.json", "no tokenizer.json"]);
    with(&["--tokenizer", &f.path("none.json")], &["none.json"]);
    let whole = std::fs::read_to_string(repository("data/tiny_tokenizer.json")).unwrap();
    let larger = file("larger.json", &whole.replace("\"!\": 25", "\"!\": 26"));
    with(&["--tokenizer", &larger], &["`!` the id 26", "26 rows"]);
    with(&["--labels", &file("three.txt", "a\nb\nc\n")], &["3 names", "`logits` [1, 2]"]);
    with(&["--labels", &file("empty.txt", "")], &["empty.txt", "no label"]);
    with(&["--image-mean", "0.5"], &["`input_ids` is int64"]);
    let (model, data) = (repository("models/digits_vit.onnx"), repository("data/digits_calibration.npz"));
    let start = ["compile", &model, "--calibration", &data, "-o", &out, "--profile", "the-x"];
    let tokenizer = repository("data/tiny_tokenizer.json");
    fail(&[&start[..], &["--tokenizer", &tokenizer]].concat(), &["integer input", "`image` float32"]);
    fail(&[&start[..], &["--image-mean", "0.1,0.2,0.3"]].concat(), &["3 values for 1 channels"]);
    fail(&[&start[..], &["--image-std", "0"]].concat(), &["positive"]);
    assert!(!PathBuf::from(format!("{out}.client")).exists());
}

#[test]
fn calibration_data_that_lack_an_input() {
    let f = &*FIXTURE;
    let data = f.path("lacking.npz");
    let mut writer = NpzWriter::new(File::create(&data).unwrap());
    writer.add_array("tokens", &Array2::<i64>::zeros((4, 8))).unwrap();
    writer.finish().unwrap();
    let (model, out) = (repository("models/tiny_text.onnx"), f.path("lacking"));
    fail(
        &["compile", &model, "--calibration", &data, "-o", &out],
        &["lacking.npz", "no array for `input_ids` int64", "it has `tokens`", "numpy.savez(", "a: int64 (500, 16)"],
    );
}
