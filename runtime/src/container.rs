//! The file format of keys and ciphertexts: a magic number, a JSON header, and words of 64 bits.
//!
//! ```text
//! 8 bytes   "thexdata"
//! 64 bytes  SHA-256, in hex, of all that follows
//! 4 bytes   length of the header, little endian
//! header    JSON {kind, version, words, body}
//! words     u64, little endian, exactly `words` of them
//! ```
//!
//! tfhe's own serialization was not taken: lengths inside the stream decide allocations there, while here
//! the parameters (checked) decide how many words there must be, and a file that has more or fewer is
//! refused before anything is allocated. The seeds that expand to masks are in the header's body.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thex_circuit::file::{digest, read_limited, write_atomic};

use crate::error::{Result, RuntimeError};

const MAGIC: &[u8; 8] = b"thexdata";
/// Where the content starts, after the magic number and the digest.
const START: usize = MAGIC.len() + 64;
const VERSION: u32 = 1;
const MAX_HEADER_BYTES: usize = 1 << 22;
/// No file larger than this is read into memory.
const MAX_FILE_BYTES: u64 = 8 << 30;

#[derive(Serialize, Deserialize)]
struct Header<T> {
    kind: String,
    version: u32,
    words: u64,
    body: T,
}

#[derive(Deserialize)]
struct Head {
    kind: String,
    version: u32,
    words: u64,
}

fn malformed(path: &Path, kind: &'static str, reason: impl Into<String>) -> RuntimeError {
    RuntimeError::Malformed { path: path.to_owned(), kind, reason: reason.into() }
}

/// Bytes of a file with this header and so many words.
pub(crate) fn file_bytes<T: Serialize>(kind: &str, body: &T, words: usize) -> Result<u64> {
    let header = Header { kind: kind.to_owned(), version: VERSION, words: words as u64, body };
    let header = serde_json::to_vec(&header).map_err(|e| RuntimeError::Internal(e.to_string()))?;
    Ok((START + 4 + header.len() + words * 8) as u64)
}

/// Writes a file, whole or not at all.
pub(crate) fn write<T: Serialize>(path: &Path, kind: &str, body: &T, words: &[&[u64]], private: bool) -> Result<()> {
    let count: usize = words.iter().map(|w| w.len()).sum();
    let header = Header { kind: kind.to_owned(), version: VERSION, words: count as u64, body };
    let header = serde_json::to_vec(&header).map_err(|e| RuntimeError::Internal(e.to_string()))?;
    let length = u32::try_from(header.len()).map_err(|e| RuntimeError::Internal(e.to_string()))?;
    let mut bytes = Vec::with_capacity(START + 4 + header.len() + count * 8);
    bytes.extend_from_slice(MAGIC);
    bytes.resize(START, 0);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&header);
    for word in words.iter().flat_map(|w| w.iter()) {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    let sum = digest(&bytes[START..]);
    bytes[MAGIC.len()..START].copy_from_slice(sum.as_bytes());
    Ok(write_atomic(path, &bytes, private)?)
}

/// Splits a file into its header and its words, and checks its digest.
fn split(bytes: &[u8]) -> std::result::Result<(&[u8], &[u8]), &'static str> {
    let truncated = "it is truncated: copy or generate it again";
    let rest = bytes.strip_prefix(MAGIC).ok_or("it is no key or ciphertext of thex")?;
    let (sum, content) = rest.split_at_checked(START - MAGIC.len()).ok_or(truncated)?;
    if digest(content).as_bytes() != sum {
        return Err("it is truncated or was altered: copy or generate it again");
    }
    let (length, rest) = content.split_first_chunk::<4>().ok_or(truncated)?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_HEADER_BYTES {
        return Err("its header is damaged");
    }
    rest.split_at_checked(length).ok_or(truncated)
}

/// Reads a file of this kind.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, kind: &'static str) -> Result<(T, Vec<u64>)> {
    let bytes = read_limited(path, MAX_FILE_BYTES)?;
    let (header, payload) = split(&bytes).map_err(|reason| malformed(path, kind, reason))?;
    let damaged = |e: serde_json::Error| malformed(path, kind, format!("its header is damaged ({e})"));
    let head: Head = serde_json::from_slice(header).map_err(damaged)?;
    if head.kind != kind {
        return Err(malformed(path, kind, format!("it is a {}", head.kind)));
    }
    if head.version != VERSION {
        let reason = format!("its format has version {}; this program reads version {VERSION}", head.version);
        return Err(malformed(path, kind, reason));
    }
    if head.words.checked_mul(8) != Some(payload.len() as u64) {
        let reason = "it is truncated, or has something appended: copy or generate it again";
        return Err(malformed(path, kind, reason));
    }
    let full: Header<T> = serde_json::from_slice(header).map_err(damaged)?;
    let (chunks, _) = payload.as_chunks::<8>();
    Ok((full.body, chunks.iter().map(|c| u64::from_le_bytes(*c)).collect()))
}

/// Refuses early what could not be written late: the folder must exist and take files.
///
/// # Errors
/// [`RuntimeError::Io`] that names the file.
pub fn check_writable(path: &Path) -> Result<()> {
    let io = |source| RuntimeError::Io { action: "write to", path: path.to_owned(), source };
    if path.is_dir() {
        return Err(io(std::io::Error::other("it is a folder")));
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    tempfile::Builder::new().prefix(".thex-").tempfile_in(folder).map_err(io)?;
    Ok(())
}

/// The error of a file that has the right kind but not the dimensions of its parameters.
pub(crate) fn wrong_size(path: &Path, kind: &'static str, expected: usize, found: usize) -> RuntimeError {
    malformed(path, kind, format!("it has {found} words where its parameters want {expected}: generate it again"))
}

/// The error of a file of the right kind whose header contradicts itself.
pub(crate) fn contradiction(path: &Path, kind: &'static str, reason: impl Into<String>) -> RuntimeError {
    malformed(path, kind, reason)
}
