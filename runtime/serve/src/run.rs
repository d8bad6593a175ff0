//! One run of a circuit for a job: stopped on request, kept in checkpoints, resumed from them.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use thex_circuit::Circuit;
use thex_runtime::{Checkpoint, CpuBackend, Executor, Identity, Progress, Run, RunOptions, RuntimeError};

use crate::error::{Result, disk_is_full};

/// A job's run.
pub(crate) struct JobRun<'a> {
    pub(crate) circuit: &'a Circuit,
    pub(crate) backend: &'a CpuBackend,
    /// Whole LWEs of the inputs.
    pub(crate) inputs: &'a [u64],
    /// Digests of circuit, key and input.
    pub(crate) identity: Identity,
    /// Where checkpoints go, and how often.
    pub(crate) checkpoint: (&'a Path, Duration),
    /// Ends the run soon, with a checkpoint.
    pub(crate) stop: &'a AtomicBool,
    pub(crate) progress: &'a dyn Progress,
}

/// How a run ended.
pub(crate) enum Ran {
    /// The LWEs of the outputs.
    Whole(Vec<u64>),
    /// It was told to stop, and can go on.
    Stopped,
    /// There is no room for a checkpoint; it can go on from the last one.
    NoRoom,
}

impl JobRun<'_> {
    pub(crate) fn run(self) -> Result<Ran> {
        match self.outputs() {
            Ok(outputs) => Ok(Ran::Whole(outputs)),
            Err(RuntimeError::Stopped { .. }) => Ok(Ran::Stopped),
            Err(error) if disk_is_full(&error) => Ok(Ran::NoRoom),
            Err(error) => Err(error.into()),
        }
    }

    fn outputs(self) -> thex_runtime::Result<Vec<u64>> {
        let (folder, every) = self.checkpoint;
        let checkpoint = Checkpoint::open(folder, self.identity, every)?;
        let executor = Executor::new(self.circuit, self.backend)?;
        let usual = RunOptions::new(self.progress);
        let part = usual.part.min(every);
        let options = RunOptions { stop: Some(self.stop), checkpoint: Some(checkpoint), part, ..usual };
        Run::new(&executor, self.inputs, options)?.complete()
    }
}
