//! Compiling, and what comes out of it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use rayon::prelude::*;
use thex::auto::search;
use thex::error::{CompileError, Result};
use thex::evaluate::sample_seed;
use thex::export;
use thex::pipeline::{self, with_suffix};
use thex::report::data::{self, Recipe, ReportData};
use thex::report::page::{page, report_json};
use thex::report::{circuit_json, circuit_text};
use thex_circuit::file::write_atomic;
use thex_circuit::{CircuitError, ClientBundle, NoiseModel, Parameters};
use thex_runtime::client::Named;
use thex_runtime::simulate::infer;
use thex_runtime::{KernelTimes, Simulator, calibrate, check_writable};

use crate::arrays::{self, Remarks};
use crate::ciphertexts::Given;
use crate::circuit::{Circuit, Loaded};
use crate::client::{Client, Owner, warn};
use crate::errors::{raise, unfit};
use crate::options::Request;
use crate::work::{Stopping, detached, watched};

/// No report file and no graph is larger.
const MAX_SIDE_BYTES: u64 = 8 << 30;

/// A compiled model: a circuit for the server and a bundle for the client, with what the compiler knew.
#[pyclass(frozen, module = "thex")]
pub(crate) struct Compiled {
    loaded: Arc<Loaded>,
    bundle: ClientBundle,
    bundle_bytes: Vec<u8>,
    /// For `thex report`, `thex verify`, and for `thex export`: absent if it was loaded without them.
    side: [Option<Vec<u8>>; 2],
}

/// How long the kernels take on this machine: measured once for each set of parameters.
static TIMES: Mutex<Vec<(Parameters, KernelTimes)>> = Mutex::new(Vec::new());

fn times(py: Python<'_>, parameters: Parameters) -> PyResult<KernelTimes> {
    let known =
        |list: &[(Parameters, KernelTimes)]| list.iter().find(|(p, _)| *p == parameters).map(|(_, times)| *times);
    if let Some(times) = known(&TIMES.lock().unwrap_or_else(PoisonError::into_inner)) {
        return Ok(times);
    }
    let times = watched(py, None, Stopping::Abandoned, move |_| Ok(calibrate::measure(parameters, 0)?))?;
    TIMES.lock().unwrap_or_else(PoisonError::into_inner).push((parameters, times));
    Ok(times)
}

/// What a compilation gives.
struct Parts {
    circuit: Vec<u8>,
    bundle: Vec<u8>,
    side: [Option<Vec<u8>>; 2],
    warning: Option<String>,
}

fn build(mut request: Request) -> Result<Parts> {
    let mut warning = None;
    if let Some(budget) = request.budget {
        let found = search(&request.options, budget, &mut |_| {})?;
        found.apply(&mut request.options);
        let chosen = &found.trials[found.chosen];
        warning = (!found.kept).then(|| {
            let (seconds, loss) = (chosen.seconds, chosen.loss);
            format!("nothing that was tried keeps to the budget; the nearest is taken ({seconds:.1} s, {loss:.2} points lost)")
        });
    }
    let compiled = pipeline::compile(&request.options)?;
    let recipe = request.lasting.then(|| Recipe::new(&request.options));
    let report = ReportData { recipe, ..data::collect(&compiled) }.to_bytes()?;
    let emitted = compiled.emitted;
    let side = [Some(report), Some(compiled.graph_bytes)];
    Ok(Parts { circuit: emitted.circuit_bytes, bundle: emitted.bundle_bytes, side, warning })
}

impl Compiled {
    fn new(parts: Parts) -> Result<Self> {
        let Parts { circuit, bundle: bundle_bytes, side, .. } = parts;
        let (loaded, bundle) = (Loaded::new(circuit)?, ClientBundle::read(&bundle_bytes)?);
        if bundle.circuit != loaded.digest {
            let (left, right) = ("the circuit".into(), "the client bundle".into());
            let reason = "they come from different compilations; compile the model again".into();
            return Err(CircuitError::Mismatch { left, right, reason }.into());
        }
        Ok(Self { loaded, bundle, bundle_bytes, side })
    }

