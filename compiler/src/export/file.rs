//! `OUT.graph`: a safetensors file with the graph's text form and what belongs to it in the metadata, and the larger
//! constants beside it, in single precision, named by their content.
//!
//! A damaged constant has another content, so the text no longer finds it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use ndarray::{ArrayD, IxDyn};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use thex_circuit::CircuitError;
use thex_circuit::file::read_limited;
use thex_ir::Graph;
use thex_ir::print::{ConstantPool, Pooled, print_with_pool};
use thex_ir::verify::{VerifyOptions, verify};

use super::round_constants;
use crate::error::{CompileError, Result};

/// Version of the format; readers refuse any other.
const VERSION: u32 = 1;

/// No file larger than this is read into memory.
const MAX_BYTES: u64 = 8 << 30;

const KIND: &str = "graph file";

#[derive(Serialize, Deserialize)]
struct Manifest {
    kind: String,
    version: u32,
    model: String,
    profile: String,
    approximations: Vec<String>,
    dtypes: BTreeMap<String, String>,
    text: String,
}

/// The approximated model, and where it comes from.
#[derive(Clone, Debug)]
pub struct GraphFile {
    /// Name of the ONNX file.
    pub model: String,
    /// Name of the profile.
    pub profile: String,
    /// Every change of the computed function.
    pub approximations: Vec<String>,
    /// Element type of each input, as numpy writes it.
    pub dtypes: BTreeMap<String, String>,
    /// The whole model: tensor operations only, constants in single precision.
    pub graph: Graph,
}

impl GraphFile {
    /// The bytes of the file. Constants are rounded to single precision on the way.
    ///
    /// # Errors
    /// [`CompileError::Internal`] when safetensors refuses.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut graph = self.graph.clone();
        round_constants(&mut graph);
        let (text, pool) = print_with_pool(&graph);
        let manifest = Manifest {
            kind: KIND.to_owned(),
            version: VERSION,
            model: self.model.clone(),
            profile: self.profile.clone(),
            approximations: self.approximations.clone(),
            dtypes: self.dtypes.clone(),
            text,
        };
        let internal = |e: String| CompileError::Internal(format!("the graph cannot be written: {e}"));
        let manifest = serde_json::to_string(&manifest).map_err(|e| internal(e.to_string()))?;
        let blobs = blobs(&pool);
        let views: Vec<(&str, TensorView<'_>)> = blobs
            .iter()
            .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
            .collect::<std::result::Result<_, safetensors::SafeTensorError>>()
            .map_err(|e| internal(e.to_string()))?;
        let metadata = HashMap::from([("thex".to_owned(), manifest)]);
        safetensors::serialize(views, Some(metadata)).map_err(|e| internal(e.to_string()))
    }

    /// Reads and verifies a file.
    ///
    /// # Errors
    /// [`CircuitError`] that names the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = read_limited(path, MAX_BYTES)?;
        Self::from_bytes(&bytes)
            .map_err(|reason| CircuitError::Malformed { path: path.to_owned(), kind: KIND, reason }.into())
    }

    /// Reads and verifies the bytes of a file.
    ///
    /// # Errors
    /// What is wrong with them, and what to do.
    pub fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, String> {
        let damaged = |e: &dyn std::fmt::Display| format!("it is truncated or damaged ({e}): compile the model again");
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| damaged(&e))?;
        let manifest = metadata.metadata().as_ref().and_then(|m| m.get("thex"));
        let manifest = manifest.ok_or("it is a safetensors file, but not one of thex")?;
        let manifest: Manifest = serde_json::from_str(manifest).map_err(|e| damaged(&e))?;
        if manifest.kind != KIND || manifest.version != VERSION {
            return Err(format!(
                "it is a {} of version {}, not a {KIND} of version {VERSION}: compile the model again",
                manifest.kind, manifest.version
            ));
        }
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| damaged(&e))?;
        let graph = thex_ir::parse::parse(&manifest.text, &pool(&tensors)?).map_err(|e| damaged(&e))?;
        verify(&graph, &VerifyOptions::default()).map_err(|v| damaged(&v.first().map_or("", |v| &v.message)))?;
        Ok(Self {
            model: manifest.model,
            profile: manifest.profile,
            approximations: manifest.approximations,
            dtypes: manifest.dtypes,
            graph,
        })
    }
}

/// Name, shape and bytes of every tensor of the pool. (Tensor graphs have no other arrays.)
fn blobs(pool: &ConstantPool) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let tensor = |(hash, pooled): (_, &Pooled)| match pooled {
        Pooled::Tensor(value) => {
            let bytes = value.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect();
            Some((format!("{hash}"), value.shape().to_vec(), bytes))
        }
        Pooled::Reals(_) | Pooled::Indices(_) | Pooled::Addresses(_) => None,
    };
    pool.iter().filter_map(tensor).collect()
}

fn pool(tensors: &SafeTensors<'_>) -> std::result::Result<ConstantPool, String> {
    let mut pool = ConstantPool::default();
    for (name, view) in tensors.iter() {
        if view.dtype() != Dtype::F32 {
            return Err(format!("its tensor `{name}` is not in single precision"));
        }
        let value = |c: &[u8]| f64::from(f32::from_le_bytes(c.try_into().unwrap_or_default()));
        let values = view.data().chunks_exact(4).map(value).collect();
        let tensor = ArrayD::from_shape_vec(IxDyn(view.shape()), values).map_err(|e| e.to_string())?;
        pool.insert(tensor.into());
    }
    Ok(pool)
}
