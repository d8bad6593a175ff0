//! The container that circuits and client bundles travel in: a safetensors file whose metadata holds one JSON
//! manifest, next to the binary tensors that the manifest leaves out.
//!
//! The manifest starts with the kind, the format version and the file's seal: the SHA-256 of the whole file with the seal's own 64
//! digits as zeros, so that no bit of it can flip unnoticed. That start lies at a fixed place and serves as the magic number.
//! `docs/FORMATS.md` has the promise of compatibility. The *digest* of a circuit, which bundle, keys and ciphertexts carry, is the
//! SHA-256 of its bytes, so the same circuit has the same digest on every machine.
//!
//! Reading takes the header first, and allocates for the rest only when kind, version and lengths are right. Writing is atomic: a
//! temporary file in the same folder, then a rename.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::bundle::ClientBundle;
use crate::clear::{ClearGraph, Tensor};
use crate::error::{CircuitError, Result};
use crate::external::ROTATIONS;
use crate::instruction::{ABSENT, Block, Circuit, Instruction, MAX_EXTENSION};
use crate::interface::MAX_TOKENIZER_BYTES;
use crate::params::Parameters;

/// The newest version of circuits: 2 is version 1 with rotations of an extension and domains of the full torus, 3 may have a grouping factor besides. What is
/// written has the oldest version that can say it; readers refuse what is newer. 4 may have external products besides.
pub const FORMAT_VERSION: u32 = 4;

/// The version of circuits with extensions or domains of the full torus, without a grouping factor.
const EXTENDED_VERSION: u32 = 2;

/// The version of circuits with a grouping factor, without external products.
const GROUPED_CIRCUIT_VERSION: u32 = 3;

/// The version of whatever else holds parameters, bundles and keys, with a grouping factor.
const GROUPED_VERSION: u32 = 2;

/// The newest version of these: with a conversion key for external products.
pub const EXTERNAL_VERSION: u32 = 3;

/// What errors call bytes that come from no file.
pub const IN_MEMORY: &str = "bytes in memory";

/// The version of what has none of these.
pub const BASE_VERSION: u32 = 1;

/// The version that files which hold these parameters, circuits aside, are written with.
#[must_use]
pub fn version_of(parameters: &Parameters) -> u32 {
    match (parameters.external, parameters.grouping_factor.0) {
        (true, _) => EXTERNAL_VERSION,
        (false, 1) => BASE_VERSION,
        (false, _) => GROUPED_VERSION,
    }
}

/// No file larger than this is read into memory.
const MAX_FILE_BYTES: u64 = 8 << 30;
/// The longest header: safetensors' own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// How every file of ours starts, after the eight bytes of its header's length.
const MAGIC: &[u8] = br#"{"__metadata__":{"thex":"{\"kind\":\""#;
/// What the seal comes after; it lies in the first bytes of the header.
const SEAL: &[u8] = br#"\"sha256\":\""#;
const SEAL_DIGITS: usize = 64;

#[derive(Serialize, Deserialize)]
struct Manifest<T> {
    kind: String,
    version: u32,
    sha256: String,
    writer: String,
    body: T,
}

/// What a file of another format version says to who reads it: which thex wrote it, and which one reads it.
///
/// `writer` is what the file says of its writer, and `again` what to do where no other thex is at hand.
#[must_use]
pub fn other_version(found: u32, read: u32, writer: Option<&str>, again: &str) -> String {
    let this = env!("CARGO_PKG_VERSION");
    // It goes to a terminal.
    let writer = writer.filter(|w| w.len() <= 32 && w.chars().all(|c| c.is_ascii_alphanumeric() || ".-+".contains(c)));
    let wrote = writer.map_or_else(String::new, |w| format!(", written by thex {w}"));
    let reader = match writer {
        Some(writer) if found > read => format!("thex {writer} or later reads it"),
        None if found > read => "a later thex reads it".to_owned(),
        _ => format!("the thex that wrote it reads it, thex {this} does not"),
    };
    format!(
        "its format has version {found}{wrote}; this is thex {this}, which reads version {read}. {reader}; or {again}"
    )
}

