//! The whole round trip on a model and images that come with thex: a vision transformer on handwritten digits.
//!
//! It uses files as a user would, in a temporary folder, so that what it shows is what the commands do.

use std::path::Path;
use std::time::Instant;

use ndarray::ArrayD;
use thex_circuit::file::write_atomic;
use thex_circuit::{Circuit, ClientBundle};
use thex_passes::Profile;
use thex_runtime::client::{self, Named, Rounding};
use thex_runtime::commands::{self, EncryptArgs, KeygenArgs, RunArgs};
use thex_runtime::source::Source;
use thex_runtime::{ClientKey, EncryptedOutputs, calibrate, npz};

use crate::error::{CompileError, Result};
use crate::evaluate;
use crate::import::{self, ImportOptions};
use crate::pipeline::{CompileOptions, compile};
use crate::report;

const MODEL: &[u8] = include_bytes!("../../tests/models/digits_vit.onnx");
const CALIBRATION: &[u8] = include_bytes!("../../tests/data/digits_calibration.npz");
const IMAGES: &[u8] = include_bytes!("../../tests/data/digits_dev.npz");

/// What the demo shows.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// How non-linear functions are computed.
    pub profile: Profile,
    /// Which image.
    pub sample: usize,
    /// Settings of passes, each `pass:option=value`.
    pub pass_options: Vec<String>,
}

/// Runs the demo; the story goes to standard output, progress to standard error.
///
/// # Errors
/// Any of the steps' errors.
pub fn demo(options: &DemoOptions) -> Result<()> {
    let folder =
        tempfile::tempdir().map_err(|e| CompileError::Invalid(format!("cannot make a temporary folder: {e}")))?;
    let at = |name: &str| folder.path().join(name);
    for (name, bytes) in [("digits_vit.onnx", MODEL), ("calibration.npz", CALIBRATION), ("images.npz", IMAGES)] {
        write_atomic(&at(name), bytes, false)?;
    }
    let image = npz::sample(&npz::read(&at("images.npz"), &["image"])?, options.sample)?;
    say("1. Compile a vision transformer (17 tokens, width 32, 2 layers) from ONNX to a TFHE circuit.\n")?;
    compile_model(folder.path(), options)?;
    say("2. The client makes its keys and encrypts an image. The server will see ciphertexts only.\n")?;
    draw(&image)?;
    commands::keygen(&KeygenArgs { bundle: at("digits.client"), output: at("keys"), seed: None })?;
    commands::encrypt(&EncryptArgs {
        bundle: at("digits.client"),
        key: at("keys").join("client.key"),
        source: Source::data_set(at("images.npz")),
        sample: options.sample,
        output: at("in.ct"),
    })?;
    say("3. The server runs the circuit on the ciphertexts, with the server key and no secret.\n")?;
    let start = Instant::now();
    let (circuit, key) = (at("digits.circuit"), at("keys").join("server.key"));
    commands::run(&RunArgs::new(circuit, key, at("in.ct"), at("out.ct")))?;
    let seconds = start.elapsed().as_secs_f64();
    say("4. The client decrypts the result.\n")?;
    let encrypted = decrypt(folder.path())?;
    let clear = float_outputs(folder.path(), &image)?;
    compare(&encrypted, &clear)?;
    say(&format!("\nThe server worked for {seconds:.0} s, on ciphertexts alone.\n"))
}

fn say(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|e| CompileError::Invalid(format!("cannot write to standard output: {e}")))
}

fn compile_model(folder: &Path, options: &DemoOptions) -> Result<()> {
    let start = Instant::now();
    let compiled = compile(&CompileOptions {
        model: folder.join("digits_vit.onnx"),
        calibration: folder.join("calibration.npz"),
        profile: options.profile,
        pass_options: options.pass_options.clone(),
        ..CompileOptions::default()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    write_atomic(&folder.join("digits.circuit"), &compiled.emitted.circuit_bytes, false)?;
    write_atomic(&folder.join("digits.client"), &compiled.emitted.bundle_bytes, false)?;
    let (circuit, digest) = Circuit::load(&folder.join("digits.circuit"))?;
    let times = calibrate::measure(circuit.parameters, 0)?;
    say(&format!("   compiled in {seconds:.1} s\n\n{}\n", report::circuit_text(&circuit, &digest, &times)))
}

/// An 8×8 image in grey blocks.
fn draw(image: &[Named]) -> Result<()> {
    let Some((_, pixels)) = image.first() else { return Ok(()) };
    let shades = [' ', '░', '▒', '▓', '█'];
    let flat: Vec<f64> = pixels.iter().copied().collect();
    let mut text = String::new();
    for row in flat.chunks(8) {
        text.push_str("      ");
        for &p in row {
            let shade = shades[((p * 4.999) as usize).min(4)];
            text.push(shade);
            text.push(shade);
        }
        text.push('\n');
    }
    say(&format!("\n{text}\n"))
}

fn decrypt(folder: &Path) -> Result<Vec<Named>> {
    let bundle = ClientBundle::load(&folder.join("digits.client"))?;
    let key = ClientKey::load(&folder.join("keys").join("client.key"))?;
    let result = EncryptedOutputs::load(&folder.join("out.ct"), &bundle.parameters)?;
    Ok(client::decrypt(&bundle, &key, &result, Rounding::Modelled)?)
}

fn float_outputs(folder: &Path, image: &[Named]) -> Result<Vec<Named>> {
    let model = folder.join("digits_vit.onnx");
    let shape = vec![1, 1, 8, 8];
    let batched: Vec<Named> = image
        .iter()
        .map(|(name, value)| {
            (name.clone(), value.clone().into_shape_with_order(shape.clone()).unwrap_or(value.clone()))
        })
        .collect();
    let shapes = batched.iter().map(|(name, value)| (name.clone(), value.shape().to_vec())).collect();
    evaluate::float_outputs(&import::import(&model, &ImportOptions { shapes })?.reference, &batched)
}

fn best(logits: &ArrayD<f64>) -> usize {
    let values: Vec<f64> = logits.iter().copied().collect();
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap_or(0)
}

fn compare(encrypted: &[Named], clear: &[Named]) -> Result<()> {
    let (Some((_, ours)), Some((_, float))) = (encrypted.first(), clear.first()) else { return Ok(()) };
    let mut text = String::from("\n      digit   encrypted     clear\n");
    for (i, (a, b)) in ours.iter().zip(float).enumerate() {
        let mark = |value: &ArrayD<f64>| if best(value) == i { "←" } else { " " };
        text += &format!("      {i:>5}   {a:>9.3} {}  {b:>8.3} {}\n", mark(ours), mark(float));
    }
    text += &format!("\n   The encrypted answer is {}, the clear one {}.\n", best(ours), best(float));
    say(&text)
}
