//! The key's owner: keys, encryption, decryption.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use thex::error::{CompileError, Result};
use thex_circuit::ClientBundle;
use thex_runtime::client::{self, Encoded, Named, Rounding};
use thex_runtime::commands::{check_key, check_pair};
use thex_runtime::share::{self, MAX_BITS, Sharing};
use thex_runtime::{ClientKey, EncryptedInputs, ServerKey as Key, image, keys, text};

use crate::arrays;
use crate::ciphertexts::{EncryptedInput, EncryptedOutput, Given, Keys, ServerKey, save};
use crate::compiled::Compiled;
use crate::errors::{raise, unfit, usage};
use crate::work::{Stopping, detached, watched};

/// What the client of a model holds: no key yet, or a pair.
pub(crate) struct Owner {
    pub(crate) bundle: ClientBundle,
    keys: RwLock<Option<Pair>>,
}

/// A pair of keys; a server key that was not loaded cannot be had from the client's.
#[derive(Clone)]
pub(crate) struct Pair {
    secret: Arc<ClientKey>,
    public: Option<Arc<Keys>>,
}

fn no_keys() -> CompileError {
    CompileError::Usage("this client has no keys: call keygen(), or load_keys(folder)".into())
}

impl Owner {
    pub(crate) fn new(bundle: ClientBundle) -> Arc<Self> {
        Arc::new(Self { bundle, keys: RwLock::new(None) })
    }

    fn pair(&self) -> Result<Pair> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(no_keys)
    }

    fn set(&self, pair: Pair) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Some(pair);
    }

    /// The server key.
    pub(crate) fn server_key(&self) -> Result<Arc<Keys>> {
        let missing = || CompileError::Usage("this client has no server key: its folder had only `client.key`".into());
        self.pair()?.public.ok_or_else(missing)
    }

    /// Encrypts one sample.
    pub(crate) fn encrypt(&self, sample: &[Named]) -> Result<(EncryptedInputs, Encoded)> {
        Ok(client::encrypt(&self.bundle, &self.pair()?.secret, sample)?)
    }
}

/// Warns as `thex encrypt` does on standard error.
pub(crate) fn warn(py: Python<'_>, message: &str) -> PyResult<()> {
    py.import("warnings")?.call_method1("warn", (message,)).map(drop)
}

/// What may be encrypted, as Python gives it.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a, 'py> {
    pub(crate) x: Option<&'a Bound<'py, PyAny>>,
    pub(crate) text: Option<&'a str>,
    pub(crate) image: Option<&'a Path>,
    pub(crate) keywords: Option<&'a Bound<'py, PyDict>>,
}

impl Source<'_, '_> {
    /// One value for each input; warnings are Python's.
    pub(crate) fn read(&self, py: Python<'_>, bundle: &ClientBundle) -> PyResult<Vec<Named>> {
        let arrays = self.x.is_some() || self.keywords.is_some_and(|k| !k.is_empty());
        match (arrays, self.text, self.image) {
            (true, None, None) => arrays::inputs(bundle, self.x, self.keywords),
            (false, Some(sentence), None) => {
                let tokenized = detached(py, || Ok(text::tokenize(bundle, sentence)?))?;
                let warnings = bundle.interface.text.as_ref().map(|format| tokenized.warnings(format));
                warnings.into_iter().flatten().try_for_each(|warning| warn(py, &warning))?;
                Ok(tokenized.inputs)
            }
            (false, None, Some(path)) => {
                let pictured = detached(py, || Ok(image::read(bundle, path)?))?;
                pictured.notes.iter().try_for_each(|note| warn(py, note))?;
                Ok(pictured.inputs)
            }
            _ => Err(unfit("give one of an array (or a dictionary or keywords of arrays), text=… and image=…")),
        }
    }
}

/// How a result is decrypted.
pub(crate) struct Decryption {
    exact: bool,
    sharing: Option<Sharing>,
}