/// Name of the tensor of bytes that holds a bundle's tokenizer.
const TOKENIZER: &str = "tokenizer";

struct Blob {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for &Blob {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

macro_rules! blob_of {
    ($name:ident, $from:ident, $ty:ty, $dtype:expr) => {
        fn $name(values: &[$ty]) -> Blob {
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            Blob { dtype: $dtype, shape: vec![values.len()], bytes }
        }
        fn $from(tensors: &SafeTensors<'_>, name: &str) -> std::result::Result<Vec<$ty>, String> {
            let view = tensors.tensor(name).map_err(|_| format!("tensor `{name}` is missing"))?;
            if view.dtype() != $dtype {
                return Err(format!("tensor `{name}` has the wrong type"));
            }
            let size = std::mem::size_of::<$ty>();
            Ok(view.data().chunks_exact(size).map(|c| <$ty>::from_le_bytes(c.try_into().unwrap_or_default())).collect())
        }
    };
}
blob_of!(blob_u32, read_u32, u32, Dtype::U32);
blob_of!(blob_i32, read_i32, i32, Dtype::I32);
blob_of!(blob_u64, read_u64, u64, Dtype::U64);

fn serialize<T: Serialize>(
    (kind, version): (&str, u32),
    body: &T,
    blobs: &BTreeMap<String, Blob>,
) -> std::result::Result<Vec<u8>, String> {
    let manifest = Manifest {
        kind: kind.to_owned(),
        version,
        sha256: "0".repeat(SEAL_DIGITS),
        writer: env!("CARGO_PKG_VERSION").to_owned(),
        body,
    };
    let text = serde_json::to_string(&manifest).map_err(|e| e.to_string())?;
    let metadata = HashMap::from([("thex".to_owned(), text)]);
    let mut bytes = safetensors::serialize(blobs.iter(), Some(metadata)).map_err(|e| e.to_string())?;
    let place = seal_place(&bytes).ok_or("its header does not start as it should")?;
    let sum = digest(&bytes);
    bytes[place].copy_from_slice(sum.as_bytes());
    Ok(bytes)
}

/// Where the seal's digits lie.
fn seal_place(bytes: &[u8]) -> Option<std::ops::Range<usize>> {
    let start = 8 + MAGIC.len();
    let head = bytes.get(start..bytes.len().min(start + 64))?;
    let at = head.windows(SEAL.len()).position(|w| w == SEAL)? + start + SEAL.len();
    (at + SEAL_DIGITS <= bytes.len()).then_some(at..at + SEAL_DIGITS)
}

/// Refuses a file with any byte other than those that were written.
fn check_seal(bytes: &[u8]) -> std::result::Result<(), String> {
    let place = seal_place(bytes)
        .ok_or("it has no digest, so it was written before the format was fixed: compile the model again")?;
    let mut hash = Sha256::new();
    hash.update(&bytes[..place.start]);
    hash.update([b'0'; SEAL_DIGITS]);
    hash.update(&bytes[place.end..]);
    if hex(&hash.finalize()).as_bytes() == &bytes[place] {
        return Ok(());
    }
    Err("it is damaged or was altered (its digest is another): copy or compile it again".into())
}

/// The manifest's text, after a check of kind and version. `bytes` needs no more than the header.
fn manifest_text(bytes: &[u8], kind: &str) -> std::result::Result<String, String> {
    #[derive(Deserialize)]
    struct Head {
        kind: String,
        version: u32,
        writer: Option<String>,
    }
    let damaged = |e: &dyn std::fmt::Display| format!("its manifest is damaged: {e}");
    let (_, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|e| format!("it is truncated or no thex file ({e:?})"))?;
    let text = metadata.metadata().as_ref().and_then(|m| m.get("thex"));
    let text = text.ok_or("it is a safetensors file, but not one of thex")?;
    let head: Head = serde_json::from_str(text).map_err(|e| damaged(&e))?;
    if head.kind != kind {
        return Err(format!("it is a {}, not a {kind}", head.kind.chars().take(32).collect::<String>()));
    }
    let newest = if kind == "circuit" { FORMAT_VERSION } else { EXTERNAL_VERSION };
    if !(BASE_VERSION..=newest).contains(&head.version) {
        let again = "compile the model again";
        return Err(other_version(head.version, newest, head.writer.as_deref(), again));
    }
    Ok(text.clone())
}

fn manifest<T: DeserializeOwned>(bytes: &[u8], kind: &str) -> std::result::Result<T, String> {
    let text = manifest_text(bytes, kind)?;
    check_seal(bytes)?;
    let full: Manifest<T> = serde_json::from_str(&text).map_err(|e| format!("its manifest is damaged: {e}"))?;
    Ok(full.body)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Reads a circuit or bundle: its header first, and the rest only if that is of the right kind and version and as long as it says.
fn read_container(path: &Path, kind: &'static str) -> Result<Vec<u8>> {
    let (mut file, length) = open_limited(path, MAX_FILE_BYTES)?;
    read_stream(&mut file, length, path, kind)
}

/// The same from anything of a known length; `path` is what errors call it.
fn read_stream(file: &mut impl Read, length: u64, path: &Path, kind: &'static str) -> Result<Vec<u8>> {
    let io = |source| CircuitError::Io { action: "read", path: path.to_owned(), source };
    let refuse = |reason: &str| Err(malformed(path, kind, reason.to_owned()));
    let truncated = "it is truncated: copy or compile it again";
    if length < 8 {
        return refuse(truncated);
    }
    let mut bytes = vec![0; 8];
    file.read_exact(&mut bytes).map_err(io)?;
    let header = u64::from_le_bytes(bytes[..].try_into().unwrap_or_default());
    if header > MAX_HEADER_BYTES || header < MAGIC.len() as u64 {
        return refuse("it is no thex file");
    }
    if header > length - 8 {
        return refuse(truncated);
    }
    file.by_ref().take(header).read_to_end(&mut bytes).map_err(io)?;
    if !bytes[8..].starts_with(MAGIC) {
        return refuse("it is no thex file");
    }
    let declared = declared_bytes(&bytes[8..]).map_err(|reason| malformed(path, kind, reason))?;
    if declared.checked_add(8 + header) != Some(length) {
        return refuse("it is truncated, or has something appended: copy or compile it again");
    }
    file.take(length - 8 - header).read_to_end(&mut bytes).map_err(io)?;
    manifest_text(&bytes, kind).map_err(|reason| malformed(path, kind, reason))?;
    Ok(bytes)
}

/// Where the last tensor ends, by the header alone.
fn declared_bytes(header: &[u8]) -> std::result::Result<u64, String> {
    #[derive(Deserialize)]
    struct Entry {
        data_offsets: Option<(u64, u64)>,
    }
    let entries: BTreeMap<String, Entry> =
        serde_json::from_slice(header).map_err(|e| format!("its header is damaged ({e}): copy or compile it again"))?;
    Ok(entries.values().filter_map(|e| e.data_offsets).map(|(_, end)| end).max().unwrap_or(0))
}

/// SHA-256 of bytes, in hex.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Opens a file that is at most `limit` bytes long; also returns how many it has.
///
/// # Errors
/// [`CircuitError::Io`] with the path and the reason.
pub fn open_limited(path: &Path, limit: u64) -> Result<(std::fs::File, u64)> {
    let io = |source| CircuitError::Io { action: "read", path: path.to_owned(), source };
    // Before it is opened: a pipe would wait for its writer.
    let kind = std::fs::metadata(path).map_err(io)?;
    if !kind.is_file() {
        return Err(io(std::io::Error::other("it is not a file")));
    }
    let file = std::fs::File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    if length > limit {
        return Err(io(std::io::Error::other(format!("it has {length} bytes, more than {limit}"))));
    }
    Ok((file, length))
}

/// Reads a file that is at most `limit` bytes long.
///
/// # Errors
/// [`CircuitError::Io`] with the path and the reason.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let io = |source| CircuitError::Io { action: "read", path: path.to_owned(), source };
    let (file, length) = open_limited(path, limit)?;
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    // A file that grows meanwhile is cut.
    file.take(length).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// Writes a file whole or not at all; `private` gives it mode 0600.
///
/// # Errors
/// [`CircuitError::Io`] with the path and the reason.
pub fn write_atomic(path: &Path, bytes: &[u8], private: bool) -> Result<()> {
    let io = |source| CircuitError::Io { action: "write", path: path.to_owned(), source };
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".thex-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = if private { 0o600 } else { 0o644 };
        builder.permissions(std::fs::Permissions::from_mode(mode));
    }
    let mut file = builder.tempfile_in(folder).map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    file.as_file().sync_all().map_err(io)?;
    file.persist(path).map_err(|e| io(e.error))?;
    Ok(())
}

/// Whether a file says that it is a client bundle. Reads the header only; what else is wrong, [`ClientBundle::load`] tells.
#[must_use]
pub fn is_bundle(path: &Path) -> bool {
    let start = || {
        let mut file = std::fs::File::open(path).ok()?;
        let mut length = [0; 8];
        file.read_exact(&mut length).ok()?;
        let mut header = Vec::new();
        file.take(u64::from_le_bytes(length).min(MAX_HEADER_BYTES)).read_to_end(&mut header).ok()?;
        let header: serde_json::Value = serde_json::from_slice(&header).ok()?;
        let manifest = header.get("__metadata__")?.get("thex")?.as_str()?;
        Some(manifest.starts_with(r#"{"kind":"client bundle""#))
    };
    start().unwrap_or(false)
}

impl Circuit {
    /// The bytes of the circuit file.
    ///
    /// # Errors
    /// [`CircuitError::Malformed`] if the circuit cannot be represented.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut blobs = BTreeMap::new();
        for (i, instruction) in self.instructions.iter().enumerate() {
            let mut put = |field: &str, blob: Blob| {
                blobs.insert(format!("{i:06}.{field}"), blob);
            };
            match instruction {
                Instruction::Linear(x) => {
                    put("gather", blob_u32(&x.gather));
                    put("set", blob_u32(&x.set));
                    put("weights", blob_i32(&x.weights));
                    put("bias", blob_u64(&x.bias));
                }
                Instruction::Keyswitch(x) => put("gather", blob_u32(&x.gather)),
                Instruction::Pbs(x) => {
                    put("argument", blob_u32(&x.argument));
                    put("table_of", blob_u32(&x.table_of));
                    put("tables", blob_i32(&x.tables));
                }
                Instruction::Pack(x) => put("gather", blob_u32(&x.gather)),
                Instruction::LutProduct(x) => {
                    put("argument", blob_u32(&x.argument));
                    put("accumulator", blob_u32(&x.accumulator));
                    put("table_of", blob_u32(&x.table_of));
                    put("tables", blob_i32(&x.tables));
                }
                Instruction::ExternalProduct(x) => {
                    put("terms", blob_u32(&x.terms));
                    put("argument", blob_u32(&x.argument));
                    put("accumulator", blob_u32(&x.accumulator));
                    put("table_of", blob_u32(&x.table_of));
                    put("tables", blob_i32(&x.tables));
                }
            }
        }
        let is_base = self.largest_extension() == 0 && !self.uses_full_torus();
        let version = match version_of(&self.parameters) {
            BASE_VERSION if is_base => BASE_VERSION,
            BASE_VERSION => EXTENDED_VERSION,
            GROUPED_VERSION => GROUPED_CIRCUIT_VERSION,
            _ => FORMAT_VERSION,
        };
        serialize(("circuit", version), self, &blobs).map_err(|reason| malformed(Path::new("-"), "circuit", reason))
    }

    /// Reads and checks a circuit; also returns its digest.
    ///
    /// # Errors
    /// [`CircuitError`] that names the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<(Self, String)> {
        Self::checked(&read_container(path, "circuit")?, path)
    }

    /// The same from the bytes of a file.
    ///
    /// # Errors
    /// As [`Circuit::load`].
    pub fn read(mut bytes: &[u8]) -> Result<(Self, String)> {
        let (path, length) = (Path::new(IN_MEMORY), bytes.len() as u64);
        Self::checked(&read_stream(&mut bytes, length, path, "circuit")?, path)
    }

    fn checked(bytes: &[u8], path: &Path) -> Result<(Self, String)> {
        let circuit = Self::from_bytes(bytes).map_err(|reason| malformed(path, "circuit", reason))?;
        circuit.parameters.check()?;
        Ok((circuit, digest(bytes)))
    }

    fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, String> {
        let mut circuit: Self = manifest(bytes, "circuit")?;
        let tensors = SafeTensors::deserialize(bytes)
            .map_err(|e| format!("it is truncated or damaged ({e:?}): copy or compile it again"))?;
        for (i, instruction) in circuit.instructions.iter_mut().enumerate() {
            let name = |field: &str| format!("{i:06}.{field}");
            match instruction {
                Instruction::Linear(x) => {
                    x.gather = read_u32(&tensors, &name("gather"))?;
                    x.set = read_u32(&tensors, &name("set"))?;
                    x.weights = read_i32(&tensors, &name("weights"))?;
                    x.bias = read_u64(&tensors, &name("bias"))?;
                }
                Instruction::Keyswitch(x) => x.gather = read_u32(&tensors, &name("gather"))?,
                Instruction::Pbs(x) => {
                    x.argument = read_u32(&tensors, &name("argument"))?;
                    x.table_of = read_u32(&tensors, &name("table_of"))?;
                    x.tables = read_i32(&tensors, &name("tables"))?;
                }
                Instruction::Pack(x) => x.gather = read_u32(&tensors, &name("gather"))?,
                Instruction::LutProduct(x) => {
                    x.argument = read_u32(&tensors, &name("argument"))?;
                    x.accumulator = read_u32(&tensors, &name("accumulator"))?;
                    x.table_of = read_u32(&tensors, &name("table_of"))?;
                    x.tables = read_i32(&tensors, &name("tables"))?;
                }
                Instruction::ExternalProduct(x) => {
                    x.terms = read_u32(&tensors, &name("terms"))?;
                    x.argument = read_u32(&tensors, &name("argument"))?;
                    x.accumulator = read_u32(&tensors, &name("accumulator"))?;
                    x.table_of = read_u32(&tensors, &name("table_of"))?;
                    x.tables = read_i32(&tensors, &name("tables"))?;
                }
            }
        }
        circuit.verify()?;
        Ok(circuit)
    }

    /// Checks every address, length and order, so that an executor need not: blocks follow one another in each
    /// memory, operands are written before they are read, tables and weights have the lengths that go with them.
    ///
    /// # Errors
    /// A sentence that says which instruction is wrong.
    pub fn verify(&self) -> std::result::Result<(), String> {
        let (mut lwe, mut small, mut glwe) = (0_u32, 0_u32, 0_u32);
        for (name, block) in &self.inputs {
            extend(&mut lwe, block).ok_or_else(|| format!("input `{name}` is not where it should be"))?;
        }
        if self.provenance.len() != self.instructions.len() {
            return Err("it has not one provenance for each instruction".into());
        }
        let size = self.parameters.polynomial_size.0;
        // ν of everything in small memory.
        let mut extensions: Vec<u32> = Vec::new();
        for (i, instruction) in self.instructions.iter().enumerate() {
            let entries = if instruction.extension() > MAX_EXTENSION { 0 } else { instruction.table_entries(size) };
            let extended = |arguments: &[u32]| {
                arguments.iter().all(|&a| extensions.get(a as usize) == Some(&instruction.extension()))
            };
            let ok = match instruction {
                Instruction::Linear(x) => linear_ok(x, lwe) && extend(&mut lwe, &x.dst).is_some(),
                Instruction::Keyswitch(x) => {
                    x.domain > 0
                        && x.extension <= MAX_EXTENSION
                        && below(&x.gather, lwe, false)
                        && x.gather.len() == x.dst.len as usize
                        && (x.domain as usize <= size || x.domain as usize == 2 * size)
                        && extend(&mut small, &x.dst).is_some()
                }
                Instruction::Pbs(x) => {
                    below(&x.argument, small, false)
                        && extended(&x.argument)
                        && x.argument.len() == x.dst.len as usize
                        && tables_ok(&x.table_of, x.argument.len(), x.tables.len(), entries)
                        && extend(&mut lwe, &x.dst).is_some()
                }
                Instruction::Pack(x) => {
                    let (slots, stride) = (x.slots as usize, x.stride as usize);
                    slots.checked_mul(stride).is_some_and(|p| p > 0 && p <= size)
                        && below(&x.gather, lwe, true)
                        && x.gather.len() == slots * x.dst.len as usize
                        && extend(&mut glwe, &x.dst).is_some()
                }
                Instruction::LutProduct(x) => {
                    let (slots, stride) = (x.slots as usize, x.stride as usize);
                    slots.checked_mul(stride).is_some_and(|p| p > 0 && p <= size)
                        && below(&x.argument, small, false)
                        && extended(&x.argument)
                        && below(&x.accumulator, glwe, false)
                        && x.argument.len() == x.accumulator.len()
                        && x.argument.len() * slots == x.dst.len as usize
                        && tables_ok(&x.table_of, x.argument.len(), x.tables.len(), entries)
                        && extend(&mut lwe, &x.dst).is_some()
                }
                Instruction::ExternalProduct(x) => {
                    let (slots, stride) = (x.slots as usize, x.stride as usize);
                    let terms = x.terms.iter().try_fold(0_usize, |sum, &n| sum.checked_add(n as usize));
                    self.parameters.external
                        && ROTATIONS.contains(&(x.rotations as usize))
                        && slots.checked_mul(stride).is_some_and(|p| p > 0 && p <= size)
                        && below(&x.argument, small, false)
                        && extended(&x.argument)
                        && below(&x.accumulator, glwe, false)
                        && x.argument.len() == x.accumulator.len()
                        && terms == Some(x.argument.len())
                        && x.terms.len() * slots == x.dst.len as usize
                        && tables_ok(&x.table_of, x.argument.len(), x.tables.len(), entries)
                        && extend(&mut lwe, &x.dst).is_some()
                }
            };
            if !ok {
                return Err(format!("instruction {i} ({}) is inconsistent", instruction.mnemonic()));
            }
            if let Instruction::Keyswitch(x) = instruction {
                extensions.resize(small as usize, x.extension);
            }
        }
        for (name, addresses) in &self.outputs {
            if !below(addresses, lwe, false) {
                return Err(format!("output `{name}` refers to ciphertexts that nothing computes"));
            }
        }
        Ok(())
    }
}

fn extend(end: &mut u32, block: &Block) -> Option<()> {
    if block.start != *end {
        return None;
    }
    *end = block.start.checked_add(block.len)?;
    Some(())
}

fn below(addresses: &[u32], end: u32, absent_allowed: bool) -> bool {
    addresses.iter().all(|&a| a < end || (absent_allowed && a == ABSENT))
}

fn tables_ok(table_of: &[u32], elements: usize, entries: usize, entries_of_one: usize) -> bool {
    let tables = entries / entries_of_one.max(1);
    entries_of_one > 0
        && table_of.len() == elements
        && entries == tables * entries_of_one
        && table_of.iter().all(|&t| (t as usize) < tables)
}

fn linear_ok(x: &crate::instruction::Linear, lwe: u32) -> bool {
    let (outputs, operands, groups) = (x.outputs as usize, x.operands as usize, x.set.len());
    let Some(per_set) = outputs.checked_mul(operands) else { return false };
    let sets = x.weights.len().checked_div(per_set).unwrap_or(usize::MAX);
    outputs > 0
        && Some(x.dst.len as usize) == groups.checked_mul(outputs)
        && Some(x.gather.len()) == groups.checked_mul(operands)
        && x.bias.len() == x.dst.len as usize
        && (per_set == 0 || x.weights.len() == sets * per_set)
        && x.set.iter().all(|&s| (s as usize) < sets)
        && below(&x.gather, lwe, true)
}

fn malformed(path: &Path, kind: &'static str, reason: String) -> CircuitError {
    CircuitError::Malformed { path: path.to_owned(), kind, reason }
}

fn put_constants(blobs: &mut BTreeMap<String, Blob>, prefix: &str, graph: &ClearGraph) {
    for (i, constant) in graph.constants.iter().enumerate() {
        let bytes = constant.iter().flat_map(|v| v.to_le_bytes()).collect();
        let blob = Blob { dtype: Dtype::F64, shape: constant.shape().to_vec(), bytes };
        blobs.insert(format!("{prefix}.{i:06}"), blob);
    }
}

fn take_constants(tensors: &SafeTensors<'_>, prefix: &str) -> std::result::Result<Vec<Arc<Tensor>>, String> {
    let mut constants = Vec::new();
    while let Ok(view) = tensors.tensor(&format!("{prefix}.{:06}", constants.len())) {
        if view.dtype() != Dtype::F64 {
            return Err(format!("constant {} of its {prefix} has the wrong type", constants.len()));
        }
        let values: Vec<f64> =
            view.data().chunks_exact(8).map(|c| f64::from_le_bytes(c.try_into().unwrap_or_default())).collect();
        let tensor = ArrayD::from_shape_vec(IxDyn(view.shape()), values);
        constants.push(Arc::new(tensor.map_err(|e| e.to_string())?));
    }
    Ok(constants)
}

impl ClientBundle {
    /// The bytes of the bundle file.
    ///
    /// # Errors
    /// [`CircuitError::Malformed`] if the bundle cannot be represented.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut blobs = BTreeMap::new();
        put_constants(&mut blobs, "prologue", &self.prologue);
        put_constants(&mut blobs, "epilogue", &self.epilogue);
        if let Some(text) = &self.interface.text {
            let (shape, bytes) = (vec![text.tokenizer.len()], text.tokenizer.to_vec());
            blobs.insert(TOKENIZER.to_owned(), Blob { dtype: Dtype::U8, shape, bytes });
        }
        serialize(("client bundle", version_of(&self.parameters)), self, &blobs)
            .map_err(|reason| malformed(Path::new("-"), "client bundle", reason))
    }

