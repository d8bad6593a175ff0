//! The routes. Every answer is JSON, a file, or events; every failure is an [`ErrorBody`].
//!
//! Changes are `PUT` and `DELETE`, which repeat safely, and which a foreign web page cannot send without being asked first. Whatever touches
//! the disk runs on threads that may block.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, MatchedPath, Path, Query, Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Router, body};
use futures_util::stream;
use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;

use crate::engine::Engine;
use crate::error::{Result, ServeError};
use crate::openapi;
use crate::page;
use crate::sha::is_digest;
use crate::tokens::{ANYBODY, Tokens};
use crate::upload::{Limits, receive};
use crate::wire::{CircuitInfo, ErrorBody, Health, JobStatus, KeyStatus, Submission};

/// How often a stream of events looks for news.
const EVENT_TICK: Duration = Duration::from_millis(250);
/// A stream without news says that it lives, so often.
const EVENT_BEAT: Duration = Duration::from_secs(10);
/// Jobs in one list.
const LISTED: usize = 1000;

/// What handlers share.
pub struct Service {
    /// Jobs, keys, circuits.
    pub engine: Arc<Engine>,
    /// Who may ask; everybody if `None`.
    pub tokens: Option<Tokens>,
    /// How long a body may take: `bytes` is set by each route.
    pub patience: Limits,
    /// Turns true when the server shuts down.
    pub closing: watch::Receiver<bool>,
}

type Shared = State<Arc<Service>>;

/// All routes.
pub fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/", get(|| page::file("index.html")))
        .route("/app.js", get(|| page::file("app.js")))
        .route("/style.css", get(|| page::file("style.css")))
        .route("/icon.svg", get(|| page::file("icon.svg")))
        .route("/metrics", get(metrics))
        .route("/v1/health", get(health))
        .route("/v1/openapi.json", get(document))
        .route("/v1/circuits", get(circuits))
        .route("/v1/circuits/{digest}", get(circuit))
        .route("/v1/circuits/{digest}/bundle", get(bundle))
        .route("/v1/circuits/{digest}/report", get(report))
        .route("/v1/keys", get(keys))
        .route("/v1/keys/{digest}", get(key).put(put_key).delete(delete_key))
        .route("/v1/jobs", get(jobs))
        .route("/v1/jobs/{id}", get(job).put(submit).delete(forget))
        .route("/v1/jobs/{id}/cancel", put(cancel))
        .route("/v1/jobs/{id}/events", get(events))
        .route("/v1/jobs/{id}/result", get(result))
        .fallback(async || ServeError::NotFound("there is nothing under this path; see /v1/openapi.json".into()))
        .method_not_allowed_fallback(async || json(StatusCode::METHOD_NOT_ALLOWED, &wrong_method()))
        .layer(from_fn_with_state(Arc::clone(&service), around))
        .with_state(service)
}

fn wrong_method() -> ErrorBody {
    let message = "this path does not take this method; see /v1/openapi.json".to_owned();
    ErrorBody { code: "TX0011".into(), message }
}

impl IntoResponse for ServeError {
    fn into_response(self) -> Response {
        let status = self.status();
        if status.is_server_error() {
            tracing::error!(error = %self, code = self.code(), "request failed");
        }
        let mut response = json(status, &self.body());
        let headers = response.headers_mut();
        match self {
            Self::Denied(_) => headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            Self::Busy(_) | Self::Closing(_) | Self::Full(_) => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("5"))
            }
            _ => None,
        };
        response
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let text = serde_json::to_vec(value).unwrap_or_default();
    (status, [(CONTENT_TYPE, "application/json")], text).into_response()
}

fn ok(value: &impl Serialize) -> Response {
    json(StatusCode::OK, value)
}

/// Runs what may block elsewhere.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| ServeError::Internal(e.to_string()))?
}

