//! The verifier: what must hold of a graph at its [`Stage`], checked from scratch.
//!
//! The pass manager runs it before and after every pass, so it shares no code with the passes: it recomputes shapes,
//! privacy and rounding itself. It collects violations rather than stop at the first, one for each invariant
//! and node, since the second often explains the first. A check looks at no fact without testing that it is there: a
//! broken graph yields violations, never a panic.
//!
//! | code | from | invariant |
//! |---|---|---|
//! | V001 | imported | the graph has no cycle |
//! | V002 | imported | operand counts fit the operation, ports are 0, 1, 2, … |
//! | V003 | imported | shapes are those that the operation implies |
//! | V004 | imported | names are unique |
//! | V005 | imported | outputs exist; the inputs are exactly the input nodes, each once |
//! | V006 | imported | the stage allows the operation |
//! | V007 | imported | constants, weights and biases are finite |
//! | V008 | lowered | addresses lie within LWE-valued operands; absent ones only in packs and linear maps |
//! | V009 | lowered | sizes of a linear map agree |
//! | V010 | lowered | operands of encrypt, pbs and lut-product are of the right kind, their indices in range |
//! | V011 | lowered | slots and positions are positive and fit the polynomial size |
//! | V012 | calibrated | every private tensor has finite, ordered ranges |
//! | V013 | placed | every vector of LWE ciphertexts has usable encodings |
//! | V014 | placed | integer weights are the real weights in the units of the encodings, to within 2 |
//! | V015 | placed | arguments stay within the box of their look-up |
//! | V016 | placed | outputs of look-ups do not wrap around the torus |
//! | V017 | placed | one table serves all slots of a rotation: their gains are equal |
//!
//! An invariant says "from" the earliest stage at which it has anything to check.

mod facts;
mod he;
mod structure;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::graph::{Graph, NodeId, Op, Stage};
use crate::he::HeOp;

/// What the verifier may assume about the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyOptions {
    /// N. Without it, positions are only checked to be positive (V011), and V015 is skipped.
    pub polynomial_size: Option<usize>,
}

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its code, such as `V012`.
    pub invariant: &'static str,
    /// The node at fault, where one is.
    pub node: Option<String>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(f, "{} `{node}`: {}", self.invariant, self.message),
            None => write!(f, "{} {}", self.invariant, self.message),
        }
    }
}

/// A check of one invariant.
type Check = fn(&View<'_>, &mut Findings<'_>);

const CHECKS: [(&str, Check); 17] = [
    ("V001", structure::acyclic),
    ("V002", structure::operand_counts),
    ("V003", structure::shapes),
    ("V004", structure::unique_names),
    ("V005", structure::inputs_and_outputs),
    ("V006", structure::stage_allows),
    ("V007", structure::finite_constants),
    ("V008", he::addresses),
    ("V009", he::linear_sizes),
    ("V010", he::operand_kinds),
    ("V011", he::slots_and_positions),
    ("V012", facts::ranges),
    ("V013", facts::encodings),
    ("V014", facts::integer_weights),
    ("V015", facts::arguments_in_box),
    ("V016", facts::outputs_do_not_wrap),
    ("V017", facts::slots_share_a_table),
];

/// Checks every invariant of the graph's stage.
///
/// # Errors
/// All violations, in the order of their codes and of the nodes' creation.
pub fn verify(graph: &Graph, options: &VerifyOptions) -> Result<(), Vec<Violation>> {
    let view = View::new(graph, *options);
    let mut violations = Vec::new();
    for (invariant, check) in CHECKS {
        check(&view, &mut Findings { invariant, graph, violations: &mut violations });
    }
    if violations.is_empty() { Ok(()) } else { Err(violations) }
}

/// The graph and what all checks need of it, computed once.
struct View<'a> {
    graph: &'a Graph,
    options: VerifyOptions,
    order: Vec<NodeId>,
    operands: BTreeMap<NodeId, Vec<NodeId>>,
    /// Nodes that depend on an input of the model.
    private: BTreeSet<NodeId>,
}

impl<'a> View<'a> {
    fn new(graph: &'a Graph, options: VerifyOptions) -> Self {
        let order = graph.topological();
        let operands: BTreeMap<NodeId, Vec<NodeId>> = graph.ids().map(|id| (id, graph.operands(id))).collect();
        let mut private = BTreeSet::new();
        for &id in &order {
            let depends = operands[&id].iter().any(|o| private.contains(o));
            if depends || matches!(graph.node(id).op, Op::Input) {
                private.insert(id);
            }
        }
        Self { graph, options, order, operands, private }
    }

    fn operands(&self, id: NodeId) -> &[NodeId] {
        self.operands.get(&id).map_or(&[], Vec::as_slice)
    }

    /// Number of elements of a node; saturates.
    fn elements(&self, id: NodeId) -> usize {
        self.graph.node(id).shape.iter().fold(1, |n, d| n.saturating_mul(*d))
    }

    fn he(&self, id: NodeId) -> Option<&'a HeOp> {
        match &self.graph.node(id).op {
            Op::He(op) => Some(op),
            Op::Input | Op::Constant(_) | Op::Clear(_) => None,
        }
    }

    /// Homomorphic nodes in order of creation.
    fn he_nodes(&self) -> impl Iterator<Item = (NodeId, &'a HeOp)> + '_ {
        self.graph.ids().filter_map(|id| Some((id, self.he(id)?)))
    }

    fn placed(&self) -> bool {
        self.graph.stage >= Stage::Placed
    }
}

/// Whether a node of this operation holds LWE ciphertexts under the big key, which may be gathered.
fn is_lwe(op: &HeOp) -> bool {
    match op {
        HeOp::Encrypt | HeOp::Linear { .. } | HeOp::Pbs { .. } | HeOp::LutProduct { .. } => true,
        HeOp::Keyswitch { .. } | HeOp::Pack { .. } | HeOp::Decrypt { .. } => false,
    }
}

/// Collects the violations of one invariant.
struct Findings<'a> {
    invariant: &'static str,
    graph: &'a Graph,
    violations: &'a mut Vec<Violation>,
}

impl Findings<'_> {
    /// Something is wrong with a node.
    fn node(&mut self, id: NodeId, message: impl Into<String>) {
        let node = Some(self.graph.node(id).name.clone());
        self.violations.push(Violation { invariant: self.invariant, node, message: message.into() });
    }

    /// Something is wrong with the graph as a whole.
    fn graph(&mut self, message: impl Into<String>) {
        self.violations.push(Violation { invariant: self.invariant, node: None, message: message.into() });
    }

    /// One violation for all the elements of a node at which something is wrong: the first's message, and how many more.
    fn elements(&mut self, id: NodeId, wrong: impl Iterator<Item = String>) {
        let mut wrong = wrong;
        let Some(first) = wrong.next() else { return };
        match wrong.count() {
            0 => self.node(id, first),
            more => self.node(id, format!("{first} (and {more} more)")),
        }
    }
}
