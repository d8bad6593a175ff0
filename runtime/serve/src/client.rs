//! The client's side of the wire: blocking, patient, and careful about what it sends.
//!
//! What leaves the client is a server key, encrypted inputs, digests and ids. **No function here takes a [`ClientKey`]**, and the round trip
//! of the command line opens `client.key` only to encrypt and to decrypt; a test listens to the wire.
//!
//! Every request repeats safely, so a lost connection or a server that restarts costs time alone: requests are sent again until the server
//! has been away for longer than the client is patient.
//!
//! [`ClientKey`]: thex_runtime::ClientKey

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use thex_circuit::file::digest;
use ureq::http::Response;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, SendBody};

use crate::error::{Result, ServeError};
use crate::wire::{CircuitInfo, JobState, JobStatus, KeyStatus};

/// Longest wait for the server to say anything; it gives a sign of life more often than this.
const SILENCE: Duration = Duration::from_secs(60);
/// No answer in JSON is longer.
const JSON_BYTES: u64 = 64 << 20;
/// No bundle and no result is longer.
const FILE_BYTES: u64 = 8 << 30;

/// A server, as seen from a client.
pub struct Remote {
    agent: Agent,
    base: String,
    token: Option<String>,
    patience: Duration,
}

/// How to reach a server.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// `https://host:port`, or `http://` on the same machine.
    pub url: String,
    /// Bearer token.
    pub token: Option<String>,
    /// PEM certificates to trust in place of the public ones.
    pub authorities: Option<Vec<u8>>,
    /// How long the server may be away.
    pub patience: Duration,
}

fn parse_authorities(pem: &[u8]) -> Result<Vec<Certificate<'static>>> {
    let certificates = parse_pem(pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    });
    let list: std::result::Result<Vec<_>, _> = certificates.collect();
    match list {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) => Err(ServeError::Usage("the file of certificates to trust holds none".into())),
        Err(error) => Err(ServeError::Usage(format!("the file of certificates to trust is not usable: {error}"))),
    }
}

/// What a failure of the transport means.
fn transport(error: &ureq::Error) -> ServeError {
    ServeError::Unreachable(format!("the server cannot be reached: {error}"))
}

/// Whether the same request may succeed later.
fn passes(error: &ServeError) -> bool {
    match error {
        ServeError::Unreachable(_) => true,
        ServeError::Remote { status, .. } => matches!(status, 408 | 429 | 502 | 503 | 504 | 507),
        _ => false,
    }
}

