//! The loaders' target for libFuzzer: `cargo fuzz run --fuzz-dir tests/fuzz --no-default-features --features libfuzzer --sanitizer none files`.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use thex_fuzz::Random;
use thex_fuzz::files::{mutate, target};

static SCRATCH: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("thex-fuzz-{}.file", std::process::id())));

fuzz_target!(|data: &[u8]| {
    target(&SCRATCH, data);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let changed = mutate(&data[..size], &mut Random(u64::from(seed)));
    let length = changed.len().min(max_size);
    data[..length].copy_from_slice(&changed[..length]);
    length
});
