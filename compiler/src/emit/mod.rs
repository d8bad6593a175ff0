//! The backend: a placed graph becomes a circuit and a client bundle.
//!
//! Nothing is decided here. Addresses are handed out in execution order, gathers are resolved to them, look-up tables
//! are sampled from their functions and encodings, equal tables are shared, biases become phases.

mod tables;

use std::collections::BTreeMap;

use thex_circuit::clear::ClearGraph;
use thex_circuit::instruction::{ABSENT, Block, ExternalProduct, Keyswitch, Linear, LutProduct, Pack, Pbs, Provenance};
use thex_circuit::{
    Circuit, CircuitInfo, ClientBundle, Encoding, Instruction, Interface, NoiseModel, Parameters, Port, external,
};
use thex_ir::he::{Domain, sum_of_products};
use thex_ir::{Address, Graph, HeLinear, HeOp, NodeId, Op};

use crate::error::CompileError;
use tables::{TableSet, lookup_table, product_table};

/// What [`emit`] needs besides the graph.
pub struct EmitOptions {
    /// The parameters that the graph was placed for.
    pub parameters: Parameters,
    /// What the circuit says about itself.
    pub info: CircuitInfo,
    /// What the client computes before encryption.
    pub prologue: ClearGraph,
    /// What it computes after decryption.
    pub epilogue: ClearGraph,
    /// What people give it and get from it.
    pub interface: Interface,
}

/// Encoding and range of a look-up argument.
type Argument = (Encoding, (f64, f64));

/// A circuit and its bundle, as they are written to disk.
pub struct Emitted {
    /// The circuit.
    pub circuit: Circuit,
    /// Its file.
    pub circuit_bytes: Vec<u8>,
    /// The client bundle.
    pub bundle: ClientBundle,
    /// Its file.
    pub bundle_bytes: Vec<u8>,
}

/// Emits a placed graph.
///
/// # Errors
/// Parameters outside the table of 128-bit dimensions are refused; [`CompileError::Internal`] when a fact that the verifier demands is
/// missing.
pub fn emit(graph: &Graph, options: EmitOptions) -> Result<Emitted, CompileError> {
    options.parameters.check()?;
    let circuit = circuit(graph, options.parameters, options.info)?;
    let circuit_bytes = circuit.to_bytes()?;
    let digest = thex_circuit::file::digest(&circuit_bytes);
    let mut bundle = bundle(graph, &circuit, digest, (options.prologue, options.epilogue))?;
    bundle.interface = options.interface;
    bundle.verify().map_err(CompileError::Internal)?;
    let bundle_bytes = bundle.to_bytes()?;
    Ok(Emitted { circuit, circuit_bytes, bundle, bundle_bytes })
}

/// The circuit of a placed graph.
///
/// # Errors
/// As [`emit`].
pub(crate) fn circuit(graph: &Graph, parameters: Parameters, info: CircuitInfo) -> Result<Circuit, CompileError> {
    // A server makes GGSWs with one more key, which other circuits do without.
    let parameters = parameters.with_external(graph.ids().any(|id| graph.is_external_product(id)));
    let mut emitter = Emitter {
        graph,
        parameters,
        base: BTreeMap::new(),
        lwe: 0,
        small: 0,
        glwe: 0,
        circuit: Circuit {
            info,
            parameters,
            inputs: Vec::new(),
            outputs: Vec::new(),
            instructions: Vec::new(),
            provenance: Vec::new(),
        },
    };
    let order = graph.topological();
    let is_encrypt = |id: &NodeId| matches!(graph.node(*id).op, Op::He(HeOp::Encrypt));
    for &id in order.iter().filter(|id| is_encrypt(id)) {
        emitter.input(id);
    }
    for &id in order.iter().filter(|id| !is_encrypt(id)) {
        emitter.node(id)?;
    }
    emitter.outputs()?;
    emitter.circuit.verify().map_err(CompileError::Internal)?;
    Ok(emitter.circuit)
}

struct Emitter<'a> {
    graph: &'a Graph,
    parameters: Parameters,
    /// First address of each node in its memory.
    base: BTreeMap<NodeId, u32>,
    lwe: u32,
    small: u32,
    glwe: u32,
    circuit: Circuit,
}

fn missing(graph: &Graph, id: NodeId, what: &str) -> CompileError {
    CompileError::Internal(format!("`{}` has no {what}", graph.node(id).name))
}

