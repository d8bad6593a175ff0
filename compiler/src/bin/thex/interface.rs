//! The options of `compile` about what people give a model and get from it.

use std::path::PathBuf;

use thex::interface::InterfaceOptions;
use thex_circuit::ImageFormat;

/// What the client bundle is to have besides the model.
#[derive(clap::Args)]
#[command(next_help_heading = "For the client")]
pub(crate) struct InterfaceArgs {
    /// The model's `tokenizer.json`, in the format of Hugging Face's tokenizers, so that `encrypt --text` works.
    #[arg(long, value_name = "tokenizer.json")]
    tokenizer: Option<PathBuf>,
    /// Names of the classes, one a line, so that `decrypt` can name the winner.
    #[arg(long, value_name = "labels.txt")]
    labels: Option<PathBuf>,
    /// Means that `encrypt --image` takes off, for brightness from 0 to 1: one, or one for each channel.
    #[arg(long, value_name = "M,…", value_delimiter = ',', allow_hyphen_values = true)]
    image_mean: Vec<f64>,
    /// Standard deviations that it divides by then: one, or one for each channel.
    #[arg(long, value_name = "S,…", value_delimiter = ',')]
    image_std: Vec<f64>,
    /// It takes 1 − brightness first: for models of light strokes on a dark ground, given dark on light.
    #[arg(long)]
    image_invert: bool,
}

impl InterfaceArgs {
    pub(crate) fn options(&self) -> InterfaceOptions {
        let image =
            ImageFormat { invert: self.image_invert, mean: self.image_mean.clone(), std: self.image_std.clone() };
        InterfaceOptions {
            tokenizer: self.tokenizer.clone(),
            labels: self.labels.clone(),
            image: (image != ImageFormat::default()).then_some(image),
        }
    }
}
