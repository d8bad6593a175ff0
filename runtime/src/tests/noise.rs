//! Noise as a property: measured variance over modelled variance, from above (results are right) and, for everything that is
//! encrypted freshly, from below too (it is as secure as the table says). `docs/NOISE.md` has the figures.
//!
//! The variance of m independent samples has a relative standard deviation of √(2/m); bounds are four of them, and wider where the
//! noise of the key itself is common to all samples of one key.

use ndarray::{ArrayD, IxDyn};
use thex_circuit::{Encoding, Port};

use super::*;

/// Measured over modelled variance.
fn ratio(what: &str, errors: &[f64], modelled: f64) -> f64 {
    let ratio = deviation(errors).powi(2) / modelled;
    println!("{what:24} {:6} samples, variance measured / modelled {ratio:.3}", errors.len());
    ratio
}

/// Between the floor and the ceiling that chance leaves to independent samples.
fn assert_exact(what: &str, errors: &[f64], modelled: f64) {
    let margin = 4.0 * (2.0 / errors.len() as f64).sqrt();
    let ratio = ratio(what, errors, modelled);
    assert!((ratio - 1.0).abs() < margin, "{what}: {ratio} is not within {margin} of 1");
}

/// Distance to the nearest multiple of 2^-bits of the torus: the error of a key's row, whose message is such a multiple.
fn off_grid(phase: u64, bits: usize) -> f64 {
    turns(phase << bits) / (bits as f64).exp2()
}

#[test]
fn fresh_inputs_have_the_noise_of_the_table() {
    let count = 4096;
    let mut bundle = bundle();
    bundle.prologue = ClearGraph::identity(&[("x".into(), vec![count])]);
    bundle.inputs = vec![Port {
        name: "x".into(),
        shape: vec![count],
        encodings: vec![Encoding { scale: 1.0, offset: 0.0 }; count],
        ranges: Vec::new(),
        noise: Vec::new(),
    }];
    let values = ArrayD::from_shape_fn(IxDyn(&[count]), |i| i[0] as f64 / 8192.0 - 0.25);
    let (inputs, encoded) = client::encrypt(&bundle, &SHARED.client, &[("x".into(), values)]).unwrap();
    let lwes = inputs.expand(&bundle.parameters).unwrap();
    let phases = client::phases(&SHARED.client, &lwes);
    let errors: Vec<f64> = phases.iter().zip(&encoded.phases).map(|(a, b)| turns(a.wrapping_sub(*b))).collect();
    assert_exact("fresh inputs", &errors, bundle.parameters.big_noise().0);
    assert!(mean(&errors).abs() < 4.0 * (bundle.parameters.big_noise().0 / count as f64).sqrt());
}

#[test]
fn evaluation_keys_have_the_noise_of_the_table() {
    let p = Parameters::standard();
    let grid = |d: thex_circuit::params::Decomposition| d.base_log.0 * d.level.0;
    let small = SHARED.client.small();
    let rows: Vec<f64> = SHARED
        .ksk
        .iter()
        .flat_map(|rows| rows.iter().map(|row| decrypt_lwe_ciphertext(&small, &row).0).collect::<Vec<_>>())
        .map(|phase| off_grid(phase, grid(p.keyswitch)))
        .collect();
    assert_exact("keyswitch key", &rows, p.small_noise().0);
    let coefficients = |row: &GlweCiphertext<&[u64]>, bits: usize| -> Vec<f64> {
        let mut plain = PlaintextListOwned::new(0_u64, PlaintextCount(p.polynomial_size.0));
        decrypt_glwe_ciphertext(SHARED.client.glwe(), row, &mut plain);
        plain.as_ref().iter().map(|&x| off_grid(x, bits)).collect()
    };
    let mut rows = Vec::new();
    for ggsw in SHARED.bsk.iter().step_by(85) {
        for level in ggsw.iter() {
            level.as_glwe_list().iter().for_each(|row| rows.extend(coefficients(&row, grid(p.bootstrap))));
        }
    }
    assert_exact("bootstrap key", &rows, p.big_noise().0);
    let mut rows = Vec::new();
    for list in SHARED.pksk.iter().step_by(256) {
        list.iter().for_each(|row| rows.extend(coefficients(&row, grid(p.packing))));
    }
    assert_exact("packing key", &rows, p.big_noise().0);
}