fn encodings(graph: &Graph, id: NodeId) -> Result<&[Encoding], CompileError> {
    let encodings = graph.node(id).facts.encodings.as_ref();
    encodings.map(|e| e.as_slice()).ok_or_else(|| missing(graph, id, "encodings"))
}

fn take(end: &mut u32, len: usize) -> Block {
    let block = Block { start: *end, len: len as u32 };
    *end += len as u32;
    block
}

impl Emitter<'_> {
    fn input(&mut self, id: NodeId) {
        let block = take(&mut self.lwe, self.graph.node(id).shape[0]);
        self.base.insert(id, block.start);
        let input = self.graph.operands(id)[0];
        self.circuit.inputs.push((self.graph.node(input).name.clone(), block));
    }

    fn address(&self, operands: &[NodeId], address: Address) -> u32 {
        if address == Address::ABSENT {
            return ABSENT;
        }
        self.base[&operands[address.port as usize]] + address.index
    }

    fn gather(&self, id: NodeId, gather: &[Address]) -> Vec<u32> {
        let operands = self.graph.operands(id);
        gather.iter().map(|&a| self.address(&operands, a)).collect()
    }

    fn node(&mut self, id: NodeId) -> Result<(), CompileError> {
        let Op::He(op) = &self.graph.node(id).op else { return Ok(()) };
        let len = self.graph.node(id).shape[0];
        let (memory, instruction) = match op {
            HeOp::Encrypt | HeOp::Decrypt { .. } => return Ok(()),
            HeOp::Linear { map, .. } => {
                let dst = take(&mut self.lwe, len);
                (dst, Instruction::Linear(self.linear(id, map, dst)?))
            }
            HeOp::Keyswitch { gather, domain } => {
                let dst = take(&mut self.small, len);
                let gather = self.gather(id, gather);
                let (domain, extension) = (domain.positions as u32, domain.extension);
                (dst, Instruction::Keyswitch(Keyswitch { dst, domain, extension, gather }))
            }
            HeOp::Pbs { .. } => {
                let dst = take(&mut self.lwe, len);
                (dst, Instruction::Pbs(self.pbs(id, op, dst)?))
            }
            HeOp::Pack { gather, slots } => {
                let dst = take(&mut self.glwe, len / slots);
                let stride = (self.parameters.polynomial_size.0 / slots) as u32;
                let gather = self.gather(id, gather);
                (dst, Instruction::Pack(Pack { dst, slots: *slots as u32, stride, gather }))
            }
            HeOp::LutProduct { .. } => {
                let dst = take(&mut self.lwe, len);
                (dst, self.product(id, op, dst)?)
            }
        };
        self.base.insert(id, memory.start);
        self.circuit.instructions.push(instruction);
        self.circuit.provenance.push(self.provenance(id));
        Ok(())
    }

    fn provenance(&self, id: NodeId) -> Provenance {
        let node = self.graph.node(id);
        Provenance {
            name: node.name.clone(),
            layer: layer_of(&node.origin, &node.name),
            onnx: node.origin.clone(),
            noise_bits: node.facts.noise_bits,
        }
    }

    fn linear(&self, id: NodeId, map: &HeLinear, dst: Block) -> Result<Linear, CompileError> {
        let weights = self.graph.node(id).facts.integers.as_ref().ok_or_else(|| missing(self.graph, id, "integers"))?;
        let correction = self.graph.node(id).facts.bias_correction.as_ref();
        let corrected = |i: usize| map.bias[i] + correction.map_or(0.0, |c| c[i]);
        let bias = encodings(self.graph, id)?.iter().enumerate().map(|(i, e)| e.encode(corrected(i))).collect();
        Ok(Linear {
            dst,
            outputs: map.outputs as u32,
            operands: map.operands as u32,
            gather: self.gather(id, &map.gather),
            set: map.set.clone(),
            weights: weights.to_vec(),
            bias,
        })
    }

    /// Domain of a keyswitch, encoding and range of each of its elements.
    fn arguments(&self, keyswitch: NodeId) -> Result<(Domain, Vec<Argument>), CompileError> {
        let node = self.graph.node(keyswitch);
        let Op::He(HeOp::Keyswitch { gather, domain }) = &node.op else {
            return Err(missing(self.graph, keyswitch, "keyswitched arguments"));
        };
        let ranges = node.facts.ranges.as_ref().ok_or_else(|| missing(self.graph, keyswitch, "ranges"))?;
        let operands = self.graph.operands(keyswitch);
        let arguments = gather.iter().enumerate().map(|(i, a)| {
            let encodings = encodings(self.graph, operands[a.port as usize])?;
            Ok((encodings[a.index as usize], ranges.of(i)))
        });
        Ok((*domain, arguments.collect::<Result<_, CompileError>>()?))
    }

    fn pbs(&self, id: NodeId, op: &HeOp, dst: Block) -> Result<Pbs, CompileError> {
        let HeOp::Pbs { function } = op else { return Err(missing(self.graph, id, "function")) };
        let keyswitch = self.graph.operands(id)[0];
        let (domain, arguments) = self.arguments(keyswitch)?;
        let place = (&self.parameters, domain);
        let results = self.graph.node(id).facts.ranges.as_ref().ok_or_else(|| missing(self.graph, id, "ranges"))?;
        let mut tables = TableSet::default();
        let table_of = arguments
            .iter()
            .zip(encodings(self.graph, id)?)
            .enumerate()
            .map(|(i, ((argument, range), output))| {
                let result = results.of(i);
                let (a, o) = (argument, output);
                let key = [a.scale, a.offset, range.0, range.1, o.scale, o.offset, result.0, result.1];
                tables.get(&key, || lookup_table(function, argument, *range, (output, result), place))
            })
            .collect();
        let base = self.base[&keyswitch];
        Ok(Pbs {
            dst,
            extension: domain.extension,
            argument: (0..dst.len).map(|i| base + i).collect(),
            table_of,
            tables: tables.entries,
        })
    }

    fn product(&self, id: NodeId, op: &HeOp, dst: Block) -> Result<Instruction, CompileError> {
        let HeOp::LutProduct { chain, argument, accumulator, slots, sums } = op else {
            return Err(missing(self.graph, id, "product"));
        };
        let operands = self.graph.operands(id);
        let (domain, arguments) = self.arguments(operands[0])?;
        let place = (&self.parameters, domain);
        let outputs = encodings(self.graph, id)?;
        let mut tables = TableSet::default();
        let mut table_of = Vec::with_capacity(argument.len());
        let group_of = sum_of_products(argument.len(), sums.as_ref());
        for ((&a, &p), r) in argument.iter().zip(accumulator.iter()).zip(group_of) {
            let gain = self.table_gain(id, operands[1], p as usize, &outputs[r * slots..(r + 1) * slots])?;
            let (encoding, range) = arguments[a as usize];
            let key = [encoding.scale, encoding.offset, range.0, range.1, gain];
            table_of.push(tables.get(&key, || product_table(chain, &encoding, range, gain, place)));
        }
        let argument = argument.iter().map(|a| self.base[&operands[0]] + a).collect();
        let accumulator = accumulator.iter().map(|p| self.base[&operands[1]] + p).collect();
        let (slots, tables) = (*slots as u32, tables.entries);
        Ok(match sums {
            Some(sums) => Instruction::ExternalProduct(ExternalProduct {
                dst,
                slots,
                stride: self.parameters.polynomial_size.0 as u32 / slots,
                rotations: external::rotations(self.parameters.polynomial_size.0, domain.positions)
                    .ok_or_else(|| missing(self.graph, id, "number of rotations"))? as u32,
                terms: sums.to_vec(),
                argument,
                accumulator,
                table_of,
                tables,
            }),
            None => Instruction::LutProduct(LutProduct {
                dst,
                slots,
                stride: domain.positions as u32,
                extension: domain.extension,
                argument,
                accumulator,
                table_of,
                tables,
            }),
        })
    }

    /// scale(y) ÷ scale(product), the same for all filled slots of a rotation.
    fn table_gain(&self, id: NodeId, pack: NodeId, p: usize, outputs: &[Encoding]) -> Result<f64, CompileError> {
        let Op::He(HeOp::Pack { gather, slots }) = &self.graph.node(pack).op else {
            return Err(missing(self.graph, id, "pack"));
        };
        let operands = self.graph.operands(pack);
        let mut gain: Option<f64> = None;
        for (address, output) in gather[p * slots..(p + 1) * slots].iter().zip(outputs) {
            if *address == Address::ABSENT {
                continue;
            }
            let y = encodings(self.graph, operands[address.port as usize])?[address.index as usize];
            let this = y.scale / output.scale;
            if gain.is_some_and(|g| (this / g - 1.0).abs() > 1e-9) {
                let name = &self.graph.node(id).name;
                return Err(CompileError::Internal(format!("slots of a rotation of `{name}` need different tables")));
            }
            gain = gain.or(Some(this));
        }
        Ok(gain.unwrap_or(0.0))
    }

    fn outputs(&mut self) -> Result<(), CompileError> {
        for (name, id) in &self.graph.outputs {
            let Op::He(HeOp::Decrypt { gather }) = &self.graph.node(*id).op else {
                return Err(missing(self.graph, *id, "decryption"));
            };
            let addresses = self.gather(*id, gather);
            self.circuit.outputs.push((name.clone(), addresses));
        }
        Ok(())
    }
}

