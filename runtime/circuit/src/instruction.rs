//! The circuit: a straight line of instructions over blocks of ciphertexts.
//!
//! Three memories, each a flat address space of elements that are written once:
//!
//! * **lwe**: LWE ciphertexts under the big key, one real value each;
//! * **small**: keyswitched LWE ciphertexts under the small key, ready for a blind rotation;
//! * **glwe**: packed ciphertexts, the encrypted accumulators of [`Instruction::LutProduct`] and factors of [`Instruction::ExternalProduct`].
//!
//! An instruction writes one contiguous [`Block`] and gathers its operands by address, so that
//! reshapes, transposes, slices and concatenations cost nothing and have no instruction. Addresses
//! always lie below the block being written: the order of instructions is an execution order.
//!
//! **Phases.** The phase of an element is its plaintext on the torus, in units of 2^-64. A look-up
//! argument must have its phase in [0, N/2N) (`Pbs`) or in [0, B/2N) (`LutProduct` with boxes of B
//! positions, `ExternalProduct` with B = N/4, N/2 or N). With the centred modulus switch, table entry `j` answers phases in [j, j+1)/2N.
//!
//! **Extension.** A rotation of extension ν turns a polynomial of 2^ν·N coefficients, which lies in 2^ν GLWEs of the ring's own N, by a multiple of
//! 1/(2·2^ν·N) of the torus: the modulus switch is finer by ν bits, tables have 2^ν entries for every position, and keys stay the same (extended
//! bootstrapping: Lee, Yoon, *Discretization Error Reduction for High Precision Torus Fully Homomorphic Encryption*, PKC 2023). It costs 2^ν
//! rotations. Positions are counted in 1/2N throughout, whatever the extension.

use serde::{Deserialize, Serialize};

use crate::params::Parameters;

/// A gather entry that stands for no operand at all (weight zero, empty slot).
pub const ABSENT: u32 = u32::MAX;

/// The largest ν that an instruction may ask for.
pub const MAX_EXTENSION: u32 = 3;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(extension: &u32) -> bool {
    *extension == 0
}

/// A contiguous range of addresses in one memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// First address.
    pub start: u32,
    /// Number of elements.
    pub len: u32,
}

impl Block {
    /// One past the last address.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.start + self.len
    }
}

/// Where an instruction comes from: for progress, profiles and reports. Never for execution.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Name of the tensor in the compiler's IR.
    pub name: String,
    /// Layer of the model, for grouping ("layer 0", "head").
    pub layer: String,
    /// The ONNX nodes that it came from.
    pub onnx: Vec<String>,
    /// Modelled precision of the output: -log2(noise sd ÷ width of the range), where known.
    pub noise_bits: Option<f64>,
}

/// Affine integer map on LWE ciphertexts: `dst[g·M + m] = Σ_k W[set[g]][m][k]·lwe[gather[g·K + k]] + bias[g·M + m]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Linear {
    /// Output block in lwe memory, G·M elements.
    pub dst: Block,
    /// M: outputs of a group.
    pub outputs: u32,
    /// K: operands of a group. May be 0: then the outputs are trivial ciphertexts of the bias.
    pub operands: u32,
    /// G·K addresses in lwe memory, or [`ABSENT`].
    #[serde(skip)]
    pub gather: Vec<u32>,
    /// Weight set of each group, G entries.
    #[serde(skip)]
    pub set: Vec<u32>,
    /// S·M·K integer weights.
    #[serde(skip)]
    pub weights: Vec<i32>,
    /// G·M phases.
    #[serde(skip)]
    pub bias: Vec<u64>,
}

/// Keyswitch to the small key (the centred modulus switch to 2N is taken by the instruction that rotates by it).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Keyswitch {
    /// Output block in small memory.
    pub dst: Block,
    /// Positions of the argument's domain: a phase in [0, domain/2N) is legal, others are counted as overflow. With 2N it is the full torus.
    pub domain: u32,
    /// ν of the rotations by its results.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub extension: u32,
    /// Address in lwe memory of each output.
    #[serde(skip)]
    pub gather: Vec<u32>,
}

