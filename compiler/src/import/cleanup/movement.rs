//! Chains of reshapes and transposes become at most reshape, transpose, reshape, in one canonical way.
//!
//! A chain permutes the elements of its source. We follow it on *atoms*, factors of the source's axes: a
//! transpose permutes them, a reshape regroups them and may split one. At the end, atoms that stay
//! neighbours are merged; what is left is the permutation, whatever detours the exporter took.

use std::collections::BTreeMap;

use thex_circuit::clear::ClearOp;
use thex_ir::{Graph, NodeId};

use super::super::error::Result;
use super::{add, inherit, replace};

/// Canonicalises every maximal chain.
pub(super) fn run(graph: &mut Graph) -> Result<bool> {
    let mut changed = false;
    for end in graph.topological() {
        if !moves(graph, end) || !ends_chain(graph, end) {
            continue;
        }
        let (root, chain) = chain(graph, end);
        let ops: Vec<ClearOp> = chain.iter().filter_map(|id| graph.clear_op(*id).cloned()).collect();
        let Some(wanted) = canonical(&graph.node(root).shape, &ops) else {
            continue;
        };
        if wanted == ops {
            continue;
        }
        let mut x = root;
        for op in wanted {
            x = add(graph, end, op, &[x])?;
            for step in &chain {
                inherit(graph, x, *step);
            }
        }
        replace(graph, end, x);
        changed = true;
    }
    Ok(changed)
}

fn moves(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.clear_op(id), Some(ClearOp::Reshape { .. } | ClearOp::Transpose { .. }))
}

fn ends_chain(graph: &Graph, id: NodeId) -> bool {
    graph.is_output(id) || graph.users(id).iter().any(|(user, _)| !moves(graph, *user))
}

/// The source of the chain that ends at `end`, and its nodes in order.
fn chain(graph: &Graph, end: NodeId) -> (NodeId, Vec<NodeId>) {
    let mut nodes = vec![end];
    let mut source = graph.operands(end)[0];
    while moves(graph, source) {
        nodes.push(source);
        source = graph.operands(source)[0];
    }
    nodes.reverse();
    (source, nodes)
}

/// Atoms: sizes by number, their order in the source, and for each axis of the current view its atoms.
struct Atoms {
    sizes: Vec<usize>,
    source: Vec<usize>,
    view: Vec<Vec<usize>>,
}

impl Atoms {
    fn new(shape: &[usize]) -> Self {
        let mut atoms = Self { sizes: Vec::new(), source: Vec::new(), view: Vec::new() };
        for &size in shape {
            let mut axis = Vec::new();
            if size != 1 {
                axis.push(atoms.sizes.len());
                atoms.source.push(atoms.sizes.len());
                atoms.sizes.push(size);
            }
            atoms.view.push(axis);
        }
        atoms
    }

    fn transpose(&mut self, permutation: &[usize]) {
        self.view = permutation.iter().map(|p| self.view[*p].clone()).collect();
    }

    /// `None` when an axis would have to be split unevenly.
    fn reshape(&mut self, shape: &[usize]) -> Option<()> {
        let mut rest: std::collections::VecDeque<usize> = self.view.iter().flatten().copied().collect();
        let mut view = Vec::new();
        for &size in shape {
            let (mut axis, mut missing) = (Vec::new(), size);
            while missing > 1 {
                let atom = rest.pop_front()?;
                let available = self.sizes[atom];
                if missing.is_multiple_of(available) {
                    missing /= available;
                } else if available.is_multiple_of(missing) {
                    rest.push_front(self.split(atom, missing));
                    missing = 1;
                } else {
                    return None;
                }
                axis.push(atom);
            }
            view.push(axis);
        }
        self.view = view;
        Some(())
    }

    /// Splits an atom in two, the first of `size`; returns the second.
    fn split(&mut self, atom: usize, size: usize) -> usize {
        let second = self.sizes.len();
        self.sizes.push(self.sizes[atom] / size);
        self.sizes[atom] = size;
        let position = self.source.iter().position(|a| *a == atom).unwrap_or(0);
        self.source.insert(position + 1, second);
        second
    }

