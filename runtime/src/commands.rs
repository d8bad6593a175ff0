//! The commands that both programs, `thex` and `thex-runtime`, offer: their arguments and what they do.
//!
//! Results that a program may read go to standard output; everything else goes to standard error. What
//! cannot be written is found before the long work starts.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use thex_circuit::{Circuit, ClientBundle};

use crate::calibrate::thread_pool;
use crate::checkpoint::{Checkpoint, EVERY, Identity};
use crate::ciphertext::{CiphertextInfo, EncryptedInputs, EncryptedOutputs};
use crate::client::{self, Named, Rounding};
use crate::container::check_writable;
use crate::error::{Result, RuntimeError};
use crate::executor::{Backend, CpuBackend, Executor};
use crate::inference::belong;
use crate::keys::{self, ClientKey, KeyInfo, ServerKey, same_circuit, same_key};
use crate::labels::{self, Classified};
use crate::memory::{self, Limit, Prediction, parse_bytes};
use crate::progress::{Progress, Resumed, Silent};
use crate::ranks::{Exchange, RankedBackend};
use crate::run::{PART, Run, RunOptions};
use crate::share::{self, Sharing};
use crate::source::Source;

/// Generate a client key (secret) and a server key for a compiled model.
#[derive(Clone, Debug, Args)]
pub struct KeygenArgs {
    /// The client bundle that `compile` wrote.
    #[arg(value_name = "OUT.client")]
    pub bundle: PathBuf,
    /// Folder for `client.key` and `server.key`; made if there is none.
    #[arg(short, long, value_name = "KEYS")]
    pub output: PathBuf,
    /// Reproducible keys, for tests only: whoever knows the seed has the secret key.
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
}

/// Encrypt one sample of a data set, a text or a picture.
#[derive(Clone, Debug, Args)]
pub struct EncryptArgs {
    /// The client bundle that `compile` wrote.
    #[arg(value_name = "OUT.client")]
    pub bundle: PathBuf,
    /// The client key.
    #[arg(long, value_name = "KEYS/client.key")]
    pub key: PathBuf,
    /// What to encrypt.
    #[command(flatten)]
    pub source: Source,
    /// Which sample of the data set, from 0.
    #[arg(long, value_name = "I", default_value_t = 0, conflicts_with_all = ["text", "image"])]
    pub sample: usize,
    /// File for the ciphertexts.
    #[arg(short, long, value_name = "IN.ct")]
    pub output: PathBuf,
}

/// Run a circuit on ciphertexts. Needs no secret.
///
/// With --checkpoint, a run that was killed, or stopped with Ctrl-C, goes on when the same command is given again, and ends with
/// the same bytes as one that was not (on processors of the same type). At most a minute of work is lost.
///
/// In programs that were built with the feature `mpi`, `mpirun -n 8 thex run …` shares the run among 8 processes, on one machine or
/// many (docs/MPI.md).
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The circuit that `compile` wrote.
    #[arg(value_name = "OUT.circuit")]
    pub circuit: PathBuf,
    /// The server key.
    #[arg(long, value_name = "KEYS/server.key")]
    pub key: PathBuf,
    /// The ciphertexts that `encrypt` wrote.
    #[arg(long, value_name = "IN.ct")]
    pub input: PathBuf,
    /// File for the encrypted result.
    #[arg(short, long, value_name = "OUT.ct")]
    pub output: PathBuf,
    /// Threads, of each rank under `mpirun`; as many as there are processors, or the rank's part of them, if not given.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub threads: usize,
    /// Keep the run in this folder, one for each run, and go on with what it has. It is made if there is none, and removed after
    /// success. It holds ciphertexts and public digests, nothing secret, and takes up to twice the room of the live ciphertexts.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    /// Seconds between checkpoints.
    #[arg(long, value_name = "S", default_value_t = EVERY.as_secs_f64(), value_parser = parse_seconds, requires = "checkpoint")]
    pub checkpoint_every: f64,
    /// Memory that the run may take, for example 2GB: one that needs more is refused before it starts. All that the machine has if not
    /// given. `thex inspect` says what a circuit needs.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub memory: Option<u64>,
    /// Where the circuit runs.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub backend: Device,
}

