//! `--profile auto`: the cheapest mixture of forms that keeps to a budget of accuracy, or the most accurate one within a budget of time.
//!
//! Which approximation a model bears is a matter of the model, and what one saves depends on the others: an affine norm saves its own
//! bootstraps, and more where the maps around it merge. So nothing is estimated: every trial is compiled, and simulated with noise on
//! samples that it was not calibrated on. Even samples of the calibration data calibrate, odd ones judge.
//!
//! The search is greedy. Each form of each node is tried alone; then they are added to one another, what saves most for each point that
//! it loses first, as long as the budget holds, until a round adds nothing. Trials that no other beats in both time and accuracy are the Pareto front.
//!
//! Models with many nodes take minutes to compile, and have too many alternatives to compile each. They are searched by role (the same name in
//! every layer) instead of node by node, and every mixture is *screened* first: the approximated function is run as it is, with neither
//! rounding nor noise, in seconds. What loses the budget there needs no compilation. A role that does is halved, layer by layer, until what is left bears it. For
//! a budget of seconds nothing is screened.
//!
//! Losses are counted against the exact circuit under the same noise, in points: of accuracy where the data have labels, else of
//! agreement with the float model's classes, else (embeddings) of the mean cosine. They are as coarse as the samples are few.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};

use ndarray::{ArrayD, Axis, Slice};
use ndarray_npy::NpzWriter;
use serde::Serialize;
use thex_circuit::{Circuit, ClientBundle, Parameters};
use thex_passes::Profile;
use thex_passes::choice::{self, Form, Kind};
use thex_passes::params::{self, Work};
use thex_runtime::{KernelTimes, calibrate, npz};

use crate::error::{CompileError, Result};
use crate::evaluate::{Evaluation, Mode, Workload, evaluate_graph, evaluate_pair};
use crate::pipeline::{CompileOptions, compile, graph_file, rewrite};

/// What the circuit may lose or take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Points that it may lose against the exact circuit, at the least cost.
    Points(f64),
    /// Seconds that it may take on this machine, at the least loss.
    Seconds(f64),
}

impl Default for Budget {
    fn default() -> Self {
        Self::Points(0.5)
    }
}

impl Budget {
    /// The budget that was asked for, or the default; at most one of the two is given.
    ///
    /// # Errors
    /// It is no number of 0 or more.
    pub fn of(points: Option<f64>, seconds: Option<f64>) -> Result<Self> {
        let budget = seconds.map(Self::Seconds).or(points.map(Self::Points)).unwrap_or_default();
        let (Self::Points(amount) | Self::Seconds(amount)) = budget;
        if amount.is_finite() && amount >= 0.0 {
            return Ok(budget);
        }
        Err(CompileError::Usage("a budget must be a number, 0 or more".into()))
    }
}

/// What losses are points of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Measure {
    /// Correct classes.
    Accuracy,
    /// Samples with the float model's class.
    Agreement,
    /// Cosine to the float model's first output.
    Cosine,
}

/// Models with more nodes than this are searched by role.
const MOST_NODES: usize = 12;

/// Bootstraps that are simulated for a trial: fewer samples of larger models.
const SIMULATED: u64 = 1 << 22;

/// Samples that judge a trial.
const SAMPLES: std::ops::RangeInclusive<u64> = 16..=400;

/// A saving of less than this part is none.
const LEAST_SAVING: f64 = 0.002;

/// Losses below this many points are chance when alternatives are ranked.
const CHANCE: f64 = 0.1;

/// Samples that screen a mixture.
const SCREENED: usize = 128;

/// The last pass that changes what is computed.
const LAST_REWRITE: &str = "fuse-unary";

/// Rounds in which what was refused before is tried again.
const ROUNDS: usize = 2;