fn bundle(
    graph: &Graph,
    circuit: &Circuit,
    digest: String,
    (prologue, epilogue): (ClearGraph, ClearGraph),
) -> Result<ClientBundle, CompileError> {
    let mut inputs = Vec::new();
    for id in graph.ids().filter(|&id| matches!(graph.node(id).op, Op::He(HeOp::Encrypt))) {
        let input = graph.node(graph.operands(id)[0]);
        let ranges = graph.node(id).facts.ranges.as_ref().ok_or_else(|| missing(graph, id, "ranges"))?;
        let encodings = encodings(graph, id)?.to_vec();
        inputs.push(Port {
            name: input.name.clone(),
            shape: input.shape.clone(),
            ranges: (0..encodings.len()).map(|i| ranges.of(i)).collect(),
            encodings,
            noise: Vec::new(),
        });
    }
    let noise = circuit.info.predicted_output_error.unwrap_or(0.0);
    let fresh = NoiseModel::new(&circuit.parameters).fresh.sqrt();
    let mut outputs = Vec::new();
    for (name, id) in &graph.outputs {
        let operands = graph.operands(*id);
        let Op::He(HeOp::Decrypt { gather }) = &graph.node(*id).op else { continue };
        let encodings = gather
            .iter()
            .map(|a| Ok(encodings(graph, operands[a.port as usize])?[a.index as usize]))
            .collect::<Result<Vec<_>, CompileError>>()?;
        outputs.push(Port {
            name: name.clone(),
            shape: epilogue.inputs.iter().find(|(n, _)| n == name).map_or_else(Vec::new, |(_, shape)| shape.clone()),
            noise: vec![echo_noise(graph, *id, fresh).unwrap_or(noise); encodings.len()],
            encodings,
            ranges: Vec::new(),
        });
    }
    Ok(ClientBundle {
        circuit: digest,
        model: circuit.info.model.clone(),
        parameters: circuit.parameters,
        prologue,
        epilogue,
        inputs,
        outputs,
        interface: Interface::default(),
    })
}