/// What runs a circuit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU; in programs that were built with the feature `cuda`.
    Cuda,
}

impl RunArgs {
    /// A run that is not kept, on all processors, in whatever memory there is.
    #[must_use]
    pub fn new(circuit: PathBuf, key: PathBuf, input: PathBuf, output: PathBuf) -> Self {
        let checkpoint_every = EVERY.as_secs_f64();
        Self {
            circuit,
            key,
            input,
            output,
            threads: 0,
            checkpoint: None,
            checkpoint_every,
            memory: None,
            backend: Device::Cpu,
        }
    }
}

fn parse_seconds(text: &str) -> std::result::Result<f64, String> {
    let seconds = text.parse::<f64>().ok().filter(|s| (0.0..=3600.0).contains(s));
    seconds.ok_or_else(|| format!("`{text}` is no number of seconds between 0 and 3600"))
}

/// Decrypt a result.
#[derive(Clone, Debug, Args)]
pub struct DecryptArgs {
    /// The client bundle that `compile` wrote.
    #[arg(value_name = "OUT.client")]
    pub bundle: PathBuf,
    /// The client key.
    #[arg(long, value_name = "KEYS/client.key")]
    pub key: PathBuf,
    /// The result that `run` wrote.
    #[arg(long, value_name = "OUT.ct")]
    pub input: PathBuf,
    /// One JSON object on standard output.
    #[arg(long)]
    pub json: bool,
    /// Do not round to the modelled precision. Raw results leak the key to whoever collects enough of them.
    #[arg(long)]
    pub raw: bool,
    /// Add noise, so that the result may be shown to others with BITS bits of statistical security (30 if not given). Refused
    /// where nothing of the result would be left.
    #[arg(long, value_name = "BITS", num_args = 0..=1, require_equals = true, default_missing_value = "30", conflicts_with = "raw",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(share::MAX_BITS)))]
    pub share: Option<u32>,
    /// How many results under this key will be shown to others in all: --share adds the more noise.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "share", value_parser = clap::value_parser!(u32).range(1..))]
    pub shared_results: u32,
}

fn label(path: &Path) -> String {
    format!("`{}`", path.display())
}

fn size_of(path: &Path) -> String {
    std::fs::metadata(path).map_or_else(|_| "?".into(), |m| HumanBytes(m.len()).to_string())
}