    /// A client without keys.
    pub(crate) fn new_client(&self) -> Client {
        Client { owner: Owner::new(self.bundle.clone()) }
    }

    fn report_data(&self) -> Result<ReportData> {
        let bytes = self.side[0].as_deref().ok_or_else(|| {
            CompileError::Usage(
                "there is no report file beside the circuit: save and load all files of a compilation".into(),
            )
        })?;
        ReportData::read(Path::new(thex_circuit::file::IN_MEMORY), bytes, &self.loaded.digest)
    }

    fn simulated<'py>(
        &self,
        py: Python<'py>,
        values: Vec<Named>,
        noise: NoiseModel,
        seed: u64,
    ) -> PyResult<Bound<'py, PyAny>> {
        let batch = arrays::batch(&self.bundle, values);
        if batch.samples.is_empty() {
            return Err(unfit("the batch is empty: there is nothing to simulate"));
        }
        let many = batch.many;
        let (loaded, bundle) = (self.loaded.clone(), self.bundle.clone());
        let work = move |watch: &crate::work::Watch| {
            let simulator = Simulator::new(&loaded.circuit, noise)?;
            let stopped = || watch.stop.load(std::sync::atomic::Ordering::Relaxed);
            let one = |(i, sample): (usize, &Vec<Named>)| {
                let seed = if many { sample_seed(seed, i) } else { seed };
                let inference = (!stopped()).then(|| infer(&bundle, &simulator, sample, seed)).transpose()?;
                Ok(inference.map(|r| (r.outputs, r.encoded.clamped_total() as u64, r.simulation.overflow_total())))
            };
            batch.samples.par_iter().enumerate().map(one).collect::<Result<Vec<_>>>()
        };
        let runs: Vec<(Vec<Named>, u64, u64)> =
            watched(py, None, Stopping::Awaited, work)?.into_iter().flatten().collect();
        let clamped = runs.iter().map(|(_, clamped, _)| clamped).sum();
        let overflows = runs.iter().map(|(.., overflows)| overflows).sum();
        let remarks: Remarks = vec![("clamped", clamped), ("overflows", overflows)];
        let mut outputs: Vec<Vec<Named>> = runs.into_iter().map(|(outputs, ..)| outputs).collect();
        let joined = match outputs.pop() {
            Some(one) if !many => one,
            last => arrays::join(outputs.into_iter().chain(last).collect()).map_err(raise)?,
        };
        arrays::result(py, &self.bundle, &joined, false, &remarks)
    }
}

#[pymethods]
impl Compiled {
    /// The circuit, for the server.
    #[getter]
    fn circuit(&self) -> Circuit {
        Circuit { loaded: self.loaded.clone() }
    }

    /// A new client without keys.
    #[getter]
    fn client(&self) -> Client {
        self.new_client()
    }

