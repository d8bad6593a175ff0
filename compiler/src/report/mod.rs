//! What a circuit is and costs, for people and for programs.

pub mod data;
mod noise;
pub mod page;

use std::fmt::Write;

use serde_json::{Value, json};
use thex_circuit::params::SECURITY_BITS;
use thex_circuit::security;
use thex_circuit::{Circuit, LayerInfo, NoiseModel, Parameters};
use thex_passes::PassRecord;
use thex_runtime::bench::rotations_text;
use thex_runtime::{KernelTimes, Prediction};

/// Megabytes, for people.
fn megabytes(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}

/// Bytes of `server.key`: seeded keys, and a header.
#[must_use]
pub fn server_key_bytes(parameters: &Parameters) -> u64 {
    thex_runtime::keys::server_key_bytes(parameters).unwrap_or(0)
}

/// One JSON object that describes a circuit.
#[must_use]
pub fn circuit_json(circuit: &Circuit, digest: &str, times: &KernelTimes) -> Value {
    let p = &circuit.parameters;
    let noise = NoiseModel::new(p);
    let memory = Prediction::new(circuit, times.threads);
    let layers: Vec<Value> = circuit.layers().iter().map(|layer| layer_json(layer, circuit, times)).collect();
    let ports = |ports: Vec<(String, usize)>| -> Vec<Value> {
        ports.into_iter().map(|(name, elements)| json!({ "name": name, "elements": elements })).collect()
    };
    json!({
        "digest": digest,
        "model": circuit.info.model,
        "profile": circuit.info.profile,
        "approximations": circuit.info.approximations,
        "predicted_output_error": circuit.info.predicted_output_error,
        "pbs_count": circuit.pbs_count(),
        "rotation_work": circuit.rotation_work(),
        "pack_count": circuit.pack_count(),
        "keyswitch_count": circuit.keyswitch_count(),
        "multiply_adds": circuit.multiply_adds(),
        "instructions": circuit.instructions.len(),
        "estimated_seconds": times.estimate(circuit),
        "threads": times.threads,
        "server_key_bytes": server_key_bytes(p),
        "peak_memory_bytes": memory.peak(),
        "memory_bytes": {
            "circuit": memory.circuit,
            "keys": memory.keys,
            "keys_loading": memory.loading,
            "ciphertexts": memory.ciphertexts,
            "busiest_instruction": memory.busiest,
        },
        "security_bits": SECURITY_BITS,
        "security": {
            "curve_bits": SECURITY_BITS,
            "curve": "tfhe minimal_lwe_variance_for_132_bits_security_gaussian",
            "estimated_bits": security::bits(p),
            "estimate": security::SOURCE,
        },
        "parameters": {
            "lwe_dimension": p.lwe_dimension.0,
            "glwe_dimension": p.glwe_dimension.0,
            "polynomial_size": p.polynomial_size.0,
            "keyswitch": { "base_log": p.keyswitch.base_log.0, "level": p.keyswitch.level.0 },
            "bootstrap": { "base_log": p.bootstrap.base_log.0, "level": p.bootstrap.level.0 },
            "packing": { "base_log": p.packing.base_log.0, "level": p.packing.level.0 },
            "grouping_factor": p.grouping_factor.0,
            "small_noise_log2": 0.5 * p.small_noise().0.log2(),
            "big_noise_log2": 0.5 * p.big_noise().0.log2(),
        },
        "noise_log2": {
            "argument": 0.5 * noise.argument().log2(),
            "bootstrap": 0.5 * noise.bootstrap.log2(),
            "packing": 0.5 * noise.packing.log2(),
        },
        "inputs": ports(circuit.inputs.iter().map(|(n, b)| (n.clone(), b.len as usize)).collect()),
        "outputs": ports(circuit.outputs.iter().map(|(n, a)| (n.clone(), a.len())).collect()),
        "layers": layers,
    })
}

fn layer_seconds(name: &str, circuit: &Circuit, times: &KernelTimes) -> f64 {
    let pairs = circuit.instructions.iter().zip(&circuit.provenance);
    pairs.filter(|(_, p)| p.layer == name).map(|(i, _)| times.instruction_ns(i) * 1e-9).sum()
}

fn layer_json(layer: &LayerInfo, circuit: &Circuit, times: &KernelTimes) -> Value {
    json!({
        "name": layer.name,
        "pbs": layer.pbs + layer.products,
        "lookups": layer.pbs,
        "products": layer.products,
        "packs": layer.packs,
        "keyswitches": layer.keyswitches,
        "multiply_adds": layer.multiply_adds,
        "seconds": layer_seconds(&layer.name, circuit, times),
    })
}

