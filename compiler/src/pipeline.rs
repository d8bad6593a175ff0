//! From an ONNX file and calibration data to a circuit and a client bundle.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use thex_circuit::{CircuitInfo, FrozenInput, Interface, Parameters};
use thex_ir::{Graph, Stage, Tensor};
use thex_passes::manager::Observer;
use thex_passes::{ErrorSource, Pass, PassCx, PassManager, PassRecord, Precision, Profile, Samples, options, registry};
use thex_runtime::npz;

use crate::emit::{EmitOptions, Emitted, emit};
use crate::error::{CompileError, Result};
use crate::export::{self, GraphFile};
use crate::freeze::{self, Freeze};
use crate::import::{self, ImportOptions, Imported, InputInfo};
use crate::interface::{self, InterfaceOptions};
use crate::missing::missing;
use crate::probe::probe;

/// What to compile and how.
#[derive(Clone, Debug, Default)]
pub struct CompileOptions {
    /// The ONNX file.
    pub model: PathBuf,
    /// An `.npz` with one array for each input; the first axis counts samples.
    pub calibration: PathBuf,
    /// How functions are computed.
    pub profile: Profile,
    /// How single nodes are, each `NODE=FORM`; later ones win.
    pub approximate: Vec<String>,
    /// Shapes of inputs, batch included; others follow from the calibration arrays.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// How exact.
    pub precision: Precision,
    /// Cryptographic parameters, if they are not to be chosen.
    pub parameters: Option<Parameters>,
    /// Folder for the graph after every pass.
    pub dump_ir: Option<PathBuf>,
    /// Tokenizer, class names and image normalisation.
    pub interface: InterfaceOptions,
    /// Inputs to make public constants.
    pub freeze: Freeze,
    /// Settings of passes, each `pass:option=value`.
    pub pass_options: Vec<String>,
}

/// Refuses a precision that makes no sense.
///
/// # Errors
/// [`CompileError::Usage`] says what would.
pub fn check_precision(precision: Precision) -> Result<()> {
    let Precision { output_error, margin } = precision;
    if output_error > 0.0 && output_error.is_finite() && (0.0..=10.0).contains(&margin) {
        return Ok(());
    }
    Err(CompileError::Usage("--output-error must be positive, --margin between 0 and 10".into()))
}

/// A compiled model, not yet on disk.
pub struct Compiled {
    /// Circuit and bundle.
    pub emitted: Emitted,
    /// The file that [`export`] reads.
    pub graph_bytes: Vec<u8>,
    /// What each pass did.
    pub records: Vec<PassRecord>,
    /// Why rewrites were made.
    pub log: Vec<String>,
    /// The graph as `calibrate` left it: tensors with ranges.
    pub calibrated: Graph,
    /// The graph that was emitted.
    pub placed: Graph,
    /// Sources of the modelled output error, the largest first.
    pub error_sources: Vec<ErrorSource>,
}

/// Shapes for every wanted input: as given, else from the calibration array with batch 1.
///
/// # Errors
/// [`CompileError::Invalid`] when neither tells.
pub fn shapes(
    inputs: &[InputInfo],
    given: &BTreeMap<String, Vec<usize>>,
    wanted: &[InputInfo],
    arrays: &[(String, ArrayD<f64>)],
) -> Result<BTreeMap<String, Vec<usize>>> {
    if let Some(unknown) = given.keys().find(|name| !inputs.iter().any(|i| i.name == **name)) {
        let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
        return Err(CompileError::Usage(format!(
            "--shape names `{unknown}`, which is no input of the model; it has {names:?}"
        )));
    }
    wanted
        .iter()
        .map(|input| {
            let from_data = arrays.iter().find(|(name, _)| *name == input.name).map(|(_, array)| {
                let mut shape = array.shape().to_vec();
                shape[0] = 1;
                shape
            });
            let shape = given.get(&input.name).cloned().or(from_data);
            shape.map(|s| (input.name.clone(), s)).ok_or_else(|| {
                CompileError::Data(format!(
                    "the shape of input `{}` is not known: give --shape {}=1x…",
                    input.name, input.name
                ))
            })
        })
        .collect()
}

/// One sample as the model's inputs want it.
pub(crate) fn tensors(
    arrays: &[(String, ArrayD<f64>)],
    index: usize,
    order: &[(String, Vec<usize>)],
) -> Result<Vec<Arc<Tensor>>> {
    let sample = npz::sample(arrays, index)?;
    order
        .iter()
        .map(|(name, shape)| {
            let value = sample.iter().find(|(n, _)| n == name).map(|(_, v)| v.iter().copied().collect::<Vec<f64>>());
            let found = sample.iter().find(|(n, _)| n == name).map(|(_, v)| v.shape().to_vec()).unwrap_or_default();
            let tensor = ArrayD::from_shape_vec(IxDyn(shape), value.unwrap_or_default());
            tensor.map(Arc::new).map_err(|_| {
                CompileError::Data(format!(
                    "a sample of `{name}` has shape {found:?}, the model takes {shape:?} (batch 1 in front)"
                ))
            })
        })
        .collect()
}

