//! Sentences → the tensors that a text model takes, by the tokenizer in its client bundle.
//!
//! The tokenizer is Hugging Face's own crate reading the model's own `tokenizer.json`, because token ids that differ from
//! those of training in one case of a hundred would go unnoticed. Its crate is built without its C and C++
//! parts. Direction, padding token and strategy are the file's; the length is the one that the model was compiled for,
//! because a circuit has no other.

use ndarray::{ArrayD, IxDyn};
use thex_circuit::{ClientBundle, TextFormat, TokenRole};
use tokenizers::{Encoding, PaddingParams, PostProcessor, Tokenizer, TruncationParams};

use crate::client::Named;
use crate::error::{Result, RuntimeError};

/// A text as the model takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokenized {
    /// One tensor for each input.
    pub inputs: Vec<Named>,
    /// Tokens that the model sees, padding excepted.
    pub tokens: Vec<String>,
    /// Tokens of padding.
    pub padding: usize,
    /// Tokens that did not fit and were cut off.
    pub cut: usize,
}

impl Tokenized {
    /// What the user should know about the text, if anything.
    #[must_use]
    pub fn warnings(&self, format: &TextFormat) -> Vec<String> {
        let length = self.tokens.len() + self.padding;
        let mut warnings = Vec::new();
        if self.cut > 0 {
            let all = length + self.cut;
            warnings.push(format!(
                "the text has {all} tokens where the model was compiled for {length}: {} were cut off",
                self.cut
            ));
        }
        if self.padding > 0 && !format.roles.iter().any(|(_, role)| *role == TokenRole::Mask) {
            warnings.push(format!(
                "the model takes no attention mask, so it reads {} tokens of padding like words",
                self.padding
            ));
        }
        warnings
    }
}

/// Names of the same thing in the exports at hand, by role. Only whole names count: `input_ids.1`, say, may be anything.
const NAMES: [(TokenRole, &[&str]); 4] = [
    (TokenRole::Ids, &["input_ids", "ids", "tokens", "token_ids", "input_tokens", "input"]),
    (TokenRole::Mask, &["attention_mask", "input_mask", "mask"]),
    (TokenRole::Types, &["token_type_ids", "segment_ids", "segments"]),
    (TokenRole::Positions, &["position_ids", "positions"]),
];

/// What an input holds, judged by its name.
#[must_use]
pub fn role(name: &str) -> Option<TokenRole> {
    NAMES.iter().find(|(_, names)| names.contains(&name)).map(|(role, _)| *role)
}

/// Reads a `tokenizer.json`.
///
/// # Errors
/// What is wrong with it.
pub fn parse(json: &[u8]) -> std::result::Result<Tokenizer, String> {
    Tokenizer::from_bytes(json).map_err(|error| error.to_string())
}

/// The token with the largest id.
#[must_use]
pub fn largest(tokenizer: &Tokenizer) -> Option<(u32, String)> {
    tokenizer.get_vocab(true).into_iter().map(|(token, id)| (id, token)).max()
}

fn no_tokenizer(bundle: &ClientBundle) -> RuntimeError {
    RuntimeError::Input(format!(
        "this client bundle has no tokenizer, so it cannot read texts: compile with one \
         (`thex compile {} … --tokenizer tokenizer.json`), or give token ids with --input DATA.npz",
        bundle.model
    ))
}

/// Tokenises a text into the inputs of a model.
///
/// # Errors
/// The bundle has no tokenizer, or the model has an input that a text does not give.
pub fn tokenize(bundle: &ClientBundle, text: &str) -> Result<Tokenized> {
    let format = bundle.interface.text.as_ref().ok_or_else(|| no_tokenizer(bundle))?;
    let length = length(format, &bundle.prologue.inputs)?;
    let (fitted, cut) = encode(format, length, text)?;
    let mask = fitted.get_attention_mask();
    let tokens: Vec<String> =
        fitted.get_tokens().iter().zip(mask).filter(|(_, m)| **m == 1).map(|(token, _)| token.clone()).collect();
    let inputs = bundle.prologue.inputs.iter().map(|(name, shape)| input(format, &fitted, name, shape));
    Ok(Tokenized { inputs: inputs.collect::<Result<_>>()?, padding: length - tokens.len().min(length), tokens, cut })
}

/// No model is compiled for more tokens; a bundle that says so is damaged.
const MAX_TOKENS: usize = 1 << 20;