/// Standard deviation of an output that is an input handed back (a mask, for the client's epilogue): the encryption's own noise.
fn echo_noise(graph: &Graph, output: NodeId, fresh: f64) -> Option<f64> {
    let mut largest = 0.0_f64;
    for made in graph.operands(output) {
        matches!(&graph.node(made).op, Op::He(HeOp::Linear { map, .. }) if map.operands == 1).then_some(())?;
        for source in graph.operands(made) {
            matches!(graph.node(source).op, Op::He(HeOp::Encrypt)).then_some(())?;
            let scales = graph.node(source).facts.encodings.as_ref()?.iter().map(|e| e.scale.abs());
            largest = scales.fold(largest, f64::max);
        }
    }
    (largest > 0.0).then_some(largest * fresh)
}

/// The layer that ONNX node names speak of: the first number in a path such as `/blocks.1/attn/MatMul`.
pub(crate) fn layer_of(origin: &[String], name: &str) -> String {
    // The IR's own name may end in a number that only makes it unique: it speaks for nodes without origin alone.
    let own = origin.is_empty().then_some(name);
    for candidate in origin.iter().map(String::as_str).chain(own) {
        // The number stands alone in the path, and not at its start: `blocks.1.`, not `MatMul_1`.
        for part in candidate.split(['/', '.']).skip(1) {
            if !part.is_empty() && part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit()) {
                return format!("layer {part}");
            }
        }
    }
    "model".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_come_from_onnx_names() {
        assert_eq!(layer_of(&["/blocks.1/attn/MatMul".into()], "x"), "layer 1");
        assert_eq!(layer_of(&["/encoder/layer.11/output/Add".into()], "x"), "layer 11");
        assert_eq!(layer_of(&["/head/Gemm".into()], "head.Gemm.1"), "model");
    }
}
