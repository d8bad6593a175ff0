//! A circuit: the server's side.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use thex::error::Result;
use thex_circuit::Circuit as Instructions;
use thex_runtime::calibrate::thread_pool;
use thex_runtime::checkpoint::EVERY;
use thex_runtime::inference::Job;
use thex_runtime::{Checkpoint, EncryptedInputs, Identity, RunOptions};

use crate::ciphertexts::{EncryptedInput, EncryptedOutput, Given, Keys, ServerKey, save, short};
use crate::errors::usage;
use crate::work::{Stopping, Watch, detached, watched};

/// A part of an instruction takes about as long: how soon Ctrl-C is obeyed.
const PART: Duration = Duration::from_millis(250);

/// A circuit with its file.
pub(crate) struct Loaded {
    pub(crate) circuit: Instructions,
    pub(crate) digest: String,
    pub(crate) bytes: Vec<u8>,
}

impl Loaded {
    pub(crate) fn new(bytes: Vec<u8>) -> Result<Arc<Self>> {
        let (circuit, digest) = Instructions::read(&bytes)?;
        Ok(Arc::new(Self { circuit, digest, bytes }))
    }
}

/// A circuit: what a server runs on ciphertexts. It holds the model, and no key.
#[pyclass(frozen, module = "thex")]
pub(crate) struct Circuit {
    pub(crate) loaded: Arc<Loaded>,
}

/// One run, with all that it needs.
struct Task {
    loaded: Arc<Loaded>,
    input: Arc<EncryptedInputs>,
    key: Arc<Keys>,
    threads: usize,
    checkpoint: Option<PathBuf>,
}

impl Task {
    fn run(self, watch: &Watch) -> Result<EncryptedOutput> {
        let Loaded { circuit, digest, .. } = &*self.loaded;
        let job = Job { circuit, digest, input: &self.input };
        // Before the key is expanded, and a folder of checkpoints made.
        job.check(&self.key.key.info)?;
        let pool = thread_pool(self.threads)?;
        let identity = || Identity { circuit: digest.clone(), key: self.key.key.digest(), input: self.input.digest() };
        let open = |folder: &PathBuf| Checkpoint::open(folder, identity(), EVERY);
        let checkpoint = self.checkpoint.as_ref().map(open).transpose()?;
        let options = RunOptions { stop: Some(&watch.stop), checkpoint, part: PART, ..RunOptions::new(watch) };
        let outputs = pool.install(|| job.run(&*self.key.backend(), &self.key.key.info, options))?;
        Ok(EncryptedOutput::new(outputs.to_bytes()?))
    }
}

#[pymethods]
impl Circuit {
    /// Reads a circuit: `OUT.circuit`, or its bytes.
    #[new]
    fn new(py: Python<'_>, source: Given) -> PyResult<Self> {
        detached(py, || Ok(Self { loaded: Loaded::new(source.read()?)? }))
    }

    /// Runs the circuit on ciphertexts, and returns the encrypted result. Needs no secret.
    ///
    /// `progress(done, total)` is called with programmable bootstraps, on the calling thread, at most twenty times a second. Other Python
    /// threads run meanwhile. Ctrl-C, or an exception of `progress`, stops the run within a second or so.
    ///
    /// With `checkpoint`, a folder, the run is kept there and a stopped run goes on where it was, if it is called with the same folder,
    /// circuit, key and ciphertext; the folder is removed after success. `threads` defaults to the number of processors.
    #[pyo3(signature = (server_key, ciphertext, *, progress=None, threads=None, checkpoint=None))]
    fn run(
        &self,
        py: Python<'_>,
        server_key: PyRef<'_, ServerKey>,
        ciphertext: PyRef<'_, EncryptedInput>,
        progress: Option<Bound<'_, PyAny>>,
        threads: Option<usize>,
        checkpoint: Option<PathBuf>,
    ) -> PyResult<EncryptedOutput> {
        if threads == Some(0) {
            return Err(usage("threads must be at least 1"));
        }
        let (loaded, key, input) = (self.loaded.clone(), server_key.inner.clone(), ciphertext.inner.clone());
        let task = Task { loaded, input, key, threads: threads.unwrap_or(0), checkpoint };
        watched(py, progress.as_ref(), Stopping::Awaited, move |watch| task.run(watch))
    }

    /// The bytes of the file.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.loaded.bytes)
    }

    /// Writes the file.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        detached(py, || save(&path, &self.loaded.bytes))
    }

    /// SHA-256 of the file, which keys and ciphertexts are bound to.
    #[getter]
    fn digest(&self) -> &str {
        &self.loaded.digest
    }

    /// Name of the model's file.
    #[getter]
    fn model(&self) -> &str {
        &self.loaded.circuit.info.model
    }

    /// How functions are computed.
    #[getter]
    fn profile(&self) -> &str {
        &self.loaded.circuit.info.profile
    }

    /// Programmable bootstraps of a run.
    #[getter]
    fn pbs_count(&self) -> u64 {
        self.loaded.circuit.pbs_count()
    }

    /// Names of the encrypted inputs, and how many ciphertexts each has.
    #[getter]
    fn inputs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let ports = PyDict::new(py);
        self.loaded.circuit.inputs.iter().try_for_each(|(name, block)| ports.set_item(name, block.len))?;
        Ok(ports)
    }

    /// Names of the encrypted outputs, and how many ciphertexts each has.
    #[getter]
    fn outputs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let ports = PyDict::new(py);
        self.loaded.circuit.outputs.iter().try_for_each(|(name, list)| ports.set_item(name, list.len()))?;
        Ok(ports)
    }

    fn __repr__(&self) -> String {
        let (info, digest) = (&self.loaded.circuit.info, short(&self.loaded.digest));
        format!("<thex.Circuit {} ({}) {digest}, {} PBS>", info.model, info.profile, self.pbs_count())
    }
}
