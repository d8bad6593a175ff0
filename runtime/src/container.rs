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
//! tfhe's own serialization was not taken: lengths inside the stream decide allocations there, while here the header is read first
//! (at most 4 MiB), the caller says how many words a file with such a header must have, and only when the header and the file's
//! length say the same are they allocated. The words are hashed as they are read, so no second copy exists. The seeds that expand to
//! masks are in the header's body. What is secret is wiped from every buffer on the way.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thex_circuit::file::{BASE_VERSION, IN_MEMORY, digest, open_limited, other_version, write_atomic};
use zeroize::Zeroizing;

use crate::error::{Result, RuntimeError};

const MAGIC: &[u8; 8] = b"thexdata";
/// Digits of the digest.
const DIGITS: usize = 64;
/// Where the content starts, after the magic number and the digest.
const START: usize = MAGIC.len() + DIGITS;
const MAX_HEADER_BYTES: usize = 1 << 22;
/// No file larger than this is read into memory.
const MAX_FILE_BYTES: u64 = 8 << 30;
/// Bytes that are read at once.
const CHUNK: usize = 1 << 16;

#[derive(Serialize, Deserialize)]
struct Header<T> {
    kind: String,
    version: u32,
    #[serde(default)]
    writer: String,
    words: u64,
    body: T,
}

#[derive(Deserialize)]
struct Head {
    kind: String,
    version: u32,
    writer: Option<String>,
    words: u64,
}

/// What heads a file. What is written has the oldest version that can say it; readers refuse what is newer.
pub(crate) trait Body {
    /// The newest version.
    const NEWEST: u32 = BASE_VERSION;

    /// The version that this one is written with.
    fn version(&self) -> u32 {
        BASE_VERSION
    }
}

/// Whether a file holds secrets: then only its owner may read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Secrecy {
    Public,
    Secret,
}

fn malformed(path: &Path, kind: &'static str, reason: impl Into<String>) -> RuntimeError {
    RuntimeError::Malformed { path: path.to_owned(), kind, reason: reason.into() }
}

fn header_bytes<T: Body + Serialize>(kind: &str, body: &T, words: usize) -> Result<Vec<u8>> {
    let writer = env!("CARGO_PKG_VERSION").to_owned();
    let header = Header { kind: kind.to_owned(), version: body.version(), writer, words: words as u64, body };
    serde_json::to_vec(&header).map_err(|e| RuntimeError::Internal(e.to_string()))
}

/// Bytes of a file with this header and so many words.
pub(crate) fn file_bytes<T: Body + Serialize>(kind: &str, body: &T, words: usize) -> Result<u64> {
    Ok((START + 4 + header_bytes(kind, body, words)?.len() + words * 8) as u64)
}

/// Writes a file, whole or not at all.
pub(crate) fn write<T: Body + Serialize>(
    path: &Path,
    kind: &str,
    body: &T,
    words: &[&[u64]],
    secrecy: Secrecy,
) -> Result<()> {
    Ok(write_atomic(path, &to_bytes(kind, body, words)?, secrecy == Secrecy::Secret)?)
}

/// The bytes of a file.
pub(crate) fn to_bytes<T: Body + Serialize>(kind: &str, body: &T, words: &[&[u64]]) -> Result<Zeroizing<Vec<u8>>> {
    let count: usize = words.iter().map(|w| w.len()).sum();
    let header = header_bytes(kind, body, count)?;
    let length = u32::try_from(header.len()).map_err(|e| RuntimeError::Internal(e.to_string()))?;
    // As large as it gets: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(START + 4 + header.len() + count * 8));
    bytes.extend_from_slice(MAGIC);
    bytes.resize(START, 0);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&header);
    for word in words.iter().flat_map(|w| w.iter()) {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    let sum = digest(&bytes[START..]);
    bytes[MAGIC.len()..START].copy_from_slice(sum.as_bytes());
    Ok(bytes)
}

/// A file that is hashed as it is read.
struct Stream<R> {
    file: R,
    hash: Sha256,
}

impl<R: Read> Stream<R> {
    fn fill(&mut self, bytes: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact(bytes)?;
        self.hash.update(bytes);
        Ok(())
    }

    /// `count` words; the caller has checked that there are as many.
    fn words(&mut self, count: usize) -> std::io::Result<Zeroizing<Vec<u64>>> {
        let mut words = Zeroizing::new(Vec::with_capacity(count));
        let mut chunk = Zeroizing::new(vec![0; CHUNK]);
        while words.len() < count {
            let bytes = (8 * (count - words.len())).min(CHUNK);
            self.fill(&mut chunk[..bytes])?;
            let (chunks, _) = chunk[..bytes].as_chunks::<8>();
            words.extend(chunks.iter().map(|c| u64::from_le_bytes(*c)));
        }
        Ok(words)
    }
}

/// Refuses a secret that others can read: it may have been read already, and the next copy will have the same mode.
#[cfg(unix)]
fn check_private(path: &Path, file: &File, kind: &'static str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let io = |source| RuntimeError::Io { action: "read", path: path.to_owned(), source };
    let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let reason = format!(
        "its mode is {mode:04o}, so others than its owner can read or change it: run `chmod 600 {}`, and if others may have read it, \
         generate new keys",
        path.display()
    );
    Err(malformed(path, kind, reason))
}

