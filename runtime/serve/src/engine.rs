//! The heart of the service: admits jobs, runs them in fair turns, knows how far they are.
//!
//! Workers are plain threads, since a run is minutes of arithmetic; the HTTP side calls in from threads that may block. Whatever must
//! survive is in the [`Store`]; here is what a restart can make again: the order of turns, progress, expanded keys.
//!
//! A job ends in exactly one way, written once: done, failed or cancelled. A full disk ends no job: it waits and is tried again.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thex_runtime::calibrate::thread_pool;
use thex_runtime::progress::Resumed;
use thex_runtime::{
    CiphertextInfo, CpuBackend, EncryptedInputs, EncryptedOutputs, Identity, KeyInfo, Progress, RuntimeError, ServerKey,
};

use crate::error::{Result, ServeError, disk_is_full};
use crate::metrics::Metrics;
use crate::models::{Model, Models};
use crate::run::{JobRun, Ran};
use crate::sha;
use crate::store::{Job, NewJob, Quotas, Store, now, sync_folder};
use crate::turns::Turns;
use crate::upload::Received;
use crate::wire::{JobProgress, JobState, JobStatus, KeyStatus, ResultInfo};

/// A job that was started so often brings the process down each time, and is given up.
const MOST_STARTS: u32 = 50;

/// Pause before a job is tried again for which there was no room on the disk.
const FULL_PAUSE: Duration = Duration::from_secs(5);

/// How the engine works.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What is allowed.
    pub quotas: Quotas,
    /// Jobs at work at once.
    pub workers: usize,
    /// Threads of each; as many as there are processors if 0.
    pub threads: usize,
    /// Expanded keys that stay in memory, of some 400 MB each.
    pub keys_in_memory: usize,
    /// Time between checkpoints.
    pub checkpoint_every: Duration,
    /// Seconds for which ended jobs are kept.
    pub keep: f64,
}

/// A job at work.
struct Live {
    stop: AtomicBool,
    done: AtomicU64,
    total: u64,
    /// When the circuit itself began, and how many bootstraps a checkpoint had spared it.
    pace: Mutex<Option<(Instant, u64)>>,
    step: Mutex<String>,
    metrics: Arc<Metrics>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Progress for Live {
    fn step(&self, name: &str, _total: u64) {
        lock(&self.pace).get_or_insert_with(|| (Instant::now(), self.done.load(Ordering::Relaxed)));
        name.clone_into(&mut lock(&self.step));
    }

    fn advance(&self, count: u64) {
        self.done.fetch_add(count, Ordering::Relaxed);
        self.metrics.pbs.fetch_add(count, Ordering::Relaxed);
    }

    fn resumed(&self, resumed: &Resumed) {
        self.done.store(resumed.done, Ordering::Relaxed);
        resumed.damaged.iter().for_each(|reason| tracing::warn!(reason, "a checkpoint was set aside"));
        tracing::info!(done = resumed.done, total = self.total, "resumed from a checkpoint");
    }
}

impl Live {
    fn new(total: u64, metrics: Arc<Metrics>) -> Self {
        let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { stop, done, total, pace: Mutex::new(None), step: Mutex::default(), metrics }
    }