fn io(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> RuntimeError {
    move |source| RuntimeError::Io { action, path: path.to_owned(), source }
}

/// Generates keys for a bundle.
///
/// # Errors
/// The bundle is not usable, the folder cannot be written, or has a client key already.
pub fn keygen(args: &KeygenArgs) -> Result<()> {
    let bundle = ClientBundle::load(&args.bundle)?;
    let (secret, public) = keys::new_folder(&args.output)?;
    if args.seed.is_some() {
        eprintln!("warning: keys from --seed are no secret; use them for tests only");
    }
    let start = Instant::now();
    let (client, server) = keys::generate(&bundle, args.seed.map(u128::from))?;
    server.save(&public)?;
    client.save(&secret)?;
    eprintln!(
        "keys {} in {:.1} s: {} (secret, keep it) {}, {} (give it to the server) {}",
        client.info.id,
        start.elapsed().as_secs_f64(),
        label(&secret),
        size_of(&secret),
        label(&public),
        size_of(&public),
    );
    Ok(())
}

/// Checks that a key was generated for a bundle.
///
/// # Errors
/// [`RuntimeError::Mismatch`] that names both files.
pub fn check_key(bundle_path: &Path, bundle: &ClientBundle, key_path: &Path, info: &KeyInfo) -> Result<()> {
    let advice = "generate keys for this model with `keygen`, or use the bundle that they were generated for";
    same_circuit(&label(bundle_path), &bundle.circuit, &label(key_path), &info.circuit, advice)?;
    if bundle.parameters != info.parameters {
        return Err(RuntimeError::Mismatch {
            left: label(bundle_path),
            right: label(key_path),
            reason: "they have different parameters; generate keys for this model".into(),
        });
    }
    Ok(())
}

/// Checks that a client key and a server key were generated together.
///
/// # Errors
/// [`RuntimeError::Mismatch`] that names both files.
pub fn check_pair(client_path: &Path, client: &KeyInfo, server_path: &Path, server: &KeyInfo) -> Result<()> {
    let advice = "use the two keys that one `keygen` wrote";
    same_key(&label(client_path), &client.id, &label(server_path), &server.id, advice)
}

/// Encrypts one sample, text or picture.
///
/// # Errors
/// A file is not usable, files do not belong together, or the data is not what the model takes.
pub fn encrypt(args: &EncryptArgs) -> Result<()> {
    check_writable(&args.output)?;
    let bundle = ClientBundle::load(&args.bundle)?;
    let key = ClientKey::load(&args.key)?;
    check_key(&args.bundle, &bundle, &args.key, &key.info)?;
    let sample = args.source.read(&bundle, args.sample)?;
    let (inputs, encoded) = client::encrypt(&bundle, &key, &sample)?;
    inputs.save(&args.output)?;
    for (name, count) in encoded.clamped.iter().filter(|(_, count)| *count > 0) {
        eprintln!("warning: {count} values of `{name}` lay outside the calibrated range and were clamped to it");
    }
    eprintln!("{} ciphertexts in {}, {}", encoded.phases.len(), label(&args.output), size_of(&args.output));
    Ok(())
}

/// Progress on standard error: a bar on a terminal, a line every half a minute elsewhere.
pub struct Bar {
    bar: ProgressBar,
    start: Instant,
    /// Blind rotations that an earlier run did.
    before: AtomicU64,
    /// When the last line was written; `None` on a terminal.
    line: Option<Mutex<Instant>>,
}

/// Time between lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

impl Bar {
    /// A bar for `total` blind rotations.
    #[must_use]
    pub fn new(total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        let template = "{wide_bar} {pos}/{len} PBS, {per_sec}, {eta} left  {msg:30!}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let start = Instant::now();
        let line = (!std::io::stderr().is_terminal()).then(|| Mutex::new(start));
        if line.is_none() {
            bar.enable_steady_tick(Duration::from_millis(500));
        }
        Self { bar, start, before: AtomicU64::new(0), line }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Writes a line if it is time.
    fn tell(&self, last: &Mutex<Instant>) {
        let Ok(mut last) = last.try_lock() else { return };
        if last.elapsed() < LINE_EVERY {
            return;
        }
        *last = Instant::now();
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let now = done.saturating_sub(self.before.load(Ordering::Relaxed));
        let rate = now as f64 / self.start.elapsed().as_secs_f64();
        let left = total.saturating_sub(done) as f64 / rate.max(1e-9);
        eprintln!("{done}/{total} PBS, {rate:.0}/s, about {left:.0} s left");
    }
}

impl Progress for Bar {
    fn step(&self, name: &str, total: u64) {
        self.bar.set_length(total);
        self.bar.set_message(name.to_owned());
    }

    fn advance(&self, count: u64) {
        self.bar.inc(count);
        if let Some(last) = &self.line {
            self.tell(last);
        }
    }

    fn resumed(&self, resumed: &Resumed) {
        self.before.store(resumed.done, Ordering::Relaxed);
        self.bar.set_position(resumed.done);
        self.bar.reset_eta();
        let total = self.bar.length().unwrap_or(0);
        self.bar.suspend(|| {
            resumed.damaged.iter().for_each(|reason| eprintln!("warning: checkpoint {reason}"));
            match resumed.done {
                0 => eprintln!("no usable checkpoint: starting anew"),
                done => eprintln!("resumed from the checkpoint at {done} of {total} PBS"),
            }
        });
    }
}

/// Refuses a run that does not fit into memory, and warns of one that does not fit at the moment. So many processes share the machine.
fn check_memory(args: &RunArgs, circuit: &Circuit, threads: usize, sharers: usize) -> Result<()> {
    let (prediction, sharers) = (Prediction::new(circuit, threads), sharers as u64);
    let machine = || memory::of_machine().map(|bytes| Limit::Machine(bytes / sharers));
    let limit = args.memory.map(Limit::Given).or_else(machine);
    limit.map_or(Ok(()), |limit| prediction.check(limit))?;
    let needed = prediction.peak() * sharers;
    if let Some(free) = memory::available().filter(|&free| free < needed) {
        let (needed, free) = (HumanBytes(needed), HumanBytes(free));
        eprintln!("warning: the run needs about {needed} of memory, and {free} are free at the moment");
    }
    Ok(())
}

/// A flag that the first SIGINT or SIGTERM sets. The second ends the process at once.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let set = flag::register_conditional_shutdown(signal, 128 + signal, stop.clone())
            .and_then(|_| flag::register(signal, stop.clone()));
        set.map_err(|e| RuntimeError::Internal(format!("cannot listen to signal {signal}: {e}")))?;
    }
    Ok(stop)
}

