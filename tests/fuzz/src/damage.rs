//! The loaders' target without libFuzzer: mutates one kind of file for a given time, with no feedback from coverage.
//!
//! `cargo run --release --no-default-features --manifest-path tests/fuzz/Cargo.toml --bin damage -- SECONDS SEED KIND CORPUS FINDINGS`,
//! KIND being `circuit`, `bundle`, `key` or `ciphertext`. Each case is written to FINDINGS/current-KIND before it is loaded, so that an abort
//! leaves it there; other findings leave FINDINGS/KIND-N.

use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thex_fuzz::Random;
use thex_fuzz::files::{mutate, server_key_start, target};

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.filter_map(|e| Some(e.ok()?.path())) {
        if path.is_dir() { walk(&path, files) } else { files.push(path) }
    }
}

/// The corpus of a kind, in a fixed order.
fn corpus(folder: &Path, kind: &str) -> Vec<Vec<u8>> {
    let extension = match kind {
        "circuit" => "circuit",
        "bundle" => "client",
        "key" => "key",
        "ciphertext" => "ct",
        _ => panic!("KIND is circuit, bundle, key or ciphertext"),
    };
    let mut files = Vec::new();
    walk(folder, &mut files);
    files.retain(|path| path.extension().is_some_and(|e| e == extension));
    files.sort();
    let mut contents: Vec<Vec<u8>> = files.iter().filter_map(|path| std::fs::read(path).ok()).collect();
    if kind == "key" {
        contents.extend(contents.clone().iter().filter_map(|key| server_key_start(key)));
    }
    contents
}

fn reason(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [seconds, seed, kind, folder, findings] = arguments.as_slice() else {
        eprintln!("usage: damage SECONDS SEED KIND CORPUS FINDINGS");
        std::process::exit(2);
    };
    let limit = Duration::from_secs(seconds.parse().expect("SECONDS is a number"));
    let mut random = Random(seed.parse().expect("SEED is a number"));
    let findings = Path::new(findings);
    std::fs::create_dir_all(findings).expect("FINDINGS can be made");
    let current = findings.join(format!("current-{kind}"));
    let corpus = corpus(Path::new(folder), kind);
    let (start, mut runs, mut accepted, mut slowest) = (Instant::now(), 0_u64, 0_usize, Duration::ZERO);
    let mut found: BTreeMap<String, (u64, String)> = BTreeMap::new();
    while start.elapsed() < limit && !corpus.is_empty() {
        let bytes = mutate(&corpus[random.below(corpus.len())], &mut random);
        let before = Instant::now();
        let result = catch_unwind(|| target(&current, &bytes));
        slowest = slowest.max(before.elapsed());
        runs += 1;
        let panic = match result {
            Ok(count) => {
                accepted += count;
                continue;
            }
            Err(panic) => panic,
        };
        let text = reason(&*panic);
        let number = found.len();
        let key = text.chars().filter(|c| c.is_alphabetic() || *c == ' ').take(60).collect();
        let entry = found.entry(key).or_insert_with(|| {
            let path = findings.join(format!("{kind}-{number}"));
            std::fs::write(&path, &bytes).expect("the finding can be written");
            (0, format!("{}: {text}", path.display()))
        });
        entry.0 += 1;
    }
    println!(
        "{kind}: {runs} cases in {:.0?}, {accepted} accepted, slowest {slowest:.2?}, {} kinds of finding",
        start.elapsed(),
        found.len()
    );
    found.values().for_each(|(count, text)| println!("{count} × {text}"));
}