/// Around every request: what browsers are told, what is counted and logged, and JSON where axum itself refused in plain text.
async fn around(State(service): Shared, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    if response.status().is_client_error() && !is_json(&response) {
        response = as_json(response).await;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(page::POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let (status, elapsed) = (response.status().as_u16(), start.elapsed());
    service.engine.metrics.request(method.as_str(), &route, status, elapsed);
    let milliseconds = elapsed.as_secs_f64() * 1e3;
    tracing::debug!(%method, path, status, milliseconds, "request");
    response
}

fn is_json(response: &Response) -> bool {
    response.headers().get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/json"))
}

async fn as_json(response: Response) -> Response {
    let status = response.status();
    let text = body::to_bytes(response.into_body(), 4096).await.unwrap_or_default();
    let message = String::from_utf8_lossy(&text).into_owned();
    json(status, &ErrorBody { code: "TX0011".into(), message })
}

/// Who asks.
pub(crate) struct Client(String);

impl FromRequestParts<Arc<Service>> for Client {
    type Rejection = ServeError;

    async fn from_request_parts(parts: &mut Parts, service: &Arc<Service>) -> Result<Self> {
        let Some(tokens) = &service.tokens else { return Ok(Self(ANYBODY.into())) };
        let given = parts.headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
        let token = given.and_then(|v| v.strip_prefix("Bearer ")).map(str::trim);
        let missing =
            || ServeError::Denied("this server asks for a bearer token: `Authorization: Bearer TOKEN`".into());
        tokens.client(token.ok_or_else(missing)?).map(Self)
    }
}

fn check_digest(text: &str) -> Result<()> {
    match is_digest(text) {
        true => Ok(()),
        false => Err(ServeError::Usage("a digest is the SHA-256 of a file, 64 lower-case hexadecimal digits".into())),
    }
}

fn check_id(id: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    match (1..=64).contains(&id.len()) && id.bytes().all(allowed) {
        true => Ok(()),
        false => Err(ServeError::Usage("the id of a job has 1 to 64 letters, digits, `-`, `_` or `.`".into())),
    }
}

/// How the service is. Needs no token.
#[utoipa::path(get, path = "/v1/health", responses((status = 200, body = Health)), security(()))]
pub(crate) async fn health(State(service): Shared) -> Response {
    let engine = &service.engine;
    let (queued, running) = engine.load();
    let closing = engine.closing();
    let health = Health {
        status: if closing { "closing" } else { "ok" }.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        circuits: engine.models.list().len(),
        queued,
        running,
        tokens: service.tokens.is_some(),
    };
    json(if closing { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }, &health)
}

async fn document() -> Response {
    (StatusCode::OK, [(CONTENT_TYPE, "application/json")], openapi::text()).into_response()
}

/// Counters in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, content_type = "text/plain")))]
pub(crate) async fn metrics(State(service): Shared, _client: Client) -> Result<Response> {
    let text = blocking(move || {
        let engine = &service.engine;
        Ok(engine.metrics.text(engine.load(), &engine.store.counts()?))
    });
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text.await?).into_response())
}

/// The circuits that are served.
#[utoipa::path(get, path = "/v1/circuits", responses((status = 200, body = Vec<CircuitInfo>)))]
pub(crate) async fn circuits(State(service): Shared, _client: Client) -> Response {
    ok(&service.engine.models.list())
}

/// One circuit.
#[utoipa::path(get, path = "/v1/circuits/{digest}", params(("digest" = String, Path)),
    responses((status = 200, body = CircuitInfo), (status = 404, body = ErrorBody)))]
pub(crate) async fn circuit(State(service): Shared, _client: Client, Path(digest): Path<String>) -> Result<Response> {
    Ok(ok(&service.engine.models.get(&digest)?.info))
}

/// The client bundle of a circuit: what its clients need to make keys, encrypt and decrypt.
#[utoipa::path(get, path = "/v1/circuits/{digest}/bundle", params(("digest" = String, Path)),
    responses((status = 200, body = [u8], content_type = "application/octet-stream"), (status = 404, body = ErrorBody)))]
pub(crate) async fn bundle(State(service): Shared, _client: Client, Path(digest): Path<String>) -> Result<Response> {
    let path = service.engine.models.get(&digest)?.bundle.clone();
    let missing =
        || ServeError::NotFound("this server has no client bundle of this circuit: ask whoever compiled it".into());
    send(path.ok_or_else(missing)?, "application/octet-stream").await
}

/// The compiler's report on a circuit, as JSON.
#[utoipa::path(get, path = "/v1/circuits/{digest}/report", params(("digest" = String, Path)),
    responses((status = 200, body = Object), (status = 404, body = ErrorBody)))]
pub(crate) async fn report(State(service): Shared, _client: Client, Path(digest): Path<String>) -> Result<Response> {
    let path = service.engine.models.get(&digest)?.report.clone();
    let missing = || ServeError::NotFound("this server has no report on this circuit".into());
    send(path.ok_or_else(missing)?, "application/json").await
}

/// The server keys that you registered.
#[utoipa::path(get, path = "/v1/keys", responses((status = 200, body = Vec<KeyStatus>)))]
pub(crate) async fn keys(State(service): Shared, Client(client): Client) -> Result<Response> {
    Ok(ok(&blocking(move || service.engine.store.keys(&client)).await?))
}

/// Whether you registered this server key.
#[utoipa::path(get, path = "/v1/keys/{digest}", params(("digest" = String, Path)),
    responses((status = 200, body = KeyStatus), (status = 404, body = ErrorBody)))]