    /// What the circuit is and costs: the dictionary that `thex inspect --format json` prints, which shows as `thex compile` does.
    ///
    /// The first call times the kernels on this machine, for some seconds.
    fn report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let Loaded { circuit, digest, .. } = &*self.loaded;
        let times = times(py, circuit.parameters)?;
        let json = circuit_json(circuit, digest, &times).to_string();
        let values = py.import("json")?.call_method1("loads", (json,))?;
        let text = circuit_text(circuit, digest, &times);
        py.import("thex._results")?.getattr("Report")?.call1((values, text))
    }

    /// The page that `thex report` writes, on cost, error, ranges and decisions, as HTML.
    fn html<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        let data = detached(py, || self.report_data())?;
        let Loaded { circuit, digest, .. } = &*self.loaded;
        let times = times(py, circuit.parameters)?;
        let make = || Ok(page(&report_json(circuit, digest, &data, &times)?));
        Ok(PyString::new(py, &detached(py, make)?))
    }

    /// Runs the circuit on values that are not encrypted, with the noise that the model predicts, from a `seed`.
    ///
    /// Takes one sample, or a batch, the first axis counting samples: an array for models of one input, a dictionary or keywords otherwise.
    /// The result also has `overflows`, values that left their range, and `clamped`, inputs that were clamped to theirs.
    #[pyo3(signature = (x=None, /, *, seed=0, **inputs))]
    fn simulate<'py>(
        &self,
        py: Python<'py>,
        x: Option<Bound<'py, PyAny>>,
        seed: u64,
        inputs: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let values = arrays::inputs(&self.bundle, x.as_ref(), inputs.as_ref())?;
        self.simulated(py, values, NoiseModel::new(&self.loaded.circuit.parameters), seed)
    }

    /// Runs the circuit's integers and tables without noise, on values that are not encrypted. Takes what `simulate` takes.
    #[pyo3(signature = (x=None, /, **inputs))]
    fn clear<'py>(
        &self,
        py: Python<'py>,
        x: Option<Bound<'py, PyAny>>,
        inputs: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let values = arrays::inputs(&self.bundle, x.as_ref(), inputs.as_ref())?;
        self.simulated(py, values, NoiseModel::silent(), 0)
    }

    /// Writes `PREFIX.circuit`, `PREFIX.client`, `PREFIX.report.json` and `PREFIX.graph`, as `thex compile -o PREFIX` does.
    fn save(&self, py: Python<'_>, prefix: PathBuf) -> PyResult<()> {
        let files = [
            (".circuit", Some(&self.loaded.bytes)),
            (".client", Some(&self.bundle_bytes)),
            (data::SUFFIX, self.side[0].as_ref()),
            (export::SUFFIX, self.side[1].as_ref()),
        ];
        let paths = files.map(|(suffix, bytes)| (with_suffix(&prefix, suffix), bytes));
        detached(py, || {
            paths.iter().try_for_each(|(path, _)| check_writable(path))?;
            for (path, bytes) in &paths {
                bytes.map_or(Ok(()), |bytes| write_atomic(path, bytes, false))?;
            }
            Ok(())
        })
    }

    fn __repr__(&self) -> String {
        let (info, count) = (&self.loaded.circuit.info, self.loaded.circuit.pbs_count());
        format!("<thex.Compiled {} ({}), {count} PBS>", info.model, info.profile)
    }
}

/// The extension's half of `thex.compile`.
#[pyfunction]
pub(crate) fn compile(
    py: Python<'_>,
    model: Given,
    calibration: &Bound<'_, PyAny>,
    options: &Bound<'_, PyDict>,
) -> PyResult<Compiled> {
    let request = Request::new(model, calibration, options)?;
    let (compiled, warning) = watched(py, None, Stopping::Abandoned, move |_| {
        let mut parts = build(request)?;
        let warning = parts.warning.take();
        Ok((Compiled::new(parts)?, warning))
    })?;
    warning.map_or(Ok(()), |warning| warn(py, &warning))?;
    Ok(compiled)
}

/// Reads what `Compiled.save` or `thex compile` wrote: `PREFIX.circuit` and `PREFIX.client`, and the other two files if they are there.
#[pyfunction]
pub(crate) fn load(py: Python<'_>, prefix: PathBuf) -> PyResult<Compiled> {
    detached(py, || {
        let read = |suffix| Given::Path(with_suffix(&prefix, suffix)).read();
        let beside = |suffix| {
            let path = with_suffix(&prefix, suffix);
            path.exists().then(|| thex_circuit::file::read_limited(&path, MAX_SIDE_BYTES)).transpose()
        };
        let side = [beside(data::SUFFIX)?, beside(export::SUFFIX)?];
        Compiled::new(Parts { circuit: read(".circuit")?, bundle: read(".client")?, side, warning: None })
    })
}