/// The number of tokens that the model was compiled for.
fn length(format: &TextFormat, inputs: &[(String, Vec<usize>)]) -> Result<usize> {
    let ids = format.roles.iter().find(|(_, role)| *role == TokenRole::Ids);
    let shape = ids.and_then(|(name, _)| inputs.iter().find(|(n, _)| n == name)).map(|(_, shape)| shape.as_slice());
    match shape {
        Some(&[1, length] | &[length]) if (1..=MAX_TOKENS).contains(&length) => Ok(length),
        Some(other) => {
            Err(RuntimeError::Input(format!("the model takes token ids of shape {other:?}, not [1, tokens]")))
        }
        None => Err(RuntimeError::Input("the client bundle does not say which input takes token ids".into())),
    }
}

/// A text as exactly `length` tokens, and how many more it had.
fn encode(format: &TextFormat, length: usize, text: &str) -> Result<(Encoding, usize)> {
    let refuse = |error: tokenizers::Error| RuntimeError::Input(format!("the text cannot be tokenised: {error}"));
    let mut tokenizer = parse(&format.tokenizer)
        .map_err(|e| RuntimeError::Input(format!("the client bundle's tokenizer cannot be read: {e}")))?;
    let truncation = tokenizer.get_truncation().cloned().unwrap_or_default();
    let padding = padding(&tokenizer);
    tokenizer.with_padding(None).with_truncation(None).map_err(refuse)?;
    let mut encoding = tokenizer.encode(text, true).map_err(refuse)?;
    let cut = encoding.len().saturating_sub(length);
    if cut > 0 {
        check_room(&tokenizer, length)?;
        let truncation = TruncationParams { max_length: length, stride: 0, ..truncation };
        tokenizer.with_truncation(Some(truncation)).map_err(refuse)?;
        encoding = tokenizer.encode(text, true).map_err(refuse)?;
    }
    if encoding.len() < length {
        let p = padding?;
        encoding.pad(length, p.pad_id, p.pad_type_id, &p.pad_token, p.direction);
    }
    Ok((encoding, cut))
}

/// Refuses a model too short for the special tokens, for which the tokenizer would compute a negative length.
fn check_room(tokenizer: &Tokenizer, length: usize) -> Result<()> {
    let added = tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(false));
    if added < length {
        return Ok(());
    }
    let reason = format!("the model was compiled for {length} tokens, and the tokenizer adds {added} to every text");
    Err(RuntimeError::Input(reason))
}

/// Tokens that pad in the families of models at hand, for tokenizers whose file does not say.
const PADDING: [&str; 4] = ["[PAD]", "<pad>", "<|pad|>", "<|endoftext|>"];

/// How to pad: as the file says, else on the right with the first of [`PADDING`] that the vocabulary has.
fn padding(tokenizer: &Tokenizer) -> Result<PaddingParams> {
    if let Some(given) = tokenizer.get_padding() {
        return Ok(given.clone());
    }
    let known = PADDING.iter().find_map(|token| Some((tokenizer.token_to_id(token)?, (*token).to_owned())));
    let Some((pad_id, pad_token)) = known else {
        let reason =
            "the text is shorter than what the model was compiled for, and the tokenizer has no token to pad with";
        return Err(RuntimeError::Input(reason.into()));
    };
    Ok(PaddingParams { pad_id, pad_token, ..PaddingParams::default() })
}

/// The tensor of one input.
fn input(format: &TextFormat, encoding: &Encoding, name: &str, shape: &[usize]) -> Result<Named> {
    let Some((_, role)) = format.roles.iter().find(|(n, _)| n == name) else {
        let reason = format!("a text does not give the input `{name}`; give all inputs with --input DATA.npz");
        return Err(RuntimeError::Input(reason));
    };
    let values: Vec<f64> = match role {
        TokenRole::Ids => encoding.get_ids().iter().copied().map(f64::from).collect(),
        TokenRole::Mask => encoding.get_attention_mask().iter().copied().map(f64::from).collect(),
        TokenRole::Types => encoding.get_type_ids().iter().copied().map(f64::from).collect(),
        TokenRole::Positions => positions(encoding.get_attention_mask()),
    };
    let count = values.len();
    let tensor = ArrayD::from_shape_vec(IxDyn(shape), values).map_err(|_| {
        RuntimeError::Input(format!("the model takes `{name}` of shape {shape:?}, and the text has {count} tokens"))
    })?;
    Ok((name.to_owned(), tensor))
}