/// One mixture of forms.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// As `--approximate` takes them; empty for the exact circuit.
    pub requests: Vec<String>,
    /// The same in short.
    pub name: String,
    /// Blind rotations.
    pub pbs: u64,
    /// Work, in the units of the cost model: the same on every machine.
    pub cost: f64,
    /// Estimated seconds of a run on this machine.
    pub seconds: f64,
    /// What is measured, in percent.
    pub score: f64,
    /// Points lost against the exact circuit.
    pub loss: f64,
}

/// What a search found.
#[derive(Clone, Debug, Serialize)]
pub struct Search {
    /// What losses are points of.
    pub measure: Measure,
    /// Samples that judged.
    pub samples: usize,
    /// Cryptographic parameters of all trials: those of the exact circuit. The circuit must be compiled with them to be the one that was judged.
    pub parameters: Parameters,
    /// Every mixture that was tried, in order; the first is the exact one.
    pub trials: Vec<Trial>,
    /// Mixtures that were screened.
    pub screened: usize,
    /// The one to take.
    pub chosen: usize,
    /// Whether it keeps to the budget.
    pub kept: bool,
}

/// One way to make a circuit cheaper: a form for some nodes.
#[derive(Clone, Debug)]
struct Alternative {
    name: String,
    nodes: Vec<String>,
    form: Form,
    /// Look-ups that it saves, about; to put alternatives in order before any is compiled.
    saving: f64,
}

impl Alternative {
    fn requests(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("{node}={}", self.form.name())).collect()
    }

    /// The same for the first and the last half of its nodes.
    fn halves(&self) -> Vec<Self> {
        let size = self.nodes.len().div_ceil(2);
        let part = |nodes: &[String]| {
            let saving = self.saving * nodes.len() as f64 / self.nodes.len() as f64;
            let name = if let [node] = nodes {
                node.clone()
            } else {
                format!("{} ({} to {})", self.name, nodes[0], nodes[nodes.len() - 1])
            };
            Self { name, nodes: nodes.to_vec(), form: self.form, saving }
        };
        self.nodes.chunks(size.max(1)).map(part).collect()
    }
}

/// Look-ups of one node that a form saves, about: a norm has two an element, the cubes of a softmax one in place of two, and a ReLU as many as a GELU.
fn saving(form: Form, elements: usize) -> f64 {
    match form {
        Form::Affine | Form::Constant => 2.0 * elements as f64,
        Form::Cube => elements as f64,
        _ => 0.01 * elements as f64,
    }
}

/// Names with runs of digits made alike: what a node is called in every layer.
fn role(name: &str) -> String {
    let mut role = String::new();
    for c in name.chars() {
        match (c.is_ascii_digit(), role.ends_with('#')) {
            (true, true) => {}
            (true, false) => role.push('#'),
            (false, _) => role.push(c),
        }
    }
    role
}

/// Forms that approximate. Of THE-X's softmaxes only the cube: the others cost more or are worse, and are there for fidelity.
fn approximations(kind: Kind) -> impl Iterator<Item = Form> {
    let approximates = |form: &Form| matches!(form, Form::Relu | Form::Cube | Form::Affine | Form::Constant);
    kind.forms().iter().copied().filter(approximates)
}

/// A node that may be approximated.
struct Open {
    name: String,
    kind: Kind,
    elements: usize,
}

fn alternatives(nodes: &[Open]) -> Vec<Alternative> {
    let by_role = nodes.len() > MOST_NODES;
    let mut groups: BTreeMap<(String, Kind), Vec<&Open>> = BTreeMap::new();
    for node in nodes {
        let group = if by_role { role(&node.name) } else { node.name.clone() };
        groups.entry((group, node.kind)).or_default().push(node);
    }
    let of_group = |((name, kind), nodes): ((String, Kind), Vec<&Open>)| {
        let names: Vec<String> = nodes.iter().map(|n| n.name.clone()).collect();
        let elements = nodes.iter().map(|n| n.elements).sum();
        approximations(kind)
            .map(|form| Alternative { name: name.clone(), nodes: names.clone(), form, saving: saving(form, elements) })
            .collect::<Vec<_>>()
    };
    groups.into_iter().flat_map(of_group).collect()
}

