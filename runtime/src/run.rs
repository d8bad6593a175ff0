//! One run of a circuit: watched, stopped on request, kept in checkpoints, resumed.
//!
//! Instructions are run in [parts](thex_circuit::Instruction::part) that take about a second, since one instruction can take many minutes;
//! between two parts the run looks whether it shall stop and whether a checkpoint is due. Every ciphertext is computed by itself,
//! so the parts, and where they are cut, change no bit of the result. A run that nobody can stop and nothing keeps is not cut.
//!
//! Of a run that [`ranks`] share, rank 0 keeps the checkpoint, and decides how long parts are; a rank that shall stop stops all.
//!
//! Nothing is printed here, and signals are the program's affair: it sets the flag that [`RunOptions::stop`] points to.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use thex_circuit::{Circuit, Instruction};

use crate::checkpoint::{Checkpoint, Position, Snapshot};
use crate::error::{Result, RuntimeError};
use crate::executor::{Backend, Executor};
use crate::kernels::rotate::batch_of;
use crate::progress::Progress;
use crate::ranks::{self, resume};
use crate::state::{Space, State};

/// What a part of an instruction should take if nothing else is asked for.
pub const PART: Duration = Duration::from_secs(1);

/// Told the first address and the words of every block of big LWEs when it is whole.
pub type Observer<'a> = &'a (dyn Fn(u32, &[u64]) + Sync);

/// How a run is watched, stopped and kept.
pub struct RunOptions<'a> {
    /// Told where the run is.
    pub progress: &'a dyn Progress,
    /// Once it is true, the run stops after the part at work, with [`RuntimeError::Stopped`].
    pub stop: Option<&'a AtomicBool>,
    /// Where the run is kept, and resumed from.
    pub checkpoint: Option<Checkpoint>,
    /// What a part of an instruction should take: how soon the run can stop, and how much less than whole instructions is kept.
    pub part: Duration,
    /// Told every block of big LWEs; of a resumed run, those that are computed now.
    pub observer: Option<Observer<'a>>,
}

impl<'a> RunOptions<'a> {
    /// A run that cannot be stopped and is kept nowhere.
    #[must_use]
    pub fn new(progress: &'a dyn Progress) -> Self {
        Self { progress, stop: None, checkpoint: None, part: PART, observer: None }
    }
}

/// How long units of work took, by kind of instruction: what the length of the next part is chosen by.
struct Pace {
    /// Nanoseconds of a piece of [`work`]. Starts with guesses on the slow side.
    nanos: [f64; 6],
}

fn kind(instruction: &Instruction) -> usize {
    match instruction {
        Instruction::Linear(_) => 0,
        Instruction::Keyswitch(_) => 1,
        Instruction::Pbs(_) => 2,
        Instruction::Pack(_) => 3,
        Instruction::LutProduct(_) => 4,
        Instruction::ExternalProduct(_) => 5,
    }
}

/// Pieces of work in a unit.
fn work(instruction: &Instruction) -> f64 {
    match instruction {
        Instruction::Linear(x) => f64::from(x.outputs) * f64::from(x.operands.max(1)),
        Instruction::Pack(x) => f64::from(x.slots),
        Instruction::Keyswitch(_) => 1.0,
        // Rotations of a sum, on average.
        Instruction::ExternalProduct(_) => instruction.pbs_count() as f64 / instruction.units().max(1) as f64,
        Instruction::Pbs(_) | Instruction::LutProduct(_) => f64::from(1_u32 << instruction.extension()),
    }
}

impl Pace {
    fn new() -> Self {
        Self { nanos: [1e3, 1e6, 1e7, 2e6, 1e7, 1.2e7] }
    }

    /// Units of the next part: whole batches on every thread where there are batches, or the last one would leave threads idle.
    fn units(&self, x: &Instruction, part: Duration, threads: usize) -> usize {
        let wanted = part.as_nanos() as f64 / (self.nanos[kind(x)] * work(x)).max(1.0);
        let wanted = (wanted as usize).max(1);
        let round = match x {
            Instruction::Pbs(_) | Instruction::LutProduct(_) => batch_of(x.extension()) * threads,
            Instruction::Linear(_)
            | Instruction::Keyswitch(_)
            | Instruction::Pack(_)
            | Instruction::ExternalProduct(_) => 1,
        };
        (wanted / round * round).max(round)
    }

    fn learn(&mut self, part: &Instruction, elapsed: Duration) {
        let pieces = part.units() as f64 * work(part);
        self.nanos[kind(part)] = (elapsed.as_nanos() as f64 / pieces.max(1.0)).max(1.0);
    }
}

/// A run under way.
pub struct Run<'a, B: ?Sized> {
    executor: &'a Executor<'a, B>,
    options: RunOptions<'a>,
    state: State,
    /// Words of the instruction at work.
    partial: Vec<u64>,
    position: Position,
    pace: Pace,
    /// Whether instructions are cut into parts: the same on all ranks.
    cut: bool,
}

/// What is done next: the same on all ranks.
struct Decision {
    stop: bool,
    units: usize,
}

/// Blind rotations before a position.
fn done(circuit: &Circuit, position: Position) -> u64 {
    let before: u64 = circuit.instructions.iter().take(position.instruction).map(Instruction::pbs_count).sum();
    let within = circuit.instructions.get(position.instruction);
    before + within.map_or(0, |x| x.rotations_before(position.units))
}

