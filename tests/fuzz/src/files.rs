//! Fuzzing of the loaders of circuits, bundles, keys and ciphertexts, and of what is done with a file that they accept.
//!
//! A flipped bit never gets past the digest, so most cases are what an attacker would make: the JSON of a header changed where it
//! means something, or the words after it, with lengths and digest put right again. The corpus is `tests/golden/v1`. A finding is a
//! panic, an abort, a case that takes longer than [`MOST_SECONDS`], or an error that calls itself a bug of thex.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use thex_circuit::clear::ClearGraph;
use thex_circuit::{Circuit, ClientBundle, NoiseModel, Parameters};
use thex_runtime::client::{self, Named, Rounding};
use thex_runtime::{ClientKey, EncryptedInputs, EncryptedOutputs, ErrorKind, RuntimeError, ServerKey, Simulator};

use crate::random::Random;

/// No small file may take longer.
pub const MOST_SECONDS: u64 = 5;
/// Files that expand to more words than this are loaded, not expanded.
const MOST_CIPHERTEXTS: usize = 1 << 10;

fn judge<T>(result: Result<T, RuntimeError>) -> Option<T> {
    match result {
        Err(error) if error.kind() == ErrorKind::Internal => panic!("internal error: {error}"),
        result => result.ok(),
    }
}

/// Loads a file that holds `bytes` as each kind, and uses what was accepted. Gives how many loaders accepted it.
///
/// # Panics
/// On a finding.
pub fn target(path: &Path, bytes: &[u8]) -> usize {
    write_private(path, bytes);
    let start = Instant::now();
    let parameters = Parameters::standard();
    let mut accepted = 0;
    if let Ok((circuit, _)) = Circuit::load(path) {
        accepted += 1;
        simulate(&circuit);
    }
    if let Ok(bundle) = ClientBundle::load(path) {
        accepted += 1;
        use_bundle(&bundle);
    }
    accepted += usize::from(judge(ClientKey::load(path)).is_some());
    accepted += usize::from(judge(ServerKey::load(path)).is_some());
    if let Some(inputs) = judge(EncryptedInputs::load(path)) {
        accepted += 1;
        if inputs.info.count() < MOST_CIPHERTEXTS {
            judge(inputs.expand(&parameters));
        }
    }
    accepted += usize::from(judge(EncryptedOutputs::load(path, &parameters)).is_some());
    let elapsed = start.elapsed();
    assert!(elapsed < Duration::from_secs(MOST_SECONDS), "took {elapsed:?}");
    accepted
}

fn write_private(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("the scratch file can be written");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("its mode can be set");
    }
}

/// Everything that `inspect`, `evaluate` and `run` do with a circuit, but the ciphertexts.
fn simulate(circuit: &Circuit) {
    let _ = (circuit.layers(), circuit.pbs_count(), circuit.multiply_adds());
    let count: usize = circuit.inputs.iter().map(|(_, b)| b.len as usize).sum();
    if let Some(simulator) = judge(Simulator::new(circuit, NoiseModel::silent())) {
        if let Some(simulation) = judge(simulator.run(&vec![0; count], 0)) {
            let _ = simulation.outputs(circuit);
        }
    }
}

fn zeros(graph: &ClearGraph) -> Vec<Named> {
    let zero = |(name, shape): &(String, Vec<usize>)| (name.clone(), ndarray_zeros(shape));
    graph.inputs.iter().map(zero).collect()
}

fn ndarray_zeros(shape: &[usize]) -> ndarray::ArrayD<f64> {
    ndarray::ArrayD::zeros(ndarray::IxDyn(shape))
}

/// Encodes zeros, decodes zeros.
fn use_bundle(bundle: &ClientBundle) {
    let values = zeros(&bundle.prologue);
    let _ = client::encode(bundle, &values);
    let shared: Vec<Arc<_>> = values.into_iter().map(|(_, v)| Arc::new(v)).collect();
    let _ = bundle.prologue.run(&shared);
    let count = bundle.outputs.iter().map(|p| p.encodings.len()).sum();
    let _ = client::decode(bundle, &vec![0; count], Rounding::Modelled);
}

/// Numbers that make trouble.
const NUMBERS: [f64; 12] = [0.0, 1.0, -1.0, 2.0, 0.5, 255.0, 2048.0, 4294967295.0, 4294967296.0, 1e18, 1e300, -1e-300];
const INTEGERS: [u64; 8] = [u64::MAX, 1 << 63, 1 << 40, 1 << 32, (1 << 32) - 1, 4096, 63, 3];

/// Changes one place of a JSON value.
fn change(value: &mut Value, random: &mut Random) {
    match value {
        Value::Object(map) if !map.is_empty() && random.below(8) > 0 => {
            let at = random.below(map.len());
            let key = map.keys().nth(at).cloned().unwrap_or_default();
            match random.below(40) {
                0 => drop(map.remove(&key)),
                1 => drop(map.insert(format!("{key}2"), Value::Null)),
                _ => change(&mut map[&key], random),
            }
        }
        Value::Array(items) if !items.is_empty() && random.below(8) > 0 => {
            let at = random.below(items.len());
            match random.below(12) {
                0 => drop(items.remove(at)),
                1 => items.push(items[at].clone()),
                2 => items.swap(0, at),
                _ => change(&mut items[at], random),
            }
        }
        Value::String(text) if random.below(2) == 0 => text.push('\u{1b}'),
        _ => *value = leaf(value, random),
    }
}