    /// Sizes of the merged atoms in the order of the source, and their permutation.
    fn blocks(&self) -> (Vec<usize>, Vec<usize>) {
        let position = |atom: &usize| self.source.iter().position(|a| a == atom).unwrap_or(0);
        let mut blocks: Vec<(usize, usize, usize)> = Vec::new();
        for at in self.view.iter().flatten().map(position) {
            let size = self.sizes[self.source[at]];
            match blocks.last_mut() {
                Some((_, end, total)) if *end == at => {
                    *end += 1;
                    *total *= size;
                }
                _ => blocks.push((at, at + 1, size)),
            }
        }
        let mut sorted = blocks.clone();
        sorted.sort_unstable();
        let permutation = blocks.iter().filter_map(|b| sorted.iter().position(|s| s == b)).collect();
        (sorted.iter().map(|(_, _, size)| *size).collect(), permutation)
    }
}

/// The canonical chain with the effect of `ops`; `None` when it cannot be followed, or has no elements.
fn canonical(source: &[usize], ops: &[ClearOp]) -> Option<Vec<ClearOp>> {
    if source.contains(&0) {
        return None;
    }
    let mut atoms = Atoms::new(source);
    let mut target = source.to_vec();
    for op in ops {
        match op {
            ClearOp::Reshape { shape } => {
                atoms.reshape(shape)?;
                target.clone_from(shape);
            }
            ClearOp::Transpose { permutation } => {
                atoms.transpose(permutation);
                target = permutation.iter().map(|p| target[*p]).collect();
            }
            _ => return None,
        }
    }
    let (sizes, permutation) = atoms.blocks();
    let mut wanted = Vec::new();
    let mut shape = source.to_vec();
    let reshape = |shape: &mut Vec<usize>, to: Vec<usize>, wanted: &mut Vec<ClearOp>| {
        if *shape != to {
            wanted.push(ClearOp::Reshape { shape: to.clone() });
            *shape = to;
        }
    };
    if permutation.len() > 1 {
        let split = [&[1], sizes.as_slice()].concat();
        reshape(&mut shape, split, &mut wanted);
        let permutation: Vec<usize> = std::iter::once(0).chain(permutation.iter().map(|p| p + 1)).collect();
        shape = permutation.iter().map(|p| shape[*p]).collect();
        wanted.push(ClearOp::Transpose { permutation });
    }
    reshape(&mut shape, target, &mut wanted);
    Some(wanted)
}

/// Computes once what is computed twice from the same operands.
pub(super) fn share(graph: &mut Graph) -> Result<bool> {
    let mut seen: BTreeMap<(String, Vec<NodeId>), NodeId> = BTreeMap::new();
    let mut changed = false;
    for id in graph.topological() {
        let Some(op) = graph.clear_op(id) else {
            continue;
        };
        let key = (format!("{op:?}"), graph.operands(id));
        match seen.get(&key).copied() {
            Some(first) => {
                inherit(graph, first, id);
                replace(graph, id, first);
                changed = true;
            }
            None => {
                seen.insert(key, id);
            }
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reshape(shape: &[usize]) -> ClearOp {
        ClearOp::Reshape { shape: shape.to_vec() }
    }

    fn transpose(permutation: &[usize]) -> ClearOp {
        ClearOp::Transpose { permutation: permutation.to_vec() }
    }

    #[test]
    fn a_detour_is_no_change() {
        let ops = [reshape(&[1, 4, 4, 8]), transpose(&[0, 3, 1, 2]), reshape(&[1, 8, 16]), transpose(&[0, 2, 1])];
        assert_eq!(canonical(&[1, 16, 8], &ops), Some(vec![]));
    }

    #[test]
    fn heads_are_split_the_same_way_from_any_detour() {
        let direct = [reshape(&[1, 17, 2, 16]), transpose(&[0, 2, 1, 3])];
        let detour = [reshape(&[17, 2, 16]), transpose(&[1, 0, 2]), reshape(&[1, 2, 17, 16])];
        let canonical = |ops: &[ClearOp]| canonical(&[1, 17, 32], ops);
        assert_eq!(canonical(&direct), Some(direct.to_vec()));
        assert_eq!(canonical(&detour), Some(direct.to_vec()));
    }

    #[test]
    fn uneven_splits_are_left_alone() {
        assert_eq!(canonical(&[2, 3], &[transpose(&[1, 0]), reshape(&[2, 3])]), None);
    }

    #[test]
    fn axes_of_one_move_by_reshape() {
        assert_eq!(canonical(&[1, 5, 1], &[transpose(&[1, 0, 2])]), Some(vec![reshape(&[5, 1, 1])]));
    }
}