#[test]
fn look_ups_have_the_modelled_noise_on_both_sides() {
    let noise = NoiseModel::new(&Parameters::standard());
    // f(j) = j: the result shows where the argument landed, in positions; rounding down is uniform.
    let table: Vec<i32> = (0..2048).map(|j| j << 19).collect();
    let arguments: Vec<f64> = (0..1024).map(|i| f64::from(i % 256 * 7 + 100) + 0.5).collect();
    let phases: Vec<u64> = arguments.iter().map(|a| torus(a / 4096.0)).collect();
    let errors: Vec<f64> =
        pbs(&phases, &table).iter().zip(&arguments).map(|(y, a)| (y * 8192.0 - (a - 0.5)) / 4096.0).collect();
    let argument = ratio("look-up argument", &errors, noise.argument() + 1.0 / 12.0 / 4096.0 / 4096.0);
    assert!((0.75..1.3).contains(&argument), "{argument}");
    let phases: Vec<u64> = (0..1024).map(|i| torus(f64::from(i % 2) * 0.5 + 0.25)).collect();
    let results = pbs(&phases, &[1 << 28; 2048]);
    let sign = |i: usize| [1.0, -1.0][i % 2] / 16.0;
    let errors: Vec<f64> = results.iter().enumerate().map(|(i, y)| y - sign(i)).collect();
    // The formula bounds the noise of the floating-point transform.
    let output = ratio("look-up output", &errors, noise.bootstrap);
    assert!((0.5..1.25).contains(&output), "{output}");
}

#[test]
fn extended_look_ups_have_the_modelled_noise_on_both_sides() {
    let noise = NoiseModel::new(&Parameters::standard());
    for (extension, count) in [(1, 384), (2, 384), (3, 128)] {
        let positions = f64::from(4096 << extension);
        // f(j) = j, in entries: 2^ν for a position.
        let table: Vec<i32> = (0..2048 << extension).map(|j| j << (19 - extension)).collect();
        let arguments: Vec<f64> = (0..count).map(|i| f64::from(((i % 128) * 13 + 100) << extension) + 0.5).collect();
        let phases: Vec<u64> = arguments.iter().map(|a| torus(a / positions)).collect();
        let entry = |y: f64| y * 8192.0 * f64::from(1 << extension);
        let errors: Vec<f64> =
            pbs(&phases, &table).iter().zip(&arguments).map(|(y, a)| (entry(*y) - (a - 0.5)) / positions).collect();
        let rounding = 1.0 / 12.0 / positions / positions;
        let argument = ratio("extended argument", &errors, noise.extended_argument(extension) + rounding);
        assert!((0.75..1.3).contains(&argument), "ν = {extension}: {argument}");
    }
    let phases: Vec<u64> = (0..256).map(|i| torus(f64::from(i % 2) * 0.5 + 0.25)).collect();
    let results = pbs(&phases, &[1 << 28; 4096]);
    let sign = |i: usize| [1.0, -1.0][i % 2] / 16.0;
    let errors: Vec<f64> = results.iter().enumerate().map(|(i, y)| y - sign(i)).collect();
    let output = ratio("extended output", &errors, noise.bootstrap);
    assert!((0.5..1.25).contains(&output), "{output}");
}

/// Errors of a constant look-up, plain and with two lanes, under fresh keys of these parameters.
fn output_errors(p: Parameters, count: usize, extension: u32) -> Vec<f64> {
    let bundle = ClientBundle { parameters: p, ..bundle() };
    let (client, server) = keys::generate(&bundle, None).unwrap();
    let backend = CpuBackend::new(server.expand());
    let phases: Vec<u64> = (0..count).map(|i| torus((i % 2) as f64 * 0.5 + 0.25)).collect();
    let inputs = encrypt_under(&client, &phases);
    let size = p.lwe_dimension.to_lwe_size().0;
    let mut small = vec![0; count * size];
    backend.keyswitch(&views(&inputs), &mut small).unwrap();
    let table = vec![1 << 28; p.polynomial_size.0 << extension];
    let arguments = small.chunks(size).collect();
    let look_ups = LookUps { arguments, tables: vec![table.as_slice(); count], extension };
    let mut out = vec![0; count * p.big_lwe_size()];
    backend.pbs(&look_ups, &mut out, &|_| ()).unwrap();
    let sign = |i: usize| [1.0, -1.0][i % 2] / 16.0;
    client::phases(&client, &out).into_iter().enumerate().map(|(i, y)| turns(y) - sign(i)).collect()
}

