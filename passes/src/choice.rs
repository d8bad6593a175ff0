//! How each non-linear node is computed.
//!
//! A profile chooses for all nodes; requests `NODE=FORM` overrule it one by one, because nodes differ in what they bear: in MiniLM,
//! constants for 1/σ after attention cost nothing (cosine 0.994), after the feed-forward everything (0.016). Passes ask
//! [`PassCx::form`](crate::PassCx::form) and take the nodes whose form is theirs. Alternative rejected: a profile for each mixture, which
//! is named after nobody's model.

use std::collections::{BTreeMap, BTreeSet};

use thex_ir::{ClearOp, Graph, Node, NodeId, Op, UnaryFn};

use crate::pass::Profile;
use crate::transform::client_work;

/// What can be computed in several ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// GELU, its tanh form, SiLU, and the quick GELU made of it.
    Gelu,
    /// Softmax.
    Softmax,
    /// LayerNorm and RMSNorm.
    LayerNorm,
}

/// A way to compute a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The function itself, by look-ups. For a softmax the calibration data choose the shift.
    Exact,
    /// ReLU in place of a GELU (THE-X).
    Relu,
    /// Softmax, exact, shifted by a log-sum-exp.
    TwoPass,
    /// Softmax, exact, shifted by the maximum of each row.
    RowMaximum,
    /// Normalised cubes in place of a softmax (THE-X).
    Cube,
    /// The same, with THE-X's network for 1/x.
    CubeNetwork,
    /// Scores over sums of cubes in place of a softmax, as THE-X prints it.
    Score,
    /// The same, with THE-X's network for 1/x.
    ScoreNetwork,
    /// A line for each channel in place of a layer norm (THE-X).
    Affine,
    /// Layer norm with a constant for 1/σ at each position.
    Constant,
}

/// What THE-X's softmax divides by the sum of cubes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numerator {
    /// The cube itself, so that shares sum to one.
    Cube,
    /// The score, as printed.
    Score,
}

/// How THE-X's softmax gets the reciprocal of the sum of cubes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reciprocal {
    /// By one look-up.
    LookUp,
    /// By a network that has learnt it, as printed.
    Network,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Gelu, Self::Softmax, Self::LayerNorm];

    /// What a node is, if it can be computed in several ways.
    #[must_use]
    pub fn of(op: &Op) -> Option<Self> {
        match op {
            Op::Clear(ClearOp::Unary { chain }) => chain.0.iter().any(is_smooth).then_some(Self::Gelu),
            Op::Clear(ClearOp::Softmax { .. }) => Some(Self::Softmax),
            Op::Clear(ClearOp::LayerNorm { .. } | ClearOp::RmsNorm { .. }) => Some(Self::LayerNorm),
            Op::Clear(_) | Op::Input | Op::Constant(_) | Op::He(_) => None,
        }
    }

    /// In messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gelu => "GELU",
            Self::Softmax => "softmax",
            Self::LayerNorm => "layer norm",
        }
    }

    /// The forms that it takes.
    #[must_use]
    pub fn forms(self) -> &'static [Form] {
        match self {
            Self::Gelu => &[Form::Exact, Form::Relu],
            Self::Softmax => &[
                Form::Exact,
                Form::TwoPass,
                Form::RowMaximum,
                Form::Cube,
                Form::CubeNetwork,
                Form::Score,
                Form::ScoreNetwork,
            ],
            Self::LayerNorm => &[Form::Exact, Form::Affine, Form::Constant],
        }
    }

    /// What a profile makes of it.
    #[must_use]
    pub fn default_form(self, profile: Profile) -> Form {
        match (profile, self) {
            (Profile::Exact, _) => Form::Exact,
            (Profile::TheX, Self::Gelu) => Form::Relu,
            (Profile::TheX, Self::Softmax) => Form::Cube,
            (Profile::TheX, Self::LayerNorm) => Form::Affine,
        }
    }
}

impl Form {
    /// Those of a softmax that divide by sums of cubes.
    pub const CUBES: [Self; 4] = [Self::Cube, Self::CubeNetwork, Self::Score, Self::ScoreNetwork];

