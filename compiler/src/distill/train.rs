//! One phase: epochs over batches, until the held-out loss no longer falls.
//!
//! A batch is cut into shards of a fixed size that run on all threads and whose gradients are added in order, so the result
//! depends neither on the number of threads nor on their timing.

use candle_core::{DType, Tensor as Candle};
use rayon::prelude::*;
use thex_ir::Graph;
use thex_passes::PassCx;

use super::adam::Adam;
use super::checkpoint::{Checkpoint, Position};
use super::data::Data;
use super::loss::Objective;
use super::noise::{Levels, Noise, NoisySites};
use super::parameters::{self, Parameter};
use super::program::{Program, Run, Undisturbed, Weights};
use super::random::Random;
use super::{DistilOptions, PhaseScore, Progress};
use crate::error::{CompileError, Result};

/// Samples that one thread takes at a time.
const SHARD: usize = 16;

/// Samples that ranges and statistics are taken from.
const PROBE: usize = 256;

/// The learning rate falls along a cosine to this part of it.
const LAST_RATE: f64 = 0.02;

/// What all phases share.
pub(super) struct Course<'a> {
    pub(super) options: &'a DistilOptions,
    pub(super) cx: &'a PassCx,
    pub(super) teacher: &'a Graph,
    pub(super) program: &'a Program,
    pub(super) data: &'a Data,
    /// The output that labels are about.
    pub(super) class_output: Option<usize>,
    pub(super) progress: &'a dyn Progress,
}

/// How a phase trains.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) epochs: usize,
    pub(super) rate: f64,
    /// Noise and rounded weights.
    pub(super) robust: bool,
}

/// A student in training.
pub(super) struct Trainee<'a> {
    course: &'a Course<'a>,
    plan: &'a Plan,
    parameters: Vec<Parameter>,
    program: Program,
    objective: Objective,
    sites: NoisySites,
    adam: Adam,
    best: Vec<Candle>,
}

/// Held-out figures.
#[derive(Clone, Copy, Debug)]
struct Measured {
    loss: f64,
    agreement: f64,
    accuracy: Option<f64>,
}

impl<'a> Trainee<'a> {
    pub(super) fn new(course: &'a Course<'a>, plan: &'a Plan, student: &Graph) -> Result<Self> {
        let parameters = parameters::parameters(student, DType::F32)?;
        let probe = &course.data.train[..course.data.train.len().min(PROBE)];
        let inputs = course.data.batch(probe, DType::F32)?;
        let run = course.program.run(&inputs, &Weights::new(), &mut Undisturbed)?;
        let weights = course.options.weights;
        Ok(Self {
            objective: Objective::new(course.teacher, student, &run, weights, course.class_output)?,
            sites: NoisySites::new(student, course.cx, course.options.noise),
            program: Program::new(student, DType::F32)?,
            adam: Adam::new(&parameters, course.options.decay)?,
            best: parameters::values(&parameters)?,
            parameters,
            course,
            plan,
        })
    }

    /// Goes on from a checkpoint.
    pub(super) fn resume(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let fits = checkpoint.current.len() == self.parameters.len() && checkpoint.best.len() == self.parameters.len();
        if !fits {
            return Err(CompileError::Internal("a checkpoint has other parameters than the student".into()));
        }
        parameters::restore(&self.parameters, &checkpoint.current)?;
        self.best.clone_from(&checkpoint.best);
        checkpoint.restore_adam(&mut self.adam);
        Ok(())
    }

    /// The state after an epoch.
    pub(super) fn checkpoint(&self, position: &Position, graph: &[u8]) -> Result<Checkpoint> {
        Ok(Checkpoint {
            position: Position { steps: self.adam.steps, ..position.clone() },
            graph: graph.to_vec(),
            current: parameters::values(&self.parameters)?,
            best: self.best.clone(),
            moments: [self.adam.first.clone(), self.adam.second.clone()],
        })
    }

