//! V012 to V017: ranges, encodings and integer weights are there and agree.

use crate::he::sum_of_products;
use thex_circuit::Encoding;

use super::{Findings, View, he, is_lwe};
use crate::graph::{NodeId, Op, Ranges, Stage};
use crate::he::{Address, HeLinear, HeOp, Purpose};

/// Relative slack for arithmetic in double precision.
const SLACK: f64 = 1e-6;

/// V012: from `calibrated` on, every private tensor operation, input and homomorphic node has a range for each
/// element, finite and ordered. (Inputs of lowered graphs carry none: their encryption does.)
pub(super) fn ranges(view: &View<'_>, findings: &mut Findings<'_>) {
    let stage = view.graph.stage;
    if stage < Stage::Calibrated {
        return;
    }
    for id in view.graph.ids() {
        let node = view.graph.node(id);
        let wanted = match node.op {
            Op::Constant(_) => false,
            Op::Input => stage == Stage::Calibrated,
            Op::Clear(_) => view.private.contains(&id),
            Op::He(_) => true,
        };
        match &node.facts.ranges {
            _ if !wanted => {}
            None => findings.node(id, "has no ranges"),
            Some(ranges) => {
                let reason = ranges_mismatch(ranges, view.elements(id));
                reason.into_iter().for_each(|r| findings.node(id, r));
            }
        }
    }
}

fn ranges_mismatch(ranges: &Ranges, elements: usize) -> Option<String> {
    let classes = ranges.lo.len();
    if ranges.class.len() != elements {
        return Some(format!("{elements} elements, but {} range classes", ranges.class.len()));
    }
    if ranges.hi.len() != classes || ranges.rms.len() != classes {
        return Some("its ranges have unequal numbers of lo, hi and rms".into());
    }
    if let Some(class) = ranges.class.iter().find(|c| **c as usize >= classes) {
        return Some(format!("uses range class {class} of {classes}"));
    }
    let wrong = |(lo, hi): &(&f64, &f64)| !(lo.is_finite() && hi.is_finite() && lo <= hi);
    let (lo, hi) = ranges.lo.iter().zip(&ranges.hi).find(wrong)?;
    Some(format!("has range {lo}..{hi}"))
}

/// (lo, hi) of element `i`, if known.
fn range_of(ranges: &Ranges, i: usize) -> Option<(f64, f64)> {
    let class = *ranges.class.get(i)? as usize;
    Some((*ranges.lo.get(class)?, *ranges.hi.get(class)?))
}

/// V013: at `placed`, every LWE-valued node has an encoding for each element, with finite positive scale and finite offset.
pub(super) fn encodings(view: &View<'_>, findings: &mut Findings<'_>) {
    for (id, _) in view.he_nodes().filter(|(_, op)| view.placed() && is_lwe(op)) {
        let Some(encodings) = &view.graph.node(id).facts.encodings else {
            findings.node(id, "has no encodings");
            continue;
        };
        if encodings.len() != view.elements(id) {
            findings.node(id, format!("{} elements, but {} encodings", view.elements(id), encodings.len()));
        }
        let usable = |e: &Encoding| e.scale.is_finite() && e.scale > 0.0 && e.offset.is_finite();
        let wrong = encodings.iter().enumerate().filter(|(_, e)| !usable(e));
        findings.elements(id, wrong.map(|(i, e)| format!("element {i} has scale {} and offset {}", e.scale, e.offset)));
    }
}

/// How far an integer weight may be from the real one: weights of a row are rounded together, so that their errors cancel, not each to the
/// nearest.
pub(super) const MOST_ROUNDING: f64 = 2.0;

/// V014: at `placed`, every linear map has an integer for each weight: within [`MOST_ROUNDING`] of w·scale(x)/scale(y), for every group
/// that uses the weight. Absent operands have none.
pub(super) fn integer_weights(view: &View<'_>, findings: &mut Findings<'_>) {
    for (id, op) in view.he_nodes().filter(|_| view.placed()) {
        let HeOp::Linear { map, .. } = op else { continue };
        let node = view.graph.node(id);
        let Some(integers) = &node.facts.integers else {
            findings.node(id, "has no integer weights");
            continue;
        };
        if integers.len() != map.weights.len() {
            findings.node(id, format!("{} weights, but {} integers", map.weights.len(), integers.len()));
        } else if he::linear_mismatch(map, &node.shape).is_none() {
            let wrong = (0..map.set.len()).filter_map(|g| misrounded(view, id, map, integers, g));
            findings.elements(id, wrong);
        }
    }
}

/// Scale of a gathered element; NaN, which V008 or V013 reports, where there is none.
fn scale_of(view: &View<'_>, operands: &[NodeId], address: Address) -> f64 {
    let encodings = operands.get(address.port as usize).and_then(|&o| view.graph.node(o).facts.encodings.as_deref());
    encodings.and_then(|e| e.get(address.index as usize)).map_or(f64::NAN, |e| e.scale)
}