/// What a run needs, read and checked.
struct Prepared {
    pool: rayon::ThreadPool,
    circuit: Circuit,
    input: EncryptedInputs,
    key: ServerKey,
    info: CiphertextInfo,
    checkpoint: Option<Checkpoint>,
}

/// Where a run takes place.
#[derive(Clone, Copy)]
struct Seat {
    /// Threads; 0 is one for each processor.
    threads: usize,
    /// Processes of the run on this machine.
    neighbours: usize,
    /// Whether this process speaks for the run: it keeps checkpoints, writes the result, and tells of both.
    first: bool,
}

impl Prepared {
    fn identity(&self) -> Identity {
        Identity { circuit: self.info.circuit.clone(), key: self.key.digest(), input: self.input.digest() }
    }

    /// Opens the folder of checkpoints.
    fn keep_in(mut self, folder: &Path, identity: Identity, args: &RunArgs) -> Result<Self> {
        let every = Duration::from_secs_f64(args.checkpoint_every);
        self.checkpoint = Some(Checkpoint::open(folder, identity, every)?);
        Ok(self)
    }
}

/// Reads what a run needs.
fn prepare(args: &RunArgs, seat: Seat) -> Result<Prepared> {
    if seat.first {
        check_writable(&args.output)?;
    }
    let pool = thread_pool(seat.threads)?;
    let (circuit, digest) = Circuit::load(&args.circuit)?;
    check_memory(args, &circuit, pool.current_num_threads(), seat.neighbours)?;
    let input = EncryptedInputs::load(&args.input)?;
    let key = ServerKey::load(&args.key)?;
    let names = [label(&args.circuit), label(&args.key), label(&args.input)];
    let info = belong(names.each_ref().map(String::as_str), &circuit, &digest, &key.info, &input.info)?;
    Ok(Prepared { pool, circuit, input, key, info, checkpoint: None })
}

/// Runs a circuit on ciphertexts, in this process or, where `mpirun` started several, in all of them.
///
/// # Errors
/// A file is not usable, files do not belong together, the run does not fit into memory, or was stopped.
pub fn run(args: &RunArgs) -> Result<()> {
    if let Some(result) = ranked::run(args) {
        return result;
    }
    let mut prepared = prepare(args, Seat { threads: args.threads, neighbours: 1, first: true })?;
    if let Some(folder) = &args.checkpoint {
        let identity = prepared.identity();
        prepared = prepared.keep_in(folder, identity, args)?;
    }
    let start = Instant::now();
    let (pbs, threads) = (prepared.circuit.pbs_count(), prepared.pool.current_num_threads());
    execute(args, prepared, None)?;
    tell_result(args, pbs, &format!("{threads} threads"), start);
    Ok(())
}

