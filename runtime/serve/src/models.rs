//! The circuits of a folder, with the client bundles and reports that lie beside them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thex_circuit::params::SECURITY_BITS;
use thex_circuit::{Circuit, ClientBundle};
use thex_runtime::keys::server_key_bytes;

use crate::error::{Result, ServeError};
use crate::wire::{CircuitInfo, LayerCost, PortInfo};

/// What a header may add to the words of a key or an input.
const HEADER_ROOM: u64 = 64 << 10;

/// One circuit.
pub struct Model {
    /// The circuit, verified.
    pub circuit: Circuit,
    /// What clients are told of it.
    pub info: CircuitInfo,
    /// The client bundle, if there is one.
    pub bundle: Option<PathBuf>,
    /// The compiler's report, if there is one.
    pub report: Option<PathBuf>,
}

impl Model {
    /// No encrypted input for it is larger.
    #[must_use]
    pub fn input_limit(&self) -> u64 {
        let elements: u64 = self.info.inputs.iter().map(|p| p.elements as u64).sum();
        elements * 8 + HEADER_ROOM
    }

    fn load(path: &Path) -> Result<Self> {
        let (circuit, digest) = Circuit::load(path)?;
        let bundle = Some(path.with_extension("client")).filter(|p| p.is_file());
        if let Some(path) = &bundle {
            let found = ClientBundle::load(path)?.circuit;
            if found != digest {
                return Err(ServeError::Usage(format!("`{}` belongs to another circuit", path.display())));
            }
        }
        let report = Some(path.with_extension("report.json")).filter(|p| p.is_file());
        if let Some(path) = &report {
            check_report(path, &digest)?;
        }
        let name = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let info = describe(&circuit, name, digest, (bundle.is_some(), report.is_some()))?;
        Ok(Self { circuit, info, bundle, report })
    }
}

/// Refuses a report of another circuit, or one that is cut off.
fn check_report(path: &Path, digest: &str) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Head {
        circuit: String,
    }
    let shown = path.display();
    let unusable = |reason: String| ServeError::Usage(format!("`{shown}` is not a usable report: {reason}"));
    let text = std::fs::read(path).map_err(|e| unusable(e.to_string()))?;
    let head: Head = serde_json::from_slice(&text).map_err(|e| unusable(e.to_string()))?;
    if head.circuit != digest {
        return Err(unusable("it belongs to another circuit".into()));
    }
    Ok(())
}

fn describe(circuit: &Circuit, name: String, digest: String, beside: (bool, bool)) -> Result<CircuitInfo> {
    let port = |(name, elements): (&String, usize)| PortInfo { name: name.clone(), elements };
    let layer = |l: thex_circuit::LayerInfo| LayerCost {
        name: l.name,
        pbs: l.pbs + l.products,
        packs: l.packs,
        keyswitches: l.keyswitches,
    };
    Ok(CircuitInfo {
        digest,
        name,
        model: circuit.info.model.clone(),
        profile: circuit.info.profile.clone(),
        approximations: circuit.info.approximations.clone(),
        predicted_output_error: circuit.info.predicted_output_error,
        pbs_count: circuit.pbs_count(),
        pack_count: circuit.pack_count(),
        security_bits: SECURITY_BITS,
        server_key_bytes: server_key_bytes(&circuit.parameters)?,
        inputs: circuit.inputs.iter().map(|(n, b)| port((n, b.len as usize))).collect(),
        outputs: circuit.outputs.iter().map(|(n, a)| port((n, a.len()))).collect(),
        layers: circuit.layers().into_iter().map(layer).collect(),
        bundle: beside.0,
        report: beside.1,
    })
}

/// All circuits of a folder, by digest.
pub struct Models(BTreeMap<String, Arc<Model>>);

impl Models {
    /// Loads every `*.circuit` of a folder.
    ///
    /// # Errors
    /// The folder cannot be read, one of its files is damaged or belongs to another circuit, or it holds no circuit: a service that
    /// silently lacks a model would be worse than one that does not start.
    pub fn load(folder: &Path) -> Result<Self> {
        let shown = folder.display();
        let unreadable = |e: std::io::Error| ServeError::Usage(format!("cannot read folder `{shown}`: {e}"));
        let mut models = BTreeMap::new();
        for entry in std::fs::read_dir(folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.extension().is_some_and(|e| e == "circuit") {
                let model = Model::load(&path)?;
                models.insert(model.info.digest.clone(), Arc::new(model));
            }
        }
        if models.is_empty() {
            let advice = "put OUT.circuit there, with OUT.client and OUT.report.json beside it";
            return Err(ServeError::Usage(format!("folder `{shown}` holds no circuit; {advice}")));
        }
        Ok(Self(models))
    }

    /// A circuit by its digest.
    ///
    /// # Errors
    /// [`ServeError::NotFound`].
    pub fn get(&self, digest: &str) -> Result<&Arc<Model>> {
        let short: String = digest.chars().take(16).collect();
        self.0.get(digest).ok_or_else(|| {
            ServeError::NotFound(format!("this server has no circuit {short}…; GET /v1/circuits lists what it has"))
        })
    }

    /// All of them, by name.
    #[must_use]
    pub fn list(&self) -> Vec<CircuitInfo> {
        let mut list: Vec<CircuitInfo> = self.0.values().map(|m| m.info.clone()).collect();
        list.sort_by(|a, b| (&a.name, &a.digest).cmp(&(&b.name, &b.digest)));
        list
    }

    /// No server key for any of them is larger.
    #[must_use]
    pub fn key_limit(&self) -> u64 {
        self.0.values().map(|m| m.info.server_key_bytes).max().unwrap_or(0) + HEADER_ROOM
    }
}