    /// Reads and checks a client bundle.
    ///
    /// # Errors
    /// [`CircuitError`] that names the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<Self> {
        Self::checked(&read_container(path, "client bundle")?, path)
    }

    /// The same from the bytes of a file.
    ///
    /// # Errors
    /// As [`ClientBundle::load`].
    pub fn read(mut bytes: &[u8]) -> Result<Self> {
        let (path, length) = (Path::new(IN_MEMORY), bytes.len() as u64);
        Self::checked(&read_stream(&mut bytes, length, path, "client bundle")?, path)
    }

    fn checked(bytes: &[u8], path: &Path) -> Result<Self> {
        let bundle = Self::from_bytes(bytes).map_err(|reason| malformed(path, "client bundle", reason))?;
        bundle.parameters.check()?;
        Ok(bundle)
    }

    fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, String> {
        let mut bundle: Self = manifest(bytes, "client bundle")?;
        let tensors = SafeTensors::deserialize(bytes)
            .map_err(|e| format!("it is truncated or damaged ({e:?}): copy or compile it again"))?;
        bundle.prologue.constants = take_constants(&tensors, "prologue")?;
        bundle.epilogue.constants = take_constants(&tensors, "epilogue")?;
        if let Some(text) = &mut bundle.interface.text {
            let view = tensors.tensor(TOKENIZER).map_err(|_| "its tokenizer is missing")?;
            if view.data().len() as u64 > MAX_TOKENIZER_BYTES {
                return Err(format!("its tokenizer has more than {MAX_TOKENIZER_BYTES} bytes"));
            }
            text.tokenizer = view.data().into();
        }
        bundle.verify()?;
        Ok(bundle)
    }
}