/// Even and odd samples of a data set, in files of their own.
struct Halves {
    calibration: PathBuf,
    judges: PathBuf,
    _folder: tempfile::TempDir,
}

fn write_part(path: &Path, arrays: &[(String, ArrayD<f64>)], first: usize) -> Result<()> {
    let wrong = |error: String| CompileError::Data(format!("cannot split the calibration data: {error}"));
    let mut writer = NpzWriter::new(File::create(path).map_err(|e| wrong(e.to_string()))?);
    for (name, array) in arrays {
        let part = array.slice_axis(Axis(0), Slice::new(first as isize, None, 2)).to_owned();
        writer.add_array(name.as_str(), &part).map_err(|e| wrong(e.to_string()))?;
    }
    writer.finish().map(|_| ()).map_err(|e| wrong(e.to_string()))
}

impl Halves {
    fn of(data: &Path) -> Result<Self> {
        let names = npz::names(data)?;
        let arrays = npz::read(data, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
        if npz::samples(&arrays) < 2 * *SAMPLES.start() as usize {
            return Err(CompileError::Data(format!(
                "`{}` has fewer than {} samples: `--profile auto` calibrates on one half and judges on the other",
                data.display(),
                2 * SAMPLES.start()
            )));
        }
        let folder =
            tempfile::tempdir().map_err(|e| CompileError::Data(format!("cannot make a temporary folder: {e}")))?;
        let (calibration, judges) = (folder.path().join("calibration.npz"), folder.path().join("judges.npz"));
        write_part(&calibration, &arrays, 0)?;
        write_part(&judges, &arrays, 1)?;
        Ok(Self { calibration, judges, _folder: folder })
    }
}

fn work(circuit: &Circuit) -> Work {
    let keyswitches: u64 = circuit.instructions.iter().map(thex_circuit::Instruction::keyswitch_count).sum();
    Work {
        rotations: circuit.rotation_work() as f64,
        keyswitches: keyswitches as f64,
        packs: circuit.pack_count() as f64,
    }
}

/// The search under way.
struct Searcher<'a> {
    options: CompileOptions,
    judges: &'a Path,
    /// Settled by the exact circuit, so that trials differ by their forms alone.
    parameters: Option<Parameters>,
    times: Option<KernelTimes>,
    measure: Measure,
    limit: usize,
    trials: Vec<Trial>,
    /// The exact circuit's, where mixtures are to be screened: it says how samples are read.
    screen: Option<ClientBundle>,
    /// What mixtures lose without noise, by their requests.
    screened: BTreeMap<Vec<String>, f64>,
    tell: &'a mut dyn FnMut(&Trial),
}

impl<'a> Searcher<'a> {
    /// Nothing is settled before [`Self::exact`].
    fn new(options: CompileOptions, judges: &'a Path, tell: &'a mut dyn FnMut(&Trial)) -> Self {
        Self {
            options,
            judges,
            parameters: None,
            times: None,
            measure: Measure::Agreement,
            limit: 1,
            trials: Vec::new(),
            screen: None,
            screened: BTreeMap::new(),
            tell,
        }
    }

    fn score(&self, evaluation: &Evaluation) -> f64 {
        100.0
            * match self.measure {
                Measure::Accuracy => evaluation.accuracy.unwrap_or(evaluation.agreement),
                Measure::Agreement => evaluation.agreement,
                Measure::Cosine => evaluation.mean_cosine,
            }
    }

    fn workload(&self, mode: Mode) -> Workload {
        Workload {
            model: self.options.model.clone(),
            data: self.judges.to_owned(),
            mode,
            limit: Some(self.limit),
            seed: 0,
            backend: thex_runtime::commands::Device::Cpu,
        }
    }

    fn evaluate(&self, circuit: &Circuit, bundle: &ClientBundle) -> Result<Evaluation> {
        evaluate_pair(circuit, bundle, &self.workload(Mode::Simulate))
    }