    /// Of [those](Self::CUBES): what is divided by the sum of cubes, and how.
    #[must_use]
    pub fn cubes(self) -> Option<(Numerator, Reciprocal)> {
        match self {
            Self::Cube => Some((Numerator::Cube, Reciprocal::LookUp)),
            Self::CubeNetwork => Some((Numerator::Cube, Reciprocal::Network)),
            Self::Score => Some((Numerator::Score, Reciprocal::LookUp)),
            Self::ScoreNetwork => Some((Numerator::Score, Reciprocal::Network)),
            _ => None,
        }
    }

    /// As the command line spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Relu => "relu",
            Self::TwoPass => "two-pass",
            Self::RowMaximum => "row-maximum",
            Self::Cube => "cube",
            Self::CubeNetwork => "cube-network",
            Self::Score => "score",
            Self::ScoreNetwork => "score-network",
            Self::Affine => "affine",
            Self::Constant => "constant",
        }
    }
}

/// The smooth functions that ReLU stands in for.
pub(crate) fn is_smooth(function: &UnaryFn) -> bool {
    matches!(function, UnaryFn::Gelu | UnaryFn::GeluTanh | UnaryFn::Silu)
}

/// The nodes of an imported graph that are up for choice: name and kind, in topological order. Those that the client computes are not.
#[must_use]
pub fn open(graph: &Graph) -> Vec<(String, Kind)> {
    let elsewhere = client_work(graph);
    let nodes = graph.topological().into_iter().filter(|id| !elsewhere.contains(id));
    nodes.filter_map(|id| Some((graph.node(id).name.clone(), Kind::of(&graph.node(id).op)?))).collect()
}

/// Forms by node, where they differ from the profile's.
pub type Forms = BTreeMap<String, Form>;

/// Resolves requests, each `NODE=FORM`, against the nodes of a graph, those in `elsewhere` left out. Later ones win. A request is for the
/// nodes that have its form among theirs, so `layers.0.*=relu` passes over the softmax.
///
/// # Errors
/// The request at fault, and what is wrong with it together with the nodes and forms that there are.
pub fn resolve(graph: &Graph, elsewhere: &BTreeSet<NodeId>, requests: &[String]) -> Result<Forms, (String, String)> {
    let nodes: Vec<(Kind, &Node)> = graph
        .topological()
        .into_iter()
        .filter(|id| !elsewhere.contains(id))
        .filter_map(|id| Some((Kind::of(&graph.node(id).op)?, graph.node(id))))
        .collect();
    let mut forms = Forms::new();
    for request in requests {
        forms.extend(resolve_one(&nodes, request).map_err(|reason| (request.clone(), reason))?);
    }
    Ok(forms)
}

fn resolve_one(nodes: &[(Kind, &Node)], request: &str) -> Result<Forms, String> {
    let (pattern, spelling) = request.rsplit_once('=').ok_or("write NODE=FORM, for example *softmax=cube")?;
    let matching: Vec<_> = nodes.iter().filter(|(_, node)| names(node).any(|name| matches(pattern, name))).collect();
    let there: BTreeSet<Kind> = matching.iter().map(|(kind, _)| *kind).collect();
    let form_of = |kind: Kind| kind.forms().iter().copied().find(|form| form.name() == spelling);
    let known: Vec<Kind> = Kind::ALL.into_iter().filter(|&kind| form_of(kind).is_some()).collect();
    let chosen: Forms = matching.iter().filter_map(|(kind, node)| Some((node.name.clone(), form_of(*kind)?))).collect();
    match (known.is_empty(), matching.is_empty(), chosen.is_empty()) {
        (true, true, _) => Err(format!("there is no form `{spelling}`{}", list(nodes, &Kind::ALL))),
        (true, ..) => Err(format!("there is no form `{spelling}`{}", list(nodes, &Vec::from_iter(there)))),
        (_, true, _) => Err(format!("no node matches `{pattern}`{}", list(nodes, &known))),
        (.., true) => Err(format!("`{spelling}` is no form of what matches{}", list(nodes, &Vec::from_iter(there)))),
        (.., false) => Ok(chosen),
    }
}

/// What a node may be called by: its own name and those of the ONNX nodes that it came from.
fn names(node: &Node) -> impl Iterator<Item = &str> {
    std::iter::once(node.name.as_str()).chain(node.origin.iter().map(String::as_str))
}

