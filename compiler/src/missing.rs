//! What to say when a data set lacks an input of the model: which, what there is instead, and a line that makes one.

use std::path::Path;

use crate::error::CompileError;
use crate::import::{Dim, InputInfo};

/// The error for a data set that has the arrays `present`, or `None` if it has one for each input.
#[must_use]
pub(crate) fn missing(path: &Path, present: &[String], inputs: &[InputInfo]) -> Option<CompileError> {
    let missing: Vec<String> =
        inputs.iter().filter(|i| !present.contains(&i.name)).map(|i| format!("`{}` {}", i.name, i.dtype)).collect();
    if missing.is_empty() {
        return None;
    }
    let there: Vec<String> = present.iter().map(|name| format!("`{name}`")).collect();
    let there = if there.is_empty() { "no array".to_owned() } else { there.join(", ") };
    Some(CompileError::Invalid(format!(
        "`{}` has no array for {}; it has {there}. Give one array for each input, its first axis counting samples, \
         for example: {}",
        path.display(),
        missing.join(", "),
        example(inputs)
    )))
}

/// `numpy.savez("data.npz", input_ids=a)  # a: int64 (500, 16)`
fn example(inputs: &[InputInfo]) -> String {
    let letters: Vec<String> = ('a'..='z').map(String::from).cycle().take(inputs.len()).collect();
    let argument = |(input, letter): (&InputInfo, &String)| match is_identifier(&input.name) {
        true => format!("{}={letter}", input.name),
        false => format!("**{{\"{}\": {letter}}}", input.name),
    };
    let arguments: Vec<String> = inputs.iter().zip(&letters).map(argument).collect();
    let shapes: Vec<String> =
        inputs.iter().zip(&letters).map(|(i, letter)| format!("{letter}: {} {}", i.dtype, samples_shape(i))).collect();
    format!("numpy.savez(\"data.npz\", {})  # {}", arguments.join(", "), shapes.join(", "))
}

fn is_identifier(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())
}

/// Shape of 500 samples; 16 stands for whatever the model leaves open.
fn samples_shape(input: &InputInfo) -> String {
    let rest = input.dims.iter().skip(1).map(|dim| match dim {
        Dim::Fixed(n) => n.to_string(),
        Dim::Symbol(_) => "16".to_owned(),
    });
    let dims: Vec<String> = std::iter::once("500".to_owned()).chain(rest).collect();
    format!("({}{})", dims.join(", "), if dims.len() == 1 { "," } else { "" })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_message_names_what_is_there_and_shows_a_line() {
        let dims = vec![Dim::Symbol("batch".into()), Dim::Symbol("tokens".into())];
        let inputs = [
            InputInfo { name: "input_ids".into(), dtype: "int64".into(), dims: dims.clone() },
            InputInfo { name: "mask.1".into(), dtype: "float32".into(), dims: vec![Dim::Fixed(1)] },
        ];
        let present = ["input_ids".to_owned(), "label".to_owned()];
        let text = missing(Path::new("d.npz"), &present, &inputs).unwrap().to_string();
        assert_eq!(
            text,
            "`d.npz` has no array for `mask.1` float32; it has `input_ids`, `label`. Give one array for each input, \
             its first axis counting samples, for example: \
             numpy.savez(\"data.npz\", input_ids=a, **{\"mask.1\": b})  # a: int64 (500, 16), b: float32 (500,)"
        );
        assert!(missing(Path::new("d.npz"), &present, &inputs[..1]).is_none());
    }
}