fn leaf(value: &Value, random: &mut Random) -> Value {
    match (value, random.below(6)) {
        (Value::Number(n), 0..=1) => match n.as_u64() {
            Some(n) => (n ^ (1 << random.below(12))).into(),
            None => n.as_f64().map_or(Value::Null, |x| (-x).into()),
        },
        (_, 0..=2) => random.pick(&NUMBERS).copied().unwrap_or_default().into(),
        (_, 3) => random.pick(&INTEGERS).copied().unwrap_or_default().into(),
        (_, 4) => Value::String("0".repeat(random.below(70))),
        _ => [Value::Null, Value::Bool(true), Value::Array(vec![]), Value::Object(Default::default())][random.below(4)]
            .clone(),
    }
}

/// Changes bytes, and sometimes their number.
fn scratch(bytes: &mut Vec<u8>, random: &mut Random) {
    match random.below(16) {
        0 => bytes.truncate(random.below(bytes.len() + 1)),
        1 => bytes.extend_from_slice(&random.next().to_le_bytes()),
        _ => {
            for _ in 0..=random.below(3) {
                let value = random.next() as u8;
                if let Some(byte) = random.pick_mut(bytes) {
                    *byte = value;
                }
            }
        }
    }
}

/// A key or ciphertext with header or words changed, and lengths and digest put right.
fn mutate_data(bytes: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let length = u32::from_le_bytes(bytes.get(72..76)?.try_into().ok()?) as usize;
    let mut header: Value = serde_json::from_slice(bytes.get(76..76 + length)?).ok()?;
    let mut words = bytes.get(76 + length..)?.to_vec();
    match random.below(4) {
        0 => scratch(&mut words, random),
        1 => change(&mut header, random),
        _ => (0..=random.below(2)).for_each(|_| change(&mut header["body"], random)),
    }
    if random.below(4) == 0 && header.is_object() {
        header["words"] = (words.len() / 8).into();
    }
    let header = header.to_string().into_bytes();
    let content = [&(header.len() as u32).to_le_bytes()[..], &header, &words].concat();
    Some([&b"thexdata"[..], thex_circuit::file::digest(&content).as_bytes(), &content].concat())
}

/// A circuit or bundle with manifest, table of tensors or tensors changed, and lengths and digest put right.
fn mutate_container(bytes: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let length = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?) as usize;
    let mut header: serde_json::Map<String, Value> = serde_json::from_slice(bytes.get(8..8 + length)?).ok()?;
    let mut data = bytes.get(8 + length..)?.to_vec();
    let metadata = header.remove("__metadata__")?;
    let mut manifest: Value = serde_json::from_str(metadata.get("thex")?.as_str()?).ok()?;
    match random.below(6) {
        0 => scratch(&mut data, random),
        1 => {
            let mut table = Value::Object(std::mem::take(&mut header));
            change(&mut table, random);
            header = table.as_object().cloned().unwrap_or_default();
        }
        _ => (0..=random.below(2)).for_each(|_| change(&mut manifest["body"], random)),
    }
    let text = format!(
        r#"{{"kind":{},"version":{},"sha256":"{}","writer":"0","body":{}}}"#,
        manifest["kind"],
        manifest["version"],
        "0".repeat(64),
        manifest["body"]
    );
    let table: String = header.iter().map(|(k, v)| format!(",{}:{v}", Value::String(k.clone()))).collect();
    let header = format!(r#"{{"__metadata__":{{"thex":{}}}{table}}}"#, Value::String(text));
    let mut bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    let mark = br#"\"sha256\":\""#;
    let at = bytes.windows(mark.len()).position(|w| w == mark)? + mark.len();
    let sum = thex_circuit::file::digest(&bytes);
    bytes[at..at + 64].copy_from_slice(sum.as_bytes());
    Some(bytes)
}

/// A changed copy of a file of any kind; one time in sixteen blindly.
#[must_use]
pub fn mutate(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let aware =
        if bytes.starts_with(b"thexdata") { mutate_data(bytes, random) } else { mutate_container(bytes, random) };
    match aware {
        Some(changed) if random.below(16) > 0 => changed,
        _ => {
            let mut blind = bytes.to_vec();
            scratch(&mut blind, random);
            blind
        }
    }
}

/// The start of a server key with the circuit and parameters of a client key: whole ones are too large to mutate, and what
/// decides allocations is all in the header.
#[must_use]
pub fn server_key_start(client_key: &[u8]) -> Option<Vec<u8>> {
    let length = u32::from_le_bytes(client_key.get(72..76)?.try_into().ok()?) as usize;
    let mut header: Value = serde_json::from_slice(client_key.get(76..76 + length)?).ok()?;
    let seed = "0".repeat(32);
    let seeds = serde_json::json!({ "keyswitch": seed, "bootstrap": seed, "packing": seed });
    header["body"] = serde_json::json!({ "info": header["body"], "seeds": seeds });
    header["kind"] = "server key".into();
    header["words"] = 1.into();
    let header = header.to_string().into_bytes();
    let content = [&(header.len() as u32).to_le_bytes()[..], &header, &[0; 8]].concat();
    Some([&b"thexdata"[..], thex_circuit::file::digest(&content).as_bytes(), &content].concat())
}
