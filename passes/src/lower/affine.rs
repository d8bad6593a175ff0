//! Elements of tensors as affine functions of ciphertexts.
//!
//! Between two non-linearities everything is one affine map. Lowering carries each tensor element as a row of a
//! dense *block* over the ciphertexts ("atoms") that it depends on, so chains of linear maps, residual
//! additions, centring, gains and shape operations all merge by themselves, and a public element (a class token
//! before the first attention) is a number and costs nothing. Tokens that go through the same weights end up with
//! bit-identical matrices, which is how the emitted circuit recovers the sharing.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use ndarray::Array2;
use thex_ir::NodeId;

/// A ciphertext: element `index` of a lowered node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Atom {
    /// Node of the lowered graph.
    pub node: NodeId,
    /// Its element.
    pub index: u32,
}

/// Affine functions of the same atoms: row r is `shift[r] + Σ_k matrix[r][k]·atoms[k]`.
#[derive(Debug)]
pub struct Block {
    /// The ciphertexts.
    pub atoms: Vec<Atom>,
    /// Coefficients, rows × atoms.
    pub matrix: Arc<Array2<f64>>,
    /// Constants.
    pub shift: Vec<f64>,
}

/// One element of a tensor during lowering.
#[derive(Clone, Debug)]
pub enum Elem {
    /// No output depends on it.
    Undemanded,
    /// Public.
    Const(f64),
    /// A ciphertext.
    Atom(Atom),
    /// A row of a block.
    Row(Arc<Block>, u32),
}

impl Elem {
    /// Whether it is encrypted.
    #[must_use]
    pub fn is_private(&self) -> bool {
        matches!(self, Self::Atom(_) | Self::Row(..))
    }
}

/// Identity of the ciphertexts that an element is made of, to put elements of one block together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Atom(Atom),
    Block(usize),
}

fn source(elem: &Elem) -> Option<Source> {
    match elem {
        Elem::Atom(atom) => Some(Source::Atom(*atom)),
        Elem::Row(block, _) => Some(Source::Block(Arc::as_ptr(block) as usize)),
        Elem::Undemanded | Elem::Const(_) => None,
    }
}

/// Builds the union of atoms of several elements.
#[derive(Default)]
struct Columns {
    atoms: Vec<Atom>,
    column: BTreeMap<Atom, usize>,
    /// Columns of the atoms of each block that is in it, by the block's address: many elements are rows of one block, which is looked up once.
    of_block: BTreeMap<usize, Vec<usize>>,
}

impl Columns {
    fn insert(&mut self, atom: Atom) -> usize {
        *self.column.entry(atom).or_insert_with(|| {
            self.atoms.push(atom);
            self.atoms.len() - 1
        })
    }

    fn insert_all(&mut self, elem: &Elem) {
        match elem {
            Elem::Atom(atom) => {
                self.insert(*atom);
            }
            Elem::Row(block, _) => {
                let address = Arc::as_ptr(block) as usize;
                if !self.of_block.contains_key(&address) {
                    let columns = block.atoms.iter().map(|a| self.insert(*a)).collect();
                    self.of_block.insert(address, columns);
                }
            }
            Elem::Undemanded | Elem::Const(_) => {}
        }
    }

    /// Adds `factor·elem` to a row over these columns; returns the constant part.
    fn accumulate(&self, row: &mut [f64], factor: f64, elem: &Elem) -> f64 {
        match elem {
            Elem::Undemanded => 0.0,
            Elem::Const(value) => factor * value,
            Elem::Atom(atom) => {
                row[self.column[atom]] += factor;
                0.0
            }
            Elem::Row(block, r) => {
                let r = *r as usize;
                let columns = &self.of_block[&(Arc::as_ptr(block) as usize)];
                for (&column, c) in columns.iter().zip(block.matrix.row(r)) {
                    row[column] += factor * c;
                }
                factor * block.shift[r]
            }
        }
    }
}

/// A sum `constant + Σ factor·elem`.
pub type Sum = (f64, Vec<(f64, Elem)>);

/// Simplifies sums into elements; sums over the same blocks share a new block.
#[must_use]
pub fn combine(sums: Vec<Sum>) -> Vec<Elem> {
    let mut result: Vec<Elem> = vec![Elem::Undemanded; sums.len()];
    let mut groups: BTreeMap<Vec<Source>, Vec<usize>> = BTreeMap::new();
    for (i, (constant, terms)) in sums.iter().enumerate() {
        let private: Vec<&(f64, Elem)> = terms.iter().filter(|(f, e)| e.is_private() && *f != 0.0).collect();
        let public: f64 = terms.iter().map(|(f, e)| if let Elem::Const(v) = e { f * v } else { 0.0 }).sum();
        match private.as_slice() {
            [] => result[i] = Elem::Const(constant + public),
            [(factor, elem)] if factor.to_bits() == 1.0_f64.to_bits() && constant + public == 0.0 => {
                result[i] = elem.clone();
            }
            _ => {
                let key = private.iter().filter_map(|(_, e)| source(e)).collect();
                groups.entry(key).or_default().push(i);
            }
        }
    }
    // Groups in order of their first element, not of addresses in memory: the result must not depend on those.
    let mut ordered: Vec<Vec<usize>> = groups.into_values().collect();
    ordered.sort_unstable();
    for members in ordered {
        build_block(&sums, &members, &mut result);
    }
    result
}