fn tell_result(args: &RunArgs, pbs: u64, what: &str, start: Instant) {
    eprintln!(
        "{pbs} PBS on {what} in {} ({:.1} s); result in {}, {}",
        HumanDuration(start.elapsed()),
        start.elapsed().as_secs_f64(),
        label(&args.output),
        size_of(&args.output),
    );
}

/// The ranks of a shared run, and how many threads each has.
type Ranks<'a> = (&'a dyn Exchange, Vec<usize>);

/// Runs; the first rank saves, and only then lets the checkpoint go.
fn execute(args: &RunArgs, prepared: Prepared, ranks: Option<Ranks<'_>>) -> Result<()> {
    let Prepared { pool, circuit, input, key, info, checkpoint } = prepared;
    let first = ranks.as_ref().is_none_or(|(exchange, _)| exchange.rank() == 0);
    let save = |lwes| if first { EncryptedOutputs { info, lwes }.save(&args.output) } else { Ok(()) };
    pool.install(|| {
        let stop = args.checkpoint.as_ref().map(|_| stop_on_signals()).transpose()?;
        let inner = backend(key, args.backend)?;
        let ranked = ranks.map(|(exchange, threads)| RankedBackend::new(&*inner, exchange, threads));
        let backend = ranked.as_ref().map_or(&*inner, |ranked| ranked as &dyn Backend);
        let executor = Executor::new(&circuit, backend)?;
        let inputs = input.expand(&circuit.parameters)?;
        let bar = if first { Some(Bar::new(circuit.pbs_count())) } else { None };
        let progress = bar.as_ref().map_or(&Silent as &dyn Progress, |bar| bar);
        let finish = || bar.as_ref().into_iter().for_each(Bar::finish);
        if stop.is_none() {
            let outputs = executor.run(&inputs, progress);
            finish();
            tell_summary(backend, first);
            return save(outputs?);
        }
        let part = checkpoint.as_ref().map_or(PART, |c| PART.min(c.every()));
        let options = RunOptions { stop: stop.as_deref(), checkpoint, part, ..RunOptions::new(progress) };
        let mut run = Run::new(&executor, &inputs, options)?;
        let outputs = run.complete();
        finish();
        save(outputs?)?;
        if ranked.is_some() {
            tell_summary(backend, first);
        }
        run.discard_checkpoint()
    })
}

fn tell_summary(backend: &dyn Backend, first: bool) {
    if let Some(summary) = backend.summary().filter(|_| first) {
        eprintln!("{summary}");
    }
}

#[cfg(not(feature = "mpi"))]
mod ranked {
    use super::{Result, RunArgs, RuntimeError};

    /// Variables by which launchers tell a process how many they started.
    const SIZES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

    /// Refuses to be one of several: each would do the whole run, and write the same file.
    pub(super) fn run(_args: &RunArgs) -> Option<Result<()>> {
        let size = |name: &&str| std::env::var(name).ok()?.parse::<u64>().ok();
        let started = SIZES.iter().filter_map(size).max().filter(|&size| size > 1)?;
        Some(Err(RuntimeError::Ranks(format!(
            "{started} processes were started together, and this program was built without the feature `mpi`: each would do the whole \
             run; build it with `--features mpi`, or start it once"
        ))))
    }
}

#[cfg(feature = "mpi")]
mod ranked {
    use std::time::Instant;

    use super::{Device, Prepared, Result, RunArgs, RuntimeError, Seat, execute, prepare, tell_result};
    use crate::checkpoint::Identity;
    use crate::ranks::Exchange;
    use crate::ranks::mpi::{World, is_rank};
    use crate::ranks::start::{greet, host, seats};

