//! `thex client`: the round trip from the shell. Keys are made and kept here, plaintext never leaves.
//!
//! ```text
//! KEYS/DIGEST/model.client      the bundle of a circuit, as the server gave it or the user
//! KEYS/DIGEST/client.key        secret
//! KEYS/DIGEST/server.key
//! KEYS/DIGEST/jobs/ID.ct        an input that was submitted, until its result is here
//! ```

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use thex_circuit::ClientBundle;
use thex_circuit::file::write_atomic;
use thex_runtime::client::{self as crypto, Rounding};
use thex_runtime::commands::{Bar, KeygenArgs, check_key, keygen, print_outputs, rounding_note};
use thex_runtime::source::Source;
use thex_runtime::{ClientKey, EncryptedOutputs, Progress, RuntimeError};

use super::print_line;
use crate::client::{Access, Remote, choose};
use crate::error::{Result, ServeError};
use crate::sha;
use crate::wire::{CircuitInfo, JobState, JobStatus};

/// Use circuits on a server: keys and values stay here.
#[derive(Clone, Debug, Args)]
pub struct ClientArgs {
    /// The server, as `serve` prints it.
    #[arg(long, value_name = "URL")]
    pub server: String,
    /// File with a bearer token; without it, the environment's THEX_TOKEN is used.
    #[arg(long, value_name = "FILE")]
    pub token: Option<PathBuf>,
    /// Certificates (PEM) to trust in place of the public ones.
    #[arg(long, value_name = "CA.pem")]
    pub ca: Option<PathBuf>,
    /// How long the server may be away before the client gives up.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub patience: f64,
    /// What to do.
    #[command(subcommand)]
    pub command: ClientCommand,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum ClientCommand {
    /// Encrypt, submit, wait, fetch, decrypt; make keys and register them if that was not done yet.
    Predict(PredictArgs),
    /// Wait for a job that was submitted from here, and decrypt its result.
    Result(ResultArgs),
    /// List the server's circuits.
    Circuits,
    /// List your jobs.
    Jobs,
    /// Cancel a job.
    Cancel {
        /// Its id.
        id: String,
    },
}

/// How a result is shown.
#[derive(Clone, Debug, Args)]
pub struct Showing {
    /// Folder of keys.
    #[arg(long, value_name = "KEYS", default_value = "keys")]
    pub keys: PathBuf,
    /// One JSON object on standard output.
    #[arg(long)]
    pub json: bool,
    /// Do not round to the modelled precision. Raw results leak the key to whoever collects enough of them.
    #[arg(long)]
    pub raw: bool,
}

/// Arguments of `predict`.
#[derive(Clone, Debug, Args)]
pub struct PredictArgs {
    /// Name of the circuit, or the beginning of its digest; not needed if the server has one.
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// The client bundle, from whom you trust; the server's own if not given.
    #[arg(long, value_name = "OUT.client")]
    pub bundle: Option<PathBuf>,
    /// What to encrypt.
    #[command(flatten)]
    pub source: Source,
    /// Which sample of the data set, from 0.
    #[arg(long, value_name = "I", default_value_t = 0, conflicts_with_all = ["text", "image"])]
    pub sample: usize,
    /// Id of the job; sent again with the same id, it is the same job. The digest of the input if not given.
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// Do not wait: `client result ID` does.
    #[arg(long)]
    pub detach: bool,
    /// How the result is shown.
    #[command(flatten)]
    pub showing: Showing,
}

/// Arguments of `result`.
#[derive(Clone, Debug, Args)]
pub struct ResultArgs {
    /// Id of the job.
    pub id: String,
    /// How the result is shown.
    #[command(flatten)]
    pub showing: Showing,
}

fn read(path: &Path) -> impl Fn(std::io::Error) -> ServeError {
    move |source| RuntimeError::Io { action: "read", path: path.to_owned(), source }.into()
}

fn make(path: &Path) -> impl Fn(std::io::Error) -> ServeError {
    move |source| RuntimeError::Io { action: "write to", path: path.to_owned(), source }.into()
}

fn access(args: &ClientArgs) -> Result<Access> {
    let token = match &args.token {
        Some(path) => Some(std::fs::read_to_string(path).map_err(read(path))?.trim().to_owned()),
        None => std::env::var("THEX_TOKEN").ok(),
    };
    let authorities = args.ca.as_ref().map(|path| std::fs::read(path).map_err(read(path))).transpose()?;
    let patience = Duration::try_from_secs_f64(args.patience).unwrap_or_default();
    Ok(Access { url: args.server.clone(), token, authorities, patience })
}

/// Does what the arguments say.
///
/// # Errors
/// The server cannot be reached or refuses; a file is not usable; the job fails.
pub fn client(args: &ClientArgs) -> Result<()> {
    let remote = Remote::new(access(args)?)?;
    match &args.command {
        ClientCommand::Predict(predict_args) => predict(&remote, predict_args),
        ClientCommand::Result(result_args) => {
            let circuit = remote.job(&result_args.id)?.circuit;
            let home = Home::of(&result_args.showing.keys, &circuit);
            let bundle = ClientBundle::load(&home.bundle())?;
            finish(&remote, &home, &bundle, &result_args.id, &result_args.showing)
        }
        ClientCommand::Circuits => print_line(&circuits_table(&remote.circuits()?)),
        ClientCommand::Jobs => print_line(&jobs_table(&remote.jobs()?)),
        ClientCommand::Cancel { id } => print_line(&jobs_table(&[remote.cancel(id)?])),
    }
}

fn circuits_table(circuits: &[CircuitInfo]) -> String {
    let mut out = format!("{:<18}{:<12} {:<10}{:>9}  model", "name", "digest", "profile", "PBS");
    for c in circuits {
        let _ = write!(out, "\n{:<18}{:<12} {:<10}{:>9}  {}", c.name, &c.digest[..12], c.profile, c.pbs_count, c.model);
    }
    out
}

fn jobs_table(jobs: &[JobStatus]) -> String {
    let mut out = format!("{:<34}{:<11}{:>15}", "id", "state", "PBS");
    for job in jobs {
        let p = &job.progress;
        let _ =
            write!(out, "\n{:<34}{:<11}{:>15}", job.id, job.state.name(), format!("{}/{}", p.pbs_done, p.pbs_total));
        if let Some(error) = &job.error {
            let _ = write!(out, "  {}: {}", error.code, error.message);
        }
    }
    out
}

/// The files of one circuit in the folder of keys.
struct Home(PathBuf);

impl Home {
    fn of(keys: &Path, circuit: &str) -> Self {
        Self(keys.join(circuit.chars().take(16).collect::<String>()))
    }

