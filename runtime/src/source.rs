//! Where the values to encrypt come from: a data set, a text or a picture.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use thex_circuit::ClientBundle;

use crate::client::Named;
use crate::error::{Result, RuntimeError};
use crate::{image, npz, text};

/// The longest text that is read from standard input.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Exactly one of a data set, a text and a picture.
#[derive(Clone, Debug, Default, Args)]
#[group(required = true, multiple = false)]
pub struct Source {
    /// A data set: one array for each input of the model; the first axis counts samples.
    #[arg(long, value_name = "DATA.npz")]
    pub input: Option<PathBuf>,
    /// A text, for models compiled with --tokenizer; `-` reads it from standard input.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub text: Option<String>,
    /// A PNG picture, for models of images; one of another size is averaged to the model's.
    #[arg(long, value_name = "FILE.png")]
    pub image: Option<PathBuf>,
}

impl Source {
    /// A data set.
    #[must_use]
    pub fn data_set(path: impl Into<PathBuf>) -> Self {
        Self { input: Some(path.into()), ..Self::default() }
    }

    /// One value for each input of the model, `sample` counting samples of a data set. What the user should know of
    /// the conversion goes to standard error.
    ///
    /// # Errors
    /// The source is not usable, or the model does not take such inputs.
    pub fn read(&self, bundle: &ClientBundle, sample: usize) -> Result<Vec<Named>> {
        match (&self.input, &self.text, &self.image) {
            (Some(path), None, None) => {
                let mut names: Vec<&str> = bundle.prologue.inputs.iter().map(|(name, _)| name.as_str()).collect();
                let there = npz::names(path)?;
                let frozen = bundle.interface.frozen.iter().map(|f| f.name.as_str());
                names.extend(frozen.filter(|name| there.iter().any(|t| t == name)));
                npz::sample(&npz::read(path, &names)?, sample)
            }
            (None, Some(text), None) => read_text(bundle, text),
            (None, None, Some(path)) => {
                let pictured = image::read(bundle, path)?;
                pictured.notes.iter().for_each(|note| eprintln!("`{}`: {note}", path.display()));
                Ok(pictured.inputs)
            }
            _ => Err(RuntimeError::Input("give one of --input, --text and --image".into())),
        }
    }
}

fn read_text(bundle: &ClientBundle, text: &str) -> Result<Vec<Named>> {
    let stdin = if text == "-" { Some(standard_input()?) } else { None };
    let tokenized = text::tokenize(bundle, stdin.as_deref().unwrap_or(text))?;
    if let Some(format) = &bundle.interface.text {
        tokenized.warnings(format).iter().for_each(|warning| eprintln!("warning: {warning}"));
    }
    eprintln!("{} tokens: {}", tokenized.tokens.len(), tokenized.tokens.join(" "));
    Ok(tokenized.inputs)
}

/// Standard input, without the line ends at its end.
fn standard_input() -> Result<String> {
    let mut text = String::new();
    let io = |source| RuntimeError::Io { action: "read", path: "standard input".into(), source };
    std::io::stdin().lock().take(MAX_TEXT_BYTES + 1).read_to_string(&mut text).map_err(io)?;
    if text.len() as u64 > MAX_TEXT_BYTES {
        return Err(RuntimeError::Input(format!("the text has more than {MAX_TEXT_BYTES} bytes")));
    }
    text.truncate(text.trim_end_matches(['\n', '\r']).len());
    Ok(text)
}