/// Programmable bootstrap: `dst[i] = table[table_of[i]][position of small[argument[i]]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pbs {
    /// Output block in lwe memory.
    pub dst: Block,
    /// ν; see the module.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub extension: u32,
    /// Address in small memory of each argument.
    #[serde(skip)]
    pub argument: Vec<u32>,
    /// Table of each element.
    #[serde(skip)]
    pub table_of: Vec<u32>,
    /// Tables of 2^ν·N entries each, in units of 2^-32 of the torus.
    #[serde(skip)]
    pub tables: Vec<i32>,
}

/// Packing keyswitch: `dst[g] = Σ_j lwe[gather[g·slots + j]]·X^{j·stride}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pack {
    /// Output block in glwe memory.
    pub dst: Block,
    /// m: slots of a GLWE.
    pub slots: u32,
    /// B: positions between slots; slots·stride ≤ N.
    pub stride: u32,
    /// Addresses in lwe memory, or [`ABSENT`] for an empty slot.
    #[serde(skip)]
    pub gather: Vec<u32>,
}

/// m products with one blind rotation: `dst[i·m + j] = y_j · P[position of x]`, where `x = small[argument[i]]` and
/// `y_j` is slot j of `glwe[accumulator[i]]`, by rotating the encrypted accumulator `Σ_j y_j·X^{jB}·P(X)` by x.
///
/// The multi-value form of the bootstrap (Carpov, Izabachène, Mollimard, CT-RSA 2019) applied to an
/// encrypted test polynomial, as in the tree bootstrap of Guimarães, Borin, Aranha (TCHES 2021).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LutProduct {
    /// Output block in lwe memory, slots elements per rotation.
    pub dst: Block,
    /// m.
    pub slots: u32,
    /// B, equal to the stride of the packs.
    pub stride: u32,
    /// ν; see the module.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub extension: u32,
    /// Address in small memory of each rotation's argument.
    #[serde(skip)]
    pub argument: Vec<u32>,
    /// Address in glwe memory of each rotation's accumulator.
    #[serde(skip)]
    pub accumulator: Vec<u32>,
    /// Table of each rotation.
    #[serde(skip)]
    pub table_of: Vec<u32>,
    /// Integer tables of 2^ν·B entries each.
    #[serde(skip)]
    pub tables: Vec<i32>,
}

impl LutProduct {
    /// Entries of a table, 2^ν·B.
    #[must_use]
    pub fn entries(&self) -> usize {
        (self.stride as usize) << self.extension
    }
}

/// Sums of products: `dst[o·m + j] = Σ_t P_t[position of x_t]·y_{t,j}`, over the `terms[o]` next terms t, where `x_t = small[argument[t]]` and `y_{t,j}` is slot j of
/// `glwe[accumulator[t]]`, by the external product of `y_t` with a GGSW of `P_t(x_t)`; see [`external`](crate::external). A term takes as many blind rotations
/// whatever m is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExternalProduct {
    /// Output block in lwe memory, m elements for each sum.
    pub dst: Block,
    /// m: slots that are read.
    pub slots: u32,
    /// Positions between slots, equal to the stride of the packs.
    pub stride: u32,
    /// Blind rotations of a term, 1, 2 or 4.
    pub rotations: u32,
    /// Terms of each sum.
    #[serde(skip)]
    pub terms: Vec<u32>,
    /// Address in small memory of each term's argument.
    #[serde(skip)]
    pub argument: Vec<u32>,
    /// Address in glwe memory of each term's other factor.
    #[serde(skip)]
    pub accumulator: Vec<u32>,
    /// Table of each term.
    #[serde(skip)]
    pub table_of: Vec<u32>,
    /// Integer tables of [`entries`](crate::external::entries) each: arguments lie in so much of the half torus.
    #[serde(skip)]
    pub tables: Vec<i32>,
}