    /// Trains to the end of the phase; calls `after` with the state after every epoch. The best values stay.
    pub(super) fn train(
        &mut self,
        position: &mut Position,
        after: &mut dyn FnMut(&Self, &Position) -> Result<()>,
    ) -> Result<()> {
        self.course.progress.phase(&self.plan.name, self.plan.epochs);
        let patience = self.course.options.patience;
        if position.best.is_none() {
            let levels = self.levels()?;
            position.best = Some(self.measure(&levels)?.loss);
        }
        while position.epoch < self.plan.epochs && position.stale < patience {
            let levels = self.levels()?;
            self.epoch(position, &levels)?;
            let loss = self.measure(&self.levels()?)?.loss;
            self.check(loss, position.epoch)?;
            position.epoch += 1;
            if position.best.is_none_or(|best| loss < best) {
                position.best = Some(loss);
                position.stale = 0;
                self.best = parameters::values(&self.parameters)?;
            } else {
                position.stale += 1;
            }
            self.course.progress.epoch(position.epoch, loss);
            after(self, position)?;
        }
        parameters::restore(&self.parameters, &self.best)
    }

    /// Writes the trained values into the graph.
    pub(super) fn store(&self, graph: &mut Graph) -> Result<()> {
        parameters::store(&self.parameters, graph)
    }

    /// The figures of the phase.
    pub(super) fn score(&self, position: &Position) -> Result<PhaseScore> {
        let measured = self.measure(&self.levels()?)?;
        Ok(PhaseScore {
            phase: self.plan.name.clone(),
            epochs: position.epoch,
            loss: measured.loss,
            agreement: measured.agreement,
            accuracy: measured.accuracy,
        })
    }

    fn bits(&self) -> Option<u32> {
        self.plan.robust.then_some(self.course.options.weight_bits)
    }

    /// Noise for the ranges that values have now; none where the phase has none.
    fn levels(&self) -> Result<Levels> {
        if !self.plan.robust || self.course.options.noise <= 0.0 {
            return Ok(Levels::new());
        }
        let data = self.course.data;
        let inputs = data.batch(&data.train[..data.train.len().min(PROBE)], DType::F32)?;
        let weights = detached(parameters::weights(&self.parameters, self.bits())?);
        self.sites.levels(&self.program.run(&inputs, &weights, &mut Undisturbed)?)
    }

    fn epoch(&mut self, position: &Position, levels: &Levels) -> Result<()> {
        let (options, data) = (self.course.options, self.course.data);
        let place = [position.phase as u64, position.epoch as u64];
        let order = Random::new(options.seed, &place).permutation(data.train.len());
        let batches = order.chunks(options.batch);
        let steps = batches.len();
        for (step, batch) in batches.enumerate() {
            let samples: Vec<usize> = batch.iter().map(|&i| data.train[i]).collect();
            let seed = [place[0], place[1], step as u64 + 1];
            let (loss, gradients) = self.gradients(&samples, levels, &seed)?;
            self.check(loss, position.epoch)?;
            let done = (position.epoch as f64 + step as f64 / steps as f64) / self.plan.epochs as f64;
            let rate = LAST_RATE + (1.0 - LAST_RATE) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
            self.adam.step(&self.parameters, &gradients, self.plan.rate * rate)?;
        }
        Ok(())
    }

    fn check(&self, loss: f64, epoch: usize) -> Result<()> {
        if loss.is_finite() {
            return Ok(());
        }
        Err(CompileError::Diverged { phase: self.plan.name.clone(), epoch, rate: self.plan.rate })
    }