    fn progress(&self) -> JobProgress {
        let done = self.done.load(Ordering::Relaxed);
        let rate = lock(&self.pace).map_or(0.0, |(start, before)| {
            done.saturating_sub(before) as f64 / start.elapsed().as_secs_f64().max(1e-3)
        });
        JobProgress {
            pbs_done: done,
            pbs_total: self.total,
            pbs_per_second: rate,
            seconds_left: (rate > 0.0).then(|| self.total.saturating_sub(done) as f64 / rate),
            step: lock(&self.step).clone(),
        }
    }
}

/// What a restart can make again.
#[derive(Default)]
struct State {
    turns: Turns<i64>,
    clients: HashMap<i64, String>,
    running: HashMap<i64, Arc<Live>>,
    /// Expanded keys, the last used at the end.
    keys: VecDeque<(String, Arc<CpuBackend>)>,
    closing: bool,
}

/// How a run ended.
enum Outcome {
    Done(ResultInfo),
    /// It was told to stop: cancelled, or the service closes.
    Stopped,
    /// There is no room for its result or its checkpoint.
    NoRoom,
}

/// The engine.
pub struct Engine {
    /// The circuits.
    pub models: Models,
    /// Keys and jobs on disk.
    pub store: Store,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    settings: Settings,
    state: Mutex<State>,
    wake: Condvar,
    /// Large keys are checked one at a time.
    checking: Mutex<()>,
}

impl Engine {
    /// An engine over what the store holds; jobs that wait there keep their order.
    ///
    /// # Errors
    /// The store failed.
    pub fn new(models: Models, store: Store, settings: Settings) -> Result<Arc<Self>> {
        let mut state = State::default();
        for job in store.queued()? {
            state.turns.push(&job.client, job.serial);
            state.clients.insert(job.serial, job.client);
        }
        let (state, checking) = (Mutex::new(state), Mutex::new(()));
        let metrics = Arc::new(Metrics::default());
        Ok(Arc::new(Self { models, store, metrics, settings, state, wake: Condvar::new(), checking }))
    }

    /// The quotas.
    #[must_use]
    pub fn quotas(&self) -> &Quotas {
        &self.settings.quotas
    }

    /// Jobs that wait, and jobs at work.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        let state = lock(&self.state);
        (state.turns.len(), state.running.len())
    }

    /// Whether the service is shutting down.
    #[must_use]
    pub fn closing(&self) -> bool {
        lock(&self.state).closing
    }

    /// Checks a server key that was uploaded, and keeps it.
    ///
    /// # Errors
    /// It is not the key that was announced, is not usable, is for a circuit that is not served, or a quota is used up.
    pub fn register(&self, client: &str, digest: &str, received: Received) -> Result<KeyStatus> {
        if received.digest != digest {
            let found = &received.digest[..16];
            return Err(ServeError::BadUpload(format!(
                "the body has digest {found}…, not the one of the URL: send it again"
            )));
        }
        let key = {
            let _one_at_a_time = lock(&self.checking);
            ServerKey::load(received.file.path())?.info
        };
        check_key(&self.models, &key)?;
        let status = KeyStatus { digest: digest.to_owned(), id: key.id, circuit: key.circuit, bytes: received.bytes };
        self.store.add_key(client, &status, received, self.quotas())?;
        tracing::info!(client, key = digest, bytes = status.bytes, "server key registered");
        Ok(status)
    }

    /// Checks an encrypted input that was uploaded, and queues a job; whether it is new.
    ///
    /// # Errors
    /// Circuit, key and input do not belong together, the id is taken, the queue is full, or the service is shutting down.
    pub fn submit(
        &self,
        client: &str,
        id: &str,
        wanted: (&str, &str),
        received: Received,
    ) -> Result<(JobStatus, bool)> {
        let (circuit, key) = wanted;
        let model = self.models.get(circuit)?;
        let key = self.store.key(client, key)?;
        let input = EncryptedInputs::load(received.file.path())?;
        check_input(model, &key, &input.info)?;
        let new = NewJob { client, id, circuit, key: &key.digest, input: received, pbs_total: model.info.pbs_count };
        // Held until the job is in both, so that a cancellation in between finds it.
        let mut state = lock(&self.state);
        if state.closing {
            return Err(closing());
        }
        let (job, new) = self.store.submit(new, self.quotas())?;
        if new {
            state.turns.push(client, job.serial);
            state.clients.insert(job.serial, client.to_owned());
            self.wake.notify_all();
            tracing::info!(client, job = id, serial = job.serial, circuit, "job queued");
        }
        Ok((complete(&state, job), new))
    }