impl ExternalProduct {
    /// The sum that each term adds to.
    pub fn sum_of(&self) -> impl Iterator<Item = u32> + '_ {
        self.terms.iter().zip(0..).flat_map(|(&n, sum)| std::iter::repeat_n(sum, n as usize))
    }
}

/// One step of a circuit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum Instruction {
    /// See [`Linear`].
    Linear(Linear),
    /// See [`Keyswitch`].
    Keyswitch(Keyswitch),
    /// See [`Pbs`].
    Pbs(Pbs),
    /// See [`Pack`].
    Pack(Pack),
    /// See [`LutProduct`].
    LutProduct(LutProduct),
    /// See [`ExternalProduct`].
    ExternalProduct(ExternalProduct),
}

impl Instruction {
    /// The mnemonic.
    #[must_use]
    pub fn mnemonic(&self) -> &'static str {
        match self {
            Self::Linear(_) => "linear",
            Self::Keyswitch(_) => "keyswitch",
            Self::Pbs(_) => "pbs",
            Self::Pack(_) => "pack",
            Self::LutProduct(_) => "lut_product",
            Self::ExternalProduct(_) => "external_product",
        }
    }

    /// ν of its rotations, or of those by what it keyswitches.
    #[must_use]
    pub fn extension(&self) -> u32 {
        match self {
            Self::Keyswitch(x) => x.extension,
            Self::Pbs(x) => x.extension,
            Self::LutProduct(x) => x.extension,
            Self::Linear(_) | Self::Pack(_) | Self::ExternalProduct(_) => 0,
        }
    }

    /// Blind rotations of the ring's own size that its rotations are as much work as: 2^ν each.
    #[must_use]
    pub fn rotation_work(&self) -> u64 {
        self.pbs_count() << self.extension()
    }

    /// Entries of one of its tables, in a ring of `polynomial_size`.
    #[must_use]
    pub fn table_entries(&self, polynomial_size: usize) -> usize {
        match self {
            Self::Pbs(x) => polynomial_size << x.extension,
            Self::LutProduct(x) => x.entries(),
            Self::ExternalProduct(x) => crate::external::entries(polynomial_size, x.rotations as usize),
            Self::Linear(_) | Self::Keyswitch(_) | Self::Pack(_) => 0,
        }
    }

    /// Blind rotations that it performs.
    #[must_use]
    pub fn pbs_count(&self) -> u64 {
        match self {
            Self::Pbs(pbs) => pbs.argument.len() as u64,
            Self::LutProduct(product) => product.argument.len() as u64,
            Self::ExternalProduct(product) => product.argument.len() as u64 * u64::from(product.rotations),
            Self::Linear(_) | Self::Keyswitch(_) | Self::Pack(_) => 0,
        }
    }

    /// LWE ciphertexts that it packs.
    #[must_use]
    pub fn pack_count(&self) -> u64 {
        match self {
            Self::Pack(pack) => pack.gather.iter().filter(|&&a| a != ABSENT).count() as u64,
            Self::Linear(_) | Self::Keyswitch(_) | Self::Pbs(_) | Self::LutProduct(_) | Self::ExternalProduct(_) => 0,
        }
    }

    /// Ciphertexts that it keyswitches.
    #[must_use]
    pub fn keyswitch_count(&self) -> u64 {
        match self {
            Self::Keyswitch(ks) => ks.gather.len() as u64,
            Self::Linear(_) | Self::Pack(_) | Self::Pbs(_) | Self::LutProduct(_) | Self::ExternalProduct(_) => 0,
        }
    }

    /// Scalar multiply-adds on whole ciphertexts (non-zero weights only).
    #[must_use]
    pub fn multiply_adds(&self) -> u64 {
        let Self::Linear(linear) = self else { return 0 };
        let per_set = (linear.outputs as usize).saturating_mul(linear.operands as usize);
        if per_set == 0 {
            return 0;
        }
        let nonzero: Vec<u64> =
            linear.weights.chunks(per_set).map(|set| set.iter().filter(|&&w| w != 0).count() as u64).collect();
        linear.set.iter().filter_map(|&s| nonzero.get(s as usize)).sum()
    }
}

