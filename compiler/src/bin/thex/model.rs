//! Arguments that every command shares which runs passes on a model.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use thex::error::{CompileError, Result};
use thex::pipeline::{CompileOptions, check_precision};
use thex_circuit::Parameters;
use thex_passes::{Precision, Profile};

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum ProfileArg {
    /// Every function by look-up.
    Exact,
    /// THE-X: ReLU, cubic softmax, affine layer norms.
    TheX,
    /// The cheapest mixture of forms that keeps to a budget (`compile` only: --budget-accuracy, --budget-seconds).
    Auto,
}

impl From<ProfileArg> for Profile {
    fn from(arg: ProfileArg) -> Self {
        match arg {
            // The search of `auto` starts from the exact circuit.
            ProfileArg::Exact | ProfileArg::Auto => Self::Exact,
            ProfileArg::TheX => Self::TheX,
        }
    }
}

/// Settings of passes.
#[derive(clap::Args)]
pub(crate) struct SettingArgs {
    /// Set an option of a pass; may be given again. `thex passes` lists passes and their options.
    #[arg(short = 'x', value_name = "PASS:OPTION=VALUE")]
    pub(crate) pass_options: Vec<String>,
}

/// How a model is rewritten.
#[derive(clap::Args)]
pub(crate) struct ModelArgs {
    /// How non-linear functions are computed.
    #[arg(long, value_enum, default_value = "exact")]
    profile: ProfileArg,
    /// Compute single nodes in another form than the profile's; may be given again, later ones win. NODE is a name in the IR or in the ONNX
    /// file, `*` for any text. FORM is, for a GELU, exact or relu; for a softmax, exact, two-pass, row-maximum, cube, cube-network,
    /// score or score-network; for a layer norm, exact, affine or constant.
    #[arg(long, value_name = "NODE=FORM")]
    approximate: Vec<String>,
    /// Shape of an input, batch included, for example `input_ids=1x16`. Taken from the calibration data if not given.
    #[arg(long = "shape", value_name = "NAME=1x16", value_parser = parse_shape)]
    shapes: Vec<(String, Vec<usize>)>,
    /// Goal for the modelled error of the outputs, relative to their spread. Less costs more bootstraps.
    #[arg(long, value_name = "E", default_value_t = Precision::default().output_error)]
    output_error: f64,
    /// Widening of calibrated ranges, as a fraction of their width on each side.
    #[arg(long, value_name = "M", default_value_t = Precision::default().margin)]
    margin: f64,
    /// Cryptographic parameters, for example `n=850,k=1,N=2048,ks=3x5,bs=15x2,pk=12x3,gf=2`: dimensions, then log2 of the base and the levels of
    /// keyswitch, bootstrap and packing, then how many key bits a bootstrap takes at once (1 or 2; 1 if not said). Noises follow from the dimensions at 132 bits of security.
    #[arg(long, value_name = "SET")]
    parameters: Option<Parameters>,
    /// Make an input public and constant, with its value in the calibration data or filled with a number; may be given
    /// again. A frozen attention mask costs nothing, and what it hides is not computed.
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = parse_freeze)]
    freeze: Vec<(String, Option<f64>)>,
    #[command(flatten)]
    settings: SettingArgs,
}

impl ModelArgs {
    /// Whether anything was asked for.
    pub(crate) fn any(&self) -> bool {
        let default = Precision::default();
        let precise = self.output_error.to_bits() == default.output_error.to_bits();
        let wide = self.margin.to_bits() == default.margin.to_bits();
        let exact = matches!(self.profile, ProfileArg::Exact);
        !(exact
            && precise
            && wide
            && self.approximate.is_empty()
            && self.shapes.is_empty()
            && self.parameters.is_none()
            && self.freeze.is_empty()
            && self.settings.pass_options.is_empty())
    }

    /// Whether forms are to be searched for.
    pub(crate) fn auto(&self) -> bool {
        matches!(self.profile, ProfileArg::Auto)
    }

    /// Options of the compiler for this model and data, for commands that search nothing.
    pub(crate) fn plain_options(&self, model: &Path, calibration: &Path) -> Result<CompileOptions> {
        if self.auto() {
            let help = "`--profile auto` is for `thex compile`: it prints the forms that it takes, for `--approximate`";
            return Err(CompileError::Usage(help.into()));
        }
        self.options(model, calibration, None)
    }

    /// Options of the compiler for this model and data.
    pub(crate) fn options(&self, model: &Path, calibration: &Path, dump_ir: Option<PathBuf>) -> Result<CompileOptions> {
        let precision = Precision { output_error: self.output_error, margin: self.margin };
        check_precision(precision)?;
        Ok(CompileOptions {
            model: model.to_owned(),
            calibration: calibration.to_owned(),
            profile: self.profile.into(),
            approximate: self.approximate.clone(),
            shapes: self.shapes.iter().cloned().collect(),
            precision,
            parameters: self.parameters,
            dump_ir,
            pass_options: self.settings.pass_options.clone(),
            freeze: self.freeze.iter().cloned().collect(),
            ..CompileOptions::default()
        })
    }
}

fn parse_freeze(text: &str) -> std::result::Result<(String, Option<f64>), String> {
    let Some((name, value)) = text.split_once('=') else { return Ok((text.to_owned(), None)) };
    match value.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok((name.to_owned(), Some(number))),
        _ => Err(format!("`{value}` is no number: write NAME or NAME=1")),
    }
}

fn parse_shape(text: &str) -> std::result::Result<(String, Vec<usize>), String> {
    let wrong = || format!("`{text}` is no shape: write NAME=1x16");
    let (name, dims) = text.split_once('=').ok_or_else(wrong)?;
    let dims: Vec<usize> =
        dims.split('x').map(str::parse).collect::<std::result::Result<_, _>>().map_err(|_| wrong())?;
    let elements = dims.iter().try_fold(1_usize, |a, &b| a.checked_mul(b)).filter(|&n| n <= 1 << 28);
    if name.is_empty() || elements.is_none_or(|n| n == 0) {
        return Err(format!("{} and between 1 and 2^28 elements in all", wrong()));
    }
    Ok((name.to_owned(), dims))
}