    fn bundle(&self) -> PathBuf {
        self.0.join("model.client")
    }

    fn secret(&self) -> PathBuf {
        self.0.join("client.key")
    }

    fn public(&self) -> PathBuf {
        self.0.join("server.key")
    }

    fn pending(&self, id: &str) -> PathBuf {
        self.0.join("jobs").join(format!("{id}.ct"))
    }
}

/// The bundle of a circuit: the user's, the one that is here, or the server's.
fn fetch_bundle(remote: &Remote, home: &Home, circuit: &CircuitInfo, given: Option<&Path>) -> Result<ClientBundle> {
    let path = home.bundle();
    std::fs::create_dir_all(&home.0).map_err(make(&home.0))?;
    if let Some(given) = given {
        let bytes = std::fs::read(given).map_err(read(given))?;
        write_atomic(&path, &bytes, false)?;
    } else if !path.exists() {
        write_atomic(&path, &remote.bundle(&circuit.digest)?, false)?;
    }
    let bundle = ClientBundle::load(&path)?;
    if bundle.circuit == circuit.digest {
        return Ok(bundle);
    }
    let _ = std::fs::remove_file(&path);
    let (left, right) = ("the client bundle".to_owned(), format!("circuit `{}`", circuit.name));
    let reason = "it was compiled with another circuit; ask the server's owner for the right one".into();
    Err(RuntimeError::Mismatch { left, right, reason }.into())
}

/// Makes keys if there are none, and registers the server key if the server does not have it; its digest.
fn keys(remote: &Remote, home: &Home, bundle: &ClientBundle) -> Result<String> {
    let (secret, public) = (home.secret(), home.public());
    if !secret.exists() {
        keygen(&KeygenArgs { bundle: home.bundle(), output: home.0.clone(), seed: None })?;
    }
    check_key(&home.bundle(), bundle, &secret, &ClientKey::load(&secret)?.info)?;
    let digest = sha::file(&public).map_err(read(&public))?;
    if remote.key(&digest)?.is_none() {
        let bytes = std::fs::metadata(&public).map_err(read(&public))?.len();
        eprintln!("sending the server key, {}, once", HumanBytes(bytes));
        remote.put_key(&digest, &public)?;
    }
    Ok(digest)
}

/// Encrypts what is to be predicted; the id of the job and where the ciphertexts are. An id that was used before has its own already.
fn encrypt(home: &Home, bundle: &ClientBundle, args: &PredictArgs) -> Result<(String, PathBuf)> {
    let folder = home.0.join("jobs");
    std::fs::create_dir_all(&folder).map_err(make(&folder))?;
    if let Some(id) = &args.id {
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
            return Err(ServeError::Usage("the id of a job has letters, digits, `-` and `_`".into()));
        }
        let pending = home.pending(id);
        if pending.exists() {
            eprintln!("job {id} was submitted before: going on with it");
            return Ok((id.clone(), pending));
        }
    }
    let sample = args.source.read(bundle, args.sample)?;
    let (inputs, encoded) = crypto::encrypt(bundle, &ClientKey::load(&home.secret())?, &sample)?;
    for (name, count) in encoded.clamped.iter().filter(|(_, count)| *count > 0) {
        eprintln!("warning: {count} values of `{name}` lay outside the calibrated range and were clamped to it");
    }
    let fresh = folder.join(format!(".new-{}.ct", std::process::id()));
    inputs.save(&fresh)?;
    let id = match &args.id {
        Some(id) => id.clone(),
        None => sha::file(&fresh).map_err(read(&fresh))?.chars().take(32).collect(),
    };
    let path = home.pending(&id);
    std::fs::rename(&fresh, &path).map_err(make(&path))?;
    Ok((id, path))
}