pub(crate) async fn key(
    State(service): Shared,
    Client(client): Client,
    Path(digest): Path<String>,
) -> Result<Response> {
    Ok(ok(&blocking(move || service.engine.store.key(&client, &digest)).await?))
}

/// Registers a server key: the body is the file, the path its SHA-256.
#[utoipa::path(put, path = "/v1/keys/{digest}", params(("digest" = String, Path)),
    request_body(content = [u8], content_type = "application/octet-stream"),
    responses((status = 201, body = KeyStatus), (status = 200, description = "It was there.", body = KeyStatus),
        (status = 400, body = ErrorBody), (status = 408, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 429, body = ErrorBody), (status = 507, body = ErrorBody)))]
pub(crate) async fn put_key(
    State(service): Shared,
    Client(client): Client,
    Path(digest): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    check_digest(&digest)?;
    let (engine, name, wanted) = (Arc::clone(&service.engine), client.clone(), digest.clone());
    let limit = engine.models.key_limit();
    let there = blocking(move || match engine.store.key(&name, &wanted) {
        Ok(key) => Ok(Some(key)),
        Err(_) => engine.store.admit_key(&name, 0, engine.quotas()).map(|()| None),
    });
    if let Some(key) = there.await? {
        return Ok(ok(&key));
    }
    let received =
        receive(&headers, body, &service.engine.store.uploads(), Limits { bytes: limit, ..service.patience }).await?;
    let engine = Arc::clone(&service.engine);
    engine.metrics.received.fetch_add(received.bytes, std::sync::atomic::Ordering::Relaxed);
    let key = blocking(move || engine.register(&client, &digest, received)).await?;
    Ok(json(StatusCode::CREATED, &key))
}

/// Forgets a server key of yours.
#[utoipa::path(delete, path = "/v1/keys/{digest}", params(("digest" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(crate) async fn delete_key(
    State(service): Shared,
    Client(client): Client,
    Path(digest): Path<String>,
) -> Result<StatusCode> {
    blocking(move || service.engine.store.remove_key(&client, &digest)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Your jobs, the newest first; at most a thousand.
#[utoipa::path(get, path = "/v1/jobs", responses((status = 200, body = Vec<JobStatus>)))]
pub(crate) async fn jobs(State(service): Shared, Client(client): Client) -> Result<Response> {
    Ok(ok(&blocking(move || service.engine.jobs(&client, LISTED)).await?))
}

/// Where a job of yours stands.
#[utoipa::path(get, path = "/v1/jobs/{id}", params(("id" = String, Path)),
    responses((status = 200, body = JobStatus), (status = 404, body = ErrorBody)))]
pub(crate) async fn job(State(service): Shared, Client(client): Client, Path(id): Path<String>) -> Result<Response> {
    Ok(ok(&blocking(move || service.engine.status(&client, &id)).await?))
}

/// Submits a job under an id of your choice: the body is the encrypted input. Sent again, it is the same job.
#[utoipa::path(put, path = "/v1/jobs/{id}", params(("id" = String, Path), Submission),
    request_body(content = [u8], content_type = "application/octet-stream"),
    responses((status = 201, body = JobStatus), (status = 200, description = "It was there.", body = JobStatus),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 408, body = ErrorBody),
        (status = 409, description = "The id has another input.", body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 429, body = ErrorBody), (status = 503, body = ErrorBody),
        (status = 507, body = ErrorBody)))]
pub(crate) async fn submit(
    State(service): Shared,
    Client(client): Client,
    Path(id): Path<String>,
    wanted: std::result::Result<Query<Submission>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    check_id(&id)?;
    let missing = |e: QueryRejection| ServeError::Usage(format!("?circuit=DIGEST&key=DIGEST say what to run: {e}"));
    let Query(wanted) = wanted.map_err(missing)?;
    let limit = service.engine.models.get(&wanted.circuit)?.input_limit();
    let (engine, name, key, job) = (Arc::clone(&service.engine), client.clone(), wanted.key.clone(), id.clone());
    blocking(move || {
        engine.store.key(&name, &key)?;
        engine.store.admit_job(&name, &job, engine.quotas())
    })
    .await?;
    let received =
        receive(&headers, body, &service.engine.store.uploads(), Limits { bytes: limit, ..service.patience }).await?;
    let engine = Arc::clone(&service.engine);
    engine.metrics.received.fetch_add(received.bytes, std::sync::atomic::Ordering::Relaxed);
    let submitted = blocking(move || engine.submit(&client, &id, (&wanted.circuit, &wanted.key), received));
    let (status, new) = submitted.await?;
    Ok(json(if new { StatusCode::CREATED } else { StatusCode::OK }, &status))
}

