//! The GPU against the processor, under one key. They need a GPU.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use thex_circuit::instruction::{Block, CircuitInfo, Keyswitch, Linear, LutProduct, Pbs, Provenance};
use thex_circuit::params::Decomposition;
use thex_circuit::{Circuit, ClientBundle, Instruction, NoiseModel, Parameters};

use super::{CudaBackend, RotationKernel};
use crate::executor::{LookUps, Products};
use crate::progress::Silent;
use crate::tests::{SHARED, bundle, circuits, deviation, encrypt, encrypt_under, torus, turns, views};
use crate::{Backend, CpuBackend, Executor, client, keys};

fn backend(kernel: RotationKernel) -> CudaBackend {
    CudaBackend::with_kernel(keys::generate(&bundle(), Some(1)).unwrap().1, kernel).unwrap()
}

/// With tfhe's rotations, and with ours.
static TFHE: LazyLock<CudaBackend> = LazyLock::new(|| backend(RotationKernel::Tfhe));
static FUSED: LazyLock<CudaBackend> = LazyLock::new(|| backend(RotationKernel::Fused));

fn each(test: impl Fn(&CudaBackend)) {
    for (name, backend) in [("tfhe", &*TFHE), ("fused", &*FUSED)] {
        println!("{name}:");
        test(backend);
    }
}

fn cpu() -> &'static CpuBackend {
    &SHARED.backend
}

