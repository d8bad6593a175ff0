//! How people meet a model: sentences instead of token ids, pictures instead of tensors, class names instead of numbers.
//!
//! All of it is optional and travels in the client bundle. The server never sees it. A tokenizer is kept as the bytes
//! of its file, next to the constants and not in the manifest: so a bundle's bytes do not depend on how some version
//! of a library would write it, and the manifest stays short. The manifest has its length and digest.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::file::digest;

/// The longest tokenizer that a bundle may carry. The largest in use have about 20 MB.
pub const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
/// The most class names.
pub const MAX_LABELS: usize = 1 << 16;
/// The longest class name, in bytes.
pub const MAX_LABEL_BYTES: usize = 1 << 10;

/// What an input of a text model holds, token by token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenRole {
    /// The id of the token.
    Ids,
    /// 1 for tokens of the text, 0 for padding.
    Mask,
    /// Which of two texts it belongs to.
    Types,
    /// How many tokens come before.
    Positions,
}

/// A tokenizer, and the inputs that it fills.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextFormat {
    /// Each input of the model and what it holds.
    pub roles: Vec<(String, TokenRole)>,
    /// Length of the tokenizer's file.
    pub bytes: u64,
    /// SHA-256 of the tokenizer's file, hex.
    pub sha256: String,
    /// The file: JSON in the format of Hugging Face's `tokenizers`. Travels beside the manifest.
    #[serde(skip)]
    pub tokenizer: Arc<[u8]>,
}

impl TextFormat {
    /// A tokenizer file that fills these inputs.
    #[must_use]
    pub fn new(tokenizer: Vec<u8>, roles: Vec<(String, TokenRole)>) -> Self {
        Self { roles, bytes: tokenizer.len() as u64, sha256: digest(&tokenizer), tokenizer: tokenizer.into() }
    }

    /// Checks the file against the manifest.
    fn check(&self) -> Result<(), String> {
        if self.bytes > MAX_TOKENIZER_BYTES {
            return Err(format!("its tokenizer has {} bytes, more than {MAX_TOKENIZER_BYTES}", self.bytes));
        }
        if self.tokenizer.len() as u64 != self.bytes || digest(&self.tokenizer) != self.sha256 {
            return Err("its tokenizer is damaged: copy or compile it again".into());
        }
        Ok(())
    }
}

/// How a picture's brightness, from 0 (black) to 1 (white), becomes the model's input.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageFormat {
    /// Take 1 − v for v first: for models that learnt light strokes on a dark ground, given dark on light.
    pub invert: bool,
    /// Taken off each channel: none, one for all channels, or one for each.
    pub mean: Vec<f64>,
    /// Divides each channel then: none, one for all channels, or one for each.
    pub std: Vec<f64>,
}

impl ImageFormat {
    /// Checks that there are as many means and deviations as an image of so many channels can have.
    ///
    /// # Errors
    /// A sentence that says which.
    pub fn check(&self, channels: usize) -> Result<(), String> {
        for (name, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() > 1 && values.len() != channels {
                return Err(format!("the image {name} has {} values for {channels} channels", values.len()));
            }
            if values.iter().any(|v| !v.is_finite()) {
                return Err(format!("the image {name} is not finite"));
            }
        }
        if self.std.iter().any(|&v| v <= 0.0) {
            return Err("the image std must be positive".into());
        }
        Ok(())
    }

    /// The model's value for a brightness.
    #[must_use]
    pub fn apply(&self, channel: usize, brightness: f64) -> f64 {
        let of = |values: &[f64], default: f64| values.get(channel).or(values.first()).copied().unwrap_or(default);
        let v = if self.invert { 1.0 - brightness } else { brightness };
        (v - of(&self.mean, 0.0)) / of(&self.std, 1.0)
    }
}

/// An input that was made public when the model was compiled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FrozenInput {
    /// Its name.
    pub name: String,
    /// Its shape, batch 1 included.
    pub shape: Vec<usize>,
    /// Its value, row-major.
    pub values: Vec<f64>,
}

/// The optional parts of a client bundle. See the module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// How to read a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextFormat>,
    /// How to read a picture; as it is if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageFormat>,
    /// Names of the classes, in the order of the output's last axis.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Inputs that are constants of the circuit: other values of them would be ignored, so they are refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frozen: Vec<FrozenInput>,
}

impl Interface {
    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.text.is_none() && self.image.is_none() && self.labels.is_empty() && self.frozen.is_empty()
    }

    /// Checks sizes, the tokenizer's digest, and that roles refer to inputs.
    pub(crate) fn check(&self, inputs: &[(String, Vec<usize>)]) -> Result<(), String> {
        if let Some(text) = &self.text {
            text.check()?;
            if let Some((unknown, _)) = text.roles.iter().find(|(name, _)| inputs.iter().all(|(n, _)| n != name)) {
                return Err(format!("its tokenizer fills `{unknown}`, which is no input"));
            }
        }
        if let Some(image) = &self.image {
            image.check(inputs.first().and_then(|(_, shape)| shape.get(1)).copied().unwrap_or(0))?;
        }
        check_labels(&self.labels)
    }
}

/// Checks number and length of class names.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn check_labels(labels: &[String]) -> Result<(), String> {
    if labels.len() > MAX_LABELS {
        return Err(format!("there are {} labels, more than {MAX_LABELS}", labels.len()));
    }
    match labels.iter().position(|l| l.is_empty() || l.len() > MAX_LABEL_BYTES || l.chars().any(char::is_control)) {
        Some(i) => Err(format!("label {i} is empty, longer than {MAX_LABEL_BYTES} bytes, or has control characters")),
        None => Ok(()),
    }
}