/// PBS, packs and time of one layer, for summaries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// The layer.
    pub name: String,
    /// Blind rotations of plain look-ups.
    pub pbs: u64,
    /// Blind rotations of products.
    pub products: u64,
    /// Packed LWEs.
    pub packs: u64,
    /// Keyswitches.
    pub keyswitches: u64,
    /// Linear multiply-adds on ciphertexts.
    pub multiply_adds: u64,
}

/// What a circuit says about itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CircuitInfo {
    /// File name of the model.
    pub model: String,
    /// `exact`, `the-x`.
    pub profile: String,
    /// Every replacement that changes the function, one line each.
    pub approximations: Vec<String>,
    /// Root mean square error of the output that the noise model predicts, in units of the output.
    pub predicted_output_error: Option<f64>,
}

/// A serialized HE circuit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Circuit {
    /// What it is.
    pub info: CircuitInfo,
    /// The parameters that it runs under.
    pub parameters: Parameters,
    /// Names of the encrypted inputs and their blocks in lwe memory. The first blocks.
    pub inputs: Vec<(String, Block)>,
    /// Names of the encrypted outputs and the address of each of their elements.
    pub outputs: Vec<(String, Vec<u32>)>,
    /// The steps.
    pub instructions: Vec<Instruction>,
    /// Where each step comes from; as long as `instructions`.
    pub provenance: Vec<Provenance>,
}

impl Circuit {
    /// Blind rotations of a run.
    #[must_use]
    pub fn pbs_count(&self) -> u64 {
        self.instructions.iter().map(Instruction::pbs_count).sum()
    }

    /// Blind rotations of the ring's own size that a run is as much work as.
    #[must_use]
    pub fn rotation_work(&self) -> u64 {
        self.instructions.iter().map(Instruction::rotation_work).sum()
    }

    /// The largest ν of its rotations.
    #[must_use]
    pub fn largest_extension(&self) -> u32 {
        self.instructions.iter().map(Instruction::extension).max().unwrap_or(0)
    }

    /// Whether the domain of any look-up is the full torus.
    #[must_use]
    pub fn uses_full_torus(&self) -> bool {
        let size = self.parameters.polynomial_size.0;
        self.instructions.iter().any(|i| matches!(i, Instruction::Keyswitch(x) if x.domain as usize > size))
    }

    /// Packed LWEs of a run.
    #[must_use]
    pub fn pack_count(&self) -> u64 {
        self.instructions.iter().map(Instruction::pack_count).sum()
    }

    /// Keyswitches of a run.
    #[must_use]
    pub fn keyswitch_count(&self) -> u64 {
        self.instructions.iter().map(Instruction::keyswitch_count).sum()
    }

    /// Linear multiply-adds on ciphertexts of a run.
    #[must_use]
    pub fn multiply_adds(&self) -> u64 {
        self.instructions.iter().map(Instruction::multiply_adds).sum()
    }

    /// Work by layer, in order of first appearance.
    #[must_use]
    pub fn layers(&self) -> Vec<LayerInfo> {
        let mut layers: Vec<LayerInfo> = Vec::new();
        for (instruction, provenance) in self.instructions.iter().zip(&self.provenance) {
            let index = layers.iter().position(|l| l.name == provenance.layer).unwrap_or_else(|| {
                layers.push(LayerInfo { name: provenance.layer.clone(), ..LayerInfo::default() });
                layers.len() - 1
            });
            let layer = &mut layers[index];
            match instruction {
                Instruction::LutProduct(_) | Instruction::ExternalProduct(_) => {
                    layer.products += instruction.pbs_count()
                }
                _ => layer.pbs += instruction.pbs_count(),
            }
            layer.packs += instruction.pack_count();
            layer.keyswitches += instruction.keyswitch_count();
            layer.multiply_adds += instruction.multiply_adds();
        }
        layers
    }
}