    /// Where a job of a client stands.
    ///
    /// # Errors
    /// [`ServeError::NotFound`].
    pub fn status(&self, client: &str, id: &str) -> Result<JobStatus> {
        let job = self.store.job(client, id)?;
        Ok(complete(&lock(&self.state), job))
    }

    /// The jobs of a client, the newest first.
    ///
    /// # Errors
    /// The store failed.
    pub fn jobs(&self, client: &str, limit: usize) -> Result<Vec<JobStatus>> {
        let jobs = self.store.jobs(client, limit)?;
        let state = lock(&self.state);
        Ok(jobs.into_iter().map(|job| complete(&state, job)).collect())
    }

    /// Cancels a job that has not ended; one that has stays as it is.
    ///
    /// # Errors
    /// [`ServeError::NotFound`].
    pub fn cancel(&self, client: &str, id: &str) -> Result<JobStatus> {
        let job = self.store.job(client, id)?;
        {
            let mut state = lock(&self.state);
            self.store.finish(job.serial, JobState::Cancelled, None, None)?;
            state.turns.remove(&job.serial);
            state.clients.remove(&job.serial);
            if let Some(live) = state.running.get(&job.serial) {
                live.stop.store(true, Ordering::Relaxed);
            }
        }
        self.status(client, id)
    }

    /// Starts the workers.
    ///
    /// # Errors
    /// A thread cannot be made.
    pub fn start(self: &Arc<Self>) -> Result<Vec<JoinHandle<()>>> {
        let mut threads = Vec::new();
        for i in 0..self.settings.workers {
            let (engine, pool) = (Arc::clone(self), thread_pool(self.settings.threads)?);
            let named = std::thread::Builder::new().name(format!("worker-{i}"));
            let spawned = named.spawn(move || while pool.install(|| engine.work()) {});
            threads.push(spawned.map_err(|e| ServeError::Internal(format!("cannot start a worker: {e}")))?);
        }
        let engine = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("housekeeper".into()).spawn(move || engine.keep_house());
        threads.push(spawned.map_err(|e| ServeError::Internal(format!("cannot start a thread: {e}")))?);
        Ok(threads)
    }

