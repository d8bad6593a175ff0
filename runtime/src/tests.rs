//! Tests on real ciphertexts, with one pair of keys for all of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

use std::sync::LazyLock;

use tfhe::core_crypto::prelude::*;
use thex_circuit::clear::ClearGraph;
use thex_circuit::instruction::LutProduct;
use thex_circuit::{ClientBundle, NoiseModel, Parameters};

use crate::executor::{ExternalProducts, LookUps, Products};
use crate::{Backend, ClientKey, CpuBackend, client, keys};

mod noise;

pub(crate) struct Shared {
    pub(crate) client: ClientKey,
    bsk: LweBootstrapKeyOwned<u64>,
    ksk: LweKeyswitchKeyOwned<u64>,
    pksk: LwePackingKeyswitchKeyOwned<u64>,
    pub(crate) backend: CpuBackend,
}

pub(crate) fn bundle() -> ClientBundle {
    ClientBundle {
        circuit: "0".repeat(64),
        model: "test".into(),
        parameters: Parameters::standard(),
        prologue: ClearGraph::default(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        epilogue: ClearGraph::default(),
        interface: Default::default(),
    }
}

pub(crate) static SHARED: LazyLock<Shared> = LazyLock::new(|| {
    let start = std::time::Instant::now();
    let (client, server) = keys::generate(&bundle(), Some(1)).unwrap();
    println!("keygen {:?}", start.elapsed());
    let (ksk, pksk) = server.standard();
    let bsk = server.standard_bootstrap();
    let start = std::time::Instant::now();
    let backend = CpuBackend::new(server.expand());
    println!("expand {:?}", start.elapsed());
    Shared { client, bsk, ksk, pksk, backend }
});

const TURN: f64 = 18_446_744_073_709_551_616.0;

pub(crate) fn torus(turns: f64) -> u64 {
    ((turns - turns.round()) * TURN) as i64 as u64
}

pub(crate) fn turns(phase: u64) -> f64 {
    phase as i64 as f64 / TURN
}

/// Encrypts phases under the big key with the noise of fresh ciphertexts.
pub(crate) fn encrypt(phases: &[u64]) -> Vec<Vec<u64>> {
    encrypt_under(&SHARED.client, phases)
}

pub(crate) fn encrypt_under(client: &ClientKey, phases: &[u64]) -> Vec<Vec<u64>> {
    let p = client.info.parameters;
    let mut seeder = new_seeder();
    let mut generator = EncryptionRandomGenerator::<DefaultRandomGenerator>::new(seeder.seed(), seeder.as_mut());
    phases
        .iter()
        .map(|&phase| {
            allocate_and_encrypt_new_lwe_ciphertext(
                &client.big(),
                Plaintext(phase),
                keys::big_noise(&p),
                p.ciphertext_modulus(),
                &mut generator,
            )
            .into_container()
        })
        .collect()
}

pub(crate) fn views(lwes: &[Vec<u64>]) -> Vec<&[u64]> {
    lwes.iter().map(Vec::as_slice).collect()
}

fn keyswitch(lwes: &[Vec<u64>]) -> Vec<Vec<u64>> {
    let size = Parameters::standard().lwe_dimension.to_lwe_size().0;
    let mut out = vec![0; lwes.len() * size];
    SHARED.backend.keyswitch(&views(lwes), &mut out).unwrap();
    out.chunks(size).map(<[u64]>::to_vec).collect()
}

fn pbs(phases: &[u64], table: &[i32]) -> Vec<f64> {
    let p = Parameters::standard();
    let small = keyswitch(&encrypt(phases));
    let mut out = vec![0; phases.len() * p.big_lwe_size()];
    let extension = (table.len() / p.polynomial_size.0).ilog2();
    let look_ups = LookUps { arguments: views(&small), tables: vec![table; phases.len()], extension };
    SHARED.backend.pbs(&look_ups, &mut out, &|_| ()).unwrap();
    client::phases(&SHARED.client, &out).into_iter().map(turns).collect()
}

pub(crate) fn deviation(errors: &[f64]) -> f64 {
    (errors.iter().map(|e| e * e).sum::<f64>() / errors.len() as f64).sqrt()
}

fn mean(errors: &[f64]) -> f64 {
    errors.iter().sum::<f64>() / errors.len() as f64
}

#[test]
fn keyswitch_is_that_of_tfhe() {
    let p = Parameters::standard();
    let lwes = encrypt(&(0..11).map(|i| torus(f64::from(i) / 32.0)).collect::<Vec<_>>());
    for (lwe, ours) in lwes.iter().zip(keyswitch(&lwes)) {
        let mut theirs = LweCiphertext::new(0_u64, p.lwe_dimension.to_lwe_size(), p.ciphertext_modulus());
        let lwe = LweCiphertext::from_container(lwe.as_slice(), p.ciphertext_modulus());
        keyswitch_lwe_ciphertext(&SHARED.ksk, &lwe, &mut theirs);
        assert_eq!(theirs.into_container(), ours);
    }
}

#[test]
fn keyswitch_noise_is_modelled() {
    let phases = vec![torus(0.2); 1024];
    let small = keyswitch(&encrypt(&phases));
    let modulus = Parameters::standard().ciphertext_modulus();
    let errors: Vec<f64> = small
        .iter()
        .map(|lwe| {
            let lwe = LweCiphertext::from_container(lwe.as_slice(), modulus);
            turns(decrypt_lwe_ciphertext(&SHARED.client.small(), &lwe).0.wrapping_sub(torus(0.2)))
        })
        .collect();
    let ratio = deviation(&errors) / NoiseModel::new(&Parameters::standard()).keyswitch.sqrt();
    println!("keyswitch noise / model {ratio:.3}");
    // The noise of the key itself is the same for all samples of one key: a fifth of margin.
    assert!((0.8..1.2).contains(&ratio), "{ratio}");
}

#[test]
fn pack_is_that_of_tfhe() {
    let p = Parameters::standard();
    let (slots, stride) = (4, 512);
    let lwes = encrypt(&(0..8).map(|i| torus(f64::from(i) / 32.0 - 0.1)).collect::<Vec<_>>());
    let mut inputs: Vec<Option<&[u64]>> = lwes.iter().map(|l| Some(l.as_slice())).collect();
    inputs[2] = None;
    let mut ours = vec![0; 2 * p.glwe_words()];
    SHARED.backend.pack(&inputs, slots, stride, &mut ours).unwrap();
    for (inputs, ours) in inputs.chunks(slots).zip(ours.chunks(p.glwe_words())) {
        let mut theirs = vec![0_u64; p.glwe_words()];
        for (j, lwe) in inputs.iter().enumerate() {
            let Some(lwe) = lwe else { continue };
            let mut one =
                GlweCiphertext::new(0, p.glwe_dimension.to_glwe_size(), p.polynomial_size, p.ciphertext_modulus());
            let lwe = LweCiphertext::from_container(*lwe, p.ciphertext_modulus());
            keyswitch_lwe_ciphertext_into_glwe_ciphertext(&SHARED.pksk, &lwe, &mut one);
            for mut polynomial in one.as_mut_polynomial_list().iter_mut() {
                polynomial_algorithms::polynomial_wrapping_monic_monomial_mul_assign(
                    &mut polynomial,
                    MonomialDegree(j * stride),
                );
            }
            slice_algorithms::slice_wrapping_add_assign(&mut theirs, one.as_ref());
        }
        assert_eq!(theirs, ours);
    }
}

#[test]
fn packing_noise_is_modelled() {
    let p = Parameters::standard();
    let lwes = encrypt(&[torus(0.1), torus(-0.2)]);
    let inputs: Vec<Option<&[u64]>> = lwes.iter().map(|l| Some(l.as_slice())).collect();
    let mut glwe = vec![0; p.glwe_words()];
    SHARED.backend.pack(&inputs, 2, 1024, &mut glwe).unwrap();
    let glwe = GlweCiphertext::from_container(glwe, p.polynomial_size, p.ciphertext_modulus());
    let mut plain = PlaintextListOwned::new(0_u64, PlaintextCount(p.polynomial_size.0));
    decrypt_glwe_ciphertext(SHARED.client.glwe(), &glwe, &mut plain);
    let errors: Vec<f64> =
        plain.as_ref().iter().enumerate().filter(|(i, _)| i % 1024 != 0).map(|(_, &x)| turns(x)).collect();
    let ratio = deviation(&errors) / (2.0 * NoiseModel::new(&p).packing).sqrt();
    println!("packing noise / model {ratio:.3}");
    assert!((0.8..1.2).contains(&ratio), "{ratio}");
    assert!((turns(plain.as_ref()[0]) - 0.1).abs() < 1e-7);
    assert!((turns(plain.as_ref()[1024]) + 0.2).abs() < 1e-7);
}

#[test]
fn table_entry_answers_its_box_without_bias() {
    // f(j) = j: the result shows where the argument landed, in positions.
    let table: Vec<i32> = (0..2048).map(|j| j << 19).collect();
    let arguments: Vec<f64> = (0..256).map(|i| f64::from(i * 7 + 100) + 0.5).collect();
    let phases: Vec<u64> = arguments.iter().map(|a| torus(a / 4096.0)).collect();
    let results = pbs(&phases, &table);
    let errors: Vec<f64> = results.iter().zip(&arguments).map(|(y, a)| y * 8192.0 - (a - 0.5)).collect();
    let noise = NoiseModel::new(&Parameters::standard());
    // Rounding down to a position is uniform, ±1/2, around the middle of the box.
    let modelled = (noise.argument().sqrt() * 4096.0).hypot((1.0_f64 / 12.0).sqrt());
    let (bias, sd) = (mean(&errors), deviation(&errors));
    println!("bias {bias:.3} of sd {sd:.3}, modelled {modelled:.3}");
    assert!(bias.abs() < 4.0 * modelled / 16.0 && bias.abs() < 0.9, "{bias}");
    assert!((0.8..1.25).contains(&(sd / modelled)), "{sd} {modelled}");
}

#[test]
fn other_half_of_the_torus_is_negated_and_output_noise_is_modelled() {
    let table = vec![1 << 28; 2048];
    let phases: Vec<u64> = (0..256).map(|i| torus(f64::from(i % 2) * 0.5 + 0.25)).collect();
    let results = pbs(&phases, &table);
    let errors: Vec<f64> =
        results.iter().enumerate().map(|(i, y)| y - if i % 2 == 0 { 1.0 / 16.0 } else { -1.0 / 16.0 }).collect();
    let ratio = deviation(&errors) / NoiseModel::new(&Parameters::standard()).bootstrap.sqrt();
    println!("bootstrap noise / model {ratio:.3}");
    assert!((0.7..1.2).contains(&ratio), "{ratio}");
}

#[test]
fn lut_product_multiplies_each_slot() {
    let p = Parameters::standard();
    let (slots, stride, count) = (8_usize, 256_usize, 128);
    let values: Vec<f64> = (0..slots).map(|j| (j as f64 - 3.5) / 4096.0).collect();
    // Packed again and again, from fresh ciphertexts: one pack is one draw of the packing noise, however often it is rotated.
    let packed: Vec<Vec<u64>> = (0..count / 4)
        .map(|_| {
            let lwes = encrypt(&values.iter().map(|&v| torus(v)).collect::<Vec<_>>());
            let mut inputs: Vec<Option<&[u64]>> = lwes.iter().map(|l| Some(l.as_slice())).collect();
            inputs[5] = None;
            let mut glwe = vec![0; p.glwe_words()];
            SHARED.backend.pack(&inputs, slots, stride, &mut glwe).unwrap();
            glwe
        })
        .collect();
    // Constant in the box but for its sign, so that noise of the argument does not show.
    let tables: Vec<i32> = (0..stride as i32).map(|e| if e < 128 { 96 } else { -96 }).collect();
    // Both halves of the box, and the neighbours on both sides, which wrap with a sign.
    let cases = [(64.5, 0_i32, 96.0), (192.5, 0, -96.0), (320.5, 1, 96.0), (-63.5, -1, -96.0)];
    let arguments: Vec<f64> = (0..count).map(|i| cases[i % 4].0).collect();
    let small = keyswitch(&encrypt(&arguments.iter().map(|a| torus(a / 4096.0)).collect::<Vec<_>>()));
    let instruction = LutProduct {
        dst: thex_circuit::instruction::Block { start: 0, len: (count * slots) as u32 },
        slots: slots as u32,
        stride: stride as u32,
        extension: 0,
        argument: vec![0; count],
        accumulator: vec![0; count],
        table_of: vec![0; count],
        tables,
    };
    let accumulators: Vec<&[u64]> = (0..count).map(|i| packed[i / 4].as_slice()).collect();
    let products = Products { arguments: views(&small), accumulators, instruction: &instruction };
    let mut out = vec![0; count * slots * p.big_lwe_size()];
    SHARED.backend.lut_product(&products, &mut out, &|_| ()).unwrap();
    let results = client::phases(&SHARED.client, &out);
    let noise = NoiseModel::new(&p);
    let norm = 96.0 * (stride as f64).sqrt();
    let modelled = (noise.packing * 7.0 * norm * norm + noise.bootstrap).sqrt();
    let mut errors = Vec::new();
    for (i, results) in results.chunks(slots).enumerate() {
        let (_, shift, factor) = cases[i % 4];
        for (j, &result) in results.iter().enumerate() {
            let slot = j as i32 + shift;
            let sign = if (0..slots as i32).contains(&slot) { 1.0 } else { -1.0 };
            let slot = slot.rem_euclid(slots as i32) as usize;
            let y = if slot == 5 { 0.0 } else { values[slot] };
            errors.push(turns(result) - sign * factor * y);
        }
    }
    let ratio = deviation(&errors) / modelled;
    println!("lut_product noise / model {ratio:.3}");
    assert!((0.6..1.4).contains(&ratio), "{ratio}");
}

#[test]
fn fft_product_is_precise() {
    let (size, stride) = (2048, 256);
    let fft = Fft::new(PolynomialSize(size));
    let tables: Vec<i32> = (0..stride).map(|e| if e % 3 == 0 { 4096 } else { -4000 + e }).collect();
    let glwe: Vec<u64> = (0..size as u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    let multipliers = crate::kernels::rotate::Multipliers::new(&tables, stride as usize, 0, fft.as_view());
    let mut out = vec![0; size];
    multipliers.multiply(&glwe, 0, &mut out, fft.as_view());
    let mut worst = 0.0_f64;
    for (c, &got) in out.iter().enumerate() {
        let want = tables.iter().enumerate().fold(0_u64, |sum, (e, &p)| {
            let y = if e <= c { glwe[c - e] } else { glwe[c + size - e].wrapping_neg() };
            sum.wrapping_add(y.wrapping_mul(i64::from(p) as u64))
        });
        worst = worst.max(turns(got.wrapping_sub(want)).abs());
    }
    println!("fft error 2^{:.1}", worst.log2());
    assert!(worst < (-33.0_f64).exp2());
}

pub(crate) mod circuits {
    //! A hand-built circuit with all five instructions, on ciphertexts and simulated.
    use super::*;
    use crate::progress::Counter;
    use crate::{Executor, Simulation, Simulator};
    use thex_circuit::instruction::{ABSENT, Block, ExternalProduct, Keyswitch, Linear, Pack, Pbs, Provenance};
    use thex_circuit::{Circuit, Instruction};

    const N: usize = 2048;
    const SLOTS: usize = 4;
    const STRIDE: usize = 512;

    fn block(start: usize, len: usize) -> Block {
        Block { start: start as u32, len: len as u32 }
    }

    fn addresses(range: std::ops::Range<usize>) -> Vec<u32> {
        range.map(|a| a as u32).collect()
    }

    /// 12 inputs: 8 become look-up arguments by a linear map, 4 are packed (one slot stays empty); the looked-up
    /// values are arguments of products; a last linear map sums products.
    pub(crate) fn all_five() -> Circuit {
        let linear = Linear {
            dst: block(12, 8),
            outputs: 4,
            operands: 4,
            gather: addresses(0..8),
            set: vec![0, 1],
            weights: (0..32).map(|i| if i % 5 == 0 { 2 } else { i % 3 - 1 }).collect(),
            bias: vec![torus(0.25); 8],
        };
        let first = Keyswitch { dst: block(0, 8), domain: N as u32, extension: 0, gather: addresses(12..20) };
        // f(x) = a quarter of the phase's distance to 1/4, moved into a box of 512 positions: ±1/32 around 1/16.
        let table: Vec<i32> = (0..N as i32).map(|j| (1 << 28) + ((j - 1024) << 17)).collect();
        let negated: Vec<i32> = (0..N as i32).map(|j| (1 << 28) - ((j - 1024) << 17)).collect();
        let pbs = Pbs {
            dst: block(20, 8),
            extension: 0,
            argument: addresses(0..8),
            table_of: (0..8).map(|i| i % 2).collect(),
            tables: [table, negated].concat(),
        };
        let second = Keyswitch { dst: block(8, 8), domain: STRIDE as u32, extension: 0, gather: addresses(20..28) };
        let pack = Pack {
            dst: block(0, 2),
            slots: SLOTS as u32,
            stride: STRIDE as u32,
            gather: vec![8, 9, ABSENT, 10, 11, 8, 9, 10],
        };
        let product = LutProduct {
            dst: block(28, 8 * SLOTS),
            slots: SLOTS as u32,
            stride: STRIDE as u32,
            extension: 0,
            argument: addresses(8..16),
            accumulator: (0..8).map(|i| i % 2).collect(),
            table_of: vec![0; 8],
            tables: (0..STRIDE as i32).map(|e| (e - 256) / 4).collect(),
        };
        let sum = Linear {
            dst: block(60, 4),
            outputs: 1,
            operands: 8,
            gather: (0..4).flat_map(|j| (0..8).map(move |i| 28 + i * 4 + j)).collect(),
            set: vec![0; 4],
            weights: vec![1; 8],
            bias: vec![0; 4],
        };
        let instructions = vec![
            Instruction::Linear(linear),
            Instruction::Keyswitch(first),
            Instruction::Pbs(pbs),
            Instruction::Keyswitch(second),
            Instruction::Pack(pack),
            Instruction::LutProduct(product),
            Instruction::Linear(sum),
        ];
        Circuit {
            info: Default::default(),
            parameters: Parameters::standard(),
            inputs: vec![("a".into(), block(0, 8)), ("b".into(), block(8, 4))],
            outputs: vec![
                ("sums".into(), addresses(60..64)),
                ("looked up".into(), addresses(20..28)),
                ("products".into(), addresses(28..60)),
            ],
            provenance: vec![Provenance::default(); instructions.len()],
            instructions,
        }
    }

    /// The same with sums of external products in place of products by rotation: eight of four terms, and as many samples of each sum.
    pub(crate) fn summed(rotations: usize) -> Circuit {
        let mut circuit = all_five();
        circuit.parameters = circuit.parameters.with_external(true);
        let entries = STRIDE * rotations;
        for instruction in &mut circuit.instructions {
            match instruction {
                Instruction::Keyswitch(x) if x.dst.start == 8 => x.domain = entries as u32,
                Instruction::LutProduct(x) => {
                    *instruction = Instruction::ExternalProduct(ExternalProduct {
                        dst: x.dst,
                        slots: x.slots,
                        stride: x.stride,
                        rotations: rotations as u32,
                        // One sum has no term, the others one or two.
                        terms: vec![1, 2, 0, 1, 1, 1, 1, 1],
                        argument: std::mem::take(&mut x.argument),
                        accumulator: std::mem::take(&mut x.accumulator),
                        table_of: std::mem::take(&mut x.table_of),
                        tables: (0..entries as i32).map(|e| (e - 256) / 4).collect(),
                    });
                }
                _ => {}
            }
        }
        circuit
    }

    pub(crate) fn inputs() -> Vec<u64> {
        let a = (0..8).map(|i| torus(f64::from(i - 4) / 80.0));
        a.chain((0..4).map(|i| torus(f64::from(i + 1) / 1024.0))).collect()
    }

    fn simulate(circuit: &Circuit, noise: NoiseModel, seed: u64) -> (Vec<u64>, Simulation) {
        let simulation = Simulator::new(circuit, noise).unwrap().run(&inputs(), seed).unwrap();
        (simulation.outputs(circuit), simulation)
    }

    /// Errors against the noise-free circuit, by output.
    fn errors(outputs: &[u64], clear: &[u64]) -> [f64; 3] {
        let e: Vec<f64> = outputs.iter().zip(clear).map(|(a, b)| turns(a.wrapping_sub(*b))).collect();
        [deviation(&e[..4]), deviation(&e[4..12]), deviation(&e[12..])]
    }

    /// The same functions with finer tables.
    pub(crate) fn extended(extension: u32) -> Circuit {
        let finer = |tables: &[i32], entries: usize| -> Vec<i32> {
            let between = |table: &[i32], e: usize| {
                let (i, part) = (e >> extension, (e % (1 << extension)) as i32);
                let step = if i + 1 < table.len() { table[i + 1] - table[i] } else { table[i] - table[i - 1] };
                table[i] + ((step * part) >> extension)
            };
            tables.chunks(entries).flat_map(|t| (0..entries << extension).map(|e| between(t, e))).collect()
        };
        let mut circuit = all_five();
        for instruction in &mut circuit.instructions {
            match instruction {
                Instruction::Keyswitch(x) => x.extension = extension,
                Instruction::Pbs(x) => (x.extension, x.tables) = (extension, finer(&x.tables, N)),
                Instruction::LutProduct(x) => (x.extension, x.tables) = (extension, finer(&x.tables, STRIDE)),
                Instruction::Linear(_) | Instruction::Pack(_) | Instruction::ExternalProduct(_) => {}
            }
        }
        circuit
    }

    #[test]
    fn executor_and_simulator_agree() {
        agrees_with_the_simulator(&SHARED.backend, &all_five());
    }

    #[test]
    fn executor_and_simulator_agree_on_extended_rotations() {
        agrees_with_the_simulator(&SHARED.backend, &extended(1));
    }

    /// A backend with a conversion key, of the same secrets as the shared one.
    fn external_backend() -> CpuBackend {
        let bundle = ClientBundle { parameters: Parameters::standard().with_external(true), ..bundle() };
        let (client, server) = keys::generate(&bundle, Some(1)).unwrap();
        assert_eq!(client.glwe(), SHARED.client.glwe());
        CpuBackend::new(server.expand())
    }

    #[test]
    fn executor_and_simulator_agree_on_external_products() {
        let backend = external_backend();
        for rotations in [1, 2] {
            agrees_with_the_simulator(&backend, &summed(rotations));
        }
    }

    #[test]
    fn external_products_need_their_key_and_change_no_bit_in_parts() {
        let circuit = summed(2);
        assert!(Executor::new(&circuit, &SHARED.backend).err().unwrap().to_string().contains("different parameters"));
        let backend = external_backend();
        let lwes = encrypt(&inputs()).concat();
        let executor = Executor::new(&circuit, &backend).unwrap();
        let whole = executor.run(&lwes, &Counter::default()).unwrap();
        let counter = Counter::default();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let part = std::time::Duration::from_nanos(1);
        let options = crate::RunOptions { stop: Some(&stop), part, ..crate::RunOptions::new(&counter) };
        let parts = crate::Run::new(&executor, &lwes, options).unwrap().complete().unwrap();
        assert_eq!(whole, parts);
        assert_eq!(counter.done(), circuit.pbs_count());
        let one = crate::calibrate::thread_pool(1).unwrap();
        assert_eq!(whole, one.install(|| executor.run(&lwes, &Counter::default()).unwrap()));
    }

    /// Errors on ciphertexts are those that the noise model predicts.
    pub(crate) fn agrees_with_the_simulator(backend: &impl Backend, circuit: &Circuit) {
        let executor = Executor::new(circuit, backend).unwrap();
        let (clear, _) = simulate(circuit, NoiseModel::silent(), 0);
        let counter = Counter::default();
        let (mut encrypted, mut simulated) = ([0.0; 3], [0.0; 3]);
        // 32 products each: 1024 samples.
        let runs = 32;
        for run in 0..runs {
            let lwes = encrypt(&inputs()).concat();
            let outputs = client::phases(&SHARED.client, &executor.run(&lwes, &counter).unwrap());
            for (sum, e) in encrypted.iter_mut().zip(errors(&outputs, &clear)) {
                *sum += e * e / f64::from(runs);
            }
            for seed in 0..4 {
                let (outputs, simulation) =
                    simulate(circuit, NoiseModel::new(&circuit.parameters), (run * 4 + seed) as u64);
                assert_eq!(simulation.overflow_total(), 0);
                for (sum, e) in simulated.iter_mut().zip(errors(&outputs, &clear)) {
                    *sum += e * e / f64::from(runs * 4);
                }
            }
        }
        assert_eq!(counter.done(), 32 * circuit.pbs_count());
        for (what, (e, s)) in ["sums", "looked up", "products"].iter().zip(encrypted.iter().zip(&simulated)) {
            let ratio = (e / s).sqrt();
            println!("{what}: encrypted sd {:.3e}, ratio to simulated {ratio:.3}", e.sqrt());
            // Correlated samples; a wrong sign, slot or entry would be a factor of five.
            assert!((0.7..1.4).contains(&ratio), "{what} {ratio}");
        }
        // The values are far larger than the errors: signs and slots are right.
        let spread = deviation(&clear[12..].iter().map(|&x| turns(x)).collect::<Vec<_>>());
        assert!(spread > 4.0 * encrypted[2].sqrt(), "{spread}");
    }

    #[test]
    fn ciphertexts_that_encrypt_nothing_do_not_stop_the_executor() {
        let circuit = all_five();
        let executor = Executor::new(&circuit, &SHARED.backend).unwrap();
        let size = circuit.parameters.big_lwe_size();
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state
        };
        let hostile = [
            vec![0; 12 * size],
            vec![u64::MAX; 12 * size],
            vec![1 << 63; 12 * size],
            (0..12 * size).map(|_| random()).collect(),
        ];
        for lwes in hostile {
            let outputs = executor.run(&lwes, &Counter::default()).unwrap();
            assert_eq!(outputs.len(), 44 * size);
        }
    }

    #[test]
    fn simulation_depends_on_its_seed_alone() {
        let circuit = all_five();
        let noise = NoiseModel::new(&circuit.parameters);
        assert_eq!(simulate(&circuit, noise, 3).0, simulate(&circuit, noise, 3).0);
        assert_ne!(simulate(&circuit, noise, 3).0, simulate(&circuit, noise, 4).0);
    }

    #[test]
    fn overflows_are_counted() {
        let mut circuit = all_five();
        if let Instruction::Linear(x) = &mut circuit.instructions[0] {
            x.bias[2] = torus(-0.25);
        }
        let (_, simulation) = simulate(&circuit, NoiseModel::silent(), 0);
        assert_eq!(simulation.overflows()[1], 1);
    }

    #[test]
    fn the_full_torus_ends_where_it_begins() {
        let mut circuit = all_five();
        if let Instruction::Keyswitch(x) = &mut circuit.instructions[1] {
            x.domain = 2 * N as u32;
        }
        if let Instruction::Linear(x) = &mut circuit.instructions[0] {
            x.weights.fill(0);
            x.bias = [0.0, 0.001, 0.01, 0.3, 0.6, 0.99, 0.999, 0.9999].map(torus).to_vec();
        }
        circuit.verify().unwrap();
        let (_, simulation) = simulate(&circuit, NoiseModel::silent(), 0);
        // Within 1/512 of a turn of the end.
        assert_eq!(simulation.overflows()[1], 4);
        // The first has the second table; 0.6 is what 0.1 is, with the other sign.
        let looked_up = |i: usize| turns(simulation.lwe()[20 + i]);
        let table = |phase: f64| {
            let j = (phase * 4096.0) as i32;
            f64::from((1 << 28) + ((j - 1024) << 17)) / 4_294_967_296.0
        };
        assert!((looked_up(3) - (0.125 - table(0.3))).abs() < 1e-9 && (looked_up(4) + table(0.1)).abs() < 1e-9);
    }

    #[test]
    fn wrong_inputs_are_errors() {
        let circuit = all_five();
        let executor = Executor::new(&circuit, &SHARED.backend).unwrap();
        assert!(executor.run(&[0; 2049], &crate::progress::Silent).is_err());
        let mut other = circuit.clone();
        other.parameters.lwe_dimension = LweDimension(800);
        assert!(Executor::new(&other, &SHARED.backend).is_err());
        assert!(Simulator::new(&circuit, NoiseModel::silent()).unwrap().run(&[0; 3], 0).is_err());
    }
}