/// a·x plus a ciphertext for each element x. Rows of one block stay rows of one block.
#[must_use]
pub fn with_lines(slope: f64, elements: &[(&Elem, Atom)]) -> Vec<Elem> {
    let mut result = vec![Elem::Undemanded; elements.len()];
    let mut blocks: Vec<(&Arc<Block>, Vec<usize>)> = Vec::new();
    for (i, (elem, atom)) in elements.iter().enumerate() {
        match elem {
            Elem::Row(block, _) => match blocks.iter_mut().find(|(known, _)| Arc::ptr_eq(known, block)) {
                Some((_, members)) => members.push(i),
                None => blocks.push((block, vec![i])),
            },
            other => {
                let sum = (0.0, vec![(slope, (*other).clone()), (1.0, Elem::Atom(*atom))]);
                result[i] = combine(vec![sum]).remove(0);
            }
        }
    }
    for (block, members) in blocks {
        let own = block.atoms.len();
        let mut matrix = Array2::zeros((members.len(), own + members.len()));
        let (mut atoms, mut shift) = (block.atoms.clone(), Vec::with_capacity(members.len()));
        for (r, &i) in members.iter().enumerate() {
            let Elem::Row(_, row) = elements[i].0 else { continue };
            let row = *row as usize;
            matrix.row_mut(r).iter_mut().zip(block.matrix.row(row)).for_each(|(new, old)| *new = slope * old);
            matrix[(r, own + r)] = 1.0;
            atoms.push(elements[i].1);
            shift.push(slope * block.shift[row]);
        }
        let block = Arc::new(Block { atoms, matrix: Arc::new(matrix), shift });
        members.iter().enumerate().for_each(|(r, &i)| result[i] = Elem::Row(block.clone(), r as u32));
    }
    result
}

fn build_block(sums: &[Sum], members: &[usize], result: &mut [Elem]) {
    let mut columns = Columns::default();
    for &i in members {
        sums[i].1.iter().filter(|(f, _)| *f != 0.0).for_each(|(_, e)| columns.insert_all(e));
    }
    let mut matrix = Array2::zeros((members.len(), columns.atoms.len()));
    let mut shift = Vec::with_capacity(members.len());
    for (mut row, &i) in matrix.rows_mut().into_iter().zip(members) {
        let (constant, terms) = &sums[i];
        let Some(row) = row.as_slice_mut() else { continue };
        let extra: f64 = terms.iter().filter(|(f, _)| *f != 0.0).map(|(f, e)| columns.accumulate(row, *f, e)).sum();
        shift.push(constant + extra);
    }
    let block = Arc::new(Block { atoms: columns.atoms, matrix: Arc::new(matrix), shift });
    for (r, &i) in members.iter().enumerate() {
        result[i] = Elem::Row(block.clone(), r as u32);
    }
}

/// Coefficients and what a matrix makes of them.
type Product = (Array2<f64>, Arc<Array2<f64>>);

/// Applies matrices to rows of elements, sharing results between rows that have the same coefficients.
#[derive(Default)]
pub struct MatrixCache {
    products: BTreeMap<(u64, u64), Vec<Product>>,
}

impl MatrixCache {
    /// `w·x + bias` for one row of elements. `w_id` identifies `w` among all matrices used with this cache.
    pub fn apply(&mut self, w_id: u64, w: &Arc<Array2<f64>>, x: &[Elem], bias: &[f64]) -> Vec<Elem> {
        let mut columns = Columns::default();
        x.iter().for_each(|e| columns.insert_all(e));
        let mut coefficients = Array2::zeros((x.len(), columns.atoms.len()));
        let mut constants = ndarray::Array1::zeros(x.len());
        for ((mut row, elem), constant) in coefficients.rows_mut().into_iter().zip(x).zip(&mut constants) {
            if let Some(row) = row.as_slice_mut() {
                *constant = columns.accumulate(row, 1.0, elem);
            }
        }
        let shift: Vec<f64> = w.dot(&constants).iter().zip(bias).map(|(a, b)| a + b).collect();
        if columns.atoms.is_empty() {
            return shift.into_iter().map(Elem::Const).collect();
        }
        let matrix = if all_distinct_atoms(x) { w.clone() } else { self.product(w_id, w, coefficients) };
        let block = Arc::new(Block { atoms: columns.atoms, matrix, shift });
        (0..bias.len()).map(|r| Elem::Row(block.clone(), r as u32)).collect()
    }

    fn product(&mut self, w_id: u64, w: &Array2<f64>, coefficients: Array2<f64>) -> Arc<Array2<f64>> {
        let bucket = self.products.entry((w_id, hash_of(coefficients.iter()))).or_default();
        if let Some((_, product)) = bucket.iter().find(|(c, _)| *c == coefficients) {
            return product.clone();
        }
        let product = Arc::new(w.dot(&coefficients));
        bucket.push((coefficients, product.clone()));
        product
    }
}

fn all_distinct_atoms(x: &[Elem]) -> bool {
    let atoms: Vec<Atom> = x.iter().filter_map(|e| if let Elem::Atom(a) = e { Some(*a) } else { None }).collect();
    let distinct: std::collections::BTreeSet<&Atom> = atoms.iter().collect();
    atoms.len() == x.len() && distinct.len() == atoms.len()
}

/// A deterministic hash of the bits of numbers.
pub fn hash_of<'a>(values: impl Iterator<Item = &'a f64>) -> u64 {
    let mut hasher = DefaultHasher::new();
    values.for_each(|v| v.to_bits().hash(&mut hasher));
    hasher.finish()
}