    /// Ends the workers soon; jobs at work wait for the next start.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        state.closing = true;
        state.running.values().for_each(|live| live.stop.store(true, Ordering::Relaxed));
        self.wake.notify_all();
    }

    /// Forgets ended jobs when their time has come.
    fn keep_house(&self) {
        let mut state = lock(&self.state);
        while !state.closing {
            drop(state);
            match self.store.expire(now() - self.settings.keep) {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "ended jobs forgotten"),
                Err(error) => tracing::warn!(%error, "ended jobs cannot be forgotten"),
            }
            state = lock(&self.state);
            if !state.closing {
                state =
                    self.wake.wait_timeout(state, Duration::from_secs(60)).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Waits for a turn and runs one job; whether to go on.
    fn work(&self) -> bool {
        let mut state = lock(&self.state);
        let serial = loop {
            if state.closing {
                return false;
            }
            match state.turns.pop() {
                Some(serial) => break serial,
                None => state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        };
        let job = match self.store.start(serial) {
            Ok(Some(job)) => job,
            Ok(None) => return true,
            Err(error) => return self.again(state, serial, &error),
        };
        let live = Arc::new(Live::new(job.status.progress.pbs_total, Arc::clone(&self.metrics)));
        state.running.insert(serial, Arc::clone(&live));
        drop(state);
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| self.run(&job, &live)))
            .unwrap_or_else(|_| Err(ServeError::Internal("the run panicked".into())));
        self.conclude(&job, outcome, start.elapsed());
        true
    }

    /// A job that could not even be started waits again.
    fn again(&self, mut state: MutexGuard<'_, State>, serial: i64, error: &ServeError) -> bool {
        tracing::error!(%error, serial, "a job cannot be started now");
        let client = state.clients.get(&serial).cloned().unwrap_or_default();
        state.turns.put_back(&client, serial);
        let _ = self.wake.wait_timeout(state, FULL_PAUSE);
        true
    }

    /// Writes down how a job ended, as often as it takes: until then it is running for everybody, and for the next start.
    fn conclude(&self, job: &Job, outcome: Result<Outcome>, elapsed: Duration) {
        while let Err(error) = self.try_conclude(job, &outcome, elapsed) {
            tracing::error!(%error, serial = job.serial, "the end of a job cannot be written");
            let state = lock(&self.state);
            if state.closing {
                return;
            }
            let _ = self.wake.wait_timeout(state, FULL_PAUSE);
        }
        if matches!(outcome, Ok(Outcome::NoRoom)) {
            tracing::warn!(serial = job.serial, "no room for a result or a checkpoint: the job waits");
            let _ = self.wake.wait_timeout(lock(&self.state), FULL_PAUSE);
        }
    }

    fn try_conclude(&self, job: &Job, outcome: &Result<Outcome>, elapsed: Duration) -> Result<()> {
        let (serial, seconds) = (job.serial, elapsed.as_secs_f64());
        let (client, id) = (job.client.as_str(), job.status.id.as_str());
        let mut state = lock(&self.state);
        match outcome {
            Ok(Outcome::Done(result)) => {
                self.store.finish(serial, JobState::Done, Some(result), None)?;
                self.metrics.ended(JobState::Done, seconds);
                let _ = std::fs::remove_dir_all(self.store.job_file(job, "checkpoint"));
                tracing::info!(client, job = id, serial, seconds, "job done");
            }
            Ok(Outcome::Stopped | Outcome::NoRoom) => {
                // One that was cancelled has ended already, and is left alone by this.
                self.store.requeue(serial)?;
                let waits = self.store.job(client, id).is_ok_and(|j| j.serial == serial && !j.status.state.is_final());
                if waits {
                    state.turns.put_back(client, serial);
                } else {
                    let _ = std::fs::remove_dir_all(self.store.job_file(job, "checkpoint"));
                }
                tracing::info!(client, job = id, serial, seconds, waits, "job stopped");
            }
            Err(error) => {
                self.store.finish(serial, JobState::Failed, None, Some(&error.body()))?;
                self.metrics.ended(JobState::Failed, seconds);
                tracing::error!(client, job = id, serial, %error, code = error.code(), "job failed");
            }
        }
        state.running.remove(&serial);
        if state.turns.position(&serial).is_none() {
            state.clients.remove(&serial);
        }
        Ok(())
    }

    fn run(&self, job: &Job, live: &Live) -> Result<Outcome> {
        let status = &job.status;
        if status.starts > MOST_STARTS {
            let starts = status.starts - 1;
            return Err(ServeError::Internal(format!(
                "the server ended {starts} times while it ran this job: given up"
            )));
        }
        let model = self.models.get(&status.circuit)?;
        let input = EncryptedInputs::load(&self.store.job_file(job, "input.ct"))?;
        let backend = self.backend(&status.key)?;
        let info = CiphertextInfo {
            key: backend.key().info.id.clone(),
            circuit: status.circuit.clone(),
            ports: model.info.outputs.iter().map(|p| (p.name.clone(), p.elements)).collect(),
        };
        let inputs = input.expand(&model.circuit.parameters)?;
        let identity =
            Identity { circuit: status.circuit.clone(), key: status.key.clone(), input: status.input.clone() };
        let run = JobRun {
            circuit: &model.circuit,
            backend: &backend,
            inputs: &inputs,
            identity,
            checkpoint: (&self.store.job_file(job, "checkpoint"), self.settings.checkpoint_every),
            stop: &live.stop,
            progress: live,
        };
        let lwes = match run.run()? {
            Ran::Whole(lwes) => lwes,
            Ran::Stopped => return Ok(Outcome::Stopped),
            Ran::NoRoom => return Ok(Outcome::NoRoom),
        };
        let path = self.store.job_file(job, "result.ct");
        match (EncryptedOutputs { info, lwes }).save(&path) {
            Ok(()) => Ok(Outcome::Done(result_info(&path)?)),
            Err(error) if disk_is_full(&error) => Ok(Outcome::NoRoom),
            Err(error) => Err(error.into()),
        }
    }

    /// The key as the kernels want it: from memory, or expanded from its file.
    fn backend(&self, digest: &str) -> Result<Arc<CpuBackend>> {
        {
            let mut state = lock(&self.state);
            if let Some(i) = state.keys.iter().position(|(d, _)| d == digest)
                && let Some(entry) = state.keys.remove(i)
            {
                let backend = Arc::clone(&entry.1);
                state.keys.push_back(entry);
                return Ok(backend);
            }
            // Room first, so that there is never one too many.
            while state.keys.len() >= self.settings.keys_in_memory.max(1) {
                state.keys.pop_front();
            }
        }
        let backend = Arc::new(CpuBackend::new(ServerKey::load(&self.store.key_path(digest))?.expand()));
        lock(&self.state).keys.push_back((digest.to_owned(), Arc::clone(&backend)));
        Ok(backend)
    }
}