    /// Does this rank's part of a run; `None` if it was not started as a rank. What all ranks know to be wrong is rank 0's to report;
    /// what goes wrong on one alone ends all.
    pub(super) fn run(args: &RunArgs) -> Option<Result<()>> {
        is_rank().then(|| {
            let world = World::start()?;
            let result = share(args, &world);
            if world.rank() == 0 { result } else { Ok(()) }
        })
    }

    fn share(args: &RunArgs, world: &World) -> Result<()> {
        let seats = seats(world, world.machine(), args.threads)?;
        let (rank, first) = (world.rank(), world.rank() == 0);
        if let Some(note) = seats.note.as_ref().filter(|_| first) {
            eprintln!("note: {note}");
        }
        let seat = Seat { threads: seats.threads[rank], neighbours: seats.neighbours, first };
        let prepared = greet(world, check_device(args).and_then(|()| ready(args, seat)))?;
        let (start, pbs) = (Instant::now(), prepared.circuit.pbs_count());
        let what = format!(
            "{} ranks on {} with {} threads in all",
            world.size(),
            if seats.machines == 1 { "one machine".into() } else { format!("{} machines", seats.machines) },
            seats.threads.iter().sum::<usize>()
        );
        match execute(args, prepared, Some((world, seats.threads))) {
            Ok(()) if first => tell_result(args, pbs, &what, start),
            Ok(()) => (),
            // All ranks stop together.
            Err(error @ RuntimeError::Stopped { .. }) => return Err(error),
            Err(error) => {
                eprintln!("error[{}]: rank {rank} on {}: {error}", error.code(), host());
                world.abort(error.kind().exit_status())
            }
        }
        Ok(())
    }

    fn ready(args: &RunArgs, seat: Seat) -> Result<(Prepared, Identity)> {
        let prepared = prepare(args, seat)?;
        let identity = prepared.identity();
        let folder = args.checkpoint.as_ref().filter(|_| seat.first);
        let prepared = match folder {
            Some(folder) => prepared.keep_in(folder, identity.clone(), args)?,
            None => prepared,
        };
        Ok((prepared, identity))
    }

    fn check_device(args: &RunArgs) -> Result<()> {
        if args.backend == Device::Cpu {
            return Ok(());
        }
        Err(RuntimeError::Ranks(
            "ranks share runs on processors only; leave `--backend` away, or start one process".into(),
        ))
    }
}

/// What `decrypt` says of a rounded result.
const ROUNDED_NOTE: &str = "note: rounded to the modelled precision, which hides most of the error but is no proof: the numbers are for \
                            the key's owner (--share makes them safe to show, where there is room)";
/// What it says of a raw one.
const RAW_NOTE: &str =
    "warning: raw results show errors that depend on the key; enough of them give it away. Keep them to yourself";

/// Decrypts with flooding, and says what that gives.
fn shared(bundle: &ClientBundle, key: &ClientKey, result: &EncryptedOutputs, sharing: Sharing) -> Result<Vec<Named>> {
    let (outputs, flooding) = share::decrypt(bundle, key, result, sharing)?;
    let worst = flooding.deviations.iter().flatten().copied().fold(0.0, f64::max);
    eprintln!(
        "noise of up to {worst:.3e} rms added: {} bits of statistical security for {} shared results, if errors are as modelled \
         (Li et al., CRYPTO 2022); {:.1} bits of the range are left",
        sharing.bits, sharing.results, flooding.bits_left
    );
    Ok(outputs)
}

/// What runs circuits under a key.
///
/// # Errors
/// There is no such device, or the program was built without it.
pub fn backend(key: ServerKey, device: Device) -> Result<Box<dyn Backend>> {
    match device {
        Device::Cpu => Ok(Box::new(CpuBackend::new(key.expand()))),
        Device::Cuda => gpu(key),
    }
}

#[cfg(feature = "cuda")]
fn gpu(key: ServerKey) -> Result<Box<dyn Backend>> {
    Ok(Box::new(crate::cuda::CudaBackend::new(key)?))
}