/// The same for people.
#[must_use]
pub fn circuit_text(circuit: &Circuit, digest: &str, times: &KernelTimes) -> String {
    let p = &circuit.parameters;
    let noise = NoiseModel::new(p);
    let mut out = String::new();
    let _ =
        writeln!(out, "{} ({}), circuit {}", circuit.info.model, circuit.info.profile, &digest[..digest.len().min(16)]);
    if circuit.info.approximations.is_empty() {
        let _ = writeln!(out, "approximations   none: every function is looked up");
    }
    for (i, line) in circuit.info.approximations.iter().enumerate() {
        let _ = writeln!(out, "{:<16} {line}", if i == 0 { "approximations" } else { "" });
    }
    let _ = writeln!(
        out,
        "parameters       n = {}, k = {}, N = {}, keyswitch 2^{} × {}, bootstrap 2^{} × {} by {}, packing 2^{} × {}",
        p.lwe_dimension.0,
        p.glwe_dimension.0,
        p.polynomial_size.0,
        p.keyswitch.base_log.0,
        p.keyswitch.level.0,
        p.bootstrap.base_log.0,
        p.bootstrap.level.0,
        if p.grouping_factor.0 == 1 { "single key bits" } else { "pairs of key bits" },
        p.packing.base_log.0,
        p.packing.level.0,
    );
    let _ = writeln!(
        out,
        "security         {SECURITY_BITS} bits (Gaussian noise on tfhe's curve, 2^{:.1} and 2^{:.1}); {:.1} by {}",
        0.5 * p.small_noise().0.log2(),
        0.5 * p.big_noise().0.log2(),
        security::bits(p).unwrap_or(0.0),
        security::SOURCE
    );
    let _ = writeln!(
        out,
        "noise            look-up argument 2^{:.1}, look-up output 2^{:.1} of the torus",
        0.5 * noise.argument().log2(),
        0.5 * noise.bootstrap.log2()
    );
    if let Some(error) = circuit.info.predicted_output_error {
        let _ = writeln!(out, "output error     {error:.4} rms, modelled");
    }
    let _ = writeln!(out, "server key       {} on disk", megabytes(server_key_bytes(p)));
    let _ = writeln!(out, "memory           {}", memory_text(&Prediction::new(circuit, times.threads), circuit, times));
    let _ = writeln!(out);
    out.push_str(&layer_table(circuit, times));
    let _ = writeln!(
        out,
        "\n{}, {} packs: about {:.0} s on this machine with {} threads",
        rotations_text(circuit.pbs_count(), circuit.rotation_work()),
        circuit.pack_count(),
        times.estimate(circuit),
        times.threads
    );
    out
}

fn memory_text(memory: &Prediction, circuit: &Circuit, times: &KernelTimes) -> String {
    let busiest = circuit.provenance.get(memory.busiest).map_or("", |p| p.name.as_str());
    format!(
        "{} at the peak with {} threads: circuit {}, keys {} ({} while they are loaded), ciphertexts {} at {busiest}",
        megabytes(memory.peak()),
        times.threads,
        megabytes(memory.circuit),
        megabytes(memory.keys),
        megabytes(memory.loading),
        megabytes(memory.ciphertexts),
    )
}

fn layer_table(circuit: &Circuit, times: &KernelTimes) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<12} {:>9} {:>9} {:>8} {:>12} {:>13} {:>8}",
        "layer", "look-ups", "products", "packs", "keyswitches", "multiply-adds", "seconds"
    );
    for layer in circuit.layers() {
        let _ = writeln!(
            out,
            "{:<12} {:>9} {:>9} {:>8} {:>12} {:>13} {:>8.1}",
            layer.name,
            layer.pbs,
            layer.products,
            layer.packs,
            layer.keyswitches,
            layer.multiply_adds,
            layer_seconds(&layer.name, circuit, times)
        );
    }
    out
}

/// What each pass did, a line each.
#[must_use]
pub fn pass_table(records: &[PassRecord]) -> String {
    let mut out = String::new();
    for r in records {
        let counters: Vec<String> = r.counters.iter().map(|(k, v)| format!("{v} {k}")).collect();
        let _ = writeln!(
            out,
            "{:<22} {:>4} → {:<4} nodes {:>7} ms  {}",
            r.pass,
            r.nodes.0,
            r.nodes.1,
            r.elapsed.as_millis(),
            counters.join(", ")
        );
    }
    out
}