    /// The exact circuit: settles parameters, samples and measure.
    fn exact(&mut self, screens: bool) -> Result<()> {
        let compiled = compile(&self.options)?;
        let circuit = &compiled.emitted.circuit;
        self.limit = (SIMULATED / circuit.pbs_count().max(1)).clamp(*SAMPLES.start(), *SAMPLES.end()) as usize;
        let evaluation = self.evaluate(circuit, &compiled.emitted.bundle)?;
        self.limit = evaluation.samples;
        let classes =
            |name: &str| ["logit", "prob", "score", "class"].iter().any(|word| name.to_lowercase().contains(word));
        self.measure = match (evaluation.accuracy.is_some(), evaluation.outputs.iter().any(|o| classes(&o.name))) {
            (true, _) => Measure::Accuracy,
            (false, true) => Measure::Agreement,
            (false, false) => Measure::Cosine,
        };
        self.parameters = Some(circuit.parameters);
        self.times = Some(calibrate::measure(circuit.parameters, 0)?);
        self.record(String::from("exact"), Vec::new(), circuit, &evaluation);
        self.screen = screens.then(|| compiled.emitted.bundle.clone());
        Ok(())
    }

    /// Points that the forms of a mixture lose by themselves, without rounding and noise; 0 where nothing is screened.
    fn screen(&mut self, mixture: &[&Alternative]) -> Result<f64> {
        let Some(bundle) = &self.screen else { return Ok(0.0) };
        let options = self.with(mixture);
        if let Some(known) = self.screened.get(&options.approximate) {
            return Ok(*known);
        }
        let rewritten = rewrite(&options, Some(LAST_REWRITE))?;
        let graph = graph_file(&options, &rewritten.cx, &rewritten.graph)?.graph;
        let work = Workload { limit: Some(SCREENED), ..self.workload(Mode::Clear) };
        let evaluation = evaluate_graph(&graph, bundle, &work)?;
        let whole = if self.measure == Measure::Accuracy { evaluation.float_accuracy.unwrap_or(1.0) } else { 1.0 };
        let loss = 100.0 * whole - self.score(&evaluation);
        self.screened.insert(options.approximate, loss);
        tracing::info!("{}: {loss:.2} points lost without noise", name_of(mixture));
        Ok(loss)
    }

