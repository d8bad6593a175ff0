//! V008 to V011: homomorphic operations are well formed.

use super::{Findings, View, is_lwe};
use crate::graph::NodeId;
use crate::he::{Address, Domain, HeLinear, HeOp, Purpose};
use thex_circuit::external;

/// V008: addresses lie within LWE-valued operands; [`Address::ABSENT`] only in packs and linear maps.
pub(super) fn addresses(view: &View<'_>, findings: &mut Findings<'_>) {
    for (id, op) in view.he_nodes() {
        let (gather, absent_allowed) = match op {
            HeOp::Linear { map, .. } => (&map.gather, true),
            HeOp::Pack { gather, .. } => (&**gather, true),
            HeOp::Keyswitch { gather, .. } | HeOp::Decrypt { gather } => (&**gather, false),
            HeOp::Encrypt | HeOp::Pbs { .. } | HeOp::LutProduct { .. } => continue,
        };
        for &operand in view.operands(id).iter().filter(|o| !view.he(**o).is_some_and(is_lwe)) {
            let other = view.graph.node(operand);
            findings.node(id, format!("gathers from `{}`: `{}` holds no LWEs", other.name, other.op.mnemonic()));
        }
        let lengths: Vec<usize> = view.operands(id).iter().map(|&o| view.elements(o)).collect();
        let outside = |a: &Address| match lengths.get(a.port as usize) {
            _ if *a == Address::ABSENT => !absent_allowed,
            Some(length) => a.index as usize >= *length,
            None => true,
        };
        let wrong = gather.iter().enumerate().filter(|(_, a)| outside(a));
        findings.elements(id, wrong.map(|(i, a)| describe(i, *a, &lengths)));
    }
}

fn describe(i: usize, address: Address, lengths: &[usize]) -> String {
    if address == Address::ABSENT {
        return format!("address {i} is absent");
    }
    format!("address {i} is element {} of operand {}; operands have lengths {lengths:?}", address.index, address.port)
}

/// V009: G·K addresses, G·M biases and outputs, S·M·K weights, sets below S. K may be 0, and S is then free.
pub(super) fn linear_sizes(view: &View<'_>, findings: &mut Findings<'_>) {
    for (id, op) in view.he_nodes() {
        let HeOp::Linear { map, .. } = op else { continue };
        if let Some(reason) = linear_mismatch(map, &view.graph.node(id).shape) {
            findings.node(id, reason);
        }
    }
}

/// What does not fit in a linear map, if anything. V014 relies on it before it looks at weights.
pub(super) fn linear_mismatch(map: &HeLinear, shape: &[usize]) -> Option<String> {
    let groups = map.set.len();
    let (m, k) = (map.outputs, map.operands);
    if m == 0 {
        return Some("has no output in a group".into());
    }
    if groups.checked_mul(k) != Some(map.gather.len()) {
        return Some(format!("{groups} groups of {k} operands, but {} addresses", map.gather.len()));
    }
    if groups.checked_mul(m) != Some(map.bias.len()) || shape != [map.bias.len()] {
        return Some(format!("{groups} groups of {m} outputs, but {} biases and shape {shape:?}", map.bias.len()));
    }
    let Some(size) = m.checked_mul(k) else { return Some(format!("{m} by {k} weights overflow")) };
    if size == 0 {
        return (!map.weights.is_empty()).then(|| format!("no operands, but {} weights", map.weights.len()));
    }
    let sets = map.weights.len() / size;
    if sets.checked_mul(size) != Some(map.weights.len()) {
        return Some(format!("{} weights are no multiple of {m} by {k}", map.weights.len()));
    }
    let beyond = map.set.iter().find(|&&s| s as usize >= sets)?;
    Some(format!("uses weight set {beyond} of {sets}"))
}

/// V010: encrypt takes an input of the model, pbs a keyswitch, lut-product a keyswitch and a pack with its own number
/// of slots; arguments and accumulators are equally many, in range, and make rotations·slots outputs.
pub(super) fn operand_kinds(view: &View<'_>, findings: &mut Findings<'_>) {
    for (id, op) in view.he_nodes() {
        match op {
            HeOp::Encrypt => expect(view, findings, id, 0, "input"),
            HeOp::Pbs { .. } => expect(view, findings, id, 0, "keyswitch"),
            HeOp::LutProduct { argument, accumulator, slots, sums, .. } => {
                expect(view, findings, id, 0, "keyswitch");
                expect(view, findings, id, 1, "pack");
                product_sizes(view, findings, id, (argument, accumulator), *slots, sums.as_deref());
            }
            HeOp::Linear { .. } | HeOp::Keyswitch { .. } | HeOp::Pack { .. } | HeOp::Decrypt { .. } => {}
        }
    }
}