#[cfg(not(feature = "cuda"))]
fn gpu(_key: ServerKey) -> Result<Box<dyn Backend>> {
    let reason = "this program was built without the feature `cuda`: build it with `--features cuda` on a machine with \
                  NVIDIA's compiler, or run without `--backend cuda`";
    Err(RuntimeError::Device(reason.into()))
}

/// Decrypts a result and prints it.
///
/// # Errors
/// A file is not usable, or files do not belong together.
pub fn decrypt(args: &DecryptArgs) -> Result<()> {
    let bundle = ClientBundle::load(&args.bundle)?;
    let key = ClientKey::load(&args.key)?;
    check_key(&args.bundle, &bundle, &args.key, &key.info)?;
    let result = EncryptedOutputs::load(&args.input, &bundle.parameters)?;
    let advice = "the result was computed by another circuit; decrypt it with that one's bundle";
    same_circuit(&label(&args.bundle), &bundle.circuit, &label(&args.input), &result.info.circuit, advice)?;
    let advice = "decrypt with the key that the input was encrypted with";
    same_key(&label(&args.key), &key.info.id, &label(&args.input), &result.info.key, advice)?;
    let rounding = if args.raw { Rounding::Raw } else { Rounding::Modelled };
    let outputs = match args.share {
        Some(bits) => shared(&bundle, &key, &result, Sharing { bits, results: args.shared_results })?,
        None => client::decrypt(&bundle, &key, &result, rounding)?,
    };
    if args.share.is_none() {
        eprintln!("{}", rounding_note(rounding));
    }
    print_outputs(&bundle, &outputs, rounding, args.json)
}

/// What whoever sees a result should know.
#[must_use]
pub fn rounding_note(rounding: Rounding) -> &'static str {
    if rounding == Rounding::Raw { RAW_NOTE } else { ROUNDED_NOTE }
}

/// Writes decrypted outputs to standard output, for people or as one JSON object.
///
/// # Errors
/// Standard output is closed.
pub fn print_outputs(bundle: &ClientBundle, outputs: &[Named], rounding: Rounding, as_json: bool) -> Result<()> {
    let classified = labels::classify(&bundle.interface.labels, outputs);
    let text = if as_json { json(outputs, rounding, classified)? } else { table(outputs, classified) };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").map_err(io("write to", Path::new("standard output")))
}

/// `{"outputs": {NAME: {"shape": [..], "data": [..]}}, "rounded": bool}`, data row-major; with class names also `"label"`,
/// a string for an output of one row, else a list.
fn json(outputs: &[Named], rounding: Rounding, classified: Option<Classified<'_>>) -> Result<String> {
    let entries: serde_json::Map<String, serde_json::Value> = outputs
        .iter()
        .map(|(name, value)| {
            let data: Vec<f64> = value.iter().copied().collect();
            (name.clone(), serde_json::json!({ "shape": value.shape(), "data": data }))
        })
        .collect();
    let mut whole = serde_json::json!({ "outputs": entries, "rounded": rounding == Rounding::Modelled });
    if let Some(classified) = classified {
        whole["label"] = classified.json();
    }
    serde_json::to_string(&whole).map_err(|e| RuntimeError::Internal(e.to_string()))
}

/// Values of a tensor that are printed for people.
const SHOWN: usize = 64;

/// The classes first, if they have names; then the other outputs, a line each.
fn table(outputs: &[Named], classified: Option<Classified<'_>>) -> String {
    let line = |(name, value): &Named| {
        let shown: Vec<String> = value.iter().take(SHOWN).map(|v| format!("{v:.6}")).collect();
        let more = value.len().saturating_sub(SHOWN);
        let more = if more == 0 { String::new() } else { format!(" … ({more} more; --json has all)") };
        format!("{name} {:?}: {}{more}", value.shape(), shown.join(" "))
    };
    let named = classified.as_ref().map(|c| c.output);
    let others = outputs.iter().filter(|(name, _)| Some(name.as_str()) != named).map(line);
    classified.iter().map(Classified::text).chain(others).collect::<Vec<_>>().join("\n")
}
