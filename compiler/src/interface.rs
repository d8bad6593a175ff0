//! Tokenizer, class names and image normalisation: read before the passes run, fitted to the compiled model after.
//!
//! A tokenizer of another model would give ids that mean other words, or none, and nobody would see it in ciphertexts. So
//! everything that can be checked is checked here and not at encryption: the file parses, its ids are rows of the
//! embedding table, labels are as many as an output has classes.

use std::path::{Path, PathBuf};

use thex_circuit::clear::ClearGraph;
use thex_circuit::file::read_limited;
use thex_circuit::interface::{MAX_TOKENIZER_BYTES, check_labels};
use thex_circuit::{ImageFormat, Interface, TextFormat, TokenRole};
use thex_runtime::{image, labels, text};

use crate::error::{CompileError, Result};
use crate::import::InputInfo;

/// What the bundle is to have besides the model.
#[derive(Clone, Debug, Default)]
pub struct InterfaceOptions {
    /// A `tokenizer.json`.
    pub tokenizer: Option<PathBuf>,
    /// Class names, one a line.
    pub labels: Option<PathBuf>,
    /// How pictures are normalised.
    pub image: Option<ImageFormat>,
}

/// No file of labels is larger.
const MAX_LABELS_BYTES: u64 = 64 << 20;

fn invalid(path: &Path, reason: impl std::fmt::Display) -> CompileError {
    CompileError::Invalid(format!("`{}`: {reason}", path.display()))
}

/// Reads what was given, and checks what needs no compiled model.
///
/// # Errors
/// A file cannot be read, is not what it should be, or the model has no input for it.
pub fn read(options: &InterfaceOptions, inputs: &[InputInfo]) -> Result<Interface> {
    if let (Some(_), Some(other)) = (&options.image, inputs.iter().find(|i| !i.dtype.starts_with("float"))) {
        let reason = format!("input `{}` is {}: images are float inputs", other.name, other.dtype);
        return Err(CompileError::Invalid(format!(
            "--image-mean, --image-std and --image-invert are for images, and {reason}"
        )));
    }
    Ok(Interface {
        text: options.tokenizer.as_deref().map(|path| read_tokenizer(path, inputs)).transpose()?,
        image: options.image.clone(),
        labels: options.labels.as_deref().map(read_labels).transpose()?.unwrap_or_default(),
        frozen: Vec::new(),
    })
}

fn read_tokenizer(path: &Path, inputs: &[InputInfo]) -> Result<TextFormat> {
    let bytes = read_limited(path, MAX_TOKENIZER_BYTES)?;
    text::parse(&bytes)
        .map_err(|e| invalid(path, format!("it is no tokenizer.json of Hugging Face's tokenizers ({e})")))?;
    Ok(TextFormat::new(bytes, roles(path, inputs)?))
}

fn is_integer(input: &InputInfo) -> bool {
    input.dtype.contains("int")
}

/// What each input holds. Token ids are an integer input of that name, else the only integer input.
fn roles(path: &Path, inputs: &[InputInfo]) -> Result<Vec<(String, TokenRole)>> {
    let by_name = |input: &InputInfo| text::role(&input.name).filter(|r| *r != TokenRole::Ids || is_integer(input));
    let mut roles: Vec<(String, TokenRole)> =
        inputs.iter().filter_map(|input| Some((input.name.clone(), by_name(input)?))).collect();
    let nameless: Vec<&InputInfo> = inputs.iter().filter(|i| is_integer(i) && by_name(i).is_none()).collect();
    match (roles.iter().filter(|(_, role)| *role == TokenRole::Ids).count(), nameless.as_slice()) {
        (1, _) => Ok(roles),
        (0, [one]) => {
            roles.push((one.name.clone(), TokenRole::Ids));
            Ok(roles)
        }
        _ => {
            let list: Vec<String> = inputs.iter().map(|i| format!("`{}` {}", i.name, i.dtype)).collect();
            let reason = "a tokenizer needs a model with one integer input of token ids, such as `input_ids`";
            Err(invalid(path, format!("{reason}; this one takes {}", list.join(", "))))
        }
    }
}

/// One name a line. Numbers in front are taken off where every line has its own.
fn read_labels(path: &Path) -> Result<Vec<String>> {
    let bytes = read_limited(path, MAX_LABELS_BYTES)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| invalid(path, "it is not UTF-8 text"))?;
    let lines: Vec<&str> = text.trim_end().lines().map(str::trim).collect();
    let numbered: Option<Vec<&str>> = lines.iter().enumerate().map(|(i, line)| without_number(line, i)).collect();
    let labels: Vec<String> = numbered.unwrap_or(lines).into_iter().map(str::to_owned).collect();
    check_labels(&labels).map_err(|reason| invalid(path, reason))?;
    if labels.is_empty() {
        return Err(invalid(path, "it has no label; write one a line"));
    }
    Ok(labels)
}