impl Decryption {
    /// Checks what was asked for.
    pub(crate) fn new(exact: bool, share: Option<u32>, shared_results: u32) -> PyResult<Self> {
        match share {
            Some(_) if exact => Err(usage("exact results cannot be shared: give exact or share")),
            Some(bits) if !(1..=MAX_BITS).contains(&bits) => Err(usage(format!("share is from 1 to {MAX_BITS} bits"))),
            _ if shared_results == 0 => Err(usage("shared_results is at least 1")),
            _ => Ok(Self { exact, sharing: share.map(|bits| Sharing { bits, results: shared_results }) }),
        }
    }

    /// Decrypts a result; `thex.Result`.
    pub(crate) fn open<'py>(
        &self,
        py: Python<'py>,
        owner: &Owner,
        result: &EncryptedOutput,
    ) -> PyResult<Bound<'py, PyAny>> {
        let rounding = if self.exact { Rounding::Raw } else { Rounding::Modelled };
        let outputs = detached(py, || {
            let (bundle, secret) = (&owner.bundle, owner.pair()?.secret);
            let result = result.open(&bundle.parameters)?;
            match self.sharing {
                Some(sharing) => Ok(share::decrypt(bundle, &secret, &result, sharing)?.0),
                None => Ok(client::decrypt(bundle, &secret, &result, rounding)?),
            }
        })?;
        arrays::result(py, &owner.bundle, &outputs, !self.exact, &Vec::new())
    }
}

/// The owner of a model's data: makes keys, encrypts inputs, decrypts results.
///
/// It is made from a `Compiled` model, or from `OUT.client` or its bytes. The secret key stays inside, and in the folder that
/// `save_keys` writes.
#[pyclass(frozen, module = "thex")]
pub(crate) struct Client {
    pub(crate) owner: Arc<Owner>,
}

