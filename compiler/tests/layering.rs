//! Dependencies between the crates point one way: circuit ← ir ← passes ← compiler, circuit ← runtime ← serve ← compiler.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::Path;

/// Crates of the workspace, and heavy frontends, that a manifest names outside its dev-dependencies.
fn named(manifest: &str) -> Vec<&'static str> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(manifest);
    let text = std::fs::read_to_string(path).unwrap();
    let dependencies = text.split("[dev-dependencies]").next().unwrap().split("[dependencies]").nth(1).unwrap();
    let starts = |name: &str| {
        dependencies.lines().any(|l| l.starts_with(&format!("{name}.")) || l.starts_with(&format!("{name} ")))
    };
    ["thex-circuit", "thex-runtime", "thex-serve", "thex-ir", "thex-passes", "thex", "tract-onnx"]
        .into_iter()
        .filter(|n| starts(n))
        .collect()
}

#[test]
fn dependencies_point_one_way() {
    assert_eq!(named("runtime/circuit/Cargo.toml"), Vec::<&str>::new());
    assert_eq!(named("runtime/Cargo.toml"), ["thex-circuit"]);
    assert_eq!(named("runtime/serve/Cargo.toml"), ["thex-circuit", "thex-runtime"]);
    assert_eq!(named("passes/ir/Cargo.toml"), ["thex-circuit"]);
    assert_eq!(named("passes/Cargo.toml"), ["thex-circuit", "thex-ir"]);
    assert!(named("compiler/Cargo.toml").contains(&"tract-onnx"));
}