#[test]
fn rotations_by_one_bit_and_by_pairs_have_the_modelled_noise() {
    for grouping in [1, 2] {
        for (bootstrap, extension) in [("23x1", 0), ("14x2", 0), ("16x2", 1), ("12x3", 0), ("9x4", 1)] {
            let text = format!("n=600,k=1,N=2048,ks=3x5,bs={bootstrap},pk=16x2,gf={grouping}");
            let p: Parameters = text.parse().unwrap();
            let errors = output_errors(p, 256, extension);
            let ratio = ratio(
                &format!("gf={grouping} bs={bootstrap}, ν = {extension}"),
                &errors,
                NoiseModel::new(&p).bootstrap,
            );
            assert!((0.5..1.4).contains(&ratio), "{text}: {ratio}");
        }
    }
}

/// P(X ≤ k) of n draws with probability p each.
fn binomial(n: u32, k: u32, p: f64) -> f64 {
    let mut log = f64::from(n) * (1.0 - p).ln();
    let mut sum = log.exp();
    for i in 0..k {
        log += (f64::from(n - i) / f64::from(i + 1)).ln() + (p / (1.0 - p)).ln();
        sum += log.exp();
    }
    sum
}

/// The exact interval of Clopper and Pearson (Biometrika 1934) at 99.999 %: the noise is fresh in every run of the tests.
fn clopper_pearson(n: u32, k: u32) -> (f64, f64) {
    let solve = |above: &dyn Fn(f64) -> bool| {
        let (mut lo, mut hi) = (1e-12, 1.0 - 1e-12);
        for _ in 0..100 {
            let mid = 0.5 * (lo + hi);
            if above(mid) { hi = mid } else { lo = mid }
        }
        0.5 * (lo + hi)
    };
    let low = if k == 0 { 0.0 } else { solve(&|p| 1.0 - binomial(n, k - 1, p) > 5e-6) };
    (low, solve(&|p| binomial(n, k, p) < 5e-6))
}

