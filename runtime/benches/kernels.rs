//! The six kernels under the standard parameters, on synthetic keys and all processors: `cargo bench --workspace --bench kernels`.
//!
//! Full batches, as in a large circuit, and for keyswitch and packing one ciphertext alone, where the key streams from memory for it.

#![allow(missing_docs, reason = "criterion's macros write functions without documentation")]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use thex_circuit::Parameters;
use thex_runtime::Result;
use thex_runtime::calibrate::{Harness, Kernels};

/// One benchmark of `units` units.
fn measure(c: &mut Criterion, name: &str, units: usize, kernel: impl Fn(Harness<'_>) -> Result<()>) {
    let mut group = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group.throughput(Throughput::Elements(units as u64));
    group.bench_function(BenchmarkId::from_parameter(units), |b| {
        let done = kernel(&mut |run| {
            let mut outcome = Ok(());
            b.iter(|| outcome = run());
            outcome
        });
        assert!(done.is_ok(), "{name}: {done:?}");
    });
    group.finish();
}

fn kernels(c: &mut Criterion) {
    let kernels = match Kernels::new(Parameters::standard()) {
        Ok(kernels) => kernels,
        Err(error) => return eprintln!("no kernels to measure: {error}"),
    };
    let batch = kernels.batch();
    measure(c, "pbs", batch, |h| kernels.pbs(batch, 0, h));
    measure(c, "extended pbs", batch / 2, |h| kernels.pbs(batch / 2, 1, h));
    measure(c, "lut_product", batch, |h| kernels.lut_product(batch, h));
    measure(c, "external_product", batch, |h| kernels.external_product(batch, h));
    for count in [1, 128] {
        measure(c, "keyswitch", count, |h| kernels.keyswitch(count, h));
    }
    for count in [1, 64] {
        measure(c, "pack", count, |h| kernels.pack(count, h));
    }
    measure(c, "linear", kernels.weights(), |h| kernels.linear(h));
}

criterion_group!(benches, kernels);
criterion_main!(benches);