#[cfg(not(unix))]
fn check_private(_path: &Path, _file: &File, _kind: &'static str) -> Result<()> {
    Ok(())
}

/// The header of a file, after magic number and length; the stream is at the words.
fn read_header(path: &Path, kind: &'static str, stream: &mut Stream<impl Read>, length: u64) -> Result<Vec<u8>> {
    let truncated = || malformed(path, kind, "it is truncated: copy or generate it again");
    let size = if length < (START + 4) as u64 { 0 } else { 4 };
    let mut bytes = [0; 4];
    stream.fill(&mut bytes[..size]).map_err(|_| truncated())?;
    let header = u32::from_le_bytes(bytes) as usize;
    if size == 0 || header as u64 > length - (START + 4) as u64 {
        return Err(truncated());
    }
    if header > MAX_HEADER_BYTES {
        return Err(malformed(path, kind, "its header is damaged: copy or generate it again"));
    }
    let mut bytes = vec![0; header];
    stream.fill(&mut bytes).map_err(|_| truncated())?;
    Ok(bytes)
}

/// Kind, version and length: what can be refused without knowing what the file is about.
fn check_head(path: &Path, kind: &'static str, head: &Head, newest: u32, payload: u64) -> Result<()> {
    if head.kind != kind {
        return Err(malformed(path, kind, format!("it is a {}", head.kind.chars().take(32).collect::<String>())));
    }
    if !(BASE_VERSION..=newest).contains(&head.version) {
        let again = "generate or encrypt it again";
        let reason = other_version(head.version, newest, head.writer.as_deref(), again);
        return Err(malformed(path, kind, reason));
    }
    if head.words.checked_mul(8) != Some(payload) {
        let reason = "it is truncated, or has something appended: copy or generate it again";
        return Err(malformed(path, kind, reason));
    }
    Ok(())
}

/// Reads a file of this kind. `expected` checks the header's body and says how many words there must be; before that no more
/// than the header is in memory.
pub(crate) fn read<T: Body + DeserializeOwned>(
    path: &Path,
    kind: &'static str,
    secrecy: Secrecy,
    expected: impl FnOnce(&T) -> Result<usize>,
) -> Result<(T, Zeroizing<Vec<u64>>)> {
    let (file, length) = open_limited(path, MAX_FILE_BYTES)?;
    let admit = |file: &File| if secrecy == Secrecy::Secret { check_private(path, file, kind) } else { Ok(()) };
    read_stream((file, length), (path, kind), admit, expected)
}

/// The same from bytes that come from no file.
pub(crate) fn from_bytes<T: Body + DeserializeOwned>(
    bytes: &[u8],
    kind: &'static str,
    expected: impl FnOnce(&T) -> Result<usize>,
) -> Result<(T, Zeroizing<Vec<u64>>)> {
    read_stream((bytes, bytes.len() as u64), (Path::new(IN_MEMORY), kind), |_| Ok(()), expected)
}

/// The same from anything of a known length; `path` is what errors call it. `admit` is asked once the magic number is right.
fn read_stream<R: Read, T: Body + DeserializeOwned>(
    (mut file, length): (R, u64),
    (path, kind): (&Path, &'static str),
    admit: impl FnOnce(&R) -> Result<()>,
    expected: impl FnOnce(&T) -> Result<usize>,
) -> Result<(T, Zeroizing<Vec<u64>>)> {
    let mut start = [0; START];
    let start = &mut start[..START.min(usize::try_from(length).unwrap_or(START))];
    file.read_exact(start).map_err(|source| RuntimeError::Io { action: "read", path: path.to_owned(), source })?;
    if !start.starts_with(MAGIC) {
        return Err(malformed(path, kind, "it is no key or ciphertext of thex"));
    }
    admit(&file)?;
    let mut stream = Stream { file, hash: Sha256::new() };
    let header = read_header(path, kind, &mut stream, length)?;
    let damaged = |e: serde_json::Error| malformed(path, kind, format!("its header is damaged ({e})"));
    let head: Head = serde_json::from_slice(&header).map_err(damaged)?;
    check_head(path, kind, &head, T::NEWEST, length - (START + 4 + header.len()) as u64)?;
    let full: Header<T> = serde_json::from_slice(&header).map_err(damaged)?;
    let count = expected(&full.body)?;
    if count as u64 != head.words {
        return Err(wrong_size(path, kind, count, head.words));
    }
    let words =
        stream.words(count).map_err(|source| RuntimeError::Io { action: "read", path: path.to_owned(), source })?;
    let sum: String = stream.hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    if sum.as_bytes() != &start[MAGIC.len()..] {
        return Err(malformed(path, kind, "it was altered (its digest is another): copy or generate it again"));
    }
    Ok((full.body, words))
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
pub(crate) fn wrong_size(path: &Path, kind: &'static str, expected: usize, found: u64) -> RuntimeError {
    malformed(path, kind, format!("it has {found} words where its parameters want {expected}: generate it again"))
}

/// The error of a file of the right kind whose header contradicts itself.
pub(crate) fn contradiction(path: &Path, kind: &'static str, reason: impl Into<String>) -> RuntimeError {
    malformed(path, kind, reason)
}