    /// Mean loss of a batch and its gradients.
    fn gradients(&self, samples: &[usize], levels: &Levels, seed: &[u64]) -> Result<(f64, Vec<Candle>)> {
        let shard = |(i, shard): (usize, &[usize])| {
            let weights = parameters::weights(&self.parameters, self.bits())?;
            let place = [seed, &[i as u64]].concat();
            let random = Random::new(self.course.options.seed, &place);
            let loss = self.forward(shard, &weights, levels, random, |loss, _, _| Ok(loss))?;
            let gradients = parameters::gradients(&self.parameters, &loss.backward()?)?;
            Ok((shard.len() as f64 / samples.len() as f64, scalar(&loss)?, gradients))
        };
        let shards = samples.par_chunks(SHARD).enumerate().map(shard).collect::<Result<Vec<_>>>()?;
        let mut total: Option<Vec<Candle>> = None;
        let mut loss = 0.0;
        for (share, part, gradients) in shards {
            loss += share * part;
            let scaled = gradients.iter().map(|g| Ok((g * share)?)).collect::<Result<Vec<_>>>()?;
            total = Some(match total {
                None => scaled,
                Some(sum) => sum.iter().zip(&scaled).map(|(a, b)| Ok((a + b)?)).collect::<Result<_>>()?,
            });
        }
        Ok((loss, total.unwrap_or_default()))
    }

    /// Runs teacher and student on some samples; `finish` gets the loss and both runs.
    fn forward<T>(
        &self,
        samples: &[usize],
        weights: &Weights,
        levels: &Levels,
        random: Random,
        finish: impl FnOnce(Candle, &Run<'_>, &Run<'_>) -> Result<T>,
    ) -> Result<T> {
        let data = self.course.data;
        let inputs = data.batch(samples, DType::F32)?;
        let teacher = self.course.program.run(&inputs, &Weights::new(), &mut Undisturbed)?;
        let student = self.program.run(&inputs, weights, &mut Noise { levels, random })?;
        let labels: Option<Vec<u32>> = data.labels.as_ref().map(|l| samples.iter().map(|&i| l[i]).collect());
        let loss = self.objective.loss(&teacher, &student, labels.as_deref())?;
        finish(loss, &teacher, &student)
    }

    /// Loss and classes on held-out samples, under the conditions of the phase.
    fn measure(&self, levels: &Levels) -> Result<Measured> {
        let held_out = &self.course.data.held_out;
        let weights = detached(parameters::weights(&self.parameters, self.bits())?);
        let output = self.course.class_output.unwrap_or(0);
        let shard = |(i, shard): (usize, &[usize])| {
            let random = Random::new(self.course.options.seed, &[u64::MAX - 1, i as u64]);
            self.forward(shard, &weights, levels, random, |loss, teacher, student| {
                let theirs = classes(&teacher.outputs()?[output].tensor)?;
                let ours = classes(&student.outputs()?[output].tensor)?;
                Ok((scalar(&loss)? * shard.len() as f64, theirs, ours))
            })
        };
        let shards = held_out.par_chunks(2 * SHARD).enumerate().map(shard).collect::<Result<Vec<_>>>()?;
        let loss = shards.iter().map(|(loss, ..)| loss).sum::<f64>() / held_out.len() as f64;
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        for (_, a, b) in shards {
            theirs.extend(a);
            ours.extend(b);
        }
        let labels = self.course.data.labels.as_ref();
        let truth: Option<Vec<u32>> = labels.map(|l| held_out.iter().map(|&i| l[i]).collect());
        Ok(Measured { loss, agreement: share(&ours, &theirs), accuracy: truth.map(|truth| share(&ours, &truth)) })
    }
}

/// Weights from which no gradient flows.
fn detached(weights: Weights) -> Weights {
    weights.into_iter().map(|(id, value)| (id, value.detach())).collect()
}

fn scalar(value: &Candle) -> Result<f64> {
    Ok(value.to_dtype(DType::F64)?.to_scalar::<f64>()?)
}

/// Argmax over the last axis of every row.
fn classes(value: &Candle) -> Result<Vec<u32>> {
    Ok(value.argmax(candle_core::D::Minus1)?.flatten_all()?.to_vec1::<u32>()?)
}

/// Part of equal elements.
fn share(a: &[u32], b: &[u32]) -> f64 {
    a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len().max(1) as f64
}
