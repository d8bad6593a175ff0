//! Bodies of requests into files: streamed, hashed on the way, limited in size and in patience.
//!
//! The bytes go to a temporary file of the store, which is gone unless the caller keeps it: a body that ends early, is too large or
//! too slow leaves nothing behind. Hashing and writing happen on a thread that may block, a few chunks behind the socket.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use http_body_util::BodyExt;
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use crate::error::{Result, ServeError, disk};
use crate::sha::Hasher;

/// What is asked of a body.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes at most.
    pub bytes: u64,
    /// Longest wait for the next chunk.
    pub idle: Duration,
    /// Bytes a second that it must reach on average, once `idle` is over.
    pub slowest: u64,
}

/// A body that arrived.
pub struct Received {
    /// Where it is; deleted when dropped.
    pub file: NamedTempFile,
    /// SHA-256, in hex.
    pub digest: String,
    /// Its length.
    pub bytes: u64,
}

/// Bytes that uploads leave free on the disk, for results and the database.
const RESERVE: u64 = 64 << 20;

/// Bytes that are free for us on the disk of a folder.
fn free(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

fn too_large(limit: u64) -> ServeError {
    ServeError::TooLarge(format!("the body is larger than {limit} bytes, which is all that this request can need"))
}

/// Writes and hashes chunks until there are no more, and makes them durable.
fn writer(mut file: NamedTempFile, mut chunks: mpsc::Receiver<Bytes>) -> Result<Received> {
    let (mut hasher, mut bytes) = (Hasher::default(), 0);
    while let Some(chunk) = chunks.blocking_recv() {
        hasher.update(&chunk);
        bytes += chunk.len() as u64;
        file.write_all(&chunk).map_err(|e| disk("keep an upload", &e))?;
    }
    file.as_file().sync_all().map_err(|e| disk("keep an upload", &e))?;
    Ok(Received { file, digest: hasher.hex(), bytes })
}

/// Sends the body's chunks to the writer. That the writer has failed is no error of this.
async fn pump(mut body: Body, limits: Limits, sink: mpsc::Sender<Bytes>) -> Result<()> {
    let (start, mut bytes, mut open) = (Instant::now(), 0_u64, true);
    let slow =
        |bytes| ServeError::TooSlow(format!("the body stalled after {bytes} bytes: nothing was kept; send it again"));
    loop {
        let frame = tokio::time::timeout(limits.idle, body.frame()).await.map_err(|_| slow(bytes))?;
        let Some(frame) = frame else { return Ok(()) };
        let cut =
            |e| ServeError::BadUpload(format!("the body ended early, after {bytes} bytes ({e}): nothing was kept"));
        let Ok(chunk) = frame.map_err(cut)?.into_data() else { continue };
        bytes += chunk.len() as u64;
        if bytes > limits.bytes {
            return Err(too_large(limits.bytes));
        }
        let late = start.elapsed().saturating_sub(limits.idle);
        if late.as_secs_f64() * limits.slowest as f64 > bytes as f64 {
            return Err(slow(bytes));
        }
        // When the writer has failed the rest is read and dropped: a client that still sends would not hear the answer.
        open = open && sink.send(chunk).await.is_ok();
    }
}

/// Receives a body into a temporary file of `folder`.
///
/// # Errors
/// It is too large, too slow, ended early, or the disk is full. Nothing is left behind.
pub async fn receive(headers: &HeaderMap, body: Body, folder: &Path, limits: Limits) -> Result<Received> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if announced.is_some_and(|n| n > limits.bytes) {
        return Err(too_large(limits.bytes));
    }
    if announced.is_some_and(|n| free(folder).is_some_and(|free| free < n.saturating_add(RESERVE))) {
        return Err(disk("keep an upload", &std::io::ErrorKind::StorageFull.into()));
    }
    let file =
        tempfile::Builder::new().prefix("upload-").tempfile_in(folder).map_err(|e| disk("keep an upload", &e))?;
    receive_into(file, body, limits).await
}

async fn receive_into(file: NamedTempFile, body: Body, limits: Limits) -> Result<Received> {
    let (sink, chunks) = mpsc::channel(8);
    let writer = tokio::task::spawn_blocking(move || writer(file, chunks));
    let pumped = pump(body, limits, sink).await;
    let written = writer.await.map_err(|e| ServeError::Internal(e.to_string()))?;
    pumped.and(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use std::convert::Infallible;

    const LIMITS: Limits = Limits { bytes: 1000, idle: Duration::from_millis(100), slowest: 1 << 10 };

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    /// A body of so many chunks of 100 bytes, which then waits for ever if asked to.
    fn body(chunks: usize, pause: Duration) -> Body {
        Body::from_stream(stream::unfold(0, move |i| async move {
            tokio::time::sleep(pause).await;
            (i < chunks).then(|| (Ok::<_, Infallible>(Bytes::from(vec![7; 100])), i + 1))
        }))
    }

    fn left(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_body_is_kept_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let take = |body, limits| runtime().block_on(receive(&HeaderMap::new(), body, folder.path(), limits));
        let whole = take(body(10, Duration::ZERO), LIMITS).unwrap();
        assert_eq!((whole.bytes, whole.digest), (1000, thex_circuit::file::digest(&[7; 1000])));
        drop(whole.file);
        assert_eq!(take(body(11, Duration::ZERO), LIMITS).err().unwrap().code(), "TX0603");
        assert_eq!(take(body(1, Duration::from_secs(9)), LIMITS).err().unwrap().code(), "TX0604");
        // Never idle, but at 2 kB/s where 1 MB/s is asked for.
        let limits = Limits { slowest: 1 << 20, ..LIMITS };
        assert_eq!(take(body(9, Duration::from_millis(50)), limits).err().unwrap().code(), "TX0604");
        let cut = Body::from_stream(stream::iter([Ok(Bytes::from_static(b"abc")), Err("reset")]));
        assert_eq!(take(cut, LIMITS).err().unwrap().code(), "TX0605");
        assert_eq!(left(folder.path()), 0);
    }

    #[test]
    fn a_full_disk_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let named = NamedTempFile::new_in(folder.path()).unwrap();
        let (_, path) = named.into_parts();
        // The device that is always full, under the path of a temporary file.
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let file = NamedTempFile::from_parts(full, path);
        let error = runtime().block_on(receive_into(file, body(3, Duration::ZERO), LIMITS)).err().unwrap();
        assert_eq!((error.code(), error.status().as_u16()), ("TX0608", 507));
        assert_eq!(left(folder.path()), 0);
    }
}
