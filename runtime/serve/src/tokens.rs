//! Bearer tokens. The file holds their SHA-256 alone; a token itself is shown once, when it is made.
//!
//! A token has 256 bits from tfhe's seeder, so its hash needs no salt and no slow function. The file is read again when it changes:
//! a token is revoked by deleting its entry.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tfhe::core_crypto::prelude::new_seeder;
use thex_circuit::file::{digest, read_limited, write_atomic};

use crate::error::{Result, ServeError};

/// The client of all requests where no tokens are asked for.
pub const ANYBODY: &str = "anybody";

const MAX_FILE_BYTES: u64 = 16 << 20;

/// One token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Whose it is: jobs, keys and quotas go by this name.
    pub client: String,
    /// SHA-256 of the token, in hex.
    pub sha256: String,
    /// When it ends, in seconds since 1970; never if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
}

#[derive(Default, Serialize, Deserialize)]
struct File {
    tokens: Vec<Entry>,
}

fn read(path: &Path) -> Result<Vec<Entry>> {
    let bytes = read_limited(path, MAX_FILE_BYTES)?;
    let unusable = |e| ServeError::Usage(format!("`{}` is not a usable file of tokens: {e}", path.display()));
    let file: File = serde_json::from_slice(&bytes).map_err(unusable)?;
    Ok(file.tokens)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Makes a token for a client and adds its hash to the file, which is made if there is none.
///
/// # Errors
/// The name is no name, or the file is not usable.
pub fn issue(path: &Path, client: &str, days: Option<u64>) -> Result<String> {
    if client.is_empty() || client.len() > 64 || client.chars().any(char::is_control) {
        return Err(ServeError::Usage("a client's name has 1 to 64 characters, none of them a control".into()));
    }
    let mut tokens = if path.exists() { read(path)? } else { Vec::new() };
    let mut seeder = new_seeder();
    let token = format!("thex_{:032x}{:032x}", seeder.seed().0, seeder.seed().0);
    let expires = days.map(|days| now().saturating_add(days.saturating_mul(86_400)));
    tokens.push(Entry { client: client.to_owned(), sha256: digest(token.as_bytes()), expires });
    let text = serde_json::to_string_pretty(&File { tokens }).map_err(|e| ServeError::Internal(e.to_string()))?;
    write_atomic(path, text.as_bytes(), true)?;
    Ok(token)
}

/// The tokens that a server takes.
pub struct Tokens {
    path: PathBuf,
    known: Mutex<(Option<SystemTime>, Vec<Entry>)>,
}

impl Tokens {
    /// Reads the file.
    ///
    /// # Errors
    /// It is not usable.
    pub fn load(path: &Path) -> Result<Self> {
        let known = (modified(path), read(path)?);
        Ok(Self { path: path.to_owned(), known: Mutex::new(known) })
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// [`ServeError::Denied`] if it is unknown or has expired.
    pub fn client(&self, token: &str) -> Result<String> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let modified = modified(&self.path);
        if modified != known.0 {
            match read(&self.path) {
                Ok(entries) => *known = (modified, entries),
                Err(error) => tracing::warn!(%error, "the file of tokens is not usable; the last one holds"),
            }
        }
        let hash = digest(token.as_bytes());
        let entry = known.1.iter().find(|e| e.sha256 == hash);
        let entry = entry.ok_or_else(|| ServeError::Denied("the bearer token is unknown: ask for one".into()))?;
        match entry.expires {
            Some(end) if end <= now() => {
                Err(ServeError::Denied("the bearer token has expired: ask for a new one".into()))
            }
            _ => Ok(entry.client.clone()),
        }
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_hash_until_it_ends_or_is_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.json");
        let (alice, old) = (issue(&path, "alice", None).unwrap(), issue(&path, "bob", Some(0)).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&alice) && !text.contains(&old));
        let tokens = Tokens::load(&path).unwrap();
        assert_eq!(tokens.client(&alice).unwrap(), "alice");
        assert!(tokens.client(&old).unwrap_err().to_string().contains("expired"));
        assert!(tokens.client("thex_0").unwrap_err().to_string().contains("unknown"));
        std::fs::write(&path, "{\"tokens\":[]}").unwrap();
        std::fs::File::open(&path).unwrap().set_modified(UNIX_EPOCH).unwrap();
        assert_eq!(tokens.client(&alice).unwrap_err().code(), "TX0602");
    }
}