/// Reads the arrays of a data set that the model's inputs name.
///
/// # Errors
/// The file is none, or an array is missing.
pub fn read_data(path: &Path, inputs: &[InputInfo]) -> Result<Vec<(String, ArrayD<f64>)>> {
    if let Some(error) = missing(path, &npz::names(path)?, inputs) {
        return Err(error);
    }
    let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
    Ok(npz::read(path, &names)?)
}

/// A model after some passes.
pub struct Rewritten {
    /// The graph.
    pub graph: Graph,
    /// What passes found out.
    pub cx: PassCx,
    /// What each pass did.
    pub records: Vec<PassRecord>,
}

/// One pass at work.
pub struct Around {
    /// The graph before it.
    pub before: Graph,
    /// The graph after it.
    pub after: Graph,
    /// What it did.
    pub record: PassRecord,
}

/// The pipeline with its options set, and a check that it has a pass of this name.
fn passes(options: &CompileOptions, wanted: Option<&str>) -> Result<Vec<Box<dyn Pass>>> {
    let mut pipeline = registry::pipeline();
    options::apply(&mut pipeline, &options.pass_options)?;
    let Some(name) = wanted else { return Ok(pipeline) };
    if pipeline.iter().any(|p| p.name() == name) {
        Ok(pipeline)
    } else {
        Err(CompileError::Usage(no_pass(name, &pipeline)))
    }
}

/// Says that there is no such pass, and which there are.
#[must_use]
pub fn no_pass(name: &str, pipeline: &[Box<dyn Pass>]) -> String {
    let names: Vec<&str> = pipeline.iter().map(|p| p.name()).collect();
    format!("there is no pass `{name}`; there are {}", names.join(", "))
}

/// Imports the model and makes the context of its passes.
pub(crate) fn prepare(options: &CompileOptions) -> Result<(Graph, PassCx, Vec<FrozenInput>)> {
    let inputs = import::inputs(&options.model)?;
    freeze::check(&options.freeze, &inputs)?;
    let there = npz::names(&options.calibration)?;
    let filled = |i: &InputInfo| matches!(options.freeze.get(&i.name), Some(Some(_))) && !there.contains(&i.name);
    let (filled, read): (Vec<InputInfo>, Vec<InputInfo>) = inputs.iter().cloned().partition(filled);
    let arrays = read_data(&options.calibration, &read)?;
    let mut known = options.shapes.clone();
    known.extend(shapes(&inputs, &options.shapes, &read, &arrays)?);
    known.extend(freeze::shared_shapes(&options.freeze, &inputs, &known));
    if let Some(input) = filled.iter().find(|i| !known.contains_key(&i.name)) {
        return Err(CompileError::Data(format!(
            "the shape of input `{}` is not known: give --shape {}=1x…",
            input.name, input.name
        )));
    }
    let Imported { mut graph, .. } = import::import(&options.model, &ImportOptions { shapes: known })?;
    let frozen = freeze::apply(&options.freeze, &mut graph, &arrays)?;
    let order: Vec<(String, Vec<usize>)> =
        graph.inputs.iter().map(|&id| (graph.node(id).name.clone(), graph.node(id).shape.clone())).collect();
    let count = npz::samples(&arrays);
    let samples: Samples = Arc::new((0..count).map(|i| tensors(&arrays, i, &order)).collect::<Result<Vec<_>>>()?);
    check_samples(&samples, &order, &options.calibration)?;
    let mut cx = PassCx::new(options.profile, samples);
    cx.precision = options.precision;
    if let Some(parameters) = options.parameters {
        parameters.check()?;
        cx.parameters = parameters;
        cx.parameters_fixed = true;
    }
    cx.approximate.clone_from(&options.approximate);
    cx.probe = Some(probe());
    for input in &frozen {
        cx.note(format!("{}: public, a constant of the circuit (--freeze)", input.name));
    }
    Ok((graph, cx, frozen))
}

/// Imports a model and runs the pipeline, all of it or up to a pass.
///
/// # Errors
/// [`CompileError`], which says what is at fault and what to do.
pub fn rewrite(options: &CompileOptions, stop_after: Option<&str>) -> Result<Rewritten> {
    let pipeline = passes(options, stop_after)?;
    let (mut graph, mut cx, _) = prepare(options)?;
    let records = manager(options, stop_after, None).run(&pipeline, &mut graph, &mut cx)?;
    Ok(Rewritten { graph, cx, records })
}