    /// What of an alternative loses no more than this by itself: all of it, or halves of it.
    fn bearable(&mut self, alternative: &Alternative, most: f64) -> Result<Vec<Alternative>> {
        if self.screen(&[alternative])? <= most {
            return Ok(vec![alternative.clone()]);
        }
        if alternative.nodes.len() == 1 {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for half in alternative.halves() {
            found.extend(self.bearable(&half, most)?);
        }
        Ok(found)
    }

    fn with(&self, mixture: &[&Alternative]) -> CompileOptions {
        let mut options = self.options.clone();
        options.approximate.extend(mixture.iter().flat_map(|a| a.requests()));
        options.parameters = self.parameters;
        options
    }

    fn record(&mut self, name: String, requests: Vec<String>, circuit: &Circuit, evaluation: &Evaluation) -> usize {
        let score = self.score(evaluation);
        let trial = Trial {
            requests,
            name,
            pbs: circuit.pbs_count(),
            cost: params::cost(&circuit.parameters, &work(circuit)),
            seconds: self.times.map_or(0.0, |t| t.estimate(circuit)),
            score,
            loss: self.trials.first().map_or(0.0, |exact| exact.score - score),
        };
        (self.tell)(&trial);
        self.trials.push(trial);
        self.trials.len() - 1
    }

    /// Compiles and judges a mixture; returns its number.
    fn try_mixture(&mut self, mixture: &[&Alternative]) -> Result<usize> {
        let requests: Vec<String> = mixture.iter().flat_map(|a| a.requests()).collect();
        if let Some(known) = self.trials.iter().position(|t| t.requests == requests) {
            return Ok(known);
        }
        let compiled = compile(&self.with(mixture))?;
        let evaluation = self.evaluate(&compiled.emitted.circuit, &compiled.emitted.bundle)?;
        Ok(self.record(name_of(mixture), requests, &compiled.emitted.circuit, &evaluation))
    }

    /// The alternatives, best first. Where mixtures are screened, those that nothing speaks against, by what they should save; else by what each
    /// saves, compiled by itself, for each point that it loses.
    fn ranked(&mut self, all: &[Alternative], budget: Budget) -> Result<Vec<Alternative>> {
        let mut worth: Vec<(f64, Alternative)> = Vec::new();
        for alternative in all {
            if let (Some(_), Budget::Points(most)) = (&self.screen, budget) {
                worth.extend(self.bearable(alternative, most)?.into_iter().map(|a| (a.saving, a)));
                continue;
            }
            let at = self.try_mixture(&[alternative])?;
            let (exact, trial) = (&self.trials[0], &self.trials[at]);
            worth.push(((exact.cost - trial.cost) / trial.loss.max(CHANCE), alternative.clone()));
        }
        worth.sort_by(|a, b| b.0.total_cmp(&a.0));
        Ok(worth.into_iter().map(|(_, alternative)| alternative).collect())
    }

    /// Adds alternatives to one another; returns the last mixture within the budget.
    fn grow(&mut self, all: &[Alternative], budget: Budget) -> Result<usize> {
        let ranked = self.ranked(all, budget)?;
        let (mut mixture, mut best): (Vec<&Alternative>, usize) = (Vec::new(), 0);
        for _ in 0..ROUNDS {
            let before = mixture.len();
            for alternative in &ranked {
                if matches!(budget, Budget::Seconds(most) if self.trials[best].seconds <= most) {
                    return Ok(best);
                }
                if mixture.iter().any(|known| known.nodes.iter().any(|node| alternative.nodes.contains(node))) {
                    continue;
                }
                let with: Vec<&Alternative> = mixture.iter().copied().chain([alternative]).collect();
                if matches!(budget, Budget::Points(most) if self.screen(&with)? > most) {
                    continue;
                }
                let at = self.try_mixture(&with)?;
                let (now, then) = (&self.trials[best], &self.trials[at]);
                let saves = then.cost < now.cost * (1.0 - LEAST_SAVING);
                if saves && matches!(budget, Budget::Points(most) if then.loss > most) {
                    continue;
                }
                if saves {
                    (mixture, best) = (with, at);
                }
            }
            if mixture.len() == before {
                break;
            }
        }
        Ok(best)
    }
}

/// A mixture in short.
fn name_of(mixture: &[&Alternative]) -> String {
    mixture.iter().map(|a| format!("{}={}", a.name, a.form.name())).collect::<Vec<_>>().join(", ")
}

/// Searches; `tell` hears of every trial. The profile of `options` is taken as `exact`, its own requests hold for all trials.
///
/// # Errors
/// The model cannot be compiled, or the calibration data are too few.
pub fn search(options: &CompileOptions, budget: Budget, tell: &mut dyn FnMut(&Trial)) -> Result<Search> {
    let halves = Halves::of(&options.calibration)?;
    let options = CompileOptions {
        calibration: halves.calibration.clone(),
        profile: Profile::Exact,
        dump_ir: None,
        ..options.clone()
    };
    let settled: BTreeSet<String> = settled(&options)?;
    let graph = rewrite(&options, Some("canonicalize"))?.graph;
    let elements: BTreeMap<&str, usize> =
        graph.ids().map(|id| (graph.node(id).name.as_str(), graph.node(id).shape.iter().product())).collect();
    let open: Vec<Open> = choice::open(&graph)
        .into_iter()
        .filter(|(name, _)| !settled.contains(name))
        .map(|(name, kind)| Open { elements: elements.get(name.as_str()).copied().unwrap_or(0), name, kind })
        .collect();
    let mut searcher = Searcher::new(options, &halves.judges, tell);
    searcher.exact(open.len() > MOST_NODES && matches!(budget, Budget::Points(_)))?;
    let chosen = searcher.grow(&alternatives(&open), budget)?;
    let trial = &searcher.trials[chosen];
    let kept = match budget {
        Budget::Points(most) => trial.loss <= most,
        Budget::Seconds(most) => trial.seconds <= most,
    };
    let (measure, samples) = (searcher.measure, searcher.limit);
    let parameters = searcher.parameters.unwrap_or_else(Parameters::standard);
    Ok(Search {
        measure,
        samples,
        parameters,
        screened: searcher.screened.len(),
        trials: searcher.trials,
        chosen,
        kept,
    })
}

/// Nodes that the caller has chosen a form for.
fn settled(options: &CompileOptions) -> Result<BTreeSet<String>> {
    Ok(rewrite(options, Some("choose-forms"))?.cx.forms.into_keys().collect())
}

impl Search {
    /// Asks the compiler for the forms that were found.
    pub fn apply(&self, options: &mut CompileOptions) {
        options.approximate.extend(self.trials[self.chosen].requests.iter().cloned());
        options.parameters = Some(self.parameters);
    }