fn predict(remote: &Remote, args: &PredictArgs) -> Result<()> {
    let circuit = choose(remote.circuits()?, args.model.as_deref())?;
    let home = Home::of(&args.showing.keys, &circuit.digest);
    let bundle = fetch_bundle(remote, &home, &circuit, args.bundle.as_deref())?;
    let key = keys(remote, &home, &bundle)?;
    let (id, input) = encrypt(&home, &bundle, args)?;
    let status = remote.submit(&id, &circuit.digest, &key, &input)?;
    if args.detach {
        eprintln!("job {id} is {}; `client result {id}` waits for it", status.state.name());
        return print_line(&id);
    }
    eprintln!("job {id}");
    finish(remote, &home, &bundle, &id, &args.showing)
}

/// Shows the events of a job: its place in the queue, then a bar.
#[derive(Default)]
struct Watching {
    bar: Option<Bar>,
    done: u64,
    place: Option<usize>,
}

impl Watching {
    fn tell(&mut self, status: &JobStatus) {
        if status.position != self.place {
            self.place = status.position;
            if let Some(place) = self.place {
                eprintln!("waiting: {place} jobs are run before this one");
            }
        }
        if status.state != JobState::Running {
            return;
        }
        let p = &status.progress;
        if p.pbs_done < self.done {
            // Started again from a checkpoint, or from the beginning.
            self.bar = None;
            self.done = 0;
        }
        let bar = self.bar.get_or_insert_with(|| Bar::new(p.pbs_total));
        bar.step(&p.step, p.pbs_total);
        bar.advance(p.pbs_done - self.done);
        self.done = p.pbs_done;
    }
}

/// Follows a job to its end, fetches its result, decrypts and shows it.
fn finish(remote: &Remote, home: &Home, bundle: &ClientBundle, id: &str, showing: &Showing) -> Result<()> {
    let mut watching = Watching::default();
    let status = remote.follow(id, |status| watching.tell(status))?;
    if let Some(bar) = &watching.bar {
        bar.finish();
    }
    if status.state != JobState::Done {
        let _ = std::fs::remove_file(home.pending(id));
    }
    let outputs = EncryptedOutputs::from_bytes(&remote.outcome(&status)?, &bundle.parameters)?;
    let rounding = if showing.raw { Rounding::Raw } else { Rounding::Modelled };
    let values = crypto::decrypt(bundle, &ClientKey::load(&home.secret())?, &outputs, rounding)?;
    eprintln!("{}", rounding_note(rounding));
    print_outputs(bundle, &values, rounding, showing.json)?;
    let _ = std::fs::remove_file(home.pending(id));
    Ok(())
}