/// The first weight of group `g` of a well-sized map whose integer is too far from it.
fn misrounded(view: &View<'_>, id: NodeId, map: &HeLinear, integers: &[i32], g: usize) -> Option<String> {
    let (m, k) = (map.outputs, map.operands);
    let encodings = view.graph.node(id).facts.encodings.as_deref()?;
    let gather = &map.gather[g * k..(g + 1) * k];
    let scales: Vec<f64> = gather.iter().map(|&a| scale_of(view, view.operands(id), a)).collect();
    for r in 0..m {
        let out = encodings.get(g * m + r)?.scale;
        let first = (map.set[g] as usize * m + r) * k;
        let row = map.weights[first..first + k].iter().zip(&integers[first..first + k]).zip(&scales);
        for (c, ((w, &integer), x)) in row.enumerate() {
            let integer = f64::from(integer);
            // Without a scale the distance is NaN: not this invariant's affair.
            let distance = (w * x / out - integer).abs();
            if distance > MOST_ROUNDING + SLACK * integer.abs().max(1.0) {
                return Some(format!(
                    "in group {g}, output {r}, operand {c}, weight {w} is {} in units of the encodings, but integer {integer}",
                    w * x / out
                ));
            }
        }
    }
    None
}

/// V015: at `placed`, with polynomial size N, the range of an argument with B positions is encoded within [0, B/(2N)]
/// of the torus.
pub(super) fn arguments_in_box(view: &View<'_>, findings: &mut Findings<'_>) {
    let Some(size) = view.options.polynomial_size else { return };
    for (id, op) in view.he_nodes().filter(|_| view.placed()) {
        let HeOp::Linear { purpose: Purpose::Argument { domain }, .. } = op else { continue };
        let end = domain.positions as f64 / (2 * size) as f64;
        let outside = |turns: f64| !(-SLACK * end..=end * (1.0 + SLACK)).contains(&turns);
        findings.elements(
            id,
            turns(view, id)
                .filter(|(_, lo, hi)| outside(*lo) || outside(*hi))
                .map(|(i, lo, hi)| format!("element {i} fills {lo}..{hi} of the torus, outside 0..{end}")),
        );
    }
}

/// V016: at `placed`, ranges of look-up outputs are encoded within half a turn of phase 0.
pub(super) fn outputs_do_not_wrap(view: &View<'_>, findings: &mut Findings<'_>) {
    for (id, op) in view.he_nodes().filter(|_| view.placed()) {
        if !matches!(op, HeOp::Pbs { .. }) {
            continue;
        }
        let wraps = |turns: f64| turns.abs() >= 0.5;
        findings.elements(
            id,
            turns(view, id)
                .filter(|(_, lo, hi)| wraps(*lo) || wraps(*hi))
                .map(|(i, lo, hi)| format!("element {i} fills {lo}..{hi} of the torus and wraps around")),
        );
    }
}

/// V017: at `placed`, scale(packed operand) ÷ scale(product) is the same for all filled slots of a rotation, since one
/// integer table multiplies them all.
pub(super) fn slots_share_a_table(view: &View<'_>, findings: &mut Findings<'_>) {
    for (id, op) in view.he_nodes().filter(|_| view.placed()) {
        let HeOp::LutProduct { accumulator, slots, sums, .. } = op else { continue };
        let group_of = sum_of_products(accumulator.len(), sums.as_ref());
        let Some(&pack) = view.operands(id).get(1) else { continue };
        let Some(HeOp::Pack { gather, .. }) = view.he(pack) else { continue };
        let outputs = view.graph.node(id).facts.encodings.as_deref().map_or(&[][..], Vec::as_slice);
        let sources = view.operands(pack);
        let unequal = accumulator.iter().enumerate().filter(|(rotation, p)| {
            let packed = gather.chunks((*slots).max(1)).nth(**p as usize).unwrap_or(&[]);
            let products =
                outputs.chunks((*slots).max(1)).nth(group_of.get(*rotation).copied().unwrap_or(0)).unwrap_or(&[]);
            let filled = packed.iter().zip(products).filter(|(a, _)| **a != Address::ABSENT);
            let gains: Vec<f64> = filled.map(|(a, e)| scale_of(view, sources, *a) / e.scale).collect();
            gains.iter().any(|g| (g / gains[0] - 1.0).abs() > SLACK)
        });
        findings.elements(id, unequal.map(|(r, _)| format!("slots of rotation {r} need different tables")));
    }
}

/// (element, lo, hi) in turns of the torus, for elements with a range and an encoding.
fn turns<'a>(view: &View<'a>, id: NodeId) -> impl Iterator<Item = (usize, f64, f64)> + use<'a> {
    let facts = &view.graph.node(id).facts;
    let encodings = facts.encodings.as_deref().map_or(&[][..], Vec::as_slice);
    let ranges = facts.ranges.as_deref();
    encodings.iter().enumerate().filter_map(move |(i, e)| {
        let (lo, hi) = range_of(ranges?, i)?;
        Some((i, (lo - e.offset) / e.scale, (hi - e.offset) / e.scale))
    })
}