fn closing() -> ServeError {
    ServeError::Closing("the server is shutting down: try again in a minute".into())
}

/// Adds what only the engine knows.
fn complete(state: &State, job: Job) -> JobStatus {
    let mut status = job.status;
    status.position = state.turns.position(&job.serial);
    if let Some(live) = state.running.get(&job.serial).filter(|_| status.state == JobState::Running) {
        status.progress = live.progress();
    }
    status
}

fn result_info(path: &Path) -> Result<ResultInfo> {
    let read = |source| RuntimeError::Io { action: "read", path: path.to_owned(), source };
    sync_folder(path.parent().unwrap_or(Path::new("."))).map_err(read)?;
    let bytes = std::fs::metadata(path).map_err(read)?.len();
    Ok(ResultInfo { digest: sha::file(path).map_err(read)?, bytes })
}

fn mismatch(left: &str, right: &str, reason: impl Into<String>) -> ServeError {
    RuntimeError::Mismatch { left: left.into(), right: right.into(), reason: reason.into() }.into()
}

/// Refuses a key for a circuit that is not served, or with parameters other than its circuit's.
fn check_key(models: &Models, key: &KeyInfo) -> Result<()> {
    let Ok(model) = models.get(&key.circuit) else {
        let reason = "it was generated for a circuit that this server does not have; generate keys with the bundle of one that it has";
        return Err(mismatch("the server key", "this server", reason));
    };
    match key.parameters == model.circuit.parameters {
        true => Ok(()),
        false => Err(mismatch("the server key", "its circuit", "they have different parameters; generate keys again")),
    }
}

/// Refuses an input that circuit and key cannot run.
fn check_input(model: &Model, key: &KeyStatus, input: &CiphertextInfo) -> Result<()> {
    let wanted = model.info.digest.as_str();
    if key.circuit != wanted {
        return Err(mismatch(
            "the server key",
            "the circuit",
            "the key was generated for another circuit; generate one for this",
        ));
    }
    if input.circuit != wanted {
        return Err(mismatch(
            "the input",
            "the circuit",
            "it was encrypted for another circuit; encrypt it with this one's bundle",
        ));
    }
    if input.key != key.id {
        return Err(mismatch(
            "the input",
            "the server key",
            "use the server key that goes with the client key of the input",
        ));
    }
    let ports = model.info.inputs.iter().map(|p| (p.name.as_str(), p.elements));
    if !ports.eq(input.ports.iter().map(|(name, elements)| (name.as_str(), *elements))) {
        let reason =
            "the input has other tensors than the circuit takes; encrypt it with the circuit's bundle".to_owned();
        return Err(RuntimeError::Input(reason).into());
    }
    Ok(())
}