    /// Trials that no other beats, the slowest first.
    #[must_use]
    pub fn front(&self) -> Vec<usize> {
        let beaten = |i: usize| {
            let t = &self.trials[i];
            self.trials.iter().enumerate().any(|(j, other)| {
                let no_worse = other.cost <= t.cost && other.loss <= t.loss;
                no_worse && (other.cost < t.cost || other.loss < t.loss || j < i)
            })
        };
        let mut front: Vec<usize> = (0..self.trials.len()).filter(|&i| !beaten(i)).collect();
        front.sort_by(|&a, &b| self.trials[b].cost.total_cmp(&self.trials[a].cost));
        front
    }

    /// For people: the front as a table and as a plot.
    #[must_use]
    pub fn text(&self) -> String {
        let measure = match self.measure {
            Measure::Accuracy => "accuracy",
            Measure::Agreement => "agreement with the float model",
            Measure::Cosine => "cosine to the float model's embedding",
        };
        let screened = match self.screened {
            0 => String::new(),
            n => format!("{n} mixtures of forms screened without noise, "),
        };
        let mut out = format!(
            "{screened}{} mixtures of forms compiled and simulated on {} samples; losses in points of {measure}\n\n{:>8} {:>9} {:>8} {:>7}  {}\n",
            self.trials.len(),
            self.samples,
            "PBS",
            "seconds",
            "score",
            "loss",
            "forms"
        );
        for i in self.front() {
            let t = &self.trials[i];
            let mark = if i == self.chosen { "  ← taken" } else { "" };
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{:>8} {:>9.1} {:>8.2} {:>7.2}  {}{mark}", t.pbs, t.seconds, t.score, t.loss, t.name);
        }
        out + "\n" + &self.plot()
    }

