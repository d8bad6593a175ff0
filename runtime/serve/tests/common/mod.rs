//! A circuit of all five instructions, longer than one part each, and files for it.

use thex_circuit::clear::ClearGraph;
use thex_circuit::instruction::{ABSENT, Block, Keyswitch, Linear, LutProduct, Pack, Pbs, Provenance};
use thex_circuit::{Circuit, ClientBundle, Encoding, Instruction, Interface, Parameters, Port};

pub(crate) const INPUTS: u32 = 8;
pub(crate) const LAYERS: u32 = 3;
/// Look-ups of a layer; 12 products of 4 slots follow.
pub(crate) const WIDTH: u32 = 48;
pub(crate) const SLOTS: u32 = 4;

/// Builds a circuit of all five instructions, more than fits one part each.
#[derive(Default)]
struct Builder {
    instructions: Vec<Instruction>,
    lwe: u32,
    small: u32,
    glwe: u32,
}

fn take(next: &mut u32, len: u32) -> Block {
    let start = *next;
    *next += len;
    Block { start, len }
}

impl Builder {
    /// Sums of two neighbours of a block, `WIDTH` of them in as many groups.
    fn linear(&mut self, from: &Block) -> Block {
        let at = |i: u32| from.start + i % from.len;
        let dst = take(&mut self.lwe, WIDTH);
        self.instructions.push(Instruction::Linear(Linear {
            dst,
            outputs: 1,
            operands: 3,
            gather: (0..WIDTH).flat_map(|i| [at(i), ABSENT, at(i * 5 + 1)]).collect(),
            set: (0..WIDTH).map(|i| i % 3).collect(),
            weights: vec![1, 7, -1, 1, 0, 1, -1, 0, 2],
            bias: (0..WIDTH).map(|i| (1 << 61) + u64::from(i)).collect(),
        }));
        dst
    }

    fn layer(&mut self, from: &Block) -> Block {
        let arguments = self.linear(from);
        let small = take(&mut self.small, WIDTH);
        let gather = (arguments.start..arguments.end()).collect();
        self.instructions.push(Instruction::Keyswitch(Keyswitch { dst: small, domain: 2048, extension: 0, gather }));
        let looked_up = take(&mut self.lwe, WIDTH);
        self.instructions.push(Instruction::Pbs(Pbs {
            dst: looked_up,
            extension: 0,
            argument: (small.start..small.end()).collect(),
            table_of: (0..WIDTH).map(|i| i * 7 % 5).collect(),
            tables: (0..5 * 2048).map(|i| (i % 2048) << (10 + i / 2048)).collect(),
        }));
        let packs = take(&mut self.glwe, WIDTH / SLOTS);
        let gather = (looked_up.start..looked_up.end()).collect();
        self.instructions.push(Instruction::Pack(Pack { dst: packs, slots: SLOTS, stride: 512, gather }));
        let products = take(&mut self.lwe, WIDTH);
        self.instructions.push(Instruction::LutProduct(LutProduct {
            dst: products,
            slots: SLOTS,
            stride: 512,
            extension: 0,
            argument: (0..WIDTH / SLOTS).map(|i| small.start + i * 3).collect(),
            accumulator: (packs.start..packs.end()).collect(),
            table_of: (0..WIDTH / SLOTS).map(|i| i % 2).collect(),
            tables: (0..1024).map(|i| i % 512 / 64 + i / 512).collect(),
        }));
        products
    }
}

pub(crate) fn circuit() -> Circuit {
    let mut builder = Builder::default();
    let input = take(&mut builder.lwe, INPUTS);
    let last = (0..LAYERS).fold(input, |from, _| builder.layer(&from));
    let provenance = vec![Provenance::default(); builder.instructions.len()];
    // The outputs hold a block of the first layer alive to the end.
    let outputs = vec![("y".into(), (last.start..last.start + 6).chain([INPUTS + 1]).collect())];
    let (info, parameters, inputs) = (Default::default(), Parameters::standard(), vec![("x".into(), input)]);
    let circuit = Circuit { info, parameters, inputs, outputs, instructions: builder.instructions, provenance };
    circuit.verify().unwrap();
    circuit
}

pub(crate) fn bundle(digest: &str) -> ClientBundle {
    let encoding = Encoding { scale: 16.0, offset: 0.0 };
    let port = |name: &str, elements: usize| Port {
        name: name.into(),
        shape: vec![elements],
        encodings: vec![encoding; elements],
        ranges: vec![(-1.0, 1.0); elements],
        noise: vec![1e-3; elements],
    };
    ClientBundle {
        circuit: digest.into(),
        model: "made.onnx".into(),
        parameters: Parameters::standard(),
        prologue: ClearGraph::identity(&[("x".into(), vec![INPUTS as usize])]),
        inputs: vec![port("x", INPUTS as usize)],
        outputs: vec![port("y", 7)],
        epilogue: ClearGraph::identity(&[("y".into(), vec![7])]),
        interface: Interface::default(),
    }
}
