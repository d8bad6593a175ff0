//! Where a distillation stands, on disk after every epoch, so that an interrupted one goes on and ends with the same student.
//!
//! One safetensors file: the student's graph as the phase began (a [`GraphFile`]), values and optimiser state of its parameters, and
//! numbers in the metadata. Randomness needs no state, since every draw is named by its place.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor as Candle};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use thex_circuit::CircuitError;
use thex_circuit::file::{read_limited, write_atomic};

use super::PhaseScore;
use super::adam::Adam;
use crate::error::{CompileError, Result};

const KIND: &str = "distillation checkpoint";
const VERSION: u32 = 1;
/// No larger file is read into memory.
const MAX_BYTES: u64 = 16 << 30;

/// The numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Which phase.
    pub(super) phase: usize,
    /// Epochs of it that are done.
    pub(super) epoch: usize,
    /// Least loss on held-out samples so far.
    pub(super) best: Option<f64>,
    /// Epochs since.
    pub(super) stale: usize,
    /// Optimiser steps of the phase.
    pub(super) steps: u32,
    /// Scores of the phases that are done.
    pub(super) scores: Vec<PhaseScore>,
    /// What was approximated.
    pub(super) approximations: Vec<String>,
}

/// Everything that is needed to go on.
pub(super) struct Checkpoint {
    /// The numbers.
    pub(super) position: Position,
    /// The student as the phase began.
    pub(super) graph: Vec<u8>,
    /// Values of the parameters.
    pub(super) current: Vec<Candle>,
    /// Those that did best.
    pub(super) best: Vec<Candle>,
    /// Moments of the optimiser.
    pub(super) moments: [Vec<Candle>; 2],
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    kind: String,
    version: u32,
    fingerprint: String,
    position: Position,
}

const GROUPS: [&str; 4] = ["current", "best", "first", "second"];

impl Checkpoint {
    /// Writes it; a reader never sees half of it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn save(&self, path: &Path, fingerprint: &str) -> Result<()> {
        let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        let [first, second] = &self.moments;
        for (group, values) in GROUPS.iter().zip([&self.current, &self.best, first, second]) {
            for (i, value) in values.iter().enumerate() {
                let flat = value.flatten_all()?.to_vec1::<f32>()?;
                let bytes = flat.iter().flat_map(|v| v.to_le_bytes()).collect();
                tensors.push((format!("{group}.{i}"), value.dims().to_vec(), bytes));
            }
        }
        let internal =
            |e: &dyn std::fmt::Display| CompileError::Internal(format!("a checkpoint cannot be written: {e}"));
        let mut views = Vec::new();
        for (name, shape, bytes) in &tensors {
            views.push((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(|e| internal(&e))?));
        }
        let graph = TensorView::new(Dtype::U8, vec![self.graph.len()], &self.graph).map_err(|e| internal(&e))?;
        views.push(("graph", graph));
        let manifest = Manifest {
            kind: KIND.to_owned(),
            version: VERSION,
            fingerprint: fingerprint.to_owned(),
            position: self.position.clone(),
        };
        let manifest = serde_json::to_string(&manifest).map_err(|e| internal(&e))?;
        let metadata = HashMap::from([("thex".to_owned(), manifest)]);
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(|e| internal(&e))?;
        Ok(write_atomic(path, &bytes, false)?)
    }

    /// Reads it; `None` when there is none.
    ///
    /// # Errors
    /// [`CompileError::Usage`] when it is of another distillation, [`CircuitError::Malformed`] when it is damaged.
    pub(super) fn load(path: &Path, fingerprint: &str) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read_limited(path, MAX_BYTES)?;
        let damaged = |reason: String| {
            let reason = format!("{reason}: remove it, or give --restart, to distil from the beginning");
            CompileError::from(CircuitError::Malformed { path: path.to_owned(), kind: KIND, reason })
        };
        let (manifest, tensors) = parse(&bytes).map_err(damaged)?;
        if manifest.fingerprint != fingerprint {
            return Err(CompileError::Usage(format!(
                "`{}` is the checkpoint of another distillation (another model, other data, options or version): give --restart \
                 to begin anew, or another -o",
                path.display()
            )));
        }
        let [current, best, first, second] = GROUPS.map(|group| group_of(&tensors, group));
        let graph = tensors.tensor("graph").map(|view| view.data().to_vec());
        Ok(Some(Self {
            position: manifest.position,
            graph: graph.map_err(|e| damaged(e.to_string()))?,
            current: current.map_err(damaged)?,
            best: best.map_err(damaged)?,
            moments: [first.map_err(damaged)?, second.map_err(damaged)?],
        }))
    }

    /// The optimiser as it was.
    pub(super) fn restore_adam(&self, adam: &mut Adam) {
        let [first, second] = &self.moments;
        adam.first.clone_from(first);
        adam.second.clone_from(second);
        adam.steps = self.position.steps;
    }
}

fn parse(bytes: &[u8]) -> std::result::Result<(Manifest, SafeTensors<'_>), String> {
    let cut = |e: &dyn std::fmt::Display| format!("it is truncated or damaged ({e})");
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| cut(&e))?;
    let manifest = metadata.metadata().as_ref().and_then(|m| m.get("thex"));
    let manifest: Manifest = serde_json::from_str(manifest.ok_or("it is no checkpoint")?)
        .map_err(|e| format!("it is no checkpoint ({e})"))?;
    if manifest.kind != KIND || manifest.version != VERSION {
        return Err(format!("it is a {} of version {}", manifest.kind, manifest.version));
    }
    Ok((manifest, SafeTensors::deserialize(bytes).map_err(|e| cut(&e))?))
}

/// The tensors of a group, in order.
fn group_of(tensors: &SafeTensors<'_>, group: &str) -> std::result::Result<Vec<Candle>, String> {
    let mut found = Vec::new();
    while let Ok(view) = tensors.tensor(&format!("{group}.{}", found.len())) {
        if view.dtype() != Dtype::F32 {
            return Err("a tensor of it has the wrong type".into());
        }
        let number = |c: &[u8]| f32::from_le_bytes(c.try_into().unwrap_or_default());
        let flat: Vec<f32> = view.data().chunks_exact(4).map(number).collect();
        found.push(Candle::from_vec(flat, view.shape(), &Device::Cpu).map_err(|e| e.to_string())?);
    }
    Ok(found)
}