    /// Seconds to the right, loss upwards: `o` the front, `·` other trials, `#` the one taken.
    fn plot(&self) -> String {
        const COLUMNS: usize = 64;
        const ROWS: usize = 12;
        let bounds = |of: fn(&Trial) -> f64| {
            let values = self.trials.iter().map(of);
            let (lo, hi) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)));
            (lo, (hi - lo).max(1e-9))
        };
        let ((x0, width), (y0, height)) = (bounds(|t| t.seconds), bounds(|t| t.loss));
        let mut cells = vec![[' '; COLUMNS + 1]; ROWS + 1];
        let mut mark = |i: usize, with: char| {
            let t = &self.trials[i];
            let column = ((t.seconds - x0) / width * COLUMNS as f64).round() as usize;
            let row = ROWS - ((t.loss - y0) / height * ROWS as f64).round() as usize;
            cells[row.min(ROWS)][column.min(COLUMNS)] = with;
        };
        (0..self.trials.len()).for_each(|i| mark(i, '·'));
        self.front().into_iter().for_each(|i| mark(i, 'o'));
        mark(self.chosen, '#');
        let mut out = String::new();
        for (row, line) in cells.iter().enumerate() {
            let label = match row {
                0 => format!("{:>7.2}", y0 + height),
                ROWS => format!("{y0:>7.2}"),
                _ => " ".repeat(7),
            };
            let _ = writeln!(out, "{label} │{}", line.iter().collect::<String>().trim_end());
        }
        let _ = writeln!(out, "{:>7} └{}", "loss", "─".repeat(COLUMNS + 1));
        let _ = writeln!(out, "{:>9}{:<30}{:>35} s", "", format!("{x0:.1}"), format!("{:.1}", x0 + width));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(name: &str, cost: f64, loss: f64) -> Trial {
        Trial { requests: vec![], name: name.into(), pbs: cost as u64, cost, seconds: cost, score: 99.0 - loss, loss }
    }

    #[test]
    fn the_front_holds_what_nothing_beats() {
        let trials = vec![
            trial("exact", 10.0, 0.0),
            trial("a", 8.0, 1.0),
            trial("b", 9.0, 2.0),
            trial("c", 8.0, 1.0),
            trial("d", 4.0, 5.0),
        ];
        let search = Search {
            measure: Measure::Accuracy,
            samples: 100,
            parameters: Parameters::standard(),
            trials,
            screened: 0,
            chosen: 1,
            kept: true,
        };
        assert_eq!(search.front(), vec![0, 1, 4]);
        let text = search.text();
        assert!(text.contains("← taken") && text.contains('#') && !text.contains(" b\n"), "{text}");
    }

    #[test]
    fn roles_are_names_without_numbers() {
        assert_eq!(role("layer.10.norm1"), role("layer.3.norm2"));
        let open = |name: String, kind| Open { name, kind, elements: 8 };
        let nodes: Vec<Open> = (0..7)
            .flat_map(|i| [open(format!("l.{i}.n"), Kind::LayerNorm), open(format!("l.{i}.g"), Kind::Gelu)])
            .collect();
        assert_eq!(alternatives(&nodes).len(), 3);
        assert_eq!(alternatives(&nodes[..4]).len(), 6);
        let whole = &alternatives(&nodes)[1];
        let halves = whole.halves();
        assert_eq!(halves.iter().map(|h| h.nodes.len()).collect::<Vec<_>>(), [4, 3]);
        assert!((halves.iter().map(|h| h.saving).sum::<f64>() - whole.saving).abs() < 1e-9);
        assert_eq!(halves[1].halves()[1].name, "l.6.n");
    }

    #[test]
    fn screening_finds_what_forms_lose_and_halves_what_loses_too_much() {
        let path = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(name);
        let halves = Halves::of(&path("data/digits_calibration.npz")).unwrap();
        let model = path("models/digits_vit.onnx");
        let options = CompileOptions { model, calibration: halves.calibration.clone(), ..CompileOptions::default() };
        let mut ignore = |_: &Trial| {};
        let mut searcher = Searcher::new(options, &halves.judges, &mut ignore);
        searcher.exact(true).unwrap();
        assert!(searcher.screen(&[]).unwrap().abs() < 1e-9, "without approximations nothing is lost");
        let nodes = ["blocks.0.ln1", "blocks.0.ln2", "blocks.1.ln1", "blocks.1.ln2", "ln"];
        let nodes: Vec<String> = nodes.iter().map(|n| format!("{n}.LayerNormalization")).collect();
        let norms = Alternative { name: "norms".into(), nodes, form: Form::Affine, saving: 1.0 };
        let loss = searcher.screen(&[&norms]).unwrap();
        assert!(loss > 2.0, "{loss}");
        let kept = searcher.bearable(&norms, 1.0).unwrap();
        assert!(!kept.is_empty() && kept.iter().all(|a| a.nodes.len() < norms.nodes.len()), "{kept:?}");
        for alternative in &kept {
            assert!(searcher.screen(&[alternative]).unwrap() <= 1.0);
        }
    }
}