/// Cancels a job that has not ended; one that has stays as it is.
#[utoipa::path(put, path = "/v1/jobs/{id}/cancel", params(("id" = String, Path)),
    responses((status = 200, body = JobStatus), (status = 404, body = ErrorBody)))]
pub(crate) async fn cancel(State(service): Shared, Client(client): Client, Path(id): Path<String>) -> Result<Response> {
    Ok(ok(&blocking(move || service.engine.cancel(&client, &id)).await?))
}

/// Forgets a job that has ended, with its result.
#[utoipa::path(delete, path = "/v1/jobs/{id}", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(crate) async fn forget(
    State(service): Shared,
    Client(client): Client,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    blocking(move || service.engine.store.forget(&client, &id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The encrypted result of a job that is done.
#[utoipa::path(get, path = "/v1/jobs/{id}/result", params(("id" = String, Path)),
    responses((status = 200, body = [u8], content_type = "application/octet-stream"), (status = 404, body = ErrorBody),
        (status = 409, description = "There is none, or none yet.", body = ErrorBody)))]
pub(crate) async fn result(State(service): Shared, Client(client): Client, Path(id): Path<String>) -> Result<Response> {
    let path = blocking(move || {
        let job = service.engine.store.job(&client, &id)?;
        match &job.status.result {
            Some(_) => Ok(service.engine.store.job_file(&job, "result.ct")),
            None => Err(ServeError::Conflict(format!("this job is {}: it has no result", job.status.state.name()))),
        }
    });
    send(path.await?, "application/octet-stream").await
}

/// Server-sent events: `progress` with a [`JobStatus`] whenever it changes, and `end` with the last one.
#[utoipa::path(get, path = "/v1/jobs/{id}/events", params(("id" = String, Path)),
    responses((status = 200, body = JobStatus, content_type = "text/event-stream"), (status = 404, body = ErrorBody)))]
pub(crate) async fn events(State(service): Shared, Client(client): Client, Path(id): Path<String>) -> Result<Response> {
    let (engine, who, which) = (Arc::clone(&service.engine), client.clone(), id.clone());
    blocking(move || engine.status(&who, &which)).await?;
    let watcher = Watcher { service, client, id, told: Instant::now(), last: None, over: false };
    let stream = stream::unfold(watcher, |mut watcher| async move {
        let text = watcher.next().await?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(text)), watcher))
    });
    let headers: [(HeaderName, &str); 1] = [(CONTENT_TYPE, "text/event-stream")];
    Ok((headers, Body::from_stream(stream)).into_response())
}

/// A stream of events about one job.
struct Watcher {
    service: Arc<Service>,
    client: String,
    id: String,
    told: Instant,
    last: Option<JobStatus>,
    over: bool,
}

impl Watcher {
    /// The next event, or a sign of life; `None` when there is nothing more to say.
    async fn next(&mut self) -> Option<String> {
        loop {
            if self.over || *self.service.closing.borrow() {
                return None;
            }
            if self.last.is_some() {
                tokio::time::sleep(EVENT_TICK).await;
            }
            let (engine, client, id) = (Arc::clone(&self.service.engine), self.client.clone(), self.id.clone());
            let status = blocking(move || engine.status(&client, &id)).await.ok()?;
            if self.last.as_ref() != Some(&status) {
                return Some(self.tell(status));
            }
            if self.told.elapsed() > EVENT_BEAT {
                self.told = Instant::now();
                return Some(":\n\n".into());
            }
        }
    }

    fn tell(&mut self, status: JobStatus) -> String {
        self.over = status.state.is_final();
        self.told = Instant::now();
        let name = if self.over { "end" } else { "progress" };
        let text = serde_json::to_string(&status).unwrap_or_default();
        self.last = Some(status);
        format!("event: {name}\ndata: {text}\n\n")
    }
}

/// Streams a file.
async fn send(path: PathBuf, kind: &'static str) -> Result<Response> {
    let gone = |e: std::io::Error| ServeError::Internal(format!("cannot read `{}`: {e}", path.display()));
    let file = tokio::fs::File::open(&path).await.map_err(gone)?;
    let length = file.metadata().await.map_err(gone)?.len();
    let chunks = stream::unfold(file, |mut file| async move {
        let mut chunk = Vec::with_capacity(256 << 10);
        match (&mut file).take(256 << 10).read_to_end(&mut chunk).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(Bytes::from(chunk)), file)),
            Err(error) => Some((Err(error), file)),
        }
    });
    let headers = [(CONTENT_TYPE, HeaderValue::from_static(kind)), (CONTENT_LENGTH, HeaderValue::from(length))];
    Ok((headers, Body::from_stream(chunks)).into_response())
}
