//! From a file to a decluttered tract model with concrete shapes.
//!
//! The protobuf is looked at before tract sees it, because tract's own messages for a truncated file, a
//! symbolic dimension or missing external data do not say what to do, and because some hostile files make
//! it panic. `into_decluttered` is where we stop: `into_optimized` replaces operations by kernels.

use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

use tract_onnx::pb::{ModelProto, ValueInfoProto, tensor_shape_proto, type_proto};
use tract_onnx::prelude::{DatumType, Framework, InferenceFact, InferenceModelExt, TractResult, TypedModel};
use tract_onnx::tract_core::internal::bail;
use tract_onnx::tract_hir::infer::Factoid;

use super::ImportOptions;
use super::budget::{self, Excess};
use super::error::{ImportError, Result};
use super::names::Names;
use super::repair::repair;
use super::screen::screen;

/// A dimension of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// A number.
    Fixed(usize),
    /// A symbol, or `?` when the model gives none.
    Symbol(String),
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Symbol(s) => f.write_str(s),
        }
    }
}

/// An input of an ONNX model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputInfo {
    /// Its name.
    pub name: String,
    /// Element type, as numpy writes it: `float32`, `int64`, `bool`, ...
    pub dtype: String,
    /// Its dimensions.
    pub dims: Vec<Dim>,
}

impl InputInfo {
    fn has_symbols(&self) -> bool {
        self.dims.iter().any(|d| matches!(d, Dim::Symbol(_)))
    }

    fn describe(&self) -> String {
        let dims: Vec<String> = self.dims.iter().map(ToString::to_string).collect();
        format!("`{}` [{}]", self.name, dims.join(", "))
    }

    /// `--shape name=1x16`, with 1 for the first dimension and a guess for the others.
    fn example(&self) -> String {
        let dims: Vec<String> = self
            .dims
            .iter()
            .enumerate()
            .map(|(i, d)| match d {
                Dim::Fixed(n) => n.to_string(),
                Dim::Symbol(_) if i == 0 => "1".to_owned(),
                Dim::Symbol(_) => "16".to_owned(),
            })
            .collect();
        format!("--shape {}={}", self.name, dims.join("x"))
    }
}

/// A model that tract has read, with what its protobuf says about the interface.
pub(super) struct Loaded {
    /// Decluttered, all shapes concrete.
    pub(super) model: TypedModel,
    /// Inputs in order.
    pub(super) inputs: Vec<InputInfo>,
    /// Names of the outputs in order.
    pub(super) outputs: Vec<String>,
    /// Names of the ONNX nodes and tensors.
    pub(super) names: Names,
}

/// A protobuf message has at most 2 GiB.
const MOST_BYTES: u64 = 1 << 31;

/// Reads the protobuf, if the file is one with a graph.
pub(super) fn read_proto(path: &Path) -> Result<ModelProto> {
    let io = |source| ImportError::Io { path: path.to_owned(), source };
    let refuse = |reason: String| ImportError::NotOnnx { path: path.to_owned(), reason };
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() || metadata.len() > MOST_BYTES {
        return Err(refuse("it is no file, or larger than the 2 GiB that an ONNX file may have".into()));
    }
    let bytes = std::fs::read(path).map_err(io)?;
    if bytes.is_empty() {
        return Err(refuse("the file is empty".into()));
    }
    let proto = tract_onnx::onnx()
        .proto_model_for_read(&mut bytes.as_slice())
        .map_err(|error| refuse(format!("it is truncated, or no ONNX file ({})", error.root_cause())))?;
    let graph = proto.graph.as_ref();
    let graph =
        graph.ok_or_else(|| refuse("it holds no graph; export the model with torch.onnx.export or optimum".into()))?;
    if graph.output.is_empty() {
        return Err(refuse("its graph has no outputs".into()));
    }
    Ok(proto)
}

/// The inputs of the model, initialisers excepted.
pub(super) fn proto_inputs(proto: &ModelProto) -> Vec<InputInfo> {
    let Some(graph) = &proto.graph else {
        return Vec::new();
    };
    let constants: BTreeSet<&str> = graph.initializer.iter().map(|i| i.name.as_str()).collect();
    graph
        .input
        .iter()
        .filter(|i| !constants.contains(i.name.as_str()))
        .map(|i| InputInfo { name: i.name.clone(), dtype: dtype(i).to_owned(), dims: dims(i) })
        .collect()
}

fn tensor_type(info: &ValueInfoProto) -> Option<&type_proto::Tensor> {
    match info.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(t) => Some(t),
    }
}

/// Element type number of ONNX, 0 when not given.
pub(super) fn element_type(info: &ValueInfoProto) -> i32 {
    tensor_type(info).map_or(0, |t| t.elem_type)
}

fn dtype(info: &ValueInfoProto) -> &'static str {
    match element_type(info) {
        1 => "float32",
        2 => "uint8",
        3 => "int8",
        4 => "uint16",
        5 => "int16",
        6 => "int32",
        7 => "int64",
        9 => "bool",
        10 => "float16",
        11 => "float64",
        12 => "uint32",
        13 => "uint64",
        16 => "bfloat16",
        _ => "unknown",
    }
}

fn dims(info: &ValueInfoProto) -> Vec<Dim> {
    let Some(shape) = tensor_type(info).and_then(|t| t.shape.as_ref()) else {
        return vec![Dim::Symbol("?".into())];
    };
    shape
        .dim
        .iter()
        .map(|d| match &d.value {
            Some(tensor_shape_proto::dimension::Value::DimValue(n)) if *n >= 0 => Dim::Fixed(*n as usize),
            Some(tensor_shape_proto::dimension::Value::DimParam(s)) if !s.is_empty() => Dim::Symbol(s.clone()),
            _ => Dim::Symbol("?".into()),
        })
        .collect()
}