/// Positions counted from the first token of the text, which padding on the left may precede.
fn positions(mask: &[u32]) -> Vec<f64> {
    let first = mask.iter().position(|&m| m == 1).unwrap_or(0);
    (0..mask.len()).map(|i| i.saturating_sub(first) as f64).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use super::*;
    use thex_circuit::clear::ClearGraph;
    use thex_circuit::{Interface, Parameters};

    const TOKENIZER: &str = include_str!("../../tests/data/tiny_tokenizer.json");

    fn bundle(tokenizer: &str, inputs: &[&str], length: usize) -> ClientBundle {
        let ports: Vec<(String, Vec<usize>)> = inputs.iter().map(|n| ((*n).to_owned(), vec![1, length])).collect();
        let roles = inputs.iter().filter_map(|n| Some(((*n).to_owned(), role(n)?))).collect();
        let text = Some(TextFormat::new(tokenizer.as_bytes().to_vec(), roles));
        ClientBundle {
            circuit: "0".repeat(64),
            model: "tiny.onnx".into(),
            parameters: Parameters::standard(),
            prologue: ClearGraph::identity(&ports),
            inputs: Vec::new(),
            outputs: Vec::new(),
            epilogue: ClearGraph::default(),
            interface: Interface { text, ..Interface::default() },
        }
    }

    fn values(tokenized: &Tokenized, name: &str) -> Vec<f64> {
        tokenized.inputs.iter().find(|(n, _)| n == name).unwrap().1.iter().copied().collect()
    }

    const ALL: [&str; 4] = ["input_ids", "attention_mask", "token_type_ids", "position_ids"];

    #[test]
    fn a_short_text_is_padded() {
        let result = tokenize(&bundle(TOKENIZER, &ALL, 8), "The film was GREAT!").unwrap();
        assert_eq!(result.tokens, ["[CLS]", "the", "film", "was", "great", "!", "[SEP]"]);
        assert_eq!((result.padding, result.cut), (1, 0));
        assert_eq!(values(&result, "input_ids"), [2.0, 4.0, 5.0, 6.0, 13.0, 25.0, 3.0, 0.0]);
        assert_eq!(values(&result, "attention_mask"), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
        assert_eq!(values(&result, "token_type_ids"), [0.0; 8]);
        assert_eq!(values(&result, "position_ids"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        let format = |inputs: &[&str]| bundle(TOKENIZER, inputs, 8).interface.text.unwrap();
        assert!(result.warnings(&format(&ALL)).is_empty());
        assert!(result.warnings(&format(&["input_ids"]))[0].contains("attention mask"));
    }

    #[test]
    fn a_long_text_is_cut_inside_its_special_tokens() {
        let bundle = bundle(TOKENIZER, &["input_ids"], 5);
        let result = tokenize(&bundle, "the film was not good").unwrap();
        assert_eq!(result.tokens, ["[CLS]", "the", "film", "was", "[SEP]"]);
        assert_eq!((result.padding, result.cut), (0, 2));
        let warnings = result.warnings(bundle.interface.text.as_ref().unwrap());
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("7 tokens") && warnings[0].contains("2 were cut off"), "{warnings:?}");
    }

    #[test]
    fn padding_follows_the_tokenizer() {
        let left = TOKENIZER.replace(
            r#""direction": "Right",
    "pad_to"#,
            "",
        );
        let left = left.replacen(r#"{"Fixed": 8}, "direction": "Right""#, r#"{"Fixed": 8}, "direction": "Left""#, 1);
        assert_ne!(left, TOKENIZER);
        let result = tokenize(&bundle(&left, &ALL, 6), "good").unwrap();
        assert_eq!(values(&result, "input_ids"), [0.0, 0.0, 0.0, 2.0, 12.0, 3.0]);
        assert_eq!(values(&result, "position_ids"), [0.0, 0.0, 0.0, 0.0, 1.0, 2.0]);
    }

    #[test]
    fn errors_say_what_to_do() {
        let error = |bundle: &ClientBundle, text: &str| tokenize(bundle, text).unwrap_err().to_string();
        let mut without = bundle(TOKENIZER, &["input_ids"], 8);
        without.interface.text = None;
        let text = error(&without, "good");
        assert!(text.contains("--tokenizer tokenizer.json") && text.contains("tiny.onnx"), "{text}");
        assert!(error(&bundle(TOKENIZER, &["input_ids", "pixels"], 8), "good").contains("`pixels`"));
        assert!(error(&bundle(TOKENIZER, &["input_ids"], 2), "good").contains("adds 2"));
        assert!(error(&bundle("{}", &["input_ids"], 8), "good").contains("tokenizer"));
        assert!(error(&bundle(TOKENIZER, &["attention_mask"], 8), "good").contains("token ids"));
    }

    #[test]
    fn the_largest_id_is_known() {
        let (id, token) = largest(&parse(TOKENIZER.as_bytes()).unwrap()).unwrap();
        assert_eq!((id, token.as_str()), (25, "!"));
    }
}
