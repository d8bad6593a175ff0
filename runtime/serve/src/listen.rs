//! Sockets: accepting, TLS, time limits, and an end that loses nothing.
//!
//! axum's own `serve` has none of these limits, so the loop is here: so many connections at most, so long for the handshake, so long for
//! the header of a request, so long without a byte written. Limits on bodies that are read are [`upload`](crate::upload)'s.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tower_service::Service;

use crate::error::{Result, ServeError};

/// Connections at once.
const CONNECTIONS: usize = 2048;
/// Longest TLS handshake, and longest wait for the header of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// What is under way when the server shuts down may take so long.
const GRACE: Duration = Duration::from_secs(10);
/// Bytes of a request's header, and of one read of its body.
const BUFFER_BYTES: usize = 64 << 10;

/// A certificate chain and its key, as PEM files, for TLS 1.2 and 1.3.
///
/// # Errors
/// A file is not usable, or they do not belong together.
pub fn tls(certificates: &Path, key: &Path) -> Result<TlsAcceptor> {
    let unusable = |path: &Path, e: &dyn std::fmt::Display| {
        ServeError::Usage(format!("`{}` is not a usable PEM file for TLS: {e}", path.display()))
    };
    let chain: std::result::Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(certificates).map_err(|e| unusable(certificates, &e))?.collect();
    let chain = chain.map_err(|e| unusable(certificates, &e))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| unusable(key, &e))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
        .map_err(|e| unusable(certificates, &e))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves connections until `closing` turns true; then lets those under way end, for a while.
pub struct Listener {
    /// Where they come in.
    pub listener: TcpListener,
    /// What answers.
    pub router: Router,
    /// TLS, if it is wanted.
    pub tls: Option<TlsAcceptor>,
    /// Longest time in which a client takes no byte of an answer.
    pub idle: Duration,
    /// Turns true when the server shuts down.
    pub closing: watch::Receiver<bool>,
}

impl Listener {
    /// Serves.
    pub async fn run(self) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut closing = self.closing.clone();
        let shared = Arc::new(self);
        loop {
            let Ok(place) = Arc::clone(&room).acquire_owned().await else { break };
            let accepted = match either(shared.listener.accept(), closed(&mut closing)).await {
                Either::Left(accepted) => accepted,
                Either::Right(_) => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let shared = Arc::clone(&shared);
                    tokio::spawn(async move {
                        shared.connection(stream, peer).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    // Mostly too many open files: those that are open will close.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
        let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
        if timeout(GRACE, room.acquire_many(all)).await.is_err() {
            tracing::warn!("some connections were still open at the end");
        }
    }

    async fn connection(&self, stream: TcpStream, peer: SocketAddr) {
        let _ = stream.set_nodelay(true);
        let stream = Patient::new(stream, self.idle);
        let Some(tls) = &self.tls else { return self.http(stream, peer).await };
        match timeout(HANDSHAKE, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.http(stream, peer).await,
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
        }
    }

    async fn http(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: SocketAddr) {
        let router = self.router.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let mut router = router.clone();
            async move { Ok::<_, Infallible>(router.call(request.map(Body::new)).await.unwrap_or_else(|e| match e {})) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HANDSHAKE)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut closing = self.closing.clone();
        let ended = match either(connection.as_mut(), closed(&mut closing)).await {
            Either::Left(ended) => ended,
            Either::Right(_) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "connection ended");
        }
    }
}

/// Until the server shuts down.
async fn closed(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|c| *c).await;
}

enum Either<A, B> {
    Left(A),
    Right(B),
}

/// Whichever is ready first; the first one wins a tie.
async fn either<A: Future, B: Future>(a: A, b: B) -> Either<A::Output, B::Output> {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    std::future::poll_fn(move |cx| {
        if let Poll::Ready(x) = a.as_mut().poll(cx) {
            return Poll::Ready(Either::Left(x));
        }
        b.as_mut().poll(cx).map(Either::Right)
    })
    .await
}

/// A socket that gives up when its peer takes no byte for too long: nobody holds an answer open by not reading it.
struct Patient {
    inner: TcpStream,
    idle: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(inner: TcpStream, idle: Duration) -> Self {
        Self { inner, idle, deadline: None }
    }

    /// Passes on what a write said; fails if it has been waiting for too long.
    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.deadline = None;
            return written;
        }
        let idle = self.idle;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(idle)));
        match deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