/// Nodes of some kinds and the forms that they take, a line for each kind.
fn list(nodes: &[(Kind, &Node)], kinds: &[Kind]) -> String {
    let line = |kind: &Kind| {
        let forms: Vec<&str> = kind.forms().iter().map(|form| form.name()).collect();
        let of_kind: Vec<&str> = nodes.iter().filter(|(k, _)| k == kind).map(|(_, n)| n.name.as_str()).collect();
        let of_kind = if of_kind.is_empty() { "none that the server computes".to_owned() } else { of_kind.join(", ") };
        format!("\n  - {} ({}): {of_kind}", kind.name(), forms.join(" | "))
    };
    kinds.iter().map(line).collect()
}

/// Whether `name` has the form of `pattern`, in which `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(tail) = name.strip_prefix(head) else { return false };
    (0..=tail.len()).filter(|&i| tail.is_char_boundary(i)).any(|i| matches(rest, &tail[i..]))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ndarray::{ArrayD, IxDyn};
    use thex_ir::UnaryChain;

    use super::*;

    fn graph() -> Graph {
        let mut graph = Graph::new();
        let mut at = graph.add_input("x", &[1, 3, 4]);
        for layer in ["layers.0", "layers.1"] {
            let weight = graph.add_constant("w", Arc::new(ArrayD::ones(IxDyn(&[4, 4]))), &[]);
            let bias = graph.add_constant("b", Arc::new(ArrayD::zeros(IxDyn(&[4]))), &[]);
            let mut clear = |name: &str, op, operands: &[NodeId]| {
                let origin = [format!("/onnx/{layer}/{name}")];
                graph.add_clear(&format!("{layer}.{name}"), op, operands, &origin).unwrap()
            };
            at = clear("linear", ClearOp::Linear, &[at, weight, bias]);
            at = clear("softmax", ClearOp::Softmax { axis: 2 }, &[at]);
            at = clear("gelu", ClearOp::Unary { chain: UnaryChain::from(UnaryFn::Gelu) }, &[at]);
            at = clear("norm", ClearOp::LayerNorm { epsilon: 1e-5 }, &[at]);
        }
        graph.outputs.push(("y".into(), at));
        graph
    }

    fn resolved(requests: &[&str]) -> Result<Forms, (String, String)> {
        let requests: Vec<String> = requests.iter().map(|r| (*r).to_owned()).collect();
        resolve(&graph(), &BTreeSet::new(), &requests)
    }

    #[test]
    fn wildcards_match_any_text() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abcb", false),
            ("*norm*", "l.0.norm1", true),
            ("l.*.norm", "l.0.norm", true),
            ("norm", "l.0.norm", false),
            ("*é*", "aéb", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn forms_with_cubes_are_forms_of_a_softmax() {
        let with_cubes: Vec<Form> =
            Kind::Softmax.forms().iter().copied().filter(|form| form.cubes().is_some()).collect();
        assert_eq!(with_cubes, Form::CUBES);
        assert_eq!(Form::CUBES.map(Form::name), ["cube", "cube-network", "score", "score-network"]);
    }

    #[test]
    fn later_requests_win_and_pass_over_other_kinds() {
        let forms = resolved(&["*=constant", "/onnx/layers.1/*=affine", "layers.0.*=relu", "*softmax=cube"]).unwrap();
        let expected = [
            ("layers.0.gelu", Form::Relu),
            ("layers.0.norm", Form::Constant),
            ("layers.0.softmax", Form::Cube),
            ("layers.1.norm", Form::Affine),
            ("layers.1.softmax", Form::Cube),
        ];
        assert_eq!(forms, expected.map(|(name, form)| (name.to_owned(), form)).into());
        assert_eq!(resolved(&["*=exact"]).unwrap().len(), 6);
    }

    #[test]
    fn what_is_wrong_is_said_with_what_there_is() {
        let error = |request: &str| {
            let (request, reason) = resolved(&[request]).unwrap_err();
            format!("{request}: {reason}")
        };
        insta::assert_snapshot!(
            ["gelu", "*gelu=tanh", "nothing=tanh", "layers.2.*=relu", "*softmax=relu", "*linear=affine"]
                .map(error)
                .join("\n")
        );
    }
}
