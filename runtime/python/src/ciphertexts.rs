//! Server keys and ciphertexts: opaque, in the bytes of the files that the programs read.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use pyo3::Borrowed;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyType};
use thex::error::CompileError;
use thex_circuit::file::{digest, read_limited, write_atomic};
use thex_circuit::{CircuitError, Parameters};
use thex_runtime::{CpuBackend, EncryptedInputs, EncryptedOutputs, RuntimeError, ServerKey as Key};

use crate::errors::raise;
use crate::work::detached;

/// No file of ciphertexts or keys is larger.
const MAX_FILE_BYTES: u64 = 8 << 30;

/// Bytes, or a file's.
pub(crate) enum Given {
    /// The contents.
    Bytes(PyBackedBytes),
    /// The file.
    Path(PathBuf),
}

impl<'a, 'py> FromPyObject<'a, 'py> for Given {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = value.extract() {
            return Ok(Self::Bytes(bytes));
        }
        let kind = value.get_type().name()?.to_string();
        let path = value.extract().map(Self::Path);
        path.map_err(|_| PyTypeError::new_err(format!("expected a path or bytes, not {kind}")))
    }
}

impl Given {
    /// What the file holds.
    pub(crate) fn read(self) -> Result<Vec<u8>, CircuitError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.to_vec()),
            Self::Path(path) => read_limited(&path, MAX_FILE_BYTES),
        }
    }
}

/// Writes bytes, whole or not at all.
pub(crate) fn save(path: &Path, bytes: &[u8]) -> Result<(), CompileError> {
    Ok(write_atomic(path, bytes, false)?)
}

/// A server key: what a server needs to run a circuit on ciphertexts, and nothing that decrypts them.
///
/// It is expanded when it is first used, which takes a second and some 400 MB, and stays so.
#[pyclass(frozen, module = "thex")]
pub(crate) struct ServerKey {
    pub(crate) inner: Arc<Keys>,
}

/// A server key, seeded and expanded.
pub(crate) struct Keys {
    pub(crate) key: Key,
    backend: Mutex<Option<Arc<CpuBackend>>>,
    /// Digest of the file, once it is known.
    digest: OnceLock<String>,
}

impl ServerKey {
    pub(crate) fn new(key: Key) -> Self {
        Self { inner: Arc::new(Keys { key, backend: Mutex::new(None), digest: OnceLock::new() }) }
    }
}

impl Keys {
    /// The key as the kernels want it. Called without the interpreter's lock.
    pub(crate) fn backend(&self) -> Arc<CpuBackend> {
        let mut backend = self.backend.lock().unwrap_or_else(PoisonError::into_inner);
        backend.get_or_insert_with(|| Arc::new(CpuBackend::new(self.key.clone().expand()))).clone()
    }

    /// SHA-256 of the file, and the file where it had to be made for that.
    pub(crate) fn file(&self) -> Result<(String, Option<Vec<u8>>), RuntimeError> {
        if let Some(known) = self.digest.get() {
            return Ok((known.clone(), None));
        }
        let bytes = self.key.to_bytes()?;
        Ok((self.digest.get_or_init(|| digest(&bytes)).clone(), Some(bytes)))
    }
}

#[pymethods]
impl ServerKey {
    /// Reads the bytes of a `server.key`.
    #[classmethod]
    fn from_bytes(_class: &Bound<'_, PyType>, py: Python<'_>, data: PyBackedBytes) -> PyResult<Self> {
        detached(py, || Ok(Self::new(Key::from_bytes(&data)?)))
    }

    /// Reads a `server.key`.
    #[classmethod]
    fn load(_class: &Bound<'_, PyType>, py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        detached(py, || Ok(Self::new(Key::load(&path)?)))
    }

    /// The bytes of a `server.key`.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &detached(py, || Ok(self.inner.key.to_bytes()?))?))
    }

    /// Writes a `server.key`.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        detached(py, || Ok(self.inner.key.save(&path)?))
    }

    /// Identity of the pair of keys.
    #[getter]
    fn id(&self) -> &str {
        &self.inner.key.info.id
    }

    /// Digest of the circuit that it was generated for.
    #[getter]
    fn circuit(&self) -> &str {
        &self.inner.key.info.circuit
    }

    fn __repr__(&self) -> String {
        format!("<thex.ServerKey {} for circuit {}>", short(self.id()), short(self.circuit()))
    }
}

/// The beginning of a digest or id.
pub(crate) fn short(text: &str) -> String {
    text.chars().take(12).collect()
}

/// An encrypted input: fresh ciphertexts, for one circuit, under one key.
#[pyclass(frozen, module = "thex")]
pub(crate) struct EncryptedInput {
    pub(crate) inner: Arc<EncryptedInputs>,
}

impl EncryptedInput {
    pub(crate) fn new(inputs: EncryptedInputs) -> Self {
        Self { inner: Arc::new(inputs) }
    }
}

#[pymethods]
impl EncryptedInput {
    /// Reads the bytes of a file that `thex encrypt` or `save` wrote.
    #[classmethod]
    fn from_bytes(_class: &Bound<'_, PyType>, py: Python<'_>, data: PyBackedBytes) -> PyResult<Self> {
        detached(py, || Ok(Self::new(EncryptedInputs::from_bytes(&data)?)))
    }

    /// Reads a file that `thex encrypt` or `save` wrote.
    #[classmethod]
    fn load(_class: &Bound<'_, PyType>, py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        detached(py, || Ok(Self::new(EncryptedInputs::load(&path)?)))
    }

    /// The bytes of the file.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.inner.to_bytes().map_err(raise)?))
    }

    /// Writes the file.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        detached(py, || Ok(self.inner.save(&path)?))
    }

    /// Identity of the key that it is encrypted under.
    #[getter]
    fn key(&self) -> &str {
        &self.inner.info.key
    }

    /// Digest of the circuit that it is for.
    #[getter]
    fn circuit(&self) -> &str {
        &self.inner.info.circuit
    }

    /// Number of ciphertexts.
    fn __len__(&self) -> usize {
        self.inner.info.count()
    }

    fn __repr__(&self) -> String {
        format!("<thex.EncryptedInput of {} ciphertexts under key {}>", self.inner.info.count(), short(self.key()))
    }
}

/// An encrypted result. What it holds is checked when it is decrypted.
#[pyclass(frozen, module = "thex")]
pub(crate) struct EncryptedOutput {
    pub(crate) bytes: Arc<Vec<u8>>,
}

impl EncryptedOutput {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: Arc::new(bytes) }
    }

    /// The ciphertexts, if they are under keys of these parameters.
    pub(crate) fn open(&self, parameters: &Parameters) -> Result<EncryptedOutputs, RuntimeError> {
        EncryptedOutputs::from_bytes(&self.bytes, parameters)
    }
}

#[pymethods]
impl EncryptedOutput {
    /// Takes the bytes of a file that `thex run` or `save` wrote.
    #[classmethod]
    fn from_bytes(_class: &Bound<'_, PyType>, data: PyBackedBytes) -> Self {
        Self::new(data.to_vec())
    }

    /// Reads a file that `thex run` or `save` wrote.
    #[classmethod]
    fn load(_class: &Bound<'_, PyType>, py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        detached(py, || Ok(Self::new(read_limited(&path, MAX_FILE_BYTES)?)))
    }

    /// The bytes of the file.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.bytes)
    }

    /// Writes the file.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        detached(py, || save(&path, &self.bytes))
    }

    fn __repr__(&self) -> String {
        format!("<thex.EncryptedOutput of {} bytes>", self.bytes.len())
    }
}