impl<'a, B: Backend + ?Sized> Run<'a, B> {
    /// Starts on the inputs' LWEs, as [`Executor::run`] takes them, or where the checkpoint was left.
    ///
    /// # Errors
    /// There are not as many inputs as the circuit takes, or the checkpoint cannot be read.
    pub fn new(executor: &'a Executor<'a, B>, inputs: &[u64], mut options: RunOptions<'a>) -> Result<Self> {
        let circuit = executor.circuit();
        let (mut state, mut partial) = (State::new(circuit, inputs)?, Vec::new());
        let mut position = Position::default();
        if let Some(checkpoint) = &mut options.checkpoint {
            let mut resumed = checkpoint.restore(circuit, executor.liveness(), &mut state)?;
            (position, partial) = (resumed.position, std::mem::take(&mut resumed.partial));
            let report = resumed.report(done(circuit, position));
            if report.done > 0 || !report.damaged.is_empty() {
                options.progress.resumed(&report);
            }
        }
        let mut cut = options.stop.is_some() || options.checkpoint.is_some();
        if let Some(exchange) = executor.exchange() {
            cut = ranks::gather_word(exchange, u64::from(cut))?.contains(&1);
            position = resume::share(executor, exchange, position, (&mut state, &mut partial))?;
        }
        Ok(Self { executor, options, state, partial, position, pace: Pace::new(), cut })
    }

    /// Runs to the end; returns the LWEs of the outputs, as [`Executor::run`]. Once they are safe,
    /// [`discard_checkpoint`](Self::discard_checkpoint).
    ///
    /// # Errors
    /// The backend failed, a checkpoint cannot be written, or the run was stopped. It can be resumed from the last checkpoint.
    pub fn complete(&mut self) -> Result<Vec<u64>> {
        let circuit = self.executor.circuit();
        while let Some(instruction) = circuit.instructions.get(self.position.instruction) {
            self.instruction(instruction)?;
        }
        let mut outputs = Vec::new();
        for &address in circuit.outputs.iter().flat_map(|(_, addresses)| addresses) {
            outputs.extend_from_slice(self.state.memory(Space::Lwe).get(address)?);
        }
        Ok(outputs)
    }

    /// Removes the checkpoint from its folder, and the folder if it is empty then.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn discard_checkpoint(self) -> Result<()> {
        self.options.checkpoint.map_or(Ok(()), Checkpoint::discard)
    }

    /// Runs what is left of the next instruction.
    fn instruction(&mut self, instruction: &Instruction) -> Result<()> {
        let circuit = self.executor.circuit();
        let name = circuit.provenance.get(self.position.instruction).map_or("", |p| p.name.as_str());
        self.options.progress.step(name, circuit.pbs_count());
        let width = Space::of(instruction).width(&circuit.parameters);
        self.partial.resize(instruction.destination().len as usize * width, 0);
        while self.position.units < instruction.units() {
            let next = self.decide(instruction)?;
            self.pause(next.stop)?;
            self.part(instruction, next.units, width * instruction.unit_elements())?;
        }
        self.close(instruction);
        Ok(())
    }

    /// Whether to stop, and units of the next part.
    fn decide(&self, instruction: &Instruction) -> Result<Decision> {
        let left = instruction.units() - self.position.units;
        if !self.cut {
            return Ok(Decision { stop: false, units: left });
        }
        let stop = self.options.stop.is_some_and(|stop| stop.load(Ordering::Relaxed));
        let units = self.pace.units(instruction, self.options.part, self.executor.threads()).min(left);
        let Some(exchange) = self.executor.exchange() else { return Ok(Decision { stop, units }) };
        let all = ranks::gather_word(exchange, (units as u64) << 1 | u64::from(stop))?;
        Ok(Decision { stop: all.iter().any(|word| word & 1 == 1), units: (all[0] >> 1) as usize })
    }

    /// Runs some units of an instruction, of so many words each.
    fn part(&mut self, instruction: &Instruction, count: usize, words: usize) -> Result<()> {
        let first = self.position.units;
        let size = self.executor.circuit().parameters.polynomial_size.0;
        let part = match count == instruction.units() {
            true => Cow::Borrowed(instruction),
            false => Cow::Owned(instruction.part(first..first + count, size)),
        };
        let out = &mut self.partial[first * words..(first + count) * words];
        let progress = self.options.progress;
        let start = Instant::now();
        self.executor.step(&part, &self.state, out, &|count| progress.advance(count))?;
        self.pace.learn(&part, start.elapsed());
        self.position.units += count;
        Ok(())
    }

    /// Puts the words of a finished instruction where they are read, and frees what nobody reads any more.
    fn close(&mut self, instruction: &Instruction) {
        let words = std::mem::take(&mut self.partial);
        let space = Space::of(instruction);
        if let Some(observer) = self.options.observer.filter(|_| space == Space::Lwe) {
            observer(instruction.destination().start, &words);
        }
        self.state.memory_mut(space).push(instruction.destination(), words);
        for &(space, block) in self.executor.liveness().dying(self.position.instruction) {
            self.state.memory_mut(space).free(block);
        }
        self.position = Position { instruction: self.position.instruction + 1, units: 0 };
    }

    /// Writes a checkpoint if one is due, and stops if that was asked for.
    fn pause(&mut self, stop: bool) -> Result<()> {
        let circuit = self.executor.circuit();
        let at = done(circuit, self.position);
        if let Some(checkpoint) = self.options.checkpoint.as_mut().filter(|c| stop || c.due()) {
            let snapshot = Snapshot { circuit, state: &self.state, partial: &self.partial, position: self.position };
            let bytes = checkpoint.keep(&snapshot)?;
            self.options.progress.kept(at, bytes);
        }
        if stop {
            let folder = self.options.checkpoint.as_ref().map(|c| c.folder().to_owned());
            return Err(RuntimeError::Stopped { done: at, total: circuit.pbs_count(), checkpoint: folder });
        }
        Ok(())
    }
}
