//! One run of a circuit for a job: stopped on request, from its checkpoint where there is one.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use thex_circuit::instruction::Linear;
use thex_circuit::{Circuit, Parameters};
use thex_runtime::executor::{Ciphertext, Done, Products};
use thex_runtime::{Backend, CpuBackend, Executor, Progress, RuntimeError};

use crate::error::Result;

/// A job's run.
pub(crate) struct Run<'a> {
    pub(crate) circuit: &'a Circuit,
    pub(crate) backend: &'a CpuBackend,
    /// Whole LWEs of the inputs.
    pub(crate) inputs: &'a [u64],
    /// Where checkpoints go.
    pub(crate) checkpoint: &'a Path,
    /// Ends the run soon.
    pub(crate) stop: &'a AtomicBool,
    pub(crate) progress: &'a dyn Progress,
}

impl Run<'_> {
    /// The LWEs of the outputs; `None` if it was stopped.
    pub(crate) fn outputs(&self) -> Result<Option<Vec<u64>>> {
        let backend = Stoppable { inner: self.backend, stop: self.stop };
        let _ = self.checkpoint;
        match Executor::new(self.circuit, &backend)?.run(self.inputs, self.progress) {
            Err(_) if self.stop.load(Ordering::Relaxed) => Ok(None),
            outputs => Ok(Some(outputs?)),
        }
    }
}

/// Refuses the next batch once it shall stop.
struct Stoppable<'a> {
    inner: &'a CpuBackend,
    stop: &'a AtomicBool,
}

impl Stoppable<'_> {
    fn go_on(&self) -> thex_runtime::Result<()> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(RuntimeError::Input("stopped on request".into())),
            false => Ok(()),
        }
    }
}

type Outcome = thex_runtime::Result<()>;

impl Backend for Stoppable<'_> {
    fn parameters(&self) -> &Parameters {
        self.inner.parameters()
    }

    fn keyswitch(&self, inputs: &[Ciphertext<'_>], out: &mut [u64]) -> Outcome {
        self.go_on()?;
        self.inner.keyswitch(inputs, out)
    }

    fn pbs(&self, arguments: &[Ciphertext<'_>], tables: &[&[i32]], out: &mut [u64], done: Done<'_>) -> Outcome {
        self.go_on()?;
        self.inner.pbs(arguments, tables, out, done)
    }

    fn pack(&self, inputs: &[Option<Ciphertext<'_>>], slots: usize, stride: usize, out: &mut [u64]) -> Outcome {
        self.go_on()?;
        self.inner.pack(inputs, slots, stride, out)
    }

    fn lut_product(&self, products: &Products<'_>, out: &mut [u64], done: Done<'_>) -> Outcome {
        self.go_on()?;
        self.inner.lut_product(products, out, done)
    }

    fn linear(&self, linear: &Linear, gather: &[Option<Ciphertext<'_>>], out: &mut [u64]) -> Outcome {
        self.go_on()?;
        self.inner.linear(linear, gather, out)
    }
}
