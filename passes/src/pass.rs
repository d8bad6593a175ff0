//! What a pass is, and what it may look at.

use std::sync::Arc;

use thex_circuit::clear::ClearGraph;
use thex_circuit::{NoiseModel, Parameters};
use thex_ir::{Graph, NodeId, Tensor};

use crate::choice::{Form, Forms, Kind};
use crate::error::Result;
use crate::lower::Analysis;
use crate::options::PassOption;

/// How non-linear functions are computed, unless chosen for single nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Every function by look-up: GELU, exp, 1/x, 1/√x.
    #[default]
    Exact,
    /// THE-X: ReLU, cubic softmax, affine LayerNorm.
    TheX,
}

impl Profile {
    /// As the command line spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::TheX => "the-x",
        }
    }
}

/// Calibration samples: for each, one tensor for each input of the model.
pub type Samples = Arc<Vec<Vec<Arc<Tensor>>>>;

/// How exact the circuit shall be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Precision {
    /// Goal for the modelled error of the outputs: its root mean square, relative to the outputs' own spread over the calibration data.
    pub output_error: f64,
    /// Widening of every calibrated range, as a fraction of its width on each side.
    pub margin: f64,
}

impl Default for Precision {
    fn default() -> Self {
        Self { output_error: 0.13, margin: 0.125 }
    }
}

/// One source of the error that the noise model predicts for the outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct ErrorSource {
    /// What happens there: "argument noise", "table rounding", ...
    pub kind: &'static str,
    /// Node of the lowered graph.
    pub node: String,
    /// Variance that it adds to an output element, in units of the output squared, on average.
    pub variance: f64,
}

/// For each look-up argument of a placed graph and each of its elements: errors seen on calibration samples, in its units.
pub type Errors = std::collections::BTreeMap<NodeId, Vec<Vec<f64>>>;

/// What a simulation of a placed graph on calibration samples shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Errors of look-up arguments.
    pub arguments: Errors,
    /// Root mean square error of the outputs, in their units.
    pub outputs: f64,
    /// Samples that were simulated.
    pub samples: usize,
}

/// A placed graph and its context in, or a reason why it cannot be run.
type Measure = dyn Fn(&Graph, &PassCx) -> std::result::Result<Measured, String> + Send + Sync;

/// Runs a placed graph with noise. Passes know no circuit and no simulator, so whoever runs them lends one.
#[derive(Clone)]
pub struct Probe(Arc<Measure>);

impl Probe {
    /// Takes the function that measures.
    pub fn new(
        measure: impl Fn(&Graph, &PassCx) -> std::result::Result<Measured, String> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(measure))
    }

    /// Measures.
    ///
    /// # Errors
    /// The graph cannot be run.
    pub fn measure(&self, graph: &Graph, cx: &PassCx) -> std::result::Result<Measured, String> {
        (self.0)(graph, cx)
    }
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Probe")
    }
}

/// What passes share: options in, statistics and a log out.
#[derive(Clone, Debug)]
pub struct PassCx {
    /// How functions are computed that nothing else is said of.
    pub profile: Profile,
    /// What is said of single nodes, each `NODE=FORM`; see [`choice`](crate::choice).
    pub approximate: Vec<String>,
    /// The same by node; set by `choose-forms`.
    pub forms: Forms,
    /// How exact.
    pub precision: Precision,
    /// Parameters of the circuit.
    pub parameters: Parameters,
    /// Whether they are settled; if not, `select-parameters` chooses them.
    pub parameters_fixed: bool,
    /// Runs placed graphs with noise, if there is something that can.
    pub probe: Option<Probe>,
    /// What `select-parameters` found out about the graph that it hands on.
    pub analysis: Option<Arc<Analysis>>,
    /// Calibration samples.
    pub samples: Samples,
    /// What the client computes before encryption; set by `split-client-server`.
    pub prologue: Option<ClearGraph>,
    /// What the client computes after decryption; set by `split-client-server`.
    pub epilogue: Option<ClearGraph>,
    /// The server's part before any approximation, for least squares against it; set by `split-client-server`.
    pub teacher: Option<Arc<Graph>>,
    /// Every change of the computed function, for the report.
    pub approximations: Vec<String>,
    /// Why rewrites were made, or not made.
    pub log: Vec<String>,
    /// Counters of the current pass.
    pub counters: std::collections::BTreeMap<&'static str, u64>,
    /// Modelled root mean square error of the outputs, in their own units; set by `insert-rescale`.
    pub predicted_output_error: Option<f64>,
    /// Where it comes from, the largest source first; set by `insert-rescale`.
    pub error_sources: Vec<ErrorSource>,
}

impl PassCx {
    /// A context with the standard parameters.
    #[must_use]
    pub fn new(profile: Profile, samples: Samples) -> Self {
        Self {
            profile,
            approximate: Vec::new(),
            forms: Forms::new(),
            precision: Precision::default(),
            parameters: Parameters::standard(),
            parameters_fixed: false,
            probe: None,
            analysis: None,
            samples,
            prologue: None,
            epilogue: None,
            teacher: None,
            approximations: Vec::new(),
            log: Vec::new(),
            counters: std::collections::BTreeMap::new(),
            predicted_output_error: None,
            error_sources: Vec::new(),
        }
    }

    /// How a node is to be computed, if there is a choice.
    #[must_use]
    pub fn form(&self, graph: &Graph, id: NodeId) -> Option<Form> {
        let node = graph.node(id);
        let kind = Kind::of(&node.op)?;
        Some(self.forms.get(&node.name).copied().unwrap_or(kind.default_form(self.profile)))
    }

    /// The noise of each instruction.
    #[must_use]
    pub fn noise(&self) -> NoiseModel {
        NoiseModel::new(&self.parameters)
    }

    /// Adds to a counter of the current pass.
    pub fn count(&mut self, what: &'static str, n: u64) {
        *self.counters.entry(what).or_default() += n;
    }

    /// Notes why something was rewritten.
    pub fn note(&mut self, reason: String) {
        tracing::debug!("{reason}");
        self.log.push(reason);
    }
}

/// One rewriting step.
pub trait Pass: Sync {
    /// Kebab-case; equals the file's name.
    fn name(&self) -> &'static str;

    /// One line.
    fn description(&self) -> &'static str;

    /// The file that the pass is written in, `include_str!` of itself: `thex passes NAME` shows the documentation that heads it.
    fn source(&self) -> &'static str {
        ""
    }

    /// What can be tuned: fields of the pass. See [`options`](crate::options).
    fn options(&mut self) -> Vec<PassOption<'_>> {
        Vec::new()
    }

    /// Rewrites the graph; tells whether anything changed.
    ///
    /// # Errors
    /// [`PassError`](crate::PassError): what cannot be compiled and what to do about it.
    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool>;
}