fn words(count: usize, seed: u64) -> Vec<u64> {
    (0..count as u64).map(|i| (i + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left((i % 61) as u32)).collect()
}

/// What the GPU gives, and what the processor gives.
fn on_both(cuda: &CudaBackend, size: usize, run: impl Fn(&dyn Backend, &mut [u64])) -> (Vec<u64>, Vec<u64>) {
    let (mut ours, mut theirs) = (vec![1; size], vec![2; size]);
    run(cuda, &mut ours);
    run(cpu(), &mut theirs);
    (ours, theirs)
}

#[test]
fn keyswitch_has_the_same_bits() {
    let p = Parameters::standard();
    let lwes: Vec<Vec<u64>> = (0..4300).map(|i| words(p.big_lwe_size(), i * 5000)).collect();
    let size = lwes.len() * p.lwe_dimension.to_lwe_size().0;
    let (ours, theirs) = on_both(&FUSED, size, |backend, out| backend.keyswitch(&views(&lwes), out).unwrap());
    assert_eq!(ours.iter().zip(&theirs).filter(|(a, b)| a != b).count(), 0);
}

#[test]
fn pack_has_the_same_bits() {
    let p = Parameters::standard();
    let lwes: Vec<Vec<u64>> = (0..64 * 3).map(|i| words(p.big_lwe_size(), i * 7000)).collect();
    for (slots, stride) in [(64, 32), (4, 512), (3, 600)] {
        let mut inputs: Vec<Option<&[u64]>> = lwes.iter().map(|l| Some(l.as_slice())).collect();
        inputs[1] = None;
        inputs[slots..2 * slots].fill(None);
        let size = inputs.len() / slots * p.glwe_words();
        let (ours, theirs) = on_both(&FUSED, size, |backend, out| backend.pack(&inputs, slots, stride, out).unwrap());
        assert_eq!(ours.iter().zip(&theirs).filter(|(a, b)| a != b).count(), 0, "{slots} {stride}");
    }
}

#[test]
fn linear_maps_have_the_same_bits() {
    let p = Parameters::standard();
    let lwes: Vec<Vec<u64>> = (0..50).map(|i| words(p.big_lwe_size(), i * 9000)).collect();
    for (outputs, operands, groups) in [(1, 5, 7), (9, 130, 3), (130, 11, 2), (3, 0, 4)] {
        let gather: Vec<Option<&[u64]>> =
            (0..groups * operands).map(|i| (i % 7 != 3).then(|| lwes[i * 13 % 50].as_slice())).collect();
        let linear = Linear {
            dst: Block { start: 0, len: (groups * outputs) as u32 },
            outputs: outputs as u32,
            operands: operands as u32,
            gather: Vec::new(),
            set: (0..groups as u32).map(|g| g % 2).collect(),
            weights: (0..2 * outputs * operands)
                .map(|i| if i % 3 == 0 { 0 } else { i as i32 * 37_000 - 90_000 })
                .collect(),
            bias: words(groups * outputs, 3),
        };
        let size = groups * outputs * p.big_lwe_size();
        let (ours, theirs) = on_both(&FUSED, size, |backend, out| backend.linear(&linear, &gather, out).unwrap());
        assert!(ours == theirs, "{outputs} {operands} {groups}");
    }
}

/// Arguments spread over the table, keyswitched by the processor.
fn arguments(count: usize) -> Vec<Vec<u64>> {
    let size = Parameters::standard().lwe_dimension.to_lwe_size().0;
    let phases: Vec<u64> = (0..count).map(|i| torus((((i * 7) % 1900) as f64 + 64.5) / 4096.0)).collect();
    let lwes = encrypt(&phases);
    let mut out = vec![0; count * size];
    cpu().keyswitch(&views(&lwes), &mut out).unwrap();
    out.chunks(size).map(<[u64]>::to_vec).collect()
}

/// Both backends switch the modulus alike, so every argument meets the same entry of a staircase.
#[test]
fn rotations_land_where_those_of_the_processor_land() {
    let p = Parameters::standard();
    let small = arguments(512);
    let stairs: Vec<i32> = (0..2048).map(|j| j << 19).collect();
    let look_ups = LookUps { arguments: views(&small), tables: vec![stairs.as_slice(); small.len()], extension: 0 };
    let size = small.len() * p.big_lwe_size();
    let step = (-13.0_f64).exp2();
    let stair = |phase: u64| (turns(phase) / step).round() as i64;
    let stairs = |words: &[u64]| client::phases(&SHARED.client, words).into_iter().map(stair).collect::<Vec<_>>();
    each(|cuda| {
        let run = |backend: &dyn Backend, out: &mut [u64]| backend.pbs(&look_ups, out, &|_| ()).unwrap();
        let (ours, theirs) = on_both(cuda, size, run);
        assert_eq!(stairs(&ours), stairs(&theirs));
    });
}

#[test]
fn output_noise_is_modelled_over_several_launches() {
    let p = Parameters::standard();
    let some = arguments(128);
    let arguments: Vec<&[u64]> = (0..4300).map(|i| some[i % 128].as_slice()).collect();
    let flat: Vec<Vec<i32>> = (1..4).map(|i| vec![i << 27; 2048]).collect();
    let tables: Vec<&[i32]> = (0..arguments.len()).map(|i| flat[i % 3].as_slice()).collect();
    let look_ups = LookUps { arguments, tables, extension: 0 };
    each(|cuda| {
        let mut out = vec![0; look_ups.tables.len() * p.big_lwe_size()];
        let counter = AtomicU64::new(0);
        let done = |n| {
            counter.fetch_add(n, Ordering::Relaxed);
        };
        cuda.pbs(&look_ups, &mut out, &done).unwrap();
        assert_eq!(counter.into_inner(), 4300);
        let phases = client::phases(&SHARED.client, &out);
        let wanted = |i: usize| f64::from((i % 3) as u32 + 1) / 32.0;
        let errors: Vec<f64> = phases.iter().enumerate().map(|(i, &phase)| turns(phase) - wanted(i)).collect();
        // A GPU takes key bits one by one, whatever the parameters say.
        let ratio = deviation(&errors) / NoiseModel::new(&p.ungrouped()).bootstrap.sqrt();
        println!("bootstrap noise / model {ratio:.3}");
        assert!((0.7..1.2).contains(&ratio), "{ratio}");
    });
}

#[test]
fn products_are_those_of_the_processor() {
    let p = Parameters::standard();
    for (slots, stride, count) in [(8_usize, 256_usize, 48), (64, 32, 16), (2, 1024, 64)] {
        let lwes = encrypt(&(0..2 * slots).map(|j| torus((j as f64 - 3.5) / 4096.0)).collect::<Vec<_>>());
        let inputs: Vec<Option<&[u64]>> = lwes.iter().map(|l| Some(l.as_slice())).collect();
        let mut packed = vec![0; 2 * p.glwe_words()];
        cpu().pack(&inputs, slots, stride, &mut packed).unwrap();
        let small = arguments(count);
        let instruction = LutProduct {
            dst: Block { start: 0, len: (count * slots) as u32 },
            slots: slots as u32,
            stride: stride as u32,
            extension: 0,
            argument: Vec::new(),
            accumulator: Vec::new(),
            table_of: (0..count as u32).map(|i| i % 2).collect(),
            tables: (0..2 * stride as i32).map(|e| 96 - e % 190).collect(),
        };
        let products = Products {
            arguments: views(&small),
            accumulators: (0..count).map(|i| &packed[i % 2 * p.glwe_words()..(i % 2 + 1) * p.glwe_words()]).collect(),
            instruction: &instruction,
        };
        let size = count * slots * p.big_lwe_size();
        let phases = |words: &[u64]| client::phases(&SHARED.client, words);
        each(|cuda| {
            let run = |backend: &dyn Backend, out: &mut [u64]| backend.lut_product(&products, out, &|_| ()).unwrap();
            let (ours, theirs) = on_both(cuda, size, run);
            let differences: Vec<f64> =
                phases(&ours).iter().zip(phases(&theirs)).map(|(a, b)| turns(a.wrapping_sub(b))).collect();
            let ratio = deviation(&differences) / NoiseModel::new(&p).bootstrap.sqrt();
            println!("{slots} slots: difference / modelled noise {ratio:.3}");
            // Two draws of the noise: √2.
            assert!(ratio < 1.8, "{slots} {ratio}");
        });
    }
}

#[test]
fn circuits_agree_with_the_simulator() {
    each(|cuda| {
        circuits::agrees_with_the_simulator(cuda, &circuits::all_five());
        println!("{}", cuda.times());
    });
}

/// One keyswitch and many look-ups of it.
fn look_ups(parameters: Parameters, count: u32) -> Circuit {
    let keyswitch = Keyswitch { dst: Block { start: 0, len: 1 }, domain: 2048, extension: 0, gather: vec![0] };
    let pbs = Pbs {
        extension: 0,
        dst: Block { start: 1, len: count },
        argument: vec![0; count as usize],
        table_of: vec![0; count as usize],
        tables: vec![1 << 27; 2048],
    };
    Circuit {
        info: CircuitInfo::default(),
        parameters,
        inputs: vec![("x".into(), Block { start: 0, len: 1 })],
        outputs: vec![("y".into(), vec![1, count])],
        instructions: vec![Instruction::Keyswitch(keyswitch), Instruction::Pbs(pbs)],
        provenance: vec![Provenance::default(); 2],
    }
}

#[test]
fn other_decompositions_have_the_modelled_noise() {
    for (base_log, level) in [(23, 1), (15, 2), (10, 3), (12, 3)] {
        let parameters = Parameters { bootstrap: Decomposition::new(base_log, level), ..Parameters::standard() };
        let bundle = ClientBundle { parameters, ..bundle() };
        let noise = NoiseModel::new(&parameters.ungrouped());
        let mut kernels = vec![RotationKernel::Tfhe, RotationKernel::best(&parameters).unwrap()];
        kernels.dedup();
        for kernel in kernels {
            let (client, server) = keys::generate(&bundle, Some(2)).unwrap();
            let cuda = CudaBackend::with_kernel(server, kernel).unwrap();
            let lwe = encrypt_under(&client, &[torus(0.25)]).concat();
            let mut errors = Vec::new();
            let circuit = look_ups(parameters, 700);
            for _ in 0..16 {
                let lwe = encrypt_under(&client, &[torus(0.25)]).concat();
                let out = Executor::new(&circuit, &cuda).unwrap().run(&lwe, &Silent).unwrap();
                errors.extend(client::phases(&client, &out).into_iter().map(|phase| turns(phase) - 1.0 / 32.0));
            }
            let ratio = deviation(&errors) / noise.bootstrap.sqrt();
            println!("{kernel:?} 2^{base_log} × {level}: bootstrap noise / model {ratio:.3}");
            // Both look-ups of a run are the same, so these are 16 draws.
            assert!((0.5..1.6).contains(&ratio), "{ratio}");
            let many = look_ups(parameters, 2 * 4224);
            let before = cuda.times().to_string();
            Executor::new(&many, &cuda).unwrap().run(&lwe, &Silent).unwrap();
            println!("  before: {before}\n  after 8448 more: {}", cuda.times());
        }
    }
}

#[test]
fn a_circuit_of_another_parameter_set_is_refused() {
    let mut circuit = circuits::all_five();
    circuit.parameters.lwe_dimension.0 = 800;
    assert!(Executor::new(&circuit, &*FUSED).is_err());
}
