//! From an ONNX file and calibration data to a circuit and a client bundle.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use thex_circuit::CircuitInfo;
use thex_ir::{Graph, Stage, Tensor};
use thex_passes::manager::Observer;
use thex_passes::{PassCx, PassManager, PassRecord, Precision, Profile, Samples, registry};
use thex_runtime::npz;

use crate::emit::{EmitOptions, Emitted, emit};
use crate::error::{CompileError, Result};
use crate::export::{self, GraphFile};
use crate::import::{self, ImportOptions, Imported, InputInfo};

/// What to compile and how.
#[derive(Clone, Debug, Default)]
pub struct CompileOptions {
    /// The ONNX file.
    pub model: PathBuf,
    /// An `.npz` with one array for each input; the first axis counts samples.
    pub calibration: PathBuf,
    /// Which functions to substitute.
    pub profile: Profile,
    /// Shapes of inputs, batch included; others follow from the calibration arrays.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// How exact.
    pub precision: Precision,
    /// Folder for the graph after every pass.
    pub dump_ir: Option<PathBuf>,
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
}

/// Shapes for every input: as given, else from the calibration array with batch 1.
///
/// # Errors
/// [`CompileError::Invalid`] when neither tells.
pub fn shapes(
    inputs: &[InputInfo],
    given: &BTreeMap<String, Vec<usize>>,
    arrays: &[(String, ArrayD<f64>)],
) -> Result<BTreeMap<String, Vec<usize>>> {
    if let Some(unknown) = given.keys().find(|name| !inputs.iter().any(|i| i.name == **name)) {
        let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
        return Err(CompileError::Invalid(format!(
            "--shape names `{unknown}`, which is no input of the model; it has {names:?}"
        )));
    }
    inputs
        .iter()
        .map(|input| {
            let from_data = arrays.iter().find(|(name, _)| *name == input.name).map(|(_, array)| {
                let mut shape = array.shape().to_vec();
                shape[0] = 1;
                shape
            });
            let shape = given.get(&input.name).cloned().or(from_data);
            shape.map(|s| (input.name.clone(), s)).ok_or_else(|| {
                CompileError::Invalid(format!(
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
                CompileError::Invalid(format!(
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
    let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
    Ok(npz::read(path, &names)?)
}

/// A model after some passes.
pub struct Rewritten {
    /// The graph.
    pub graph: Graph,
    /// The graph as it was before calibration: approximated, and still of tensor operations.
    pub approximated: Graph,
    /// Element type of each input, as numpy writes it.
    pub dtypes: BTreeMap<String, String>,
    /// What passes found out.
    pub cx: PassCx,
    /// What each pass did.
    pub records: Vec<PassRecord>,
}

/// Imports a model and runs the pipeline, all of it or up to a pass.
///
/// # Errors
/// [`CompileError`], which says what is at fault and what to do.
pub fn rewrite(options: &CompileOptions, stop_after: Option<&str>) -> Result<Rewritten> {
    let pipeline = registry::pipeline();
    if let Some(unknown) = stop_after.filter(|name| !pipeline.iter().any(|p| p.name() == *name)) {
        let names: Vec<&str> = pipeline.iter().map(|p| p.name()).collect();
        return Err(CompileError::Invalid(format!("there is no pass `{unknown}`; there are {}", names.join(", "))));
    }
    let inputs = import::inputs(&options.model)?;
    let arrays = read_data(&options.calibration, &inputs)?;
    let shapes = shapes(&inputs, &options.shapes, &arrays)?;
    let Imported { mut graph, .. } = import::import(&options.model, &ImportOptions { shapes })?;
    let order: Vec<(String, Vec<usize>)> =
        graph.inputs.iter().map(|&id| (graph.node(id).name.clone(), graph.node(id).shape.clone())).collect();
    let count = npz::samples(&arrays);
    let samples: Samples = Arc::new((0..count).map(|i| tensors(&arrays, i, &order)).collect::<Result<Vec<_>>>()?);
    check_samples(&samples, &order, &options.calibration)?;
    let mut cx = PassCx::new(options.profile, samples);
    cx.precision = options.precision;
    let latest = Rc::new(RefCell::new(graph.clone()));
    let manager = PassManager {
        dump_dir: options.dump_ir.clone(),
        stop_after: stop_after.map(str::to_owned),
        observer: Some(keep_uncalibrated(&latest)),
    };
    let records = manager.run(&pipeline, &mut graph, &mut cx)?;
    let approximated = latest.take();
    let dtypes = inputs.into_iter().map(|input| (input.name, input.dtype)).collect();
    Ok(Rewritten { graph, approximated, dtypes, cx, records })
}

/// Keeps the graph after every pass up to calibration.
fn keep_uncalibrated(latest: &Rc<RefCell<Graph>>) -> Observer {
    let latest = Rc::clone(latest);
    Box::new(move |_, graph| {
        if graph.stage < Stage::Calibrated {
            latest.replace(graph.clone());
        }
    })
}

impl Rewritten {
    /// The approximated model, client and server in one, for [`export`].
    ///
    /// # Errors
    /// [`CompileError::Internal`] when the passes stopped before client and server were split.
    pub fn graph_file(&self, model: &Path) -> Result<GraphFile> {
        let (Some(prologue), Some(epilogue)) = (&self.cx.prologue, &self.cx.epilogue) else {
            return Err(CompileError::Internal("the model was not split into client and server".into()));
        };
        Ok(GraphFile {
            model: file_name(model),
            profile: self.cx.profile.name().to_owned(),
            approximations: self.cx.approximations.clone(),
            dtypes: self.dtypes.clone(),
            graph: export::join(prologue, &self.approximated, epilogue)?,
        })
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Compiles a model.
///
/// # Errors
/// [`CompileError`], which says what is at fault and what to do.
pub fn compile(options: &CompileOptions) -> Result<Compiled> {
    let rewritten = rewrite(options, None)?;
    let graph_bytes = rewritten.graph_file(&options.model)?.to_bytes()?;
    let Rewritten { graph, cx, records, .. } = rewritten;
    let info = CircuitInfo {
        model: file_name(&options.model),
        profile: options.profile.name().to_owned(),
        approximations: cx.approximations,
        predicted_output_error: cx.predicted_output_error,
    };
    let (Some(prologue), Some(epilogue)) = (cx.prologue, cx.epilogue) else {
        return Err(CompileError::Internal("the model was not split into client and server".into()));
    };
    let emitted = emit(&graph, EmitOptions { parameters: cx.parameters, info, prologue, epilogue })?;
    Ok(Compiled { emitted, graph_bytes, records, log: cx.log })
}

fn check_samples(samples: &Samples, order: &[(String, Vec<usize>)], path: &Path) -> Result<()> {
    if samples.is_empty() {
        return Err(CompileError::Invalid(format!("`{}` holds no sample to calibrate on", path.display())));
    }
    for (i, sample) in samples.iter().enumerate() {
        for (tensor, (name, _)) in sample.iter().zip(order) {
            if let Some(value) = tensor.iter().find(|v| !v.is_finite()) {
                return Err(CompileError::Invalid(format!(
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
