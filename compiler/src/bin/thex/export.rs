//! `thex export`.

use std::path::PathBuf;

use thex::error::Result;
use thex::export;
use thex_circuit::file::write_atomic;
use thex_runtime::check_writable;

/// Write the approximated model as an ordinary ONNX file: opset 17, standard operators, weights in single precision,
/// inputs and outputs named as in the original. Run it in onnxruntime, fine-tune it in PyTorch, compile it again.
#[derive(clap::Args)]
pub(crate) struct ExportArgs {
    /// Prefix of the compiled files; OUT.graph is read.
    #[arg(value_name = "OUT")]
    prefix: PathBuf,
    /// The model to write.
    #[arg(short, long, value_name = "APPROX.onnx")]
    output: PathBuf,
    /// Also write APPROX.npz: these inputs, and as `expected_*` what thex's interpreter gives on them, to check another
    /// runtime against.
    #[arg(long, value_name = "DATA.npz")]
    expected: Option<PathBuf>,
}

pub(crate) fn run(args: &ExportArgs) -> Result<()> {
    check_writable(&args.output)?;
    let file = export::load(&args.prefix)?;
    let bytes = export::onnx_bytes(&file)?;
    let expected = args.expected.as_ref().map(|data| export::expected(&file, data)).transpose()?;
    write_atomic(&args.output, &bytes, false)?;
    if let Some(expected) = expected {
        write_atomic(&args.output.with_extension("npz"), &expected, false)?;
    }
    crate::print_out(&format!("wrote {} ({:.1} MB)\n", args.output.display(), bytes.len() as f64 / 1e6))
}
