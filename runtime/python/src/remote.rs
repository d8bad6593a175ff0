//! A server of circuits, used from here. Keys and values stay here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use thex::error::Result;
use thex_circuit::ClientBundle;
use thex_circuit::file::{digest, read_limited};
use thex_runtime::RuntimeError;
use thex_serve::ServeError;
use thex_serve::client::{Access, Remote as Server, choose};

use crate::ciphertexts::{EncryptedOutput, Keys};
use crate::client::{Client, Decryption, Owner, Source, encrypt};
use crate::errors::{raise, usage};
use crate::work::{Stopping, Watch, watched};

/// No file of certificates is larger.
const MAX_CERTIFICATES_BYTES: u64 = 16 << 20;
/// Characters of a job's id.
const ID: usize = 32;

/// A server of circuits, as `thex serve` runs it. Keys and values stay here: what is sent is a server key, once, and encrypted inputs.
#[pyclass(frozen, module = "thex")]
pub(crate) struct Remote {
    server: Arc<Server>,
    url: String,
}

/// One prediction, submitted from here.
struct Submission {
    server: Arc<Server>,
    key: Arc<Keys>,
    circuit: String,
    input: Vec<u8>,
    id: String,
}

/// A file for what is sent: the client streams files.
fn file(bytes: &[u8]) -> Result<tempfile::NamedTempFile> {
    let io = |source| RuntimeError::Io { action: "write to", path: "a temporary file".into(), source };
    let file = tempfile::NamedTempFile::new().map_err(io)?;
    std::fs::write(file.path(), bytes).map_err(io)?;
    Ok(file)
}

impl Submission {
    /// Registers the key if the server does not have it; its digest.
    fn register(&self) -> Result<String> {
        let (digest, made) = self.key.file()?;
        if self.server.key(&digest)?.is_none() {
            let bytes = made.map_or_else(|| self.key.key.to_bytes(), Ok)?;
            self.server.put_key(&digest, file(&bytes)?.path())?;
        }
        Ok(digest)
    }

    /// The encrypted result.
    fn run(&self, watch: &Watch) -> Result<EncryptedOutput> {
        let key = self.register()?;
        if watch.stop.load(Ordering::Relaxed) {
            return Err(ServeError::Conflict(format!("job {} was cancelled", self.id)).into());
        }
        self.server.submit(&self.id, &self.circuit, &key, file(&self.input)?.path())?;
        // Whoever stopped it meanwhile found no job to cancel.
        if watch.stop.load(Ordering::Relaxed) {
            self.server.cancel(&self.id)?;
        }
        let status = self.server.follow(&self.id, |status| {
            watch.set(status.progress.pbs_done, status.progress.pbs_total);
        })?;
        Ok(EncryptedOutput::new(self.server.outcome(&status)?))
    }
}

#[pymethods]
impl Remote {
    #[new]
    #[pyo3(signature = (url, token=None, ca=None, *, patience=60.0))]
    fn new(url: String, token: Option<String>, ca: Option<PathBuf>, patience: f64) -> PyResult<Self> {
        let read = |path: &Path| read_limited(path, MAX_CERTIFICATES_BYTES).map_err(raise);
        let authorities = ca.as_deref().map(read).transpose()?;
        let patience = Duration::try_from_secs_f64(patience).map_err(|e| usage(format!("patience: {e}")))?;
        let server = Server::new(Access { url: url.clone(), token, authorities, patience }).map_err(raise)?;
        Ok(Self { server: Arc::new(server), url })
    }

    /// The circuits that it serves, a dictionary each.
    fn models<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let server = self.server.clone();
        let text = watched(py, None, Stopping::Abandoned, move |_| {
            let circuits = server.circuits()?;
            serde_json::to_string(&circuits).map_err(|e| ServeError::Internal(e.to_string()).into())
        })?;
        py.import("json")?.call_method1("loads", (text,))
    }

    /// A client, without keys, for one of its circuits: by name, or by the beginning of its digest; not needed if there is one.
    ///
    /// The bundle is the server's: who does not trust it with the meaning of inputs and outputs gets the bundle from whom they do.
    #[pyo3(signature = (model=None))]
    fn client(&self, py: Python<'_>, model: Option<String>) -> PyResult<Client> {
        let server = self.server.clone();
        let bundle = watched(py, None, Stopping::Abandoned, move |_| {
            let circuit = choose(server.circuits()?, model.as_deref())?;
            let bundle = ClientBundle::read(&server.bundle(&circuit.digest)?)?;
            if bundle.circuit == circuit.digest {
                return Ok(bundle);
            }
            let (left, right) = ("the client bundle".to_owned(), format!("circuit `{}`", circuit.name));
            let reason = "it was compiled with another circuit; ask the server's owner for the right one".into();
            Err(RuntimeError::Mismatch { left, right, reason }.into())
        })?;
        Ok(Client { owner: Owner::new(bundle) })
    }

    /// Encrypts with the client's keys, has the server compute, and decrypts. Takes what `Client.encrypt` and `Client.decrypt` take.
    ///
    /// The server key is sent if the server does not have it. `progress(done, total)` is called with programmable bootstraps. Ctrl-C, or
    /// an exception of `progress`, cancels the job.
    #[pyo3(signature = (client, x=None, /, *, text=None, image=None, progress=None, exact=false, share=None, shared_results=1, **inputs))]
    #[expect(clippy::too_many_arguments, reason = "Python's keywords")]
    fn predict<'py>(
        &self,
        py: Python<'py>,
        client: PyRef<'py, Client>,
        x: Option<Bound<'py, PyAny>>,
        text: Option<&str>,
        image: Option<PathBuf>,
        progress: Option<Bound<'py, PyAny>>,
        exact: bool,
        share: Option<u32>,
        shared_results: u32,
        inputs: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let decryption = Decryption::new(exact, share, shared_results)?;
        let source = Source { x: x.as_ref(), text, image: image.as_deref(), keywords: inputs.as_ref() };
        let owner = &client.owner;
        let key = owner.server_key().map_err(raise)?;
        let input = encrypt(py, owner, &source)?.to_bytes().map_err(raise)?;
        let id: String = digest(&input).chars().take(ID).collect();
        let circuit = owner.bundle.circuit.clone();
        let submission = Submission { server: self.server.clone(), key, circuit, input, id: id.clone() };
        let server = self.server.clone();
        // Whether it was submitted or not, and whether the server hears of it: the exception is raised.
        let cancel = Stopping::Cancelled(Box::new(move || drop(server.cancel(&id))));
        let result = watched(py, progress.as_ref(), cancel, move |watch| submission.run(watch))?;
        decryption.open(py, owner, &result)
    }

    fn __repr__(&self) -> String {
        format!("<thex.Remote {}>", self.url)
    }
}
