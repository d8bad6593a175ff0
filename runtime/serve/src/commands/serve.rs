//! `thex serve`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use thex_runtime::checkpoint::EVERY;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::print_line;
use crate::api::{Service, router};
use crate::engine::{Engine, Settings};
use crate::error::{Result, ServeError};
use crate::listen::{Listener, tls};
use crate::logs::{self, LogFormat};
use crate::models::Models;
use crate::store::{Quotas, Store};
use crate::tokens::Tokens;
use crate::upload::Limits;

/// Serve circuits over HTTP: clients register server keys, submit encrypted inputs and fetch encrypted results.
///
/// There is a web page at the address itself, and an OpenAPI document at /v1/openapi.json. Jobs survive crashes and restarts.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Folder with OUT.circuit files, and OUT.client and OUT.report.json beside them.
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
    /// Folder for keys, jobs and their database; made if there is none.
    #[arg(long, value_name = "DIR", default_value = "thex-data")]
    pub data: PathBuf,
    /// Address and port; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7843")]
    pub listen: String,
    /// Bearer tokens that are accepted, as `token` writes them; read again when it changes.
    #[arg(long, value_name = "TOKENS.json")]
    pub tokens: Option<PathBuf>,
    /// Serve whoever comes, without tokens, on addresses that other machines reach.
    #[arg(long, conflicts_with = "tokens")]
    pub open: bool,
    /// Certificate chain (PEM), for https.
    #[arg(long, value_name = "CERT.pem", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, value_name = "KEY.pem", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Jobs at work at once.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: u16,
    /// Threads of each job; as many as there are processors if not given.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub threads: usize,
    /// Server keys that stay expanded in memory, some 400 MB each.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub keys_in_memory: usize,
    /// Unfinished jobs, of all clients.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub queue: usize,
    /// Unfinished jobs of one client.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub client_jobs: usize,
    /// Server keys of one client.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub client_keys: usize,
    /// Room for keys, inputs and results.
    #[arg(long, value_name = "GB", default_value_t = 20.0)]
    pub storage: f64,
    /// How long results are kept.
    #[arg(long, value_name = "HOURS", default_value_t = 168.0)]
    pub keep: f64,
    /// Time between checkpoints of a job at work.
    #[arg(long, value_name = "SECONDS", default_value_t = EVERY.as_secs_f64())]
    pub checkpoint_every: f64,
    /// How long a client may be silent in the middle of a request or an answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    pub idle: f64,
    /// Form of the log on standard error.
    #[arg(long, value_enum, default_value = "text")]
    pub log: LogFormat,
}

/// Bytes a second that an upload must reach on average.
const SLOWEST: u64 = 16 << 10;

impl ServeArgs {
    fn settings(&self) -> Settings {
        let quotas = Quotas {
            queue: self.queue,
            client_jobs: self.client_jobs,
            client_keys: self.client_keys,
            storage: (self.storage.max(0.0) * 1e9) as u64,
        };
        Settings {
            quotas,
            workers: usize::from(self.workers),
            threads: self.threads,
            keys_in_memory: self.keys_in_memory,
            checkpoint_every: Duration::try_from_secs_f64(self.checkpoint_every).unwrap_or(EVERY),
            keep: self.keep.max(0.0) * 3600.0,
        }
    }

    fn idle(&self) -> Duration {
        Duration::try_from_secs_f64(self.idle).unwrap_or(Duration::from_secs(30))
    }

    fn address(&self) -> Result<SocketAddr> {
        let unusable = |reason: String| ServeError::Usage(format!("cannot listen on `{}`: {reason}", self.listen));
        let mut found = self.listen.to_socket_addrs().map_err(|e| unusable(e.to_string()))?;
        let address = found.next().ok_or_else(|| unusable("it is no address of this machine".into()))?;
        if !address.ip().is_loopback() && self.tokens.is_none() && !self.open {
            return Err(unusable(
                "other machines reach it, and everybody could use it: give --tokens, or --open".into(),
            ));
        }
        if !address.ip().is_loopback() && self.tls_cert.is_none() {
            tracing::warn!(
                "without --tls-cert, tokens and traffic can be read on the way; ciphertexts stay secret even so"
            );
        }
        Ok(address)
    }
}

/// Serves until SIGINT or SIGTERM; jobs at work then wait for the next start.
///
/// # Errors
/// The circuits, the folder of data, the tokens, the certificate or the address is not usable.
pub fn serve(args: &ServeArgs) -> Result<()> {
    logs::init(args.log);
    let address = args.address()?;
    let acceptor = args.tls_cert.as_ref().zip(args.tls_key.as_ref()).map(|(cert, key)| tls(cert, key)).transpose()?;
    let tokens = args.tokens.as_deref().map(Tokens::load).transpose()?;
    let engine = Engine::new(Models::load(&args.folder)?, Store::open(&args.data)?, args.settings())?;
    let failed = |e: std::io::Error| ServeError::Internal(format!("cannot start the server: {e}"));
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(failed)?;
    let (close, closing) = watch::channel(false);
    let unusable = |e| ServeError::Usage(format!("cannot listen on `{}`: {e}", args.listen));
    let listener = runtime.block_on(TcpListener::bind(address)).map_err(unusable)?;
    let address = listener.local_addr().map_err(failed)?;
    let patience = Limits { bytes: 0, idle: args.idle(), slowest: SLOWEST };
    let service = Service { engine: Arc::clone(&engine), tokens, patience, closing: closing.clone() };
    let router = router(Arc::new(service));
    on_signals(&runtime, &engine, close)?;
    let threads = engine.start()?;
    let scheme = if acceptor.is_some() { "https" } else { "http" };
    let (waiting, _) = engine.load();
    tracing::info!(circuits = engine.models.list().len(), waiting, %address, "serving");
    print_line(&format!("{scheme}://{address}"))?;
    runtime.block_on(Listener { listener, router, tls: acceptor, idle: args.idle(), closing }.run());
    for thread in threads {
        let _ = thread.join();
    }
    runtime.shutdown_timeout(Duration::from_secs(1));
    tracing::info!("closed");
    Ok(())
}

/// The first SIGINT or SIGTERM closes, the second ends at once: nothing is lost by that either.
fn on_signals(runtime: &Runtime, engine: &Arc<Engine>, close: watch::Sender<bool>) -> Result<()> {
    let engine = Arc::clone(engine);
    let _inside = runtime.enter();
    let failed = |e: std::io::Error| ServeError::Internal(format!("cannot listen to signals: {e}"));
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let (mut signals, engine, close) = (signal(kind).map_err(failed)?, Arc::clone(&engine), close.clone());
        runtime.spawn(async move {
            signals.recv().await;
            tracing::info!("closing: a job at work goes on at the next start");
            engine.close();
            let _ = close.send(true);
            signals.recv().await;
            std::process::exit(130);
        });
    }
    Ok(())
}