impl Remote {
    /// Prepares; sends nothing.
    ///
    /// # Errors
    /// The URL or the certificates are none.
    pub fn new(access: Access) -> Result<Self> {
        let base = access.url.trim_end_matches('/').to_owned();
        if !(base.starts_with("https://") || base.starts_with("http://")) {
            return Err(ServeError::Usage(format!(
                "`{base}` is no URL of a server: it begins with https:// or http://"
            )));
        }
        let roots = match &access.authorities {
            Some(pem) => RootCerts::Specific(Arc::new(parse_authorities(pem)?)),
            None => RootCerts::WebPki,
        };
        let config = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .http_status_as_error(false)
            .max_redirects(0)
            // Less than the server keeps a silent connection.
            .max_idle_age(Duration::from_secs(5))
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .user_agent(concat!("thex/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self { agent: config.new_agent(), base, token: access.token, patience: access.patience })
    }

    /// One request; an answer that is no success is an error.
    fn send(&self, method: &str, path: &str, body: Option<(&Path, &'static str)>) -> Result<Response<Body>> {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let malformed = |e: ureq::http::Error| ServeError::Usage(format!("this is no request: {e}"));
        let answer = match body {
            None => self.agent.run(request.body(()).map_err(malformed)?),
            Some((path, kind)) => {
                let io = |source| thex_runtime::RuntimeError::Io { action: "read", path: path.to_owned(), source };
                let file = File::open(path).map_err(io)?;
                let length = file.metadata().map_err(io)?.len();
                let request = request
                    .header("Content-Type", kind)
                    .header("Content-Length", length)
                    // So that a refusal comes before the body is sent in vain.
                    .header("Expect", "100-continue");
                self.agent.run(request.body(SendBody::from_owned_reader(file)).map_err(malformed)?)
            }
        };
        let mut answer = answer.map_err(|e| transport(&e))?;
        match answer.status().is_success() {
            true => Ok(answer),
            false => {
                let body = answer.body_mut().with_config().limit(JSON_BYTES).read_to_vec().unwrap_or_default();
                Err(ServeError::remote(answer.status().as_u16(), &body))
            }
        }
    }

    /// Sends again what may succeed later, until patience ends.
    fn patiently<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        let (mut failing, mut pause) = (None, Duration::from_millis(200));
        loop {
            match work() {
                Err(error)
                    if passes(&error) && failing.get_or_insert_with(Instant::now).elapsed() + pause < self.patience =>
                {
                    tracing::warn!(%error, "trying again");
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
                outcome => return outcome,
            }
        }
    }

    fn json<T: DeserializeOwned>(&self, method: &str, path: &str) -> Result<T> {
        self.patiently(|| parse(self.send(method, path, None)?))
    }

    fn bytes(&self, path: &str) -> Result<Vec<u8>> {
        self.patiently(|| {
            let mut answer = self.send("GET", path, None)?;
            answer.body_mut().with_config().limit(FILE_BYTES).read_to_vec().map_err(|e| transport(&e))
        })
    }

    /// The circuits that it serves.
    ///
    /// # Errors
    /// It cannot be reached, or refuses.
    pub fn circuits(&self) -> Result<Vec<CircuitInfo>> {
        self.json("GET", "/v1/circuits")
    }

    /// The client bundle of a circuit.
    ///
    /// # Errors
    /// It cannot be reached, or has none.
    pub fn bundle(&self, circuit: &str) -> Result<Vec<u8>> {
        self.bytes(&format!("/v1/circuits/{circuit}/bundle"))
    }

    /// A server key, if it is registered.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub fn key(&self, digest: &str) -> Result<Option<KeyStatus>> {
        match self.json("GET", &format!("/v1/keys/{digest}")) {
            Ok(key) => Ok(Some(key)),
            Err(ServeError::Remote { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Registers a server key.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses the key.
    pub fn put_key(&self, digest: &str, path: &Path) -> Result<KeyStatus> {
        let body = Some((path, "application/octet-stream"));
        self.patiently(|| parse(self.send("PUT", &format!("/v1/keys/{digest}"), body)?))
    }

    /// Submits an encrypted input as a job; sent again, it is the same job.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses the job.
    pub fn submit(&self, id: &str, circuit: &str, key: &str, input: &Path) -> Result<JobStatus> {
        let path = format!("/v1/jobs/{id}?circuit={circuit}&key={key}");
        let body = Some((input, "application/octet-stream"));
        self.patiently(|| parse(self.send("PUT", &path, body)?))
    }

    /// All jobs, the newest first.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub fn jobs(&self) -> Result<Vec<JobStatus>> {
        self.json("GET", "/v1/jobs")
    }

    /// Where a job stands.
    ///
    /// # Errors
    /// The server cannot be reached, or has no such job.
    pub fn job(&self, id: &str) -> Result<JobStatus> {
        self.json("GET", &format!("/v1/jobs/{id}"))
    }

    /// Cancels a job.
    ///
    /// # Errors
    /// The server cannot be reached, or has no such job.
    pub fn cancel(&self, id: &str) -> Result<JobStatus> {
        self.json("PUT", &format!("/v1/jobs/{id}/cancel"))
    }

    /// Forgets a job that has ended.
    ///
    /// # Errors
    /// The server cannot be reached, has no such job, or it has not ended.
    pub fn forget(&self, id: &str) -> Result<()> {
        self.patiently(|| self.send("DELETE", &format!("/v1/jobs/{id}"), None).map(drop))
    }

    /// The encrypted result of a job that is done.
    ///
    /// # Errors
    /// The server cannot be reached, or has no result.
    pub fn result(&self, id: &str) -> Result<Vec<u8>> {
        self.bytes(&format!("/v1/jobs/{id}/result"))
    }

    /// The encrypted result of a job that has ended.
    ///
    /// # Errors
    /// The job failed or was cancelled, the server cannot be reached, or the result is not the one that it computed.
    pub fn outcome(&self, status: &JobStatus) -> Result<Vec<u8>> {
        let id = &status.id;
        let Some(result) = status.result.as_ref().filter(|_| status.state == JobState::Done) else {
            return Err(ended(status));
        };
        let bytes = self.result(id)?;
        if digest(&bytes) != result.digest {
            return Err(ServeError::Unreachable("the result was altered on its way: fetch it again".into()));
        }
        Ok(bytes)
    }

    /// Follows a job to its end, across lost connections and restarts of the server; `told` hears of every change.
    ///
    /// # Errors
    /// The server is away for too long, or has no such job.
    pub fn follow(&self, id: &str, mut told: impl FnMut(&JobStatus)) -> Result<JobStatus> {
        loop {
            let answer = self.patiently(|| self.send("GET", &format!("/v1/jobs/{id}/events"), None))?;
            let lines = BufReader::new(answer.into_body().into_with_config().limit(u64::MAX).reader()).lines();
            for line in lines {
                // A connection that is lost is opened again.
                let Ok(line) = line else { break };
                let Some(text) = line.strip_prefix("data: ") else { continue };
                let status: JobStatus = serde_json::from_str(text).map_err(|e| nonsense(&e))?;
                told(&status);
                if status.state.is_final() {
                    return Ok(status);
                }
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// The error of a job without a result.
fn ended(status: &JobStatus) -> ServeError {
    let id = &status.id;
    match &status.error {
        Some(error) => match ServeError::remote(500, &serde_json::to_vec(error).unwrap_or_default()) {
            ServeError::Remote { code, .. } => {
                ServeError::Remote { status: 500, code, message: format!("job {id} failed: {}", error.message) }
            }
            other => other,
        },
        None => ServeError::Conflict(format!("job {id} was {}", status.state.name())),
    }
}

/// The circuit of this name, or whose digest begins so, or the only one.
///
/// # Errors
/// None fits, or several do; it lists them.
pub fn choose(circuits: Vec<CircuitInfo>, wanted: Option<&str>) -> Result<CircuitInfo> {
    let names: Vec<String> = circuits.iter().map(|c| format!("{} ({})", c.name, &c.digest[..12])).collect();
    let fits = |c: &CircuitInfo| wanted.is_none_or(|w| c.name == w || (w.len() >= 6 && c.digest.starts_with(w)));
    let mut fitting: Vec<CircuitInfo> = circuits.into_iter().filter(fits).collect();
    match (fitting.pop(), fitting.is_empty()) {
        (Some(one), true) => Ok(one),
        _ => Err(ServeError::Usage(format!("choose one circuit by --model; the server has {}", names.join(", ")))),
    }
}

fn nonsense(error: &serde_json::Error) -> ServeError {
    ServeError::Unreachable(format!("the server does not answer as thex does ({error}); is the URL right?"))
}

fn parse<T: DeserializeOwned>(mut answer: Response<Body>) -> Result<T> {
    let mut body = Vec::new();
    let read = answer.body_mut().as_reader().take(JSON_BYTES).read_to_end(&mut body);
    read.map_err(|e| ServeError::Unreachable(format!("the answer broke off: {e}")))?;
    serde_json::from_slice(&body).map_err(|e| nonsense(&e))
}
