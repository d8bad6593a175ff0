//! The same target without libFuzzer: mutates the corpus for a given time, with no feedback from coverage.
//!
//! `cargo run --release --manifest-path tests/fuzz/Cargo.toml --bin mutate -- SECONDS SEED CORPUS FINDINGS`. Each case is written to
//! FINDINGS/current.onnx before it runs, so that an abort leaves it there; panics leave FINDINGS/panic-N.onnx, and slow cases
//! count as panics.

use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thex_fuzz::Random;
use thex_fuzz::import::{mutate, target};

fn corpus(folder: &Path) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("the corpus can be read").filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "onnx"));
    files.sort();
    files.iter().filter_map(|path| std::fs::read(path).ok()).collect()
}

fn reason(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// The reason without numbers and names, so that one fault counts once.
fn kind(reason: &str) -> String {
    reason.chars().filter(|c| c.is_alphabetic() || *c == ' ').take(60).collect()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [seconds, seed, folder, findings] = arguments.as_slice() else {
        eprintln!("usage: mutate SECONDS SEED CORPUS FINDINGS");
        std::process::exit(2);
    };
    let limit = Duration::from_secs(seconds.parse().expect("SECONDS is a number"));
    let mut random = Random(seed.parse().expect("SEED is a number"));
    let findings = Path::new(findings);
    std::fs::create_dir_all(findings).expect("FINDINGS can be made");
    let current = findings.join("current.onnx");
    let corpus = corpus(Path::new(folder));
    let (start, mut runs, mut slowest) = (Instant::now(), 0_u64, Duration::ZERO);
    let mut found: BTreeMap<String, (u64, String)> = BTreeMap::new();
    while start.elapsed() < limit && !corpus.is_empty() {
        let model = &corpus[random.below(corpus.len())];
        let bytes = mutate(model, &mut random);
        let before = Instant::now();
        let result = catch_unwind(|| target(&current, &bytes));
        slowest = slowest.max(before.elapsed());
        runs += 1;
        let Err(panic) = result else { continue };
        let text = reason(&*panic);
        let number = found.len();
        let entry = found.entry(kind(&text)).or_insert_with(|| {
            let path = findings.join(format!("panic-{number}.onnx"));
            std::fs::write(&path, &bytes).expect("the finding can be written");
            (0, format!("{}: {text}", path.display()))
        });
        entry.0 += 1;
    }
    println!("{runs} cases in {:.0?}, slowest {slowest:.1?}, {} kinds of finding", start.elapsed(), found.len());
    found.values().for_each(|(count, text)| println!("{count} × {text}"));
}