/// Concrete shape of every input: the given one, or the model's own when it has no symbols.
fn concrete_shapes(inputs: &[InputInfo], options: &ImportOptions) -> Result<Vec<Vec<usize>>> {
    reject_unknown_names(inputs, options)?;
    let missing: Vec<&InputInfo> =
        inputs.iter().filter(|i| i.has_symbols() && !options.shapes.contains_key(&i.name)).collect();
    if !missing.is_empty() {
        let examples: Vec<String> = missing.iter().map(|i| i.example()).collect();
        return Err(ImportError::MissingShapes {
            missing: missing.iter().map(|i| i.describe()).collect(),
            example: examples.join(" "),
        });
    }
    inputs.iter().map(|i| concrete_shape(i, options.shapes.get(&i.name))).collect()
}

fn reject_unknown_names(inputs: &[InputInfo], options: &ImportOptions) -> Result<()> {
    let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
    match options.shapes.iter().find(|(name, _)| !names.contains(&name.as_str())) {
        None => Ok(()),
        Some((name, shape)) => Err(ImportError::BadShape {
            input: name.clone(),
            given: shape.clone(),
            reason: format!("the model has no such input, only {}", names.join(", ")),
        }),
    }
}

fn concrete_shape(input: &InputInfo, given: Option<&Vec<usize>>) -> Result<Vec<usize>> {
    let own = || {
        input.dims.iter().map(|d| match d {
            Dim::Fixed(n) => *n,
            Dim::Symbol(_) => 1,
        })
    };
    let too_large = || "a tensor may have at most 2^26 elements".to_owned();
    let Some(given) = given else {
        let own: Vec<usize> = own().collect();
        let fits = budget::elements(&own).is_some();
        let reason = format!("the model declares it so, but {}", too_large());
        return if fits {
            Ok(own)
        } else {
            Err(ImportError::BadShape { input: input.name.clone(), given: own, reason })
        };
    };
    let unranked = input.dims == [Dim::Symbol("?".into())];
    let fits = given.len() == input.dims.len()
        && input.dims.iter().zip(given).all(|(d, g)| match d {
            Dim::Fixed(n) => n == g,
            Dim::Symbol(_) => true,
        });
    let bad = |reason: String| ImportError::BadShape { input: input.name.clone(), given: given.clone(), reason };
    if given.contains(&0) {
        return Err(bad("no dimension may be 0".into()));
    }
    if budget::elements(given).is_none() {
        return Err(bad(too_large()));
    }
    if !unranked && !fits {
        return Err(bad(format!("the model declares {}", input.describe())));
    }
    Ok(given.clone())
}

/// Loads the model with concrete shapes.
pub(super) fn load(path: &Path, options: &ImportOptions) -> Result<Loaded> {
    let proto = read_proto(path)?;
    screen(path, &proto)?;
    let inputs = proto_inputs(&proto);
    let shapes = concrete_shapes(&inputs, options)?;
    let graph = proto.graph.as_ref();
    let outputs = graph.map(|g| g.output.iter().map(|o| o.name.clone()).collect()).unwrap_or_default();
    let folder = path.parent().and_then(Path::to_str);
    let model = guard(path, || declutter(&proto, folder, &shapes))?;
    Ok(Loaded { model, inputs, outputs, names: Names::of(&proto) })
}

fn declutter(proto: &ModelProto, folder: Option<&str>, shapes: &[Vec<usize>]) -> TractResult<TypedModel> {
    let onnx = tract_onnx::onnx().with_ignore_value_info(true);
    let parsed = onnx.parse(proto, folder)?;
    if let Some(name) = parsed.unresolved_inputs.first() {
        bail!("nothing computes the tensor `{name}`");
    }
    let mut model = parsed.model;
    for (i, shape) in shapes.iter().enumerate() {
        let dtype: Option<DatumType> = model.input_fact(i)?.datum_type.concretize();
        let shape = shape.as_slice();
        let fact = match dtype {
            Some(dtype) => InferenceFact::dt_shape(dtype, shape),
            None => InferenceFact::shape(shape),
        };
        model.set_input_fact(i, fact)?;
    }
    budget::infer(&mut model)?;
    let mut model = model.into_typed()?;
    repair(&mut model)?;
    let model = model.into_decluttered()?;
    budget::check(&model)?;
    Ok(model)
}

thread_local! {
    /// Whether panics of this thread are caught, and need no message.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Panics that are caught print nothing.
fn silence_guarded_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                usual(info);
            }
        }));
    });
}

/// Runs tract code on a file that may be hostile: its errors and, as a last resort, its panics become
/// errors of ours.
pub(super) fn guard<T>(path: &Path, work: impl FnOnce() -> TractResult<T>) -> Result<T> {
    silence_guarded_panics();
    let fail = |reason: String| ImportError::Analysis { path: path.to_owned(), reason };
    let nested = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(nested);
    match result {
        Ok(result) => result.map_err(|error| match error.downcast_ref::<Excess>() {
            Some(excess) => {
                ImportError::Faulty { path: path.to_owned(), faults: vec![excess.to_string()], unsupported: Vec::new() }
            }
            None => fail(shortened(format!("{error:#}"))),
        }),
        Err(panic) => Err(fail(format!("the frontend gave up: {}", shortened(panic_message(&*panic))))),
    }
}

/// tract may quote whole tensors.
fn shortened(text: String) -> String {
    const MOST: usize = 600;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