/// The rest of a line that starts with its own number and a space.
fn without_number(line: &str, i: usize) -> Option<&str> {
    let (number, rest) = line.split_once(char::is_whitespace)?;
    (number == i.to_string()).then(|| rest.trim_start())
}

/// Fits what was read to the compiled model: inputs that are left, rows of its embedding table, classes of its outputs.
///
/// # Errors
/// Something does not fit.
pub fn fit(interface: Interface, prologue: &ClearGraph, epilogue: &ClearGraph) -> Result<Interface> {
    let mut interface = interface;
    if let Some(text) = &mut interface.text {
        text.roles.retain(|(name, _)| prologue.inputs.iter().any(|(n, _)| n == name));
        check_inputs(text, prologue)?;
        check_ids(text, prologue)?;
    }
    if let Some(image) = &interface.image {
        let (_, [channels, ..]) = image::image_input(&prologue.inputs).map_err(CompileError::Invalid)?;
        image.check(channels).map_err(CompileError::Invalid)?;
    }
    check_classes(&interface.labels, epilogue)?;
    Ok(interface)
}

/// A text must give every input.
fn check_inputs(text: &TextFormat, prologue: &ClearGraph) -> Result<()> {
    match prologue.inputs.iter().find(|(name, _)| text.roles.iter().all(|(n, _)| n != name)) {
        None => Ok(()),
        Some((name, shape)) => Err(CompileError::Invalid(format!(
            "--tokenizer: a text does not give the input `{name}` {shape:?}, so no text could be encrypted for this model"
        ))),
    }
}

/// Every id of the tokenizer must be a row of the table that ids look up.
fn check_ids(text: &TextFormat, prologue: &ClearGraph) -> Result<()> {
    let is_ids = |name: &str| text.roles.iter().any(|(n, role)| n == name && *role == TokenRole::Ids);
    let Some(input) = prologue.inputs.iter().position(|(name, _)| is_ids(name)) else {
        return Err(CompileError::Invalid("--tokenizer: the compiled model has no input of token ids left".into()));
    };
    let name = &prologue.inputs[input].0;
    let look_ups = prologue.look_ups().into_iter();
    let rows = look_ups.filter(|l| prologue.is_moved_input(l.indices, input)).map(|l| l.rows).min();
    let Some(rows) = rows else {
        return Err(CompileError::Invalid(format!("--tokenizer: `{name}` looks no embedding table up in this model")));
    };
    let tokenizer = text::parse(&text.tokenizer).map_err(CompileError::Internal)?;
    match text::largest(&tokenizer) {
        Some((id, token)) if id as usize >= rows => Err(CompileError::Invalid(format!(
            "--tokenizer: it gives `{token}` the id {id}, and the model's embedding table has {rows} rows: is it this model's?"
        ))),
        _ => Ok(()),
    }
}

fn check_classes(names: &[String], epilogue: &ClearGraph) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let outputs = epilogue.output_shapes()?;
    if labels::labelled(outputs.iter().map(|(n, s)| (n.as_str(), s.as_slice())), names.len()).is_some() {
        return Ok(());
    }
    let list: Vec<String> = outputs.iter().map(|(name, shape)| format!("`{name}` {shape:?}")).collect();
    let (count, list) = (names.len(), list.join(", "));
    let reason = format!("{count} names, and no output has {count} elements on its last axis: {list}");
    Err(CompileError::Invalid(format!("--labels: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(name: &str, dtype: &str) -> InputInfo {
        InputInfo { name: name.into(), dtype: dtype.into(), dims: Vec::new() }
    }

    #[test]
    fn roles_follow_names_and_types() {
        let path = Path::new("tokenizer.json");
        let of = |inputs: &[InputInfo]| roles(path, inputs);
        let bert = of(&[input("input_ids", "int64"), input("attention_mask", "float32"), input("pixels", "float32")]);
        let expected = [("input_ids".to_owned(), TokenRole::Ids), ("attention_mask".to_owned(), TokenRole::Mask)];
        assert_eq!(bert.unwrap(), expected);
        assert_eq!(of(&[input("x", "int32")]).unwrap(), [("x".to_owned(), TokenRole::Ids)]);
        for inputs in [&[input("input_ids", "float32")][..], &[input("a", "int64"), input("b", "int64")]] {
            let text = of(inputs).unwrap_err().to_string();
            assert!(text.contains("tokenizer.json") && text.contains(&inputs[0].name), "{text}");
        }
    }

    #[test]
    fn labels_lose_only_their_own_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            let path = folder.path().join("labels.txt");
            std::fs::write(&path, text).unwrap();
            read_labels(&path)
        };
        assert_eq!(read("0 licence\n1 python docstring\n").unwrap(), ["licence", "python docstring"]);
        assert_eq!(read("0 licence\r\n2 manual page\r\n\n").unwrap(), ["0 licence", "2 manual page"]);
        assert_eq!(read("0\n1").unwrap(), ["0", "1"]);
        assert!(read("").is_err() && read("a\n\nb").is_err() && read(&"x".repeat(2000)).is_err());
    }
}