fn manager(options: &CompileOptions, stop_after: Option<&str>, observer: Option<Observer>) -> PassManager {
    PassManager { dump_dir: options.dump_ir.clone(), stop_after: stop_after.map(str::to_owned), observer }
}

/// Runs the pipeline up to `pass` and keeps the graphs on both sides of it.
///
/// # Errors
/// As [`rewrite`].
pub fn around(options: &CompileOptions, pass: &str) -> Result<Around> {
    let pipeline = passes(options, Some(pass))?;
    let (mut graph, mut cx, _) = prepare(options)?;
    let seen = Rc::new(RefCell::new([Graph::new(), graph.clone()]));
    let keep = seen.clone();
    let observer: Observer = Box::new(move |_, graph| {
        let mut seen = keep.borrow_mut();
        seen.swap(0, 1);
        seen[1] = graph.clone();
    });
    let mut records = manager(options, Some(pass), Some(observer)).run(&pipeline, &mut graph, &mut cx)?;
    let record = records.pop().ok_or_else(|| CompileError::Internal("no pass has run".into()))?;
    let before = std::mem::take(&mut seen.borrow_mut()[0]);
    Ok(Around { before, after: graph, record })
}

/// The approximated model, client and server in one, for [`export`]. The graph is the one before calibration.
///
/// # Errors
/// [`CompileError::Internal`] when the passes stopped before client and server were split.
pub fn graph_file(options: &CompileOptions, cx: &PassCx, approximated: &Graph) -> Result<GraphFile> {
    let (Some(prologue), Some(epilogue)) = (&cx.prologue, &cx.epilogue) else {
        return Err(CompileError::Internal("the model was not split into client and server".into()));
    };
    let dtypes = import::inputs(&options.model)?.into_iter().map(|input| (input.name, input.dtype)).collect();
    Ok(GraphFile {
        model: file_name(&options.model),
        profile: cx.profile.name().to_owned(),
        approximations: cx.approximations.clone(),
        dtypes,
        graph: export::join(prologue, approximated, epilogue)?,
    })
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Compiles a model.
///
/// # Errors
/// [`CompileError`], which says what is at fault and what to do.
pub fn compile(options: &CompileOptions) -> Result<Compiled> {
    let interface = interface::read(&options.interface, &import::inputs(&options.model)?)?;
    let pipeline = passes(options, None)?;
    let (mut graph, mut cx, frozen) = prepare(options)?;
    let stages = Rc::new(RefCell::new([graph.clone(), Graph::new()]));
    let keep = stages.clone();
    let observer: Observer = Box::new(move |_, graph| {
        if graph.stage <= Stage::Calibrated {
            keep.borrow_mut()[usize::from(graph.stage == Stage::Calibrated)] = graph.clone();
        }
    });
    let records = manager(options, None, Some(observer)).run(&pipeline, &mut graph, &mut cx)?;
    let [approximated, calibrated] = stages.take();
    let graph_bytes = graph_file(options, &cx, &approximated)?.to_bytes()?;
    let info = CircuitInfo {
        model: file_name(&options.model),
        profile: options.profile.name().to_owned(),
        approximations: cx.approximations,
        predicted_output_error: cx.predicted_output_error,
    };
    let (Some(prologue), Some(epilogue)) = (cx.prologue, cx.epilogue) else {
        return Err(CompileError::Internal("the model was not split into client and server".into()));
    };
    let interface = interface::fit(Interface { frozen, ..interface }, &prologue, &epilogue)?;
    let emitted = emit(&graph, EmitOptions { parameters: cx.parameters, info, prologue, epilogue, interface })?;
    let (log, error_sources) = (cx.log, cx.error_sources);
    Ok(Compiled { emitted, graph_bytes, records, log, calibrated, placed: graph, error_sources })
}

fn check_samples(samples: &Samples, order: &[(String, Vec<usize>)], path: &Path) -> Result<()> {
    if samples.is_empty() {
        return Err(CompileError::Data(format!("`{}` holds no sample to calibrate on", path.display())));
    }
    for (i, sample) in samples.iter().enumerate() {
        for (tensor, (name, _)) in sample.iter().zip(order) {
            if let Some(value) = tensor.iter().find(|v| !v.is_finite()) {
                return Err(CompileError::Data(format!(
                    "`{}`: sample {i} of `{name}` holds {value}; calibration data must be finite",
                    path.display()
                )));
            }
        }
    }
    Ok(())
}

/// `OUT` + suffix, literally.
#[must_use]
pub fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut name = prefix.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