/// P(N(0, 1) > x), by Simpson's rule on [x, x + 10].
fn tail(x: f64) -> f64 {
    let f = |t: f64| (-t * t / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let (steps, h) = (1000, 0.01);
    (0..steps).map(|i| x + f64::from(i) * h).map(|t| h / 6.0 * (f(t) + 4.0 * f(t + h / 2.0) + f(t + h))).sum()
}

#[test]
fn arguments_leave_the_half_torus_as_often_as_modelled() {
    let noise = NoiseModel::new(&Parameters::standard());
    let deviation = (noise.argument() + noise.fresh).sqrt();
    assert!((tail(1.0) - 0.158_655).abs() < 1e-6 && (tail(6.0) / 9.866e-10 - 1.0).abs() < 1e-3);
    for (margin, count) in [(0.5, 512), (1.0, 512), (2.0, 1024)] {
        // Half at the lower edge, half at the upper.
        let phases: Vec<u64> = (0..count)
            .map(|i| if i & 1 == 0 { torus(margin * deviation) } else { torus(0.5 - margin * deviation) })
            .collect();
        let left = pbs(&phases, &[1 << 28; 2048]).iter().filter(|&&y| y < 0.0).count() as u32;
        let (low, high) = clopper_pearson(count, left);
        let modelled = tail(margin);
        println!("{margin} σ from the edge: {left} of {count} left, [{low:.4}, {high:.4}], modelled {modelled:.4}");
        assert!((low..=high).contains(&modelled), "{modelled} is not in [{low}, {high}]");
    }
}

#[test]
fn the_exact_interval_covers() {
    let (low, high) = clopper_pearson(1000, 0);
    assert!(low.abs() < 1e-12 && (high - 0.012_132).abs() < 1e-5, "{high}");
    let (low, high) = clopper_pearson(100, 50);
    assert!((0.285..0.286).contains(&low) && (low + high - 1.0).abs() < 1e-9, "{low} {high}");
}

#[test]
fn the_conversion_key_has_the_noise_of_the_table() {
    let p = Parameters::standard().with_external(true);
    let (client, server) = keys::generate(&ClientBundle { parameters: p, ..bundle() }, None).unwrap();
    let rows = server.standard_conversion().unwrap();
    let messages = crate::kernels::external::conversion_messages(client.glwe().as_ref());
    assert_eq!(rows.glwe_ciphertext_count().0 * p.polynomial_size.0, p.key_words()[3]);
    let mut errors = Vec::new();
    for (row, messages) in rows.iter().zip(messages.chunks(p.polynomial_size.0)) {
        let mut plain = PlaintextListOwned::new(0_u64, PlaintextCount(p.polynomial_size.0));
        decrypt_glwe_ciphertext(client.glwe(), &row, &mut plain);
        errors.extend(plain.as_ref().iter().zip(messages).map(|(a, b)| turns(a.wrapping_sub(*b))));
    }
    assert_exact("conversion key", &errors, p.big_noise().0);
}

/// Errors of sums of external products under fresh keys of these parameters, and what is modelled of them.
fn external_errors(p: Parameters, rotations: usize, sums: usize, terms: usize) -> (Vec<f64>, f64) {
    use thex_circuit::instruction::{Block, ExternalProduct};
    let bundle = ClientBundle { parameters: p.with_external(true), ..bundle() };
    let (client, server) = keys::generate(&bundle, None).unwrap();
    let backend = CpuBackend::new(server.expand());
    let (size, slots, entries) = (p.polynomial_size.0, 5, p.polynomial_size.0 * rotations / 4);
    // P(x) = 16·(j/64) − 64: wide steps, so that the argument's noise changes nothing.
    let table: Vec<i32> = (0..entries).map(|j| (16 * (j / 64) as i32) / rotations as i32 - 64).collect();
    let count = sums * terms;
    let step = |t: usize| (t * t + 5 * t) % 31 % (8 * rotations);
    let arguments: Vec<u64> = (0..count).map(|t| torus((64 * step(t) + 32) as f64 / (2 * size) as f64)).collect();
    let mut small = vec![0; count * p.lwe_dimension.to_lwe_size().0];
    backend.keyswitch(&views(&encrypt_under(&client, &arguments)), &mut small).unwrap();
    let value = |t: usize, j: usize| (1 + (3 * t + j) % 11) as f64 / 65536.0;
    // A GLWE for each term: what the gadget rounds off it is common to all that it is multiplied by.
    let values: Vec<u64> = (0..count).flat_map(|t| (0..slots).map(move |j| torus(value(t, j)))).collect();
    let lwes = encrypt_under(&client, &values);
    let stride = size / slots;
    let mut glwes = vec![0; count * p.glwe_words()];
    let inputs: Vec<Option<&[u64]>> = lwes.iter().map(|lwe| Some(lwe.as_slice())).collect();
    backend.pack(&inputs, slots, stride, &mut glwes).unwrap();
    let instruction = ExternalProduct {
        dst: Block { start: 0, len: (sums * slots) as u32 },
        slots: slots as u32,
        stride: stride as u32,
        rotations: rotations as u32,
        terms: vec![terms as u32; sums],
        argument: (0..count as u32).collect(),
        accumulator: (0..count as u32).collect(),
        table_of: vec![0; count],
        tables: table.clone(),
    };
    let products = ExternalProducts {
        arguments: small.chunks(p.lwe_dimension.to_lwe_size().0).collect(),
        glwes: glwes.chunks(p.glwe_words()).collect(),
        instruction: &instruction,
    };
    let mut out = vec![0; sums * slots * p.big_lwe_size()];
    backend.external_product(&products, &mut out, &|_| ()).unwrap();
    let factor = |t: usize| f64::from(table[64 * step(t) + 32]);
    let errors = client::phases(&client, &out)
        .into_iter()
        .enumerate()
        .map(|(i, y)| {
            let (sum, slot) = (i / slots, i % slots);
            let exact: f64 = (sum * terms..(sum + 1) * terms).map(|t| factor(t) * value(t, slot)).sum();
            turns(y.wrapping_sub(torus(exact)))
        })
        .collect();
    let noise = NoiseModel::new(&p);
    let of_term = |t: usize| {
        let packed = noise.fresh + slots as f64 * noise.packing;
        noise.external + factor(t).powi(2) * (packed + noise.external_rounding)
    };
    (errors, (0..count).map(of_term).sum::<f64>() / sums as f64)
}

#[test]
fn external_products_have_the_modelled_noise() {
    for (bootstrap, grouping, rotations) in [("15x2", 2, 1), ("12x3", 2, 2), ("9x4", 2, 4), ("15x2", 1, 1)] {
        let text = format!("n=850,k=1,N=2048,ks=3x5,bs={bootstrap},pk=12x3,gf={grouping}");
        let (errors, modelled) = external_errors(text.parse().unwrap(), rotations, 24, 8);
        println!("2^{:.2}", 0.5 * modelled.log2());
        let ratio = ratio(&format!("external, gf={grouping} bs={bootstrap}"), &errors, modelled);
        assert!((0.4..1.6).contains(&ratio), "{text}: {ratio}");
    }
}
