//! SHA-256 in hex, of bytes and of streams.

use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

/// A digest under way.
#[derive(Default)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn hex(self) -> String {
        self.0.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// Digest of a file, without reading it into memory.
pub(crate) fn file(path: &Path) -> std::io::Result<String> {
    let (mut file, mut hasher) = (std::fs::File::open(path)?, Hasher::default());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.hex()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Whether a text is a SHA-256 in lower-case hex.
pub(crate) fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