#[pymethods]
impl Client {
    #[new]
    fn new(py: Python<'_>, source: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(compiled) = source.cast::<Compiled>() {
            return Ok(compiled.get().new_client());
        }
        let given: Given = source.extract()?;
        detached(py, || Ok(Self { owner: Owner::new(ClientBundle::read(&given.read()?)?) }))
    }

    /// Generates a pair of keys, which takes some seconds, and returns the client itself. Keys that it had are forgotten.
    ///
    /// A `seed` makes keys reproducible, and no secret: for tests only.
    #[pyo3(signature = (*, seed=None))]
    fn keygen(slf: PyRef<'_, Self>, seed: Option<u64>) -> PyResult<PyRef<'_, Self>> {
        let (py, owner) = (slf.py(), slf.owner.clone());
        if seed.is_some() {
            warn(py, "keys from a seed are no secret; use them for tests only")?;
        }
        let make = move |_: &_| Ok(keys::generate(&owner.bundle, seed.map(u128::from))?);
        let (secret, public) = watched(py, None, Stopping::Abandoned, make)?;
        slf.owner.set(Pair { secret: Arc::new(secret), public: Some(ServerKey::new(public).inner) });
        Ok(slf)
    }

    /// Writes `client.key` (secret, mode 0600) and `server.key` into a folder, which is made. A client key that is there is never
    /// overwritten.
    fn save_keys(&self, py: Python<'_>, folder: PathBuf) -> PyResult<()> {
        detached(py, || {
            let pair = self.owner.pair()?;
            let (secret, public) = keys::new_folder(&folder)?;
            if let Some(server) = &pair.public {
                server.key.save(&public)?;
            }
            Ok(pair.secret.save(&secret)?)
        })
    }

    /// Reads the keys of a folder that `save_keys` or `thex keygen` wrote, and returns the client itself. `server.key` may be absent.
    fn load_keys(slf: PyRef<'_, Self>, folder: PathBuf) -> PyResult<PyRef<'_, Self>> {
        let owner = slf.owner.clone();
        let pair = detached(slf.py(), || {
            let (secret, public) = (folder.join("client.key"), folder.join("server.key"));
            let key = ClientKey::load(&secret)?;
            check_key(Path::new("the client bundle"), &owner.bundle, &secret, &key.info)?;
            let server = public.exists().then(|| Key::load(&public)).transpose()?;
            server.iter().try_for_each(|server| check_pair(&secret, &key.info, &public, &server.info))?;
            Ok(Pair { secret: Arc::new(key), public: server.map(|server| ServerKey::new(server).inner) })
        })?;
        slf.owner.set(pair);
        Ok(slf)
    }

    /// The key for the server.
    #[getter]
    fn server_key(&self) -> PyResult<ServerKey> {
        Ok(ServerKey { inner: self.owner.server_key().map_err(raise)? })
    }

    /// Whether it has keys.
    #[getter]
    fn has_keys(&self) -> bool {
        self.owner.pair().is_ok()
    }

    /// Encrypts one sample: an array, for models of one input; a dictionary or keywords of arrays; a `text`, for models compiled with a
    /// tokenizer; an `image`, the path of a PNG.
    ///
    /// Values outside the calibrated range are clamped to it, with a warning.
    #[pyo3(signature = (x=None, /, *, text=None, image=None, **inputs))]
    fn encrypt(
        &self,
        py: Python<'_>,
        x: Option<Bound<'_, PyAny>>,
        text: Option<&str>,
        image: Option<PathBuf>,
        inputs: Option<Bound<'_, PyDict>>,
    ) -> PyResult<EncryptedInput> {
        let source = Source { x: x.as_ref(), text, image: image.as_deref(), keywords: inputs.as_ref() };
        encrypt(py, &self.owner, &source).map(EncryptedInput::new)
    }

    /// Decrypts a result: a dictionary of arrays by output, with the names of classes where the model has them.
    ///
    /// Values are rounded to the modelled precision, which hides most of the error, which depends on the key. `exact` does not round: for
    /// the key's owner alone. `share`, a number of bits (30 is usual), adds noise that gives so many bits of statistical security to whoever
    /// shows this result, one of `shared_results`, to others; refused where nothing of it would be left.
    #[pyo3(signature = (ciphertext, *, exact=false, share=None, shared_results=1))]
    fn decrypt<'py>(
        &self,
        py: Python<'py>,
        ciphertext: PyRef<'py, EncryptedOutput>,
        exact: bool,
        share: Option<u32>,
        shared_results: u32,
    ) -> PyResult<Bound<'py, PyAny>> {
        Decryption::new(exact, share, shared_results)?.open(py, &self.owner, &ciphertext)
    }

    /// The bytes of `OUT.client`.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.owner.bundle.to_bytes().map_err(raise)?))
    }

    /// Writes `OUT.client`, without any key.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        detached(py, || save(&path, &self.owner.bundle.to_bytes()?))
    }

    /// Digest of the circuit that goes with it.
    #[getter]
    fn circuit(&self) -> &str {
        &self.owner.bundle.circuit
    }

    /// Name of the model's file.
    #[getter]
    fn model(&self) -> &str {
        &self.owner.bundle.model
    }

    /// Names of the inputs and their shapes.
    #[getter]
    fn inputs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let shapes = PyDict::new(py);
        for (name, shape) in &self.owner.bundle.prologue.inputs {
            shapes.set_item(name, pyo3::types::PyTuple::new(py, shape)?)?;
        }
        Ok(shapes)
    }

    /// Names of the classes; empty where the model has none.
    #[getter]
    fn labels(&self) -> Vec<String> {
        self.owner.bundle.interface.labels.clone()
    }

    fn __repr__(&self) -> String {
        let keys = if self.has_keys() { "with" } else { "without" };
        format!("<thex.Client of {}, {keys} keys>", self.owner.bundle.model)
    }
}

/// Encrypts, and warns of what was clamped.
pub(crate) fn encrypt(py: Python<'_>, owner: &Owner, source: &Source<'_, '_>) -> PyResult<EncryptedInputs> {
    owner.pair().map_err(raise)?;
    let sample = source.read(py, &owner.bundle)?;
    let (inputs, encoded) = detached(py, || owner.encrypt(&sample))?;
    warn_clamped(py, &encoded)?;
    Ok(inputs)
}

fn warn_clamped(py: Python<'_>, encoded: &Encoded) -> PyResult<()> {
    for (name, count) in encoded.clamped.iter().filter(|(_, count)| *count > 0) {
        warn(py, &format!("{count} values of `{name}` lay outside the calibrated range and were clamped to it"))?;
    }
    Ok(())
}