fn expect(view: &View<'_>, findings: &mut Findings<'_>, id: NodeId, port: usize, kind: &str) {
    let Some(&operand) = view.operands(id).get(port) else { return };
    let found = view.graph.node(operand).op.mnemonic();
    if found != kind {
        findings.node(id, format!("operand {port} must be `{kind}`, is `{found}`"));
    }
}

fn product_sizes(
    view: &View<'_>,
    findings: &mut Findings<'_>,
    id: NodeId,
    (argument, accumulator): (&[u32], &[u32]),
    slots: usize,
    sums: Option<&Vec<u32>>,
) {
    let rotations = argument.len();
    if accumulator.len() != rotations {
        findings.node(id, format!("{rotations} arguments, but {} accumulators", accumulator.len()));
    }
    let shape = &view.graph.node(id).shape;
    let groups = sums.map_or(rotations, Vec::len);
    if groups.checked_mul(slots).is_none_or(|n| *shape != [n]) {
        let what = if sums.is_some() { "sums" } else { "rotations" };
        findings.node(id, format!("{groups} {what} of {slots} slots, but shape {shape:?}"));
    }
    if let Some(summed) = sums.map(|s| s.iter().map(|&n| n as usize).sum::<usize>()).filter(|n| *n != rotations) {
        findings.node(id, format!("its sums have {summed} products, it has {rotations}"));
    }
    let &[keyswitch, pack] = view.operands(id) else { return };
    let arguments = view.elements(keyswitch);
    let beyond = argument.iter().filter(|&&a| a as usize >= arguments);
    findings.elements(id, beyond.map(|a| format!("rotates by element {a} of {arguments}")));
    let Some(HeOp::Pack { slots: packed, .. }) = view.he(pack) else { return };
    if *packed != slots {
        findings.node(id, format!("has {slots} slots, its pack {packed}"));
    }
    let accumulators = view.elements(pack).checked_div(*packed).unwrap_or(0);
    let beyond = accumulator.iter().filter(|&&a| a as usize >= accumulators);
    findings.elements(id, beyond.map(|a| format!("uses accumulator {a} of {accumulators}")));
}

/// V011: a pack fills whole GLWEs; slots and positions are positive. With polynomial size N, a pbs looks up N positions or 2N, and
/// a lut-product with m slots N/m, one of sums N/4, N/2 or N, and arguments were made for that domain.
pub(super) fn slots_and_positions(view: &View<'_>, findings: &mut Findings<'_>) {
    for (id, op) in view.he_nodes() {
        match op {
            HeOp::Pack { gather, slots } => {
                if *slots == 0 || gather.len() % slots != 0 {
                    findings.node(id, format!("packs {} elements into GLWEs of {slots} slots", gather.len()));
                }
            }
            HeOp::Keyswitch { domain: Domain { positions: 0, .. }, .. } => findings.node(id, "has no positions"),
            HeOp::LutProduct { slots: 0, .. } => findings.node(id, "has no slots"),
            HeOp::LutProduct { sums: Some(_), .. } => positions_of(view, findings, id, 0),
            HeOp::LutProduct { slots, .. } => positions_of(view, findings, id, *slots),
            HeOp::Pbs { .. } => positions_of(view, findings, id, 1),
            HeOp::Encrypt | HeOp::Linear { .. } | HeOp::Keyswitch { .. } | HeOp::Decrypt { .. } => {}
        }
    }
}

fn positions_of(view: &View<'_>, findings: &mut Findings<'_>, id: NodeId, slots: usize) {
    let Some(size) = view.options.polynomial_size else { return };
    let Some(&keyswitch) = view.operands(id).first() else { return };
    let Some(HeOp::Keyswitch { gather, domain }) = view.he(keyswitch) else { return };
    let positions = domain.positions;
    let full = matches!(view.he(id), Some(HeOp::Pbs { .. })) && positions == 2 * size;
    // External products: a slot is none of the argument's.
    let external = slots == 0 && external::rotations(size, positions).is_some();
    if slots == 0 && !external {
        findings.node(id, format!("its keyswitch has {positions} positions, must have {size}/4, {size}/2 or {size}"));
    }
    if slots > 0 && positions != size / slots && !full {
        findings.node(id, format!("its keyswitch has {positions} positions, must have {size}/{slots}"));
    }
    let sources = view.operands(keyswitch);
    let of = |a: &Address| view.he(*sources.get(a.port as usize)?);
    let other = |a: &Address| matches!(of(a), Some(HeOp::Linear { purpose: Purpose::Argument { domain: d }, .. }) if d != domain);
    if gather.iter().any(other) {
        findings.node(id, "its keyswitch looks arguments up in another domain than they were made for");
    }
}
