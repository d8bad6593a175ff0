//! Long work: on a thread of its own, watched by the thread that called.
//!
//! Python delivers signals to code of the interpreter only, so the calling thread comes back to it every [`TICK`], tells progress, and
//! hears of Ctrl-C. An exception there (of the callback, or KeyboardInterrupt) stops the work and is raised once the work has stopped, or
//! at once where the work cannot be stopped: then it ends by itself, unheard.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use pyo3::prelude::*;
use thex::error::{CompileError, Result};
use thex_runtime::Progress;
use thex_runtime::progress::Resumed;

use crate::errors::raise;

/// Time between two looks at signals.
const TICK: Duration = Duration::from_millis(50);
/// Stack of the working thread: that of a main thread, which the compiler is tested on.
const STACK_BYTES: usize = 8 << 20;

/// What working and calling thread share.
#[derive(Default)]
pub(crate) struct Watch {
    done: AtomicU64,
    total: AtomicU64,
    /// Set when the work shall stop.
    pub(crate) stop: AtomicBool,
}

impl Watch {
    /// Done, of so many.
    pub(crate) fn set(&self, done: u64, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.done.store(done, Ordering::Relaxed);
    }

    fn get(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}

impl Progress for Watch {
    fn step(&self, _name: &str, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    fn advance(&self, count: u64) {
        self.done.fetch_add(count, Ordering::Relaxed);
    }

    fn resumed(&self, resumed: &Resumed) {
        self.done.store(resumed.done, Ordering::Relaxed);
    }
}

/// What happens to work that shall stop.
pub(crate) enum Stopping {
    /// It sees [`Watch::stop`] soon, and is waited for.
    Awaited,
    /// It does not: it is left behind.
    Abandoned,
    /// It is left behind, and this is done, which is waited for a moment.
    Cancelled(Box<dyn FnOnce() + Send>),
}

/// Longest wait for a cancellation.
const CANCELLATION: Duration = Duration::from_secs(3);

fn panicked(panic: &(dyn std::any::Any + Send)) -> CompileError {
    let text =
        panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    CompileError::Internal(format!("a panic: {}", text.unwrap_or_default()))
}

type Outcome<T> = std::result::Result<Result<T>, RecvTimeoutError>;

/// Waits a moment for the work, without the interpreter's lock.
fn wait<T: Send>(py: Python<'_>, outcomes: &mut Receiver<Result<T>>) -> Outcome<T> {
    py.detach(move || outcomes.recv_timeout(TICK))
}

/// Tells `progress` what is new.
fn tell(progress: Option<&Bound<'_, PyAny>>, watch: &Watch, told: &mut (u64, u64)) -> PyResult<()> {
    let now = watch.get();
    let Some(callback) = progress.filter(|_| now.1 > 0 && now != *told) else { return Ok(()) };
    *told = now;
    callback.call1(now).map(drop)
}

/// Runs `work` and returns what it gives; `progress(done, total)` is called on this thread.
pub(crate) fn watched<T: Send + 'static>(
    py: Python<'_>,
    progress: Option<&Bound<'_, PyAny>>,
    stopping: Stopping,
    work: impl FnOnce(&Watch) -> Result<T> + Send + 'static,
) -> PyResult<T> {
    let (sender, mut outcomes) = channel();
    let watch = Arc::new(Watch::default());
    let shared = watch.clone();
    let body = move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| work(&shared))).unwrap_or_else(|p| Err(panicked(&*p)));
        // Nobody listens any more where it was abandoned.
        let _ = sender.send(outcome);
    };
    let started = std::thread::Builder::new().name("thex".into()).stack_size(STACK_BYTES).spawn(body);
    started.map_err(|e| raise(CompileError::Internal(format!("cannot start a thread: {e}"))))?;
    let mut told = (0, 0);
    loop {
        let outcome = wait(py, &mut outcomes);
        let heard = py.check_signals().and_then(|()| tell(progress, &watch, &mut told));
        match (outcome, heard) {
            (Ok(outcome), Ok(())) => return outcome.map_err(raise),
            (Err(RecvTimeoutError::Timeout), Ok(())) => {}
            (Err(RecvTimeoutError::Disconnected), Ok(())) => {
                return Err(raise(CompileError::Internal("a thread has vanished".into())));
            }
            (Ok(_), Err(exception)) => return Err(exception),
            (Err(_), Err(exception)) => {
                watch.stop.store(true, Ordering::Relaxed);
                match stopping {
                    Stopping::Awaited => end(py, &mut outcomes)?,
                    Stopping::Abandoned => {}
                    Stopping::Cancelled(cancel) => aside(py, cancel),
                }
                return Err(exception);
            }
        }
    }
}

/// Waits until stopped work has ended; a second Ctrl-C ends the waiting.
fn end<T: Send>(py: Python<'_>, outcomes: &mut Receiver<Result<T>>) -> PyResult<()> {
    while let Err(RecvTimeoutError::Timeout) = wait(py, outcomes) {
        py.check_signals()?;
    }
    Ok(())
}

/// Does something on another thread, and waits a moment for it.
fn aside(py: Python<'_>, work: Box<dyn FnOnce() + Send>) {
    let (sender, mut done) = channel();
    let body = move || {
        let _ = catch_unwind(AssertUnwindSafe(work));
        let _ = sender.send(());
    };
    let started = std::thread::Builder::new().name("thex-aside".into()).spawn(body);
    let done = &mut done;
    if started.is_ok() {
        // It goes on by itself where that was too short.
        let _ = py.detach(move || done.recv_timeout(CANCELLATION));
    }
}

/// Short work: without the interpreter's lock, on this thread; a panic is an error.
pub(crate) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    py.detach(|| catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|p| Err(panicked(&*p)))).map_err(raise)
}
