//! Homomorphic operations of the lowered stages: the circuit's instructions, over the reals.
//!
//! A homomorphic node is a flat vector of elements. `Encrypt`, `Linear`, `Pbs` and `LutProduct`
//! produce LWE ciphertexts under the big key; `Keyswitch` the same values under the small key;
//! `Pack` GLWEs. Operands are gathered by [`Address`].

use std::sync::Arc;

use crate::UnaryChain;

/// Element `index` of operand number `port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Operand number.
    pub port: u32,
    /// Element.
    pub index: u32,
}

impl Address {
    /// No operand: weight zero, empty slot.
    pub const ABSENT: Self = Self { port: u32::MAX, index: u32::MAX };
}

/// A real affine map on gathered elements: `y[g·M + m] = Σ_k W[set[g]][m][k]·x[gather[g·K + k]] + bias[g·M + m]`.
#[derive(Clone, Debug, PartialEq)]
pub struct HeLinear {
    /// M.
    pub outputs: usize,
    /// K.
    pub operands: usize,
    /// G·K addresses.
    pub gather: Vec<Address>,
    /// Weight set of each of the G groups.
    pub set: Vec<u32>,
    /// S·M·K real weights.
    pub weights: Vec<f64>,
    /// G·M.
    pub bias: Vec<f64>,
}

/// What a programmable bootstrap looks up: f(x) − a·x. The line a·x is a linear map, which needs no bootstrap; passes add it back there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LookUp {
    /// f.
    pub chain: UnaryChain,
    /// a.
    pub slope: f64,
}

impl LookUp {
    /// f itself.
    #[must_use]
    pub fn plain(chain: UnaryChain) -> Self {
        Self { chain, slope: 0.0 }
    }

    /// f(x) − a·x.
    #[must_use]
    pub fn apply(&self, x: f64) -> f64 {
        self.chain.apply(x) - self.slope * x
    }
}

/// Where the arguments of a look-up lie, and how finely they are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain {
    /// Positions of 1/2N of the torus: N for `pbs`, or all 2N where what is looked up changes its sign from one half of the torus to the
    /// other (see [`is_full`](Self::is_full)); B for `lut-product` with boxes of B positions.
    pub positions: usize,
    /// ν: each position has 2^ν entries of a table, at the price of 2^ν rotations. See `thex_circuit::instruction`.
    pub extension: u32,
}

impl Domain {
    /// Without extension.
    #[must_use]
    pub fn new(positions: usize) -> Self {
        Self { positions, extension: 0 }
    }

    /// Whether it is the whole torus, in a ring of N coefficients. A blind rotation gives g(φ + ½) = −g(φ) for phases φ, so a look-up has
    /// half the torus for its arguments; a function that keeps this law by itself, up to a constant, has all of it, and one more bit.
    #[must_use]
    pub fn is_full(&self, size: usize) -> bool {
        self.positions > size
    }

    /// Entries of a table in a ring of N coefficients.
    #[must_use]
    pub fn entries(&self, size: usize) -> usize {
        self.positions.min(size) << self.extension
    }
}

/// What an element is going to be used for, which decides the torus interval that its encoding must fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Argument of a look-up or a product.
    Argument {
        /// Where it lies.
        domain: Domain,
    },
    /// Packed operand of a product: encoded with offset 0.
    Packed,
    /// Decrypted by the client.
    Output,
}

/// A homomorphic operation.
#[derive(Clone, Debug, PartialEq)]
pub enum HeOp {
    /// Encrypts the one operand (an input of the model) element by element.
    Encrypt,
    /// An affine map, made for one purpose.
    Linear {
        /// The map.
        map: Arc<HeLinear>,
        /// What for.
        purpose: Purpose,
    },
    /// Keyswitch of gathered elements, to be looked up.
    Keyswitch {
        /// Which elements.
        gather: Arc<Vec<Address>>,
        /// Where they lie.
        domain: Domain,
    },
    /// Programmable bootstrap of each element of the one operand, a keyswitch.
    Pbs {
        /// The function.
        function: LookUp,
    },
    /// Packs gathered elements, `slots` to a GLWE.
    Pack {
        /// Which elements, `slots` for each GLWE; [`Address::ABSENT`] for empty slots.
        gather: Arc<Vec<Address>>,
        /// m.
        slots: usize,
    },
    /// Operands: a keyswitch and a pack. `y[i·m + j] = chain(ks[argument[i]])·pack[accumulator[i]·m + j]`, or, where there are `sums`, sums of so many of these.
    LutProduct {
        /// The function of the rotating operand.
        chain: UnaryChain,
        /// Elements of the keyswitch.
        argument: Arc<Vec<u32>>,
        /// GLWEs of the pack.
        accumulator: Arc<Vec<u32>>,
        /// m.
        slots: usize,
        /// How many products each sum has, one after another: by external products. By rotations of the pack, products are not summed.
        sums: Option<Arc<Vec<u32>>>,
    },
    /// Gathers the elements that the client decrypts.
    Decrypt {
        /// Which elements.
        gather: Arc<Vec<Address>>,
    },
}

/// The group of outputs that each product of a [`HeOp::LutProduct`] adds to.
#[must_use]
pub fn sum_of_products(products: usize, sums: Option<&Arc<Vec<u32>>>) -> Vec<usize> {
    match sums {
        None => (0..products).collect(),
        Some(sums) => sums.iter().enumerate().flat_map(|(i, &n)| std::iter::repeat_n(i, n as usize)).collect(),
    }
}

impl HeOp {
    /// Kebab-case name.
    #[must_use]
    pub fn mnemonic(&self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Linear { .. } => "he-linear",
            Self::Keyswitch { .. } => "keyswitch",
            Self::Pbs { .. } => "pbs",
            Self::Pack { .. } => "pack",
            Self::LutProduct { .. } => "lut-product",
            Self::Decrypt { .. } => "decrypt",
        }
    }
}
