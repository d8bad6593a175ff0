//! Blind rotations on the GPU: tfhe's kernels, or ours where it is faster.
//!
//! tfhe's serve all parameters, and have a fast special case with one level: 51,000 rotations a second on an H200 (n = 850,
//! N = 2048, 2^23 × 1). With more levels they spread a rotation over four or six blocks of threads that wait for each other 850
//! times: 5,900 with 2^15 × 2, 3,200 with 2^10 × 3. Ours (`rotate.cu`) serves k = 1 and N = 2048, the usual set, at 25,500 and
//! 15,800; it would run 47,000 with one level, so it leaves that to tfhe.
#![allow(unsafe_code, reason = "calls into CUDA; each says why it is sound")]

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use tfhe::core_crypto::prelude::LweBootstrapKeyOwned;
use tfhe_cuda_backend::bindings::{
    PBS_MS_REDUCTION_T_CENTERED, cleanup_cuda_programmable_bootstrap_64,
    cuda_convert_lwe_programmable_bootstrap_key_64_async, cuda_programmable_bootstrap_64_async,
    scratch_cuda_programmable_bootstrap_64_async,
};
use thex_circuit::Parameters;

use super::device::{Buffer, Stream, check};
use super::operations::BATCH;
use crate::error::Result;

unsafe extern "C" {
    fn thex_cuda_can_rotate(gpu: u32, dimension: u32, can: *mut bool) -> c_int;
    fn thex_cuda_rotation_key(stream: *mut c_void, out: u64, key: u64, twiddles: u64, polynomials: u32) -> c_int;
    fn thex_cuda_rotate(
        stream: *mut c_void,
        out: u64,
        accumulators: u64,
        arguments: u64,
        key: u64,
        twiddles: u64,
        count: u32,
        dimension: u32,
        base_log: u32,
        levels: u32,
        slots: u32,
        stride: u32,
    ) -> c_int;
}

/// Largest base of our kernel, as a logarithm: it was measured up to here, and two digits fit into the 32 bits that it keeps between levels.
const MOST_BASE_LOG: usize = 15;

/// Whose kernel rotates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RotationKernel {
    /// tfhe's, for all parameters.
    Tfhe,
    /// Ours, for k = 1, N = 2048 and decompositions in two or three levels of bases up to 2^15.
    Fused,
}

/// A batch of at most [`BATCH`] accumulators and as many small LWEs, and the samples to extract of each.
#[derive(Clone, Copy)]
pub(super) struct Batch {
    /// GLWEs, one after another.
    pub(super) accumulators: u64,
    /// Small LWEs, one after another.
    pub(super) arguments: u64,
    /// How many of each.
    pub(super) count: usize,
    /// Samples of each accumulator.
    pub(super) slots: usize,
    /// Their distance.
    pub(super) stride: usize,
}

/// The bootstrap key on the GPU, and whose kernel it is for.
pub(super) enum Rotations {
    Tfhe { key: Buffer, scratch: Scratch, identity: Buffer },
    Fused { key: Buffer, twiddles: Buffer },
}

impl RotationKernel {
    /// The faster one that serves these parameters on this GPU.
    pub(super) fn best(p: &Parameters) -> Result<Self> {
        let fits = p.glwe_dimension.0 == 1
            && p.polynomial_size.0 == 2048
            && (2..=3).contains(&p.bootstrap.level.0)
            && p.bootstrap.base_log.0 <= MOST_BASE_LOG;
        let mut can = false;
        // SAFETY: the pointer is to a live local.
        let status = unsafe { thex_cuda_can_rotate(Stream::GPU, p.lwe_dimension.0 as u32, &mut can) };
        check(status, "the GPU does not say how much shared memory it has")?;
        Ok(if fits && can { Self::Fused } else { Self::Tfhe })
    }
}

impl Rotations {
    pub(super) fn new(
        stream: &Arc<Stream>,
        key: &LweBootstrapKeyOwned<u64>,
        p: &Parameters,
        kernel: RotationKernel,
    ) -> Result<Self> {
        match kernel {
            RotationKernel::Tfhe => Self::tfhe(stream, key, p),
            RotationKernel::Fused => Self::fused(stream, key, p),
        }
    }

    fn tfhe(stream: &Arc<Stream>, key: &LweBootstrapKeyOwned<u64>, p: &Parameters) -> Result<Self> {
        let words = key.as_ref();
        // In the Fourier domain: N/2 complex numbers of 16 bytes in place of N words.
        let converted = stream.allocate(size_of_val(words))?;
        // SAFETY: source and target have the size that the dimensions say, and the target is 256-byte aligned.
        unsafe {
            cuda_convert_lwe_programmable_bootstrap_key_64_async(
                stream.handle(),
                Stream::GPU,
                converted.pointer(),
                words.as_ptr().cast(),
                p.lwe_dimension.0 as u32,
                p.glwe_dimension.0 as u32,
                p.bootstrap.level.0 as u32,
                p.polynomial_size.0 as u32,
            );
        }
        let identity: Vec<u64> = (0..BATCH as u64).collect();
        Ok(Self::Tfhe { key: converted, scratch: Scratch::new(stream, p), identity: stream.upload(&identity)? })
    }

    fn fused(stream: &Arc<Stream>, key: &LweBootstrapKeyOwned<u64>, p: &Parameters) -> Result<Self> {
        let words = stream.upload(key.as_ref())?;
        let twiddles = stream.upload(&twiddles())?;
        let converted = stream.allocate(size_of_val(key.as_ref()))?;
        let polynomials = key.as_ref().len() / p.polynomial_size.0;
        // SAFETY: source and target have `polynomials` polynomials of 2048 words and 1024 complex numbers.
        let status = unsafe {
            thex_cuda_rotation_key(stream.handle(), converted.at(0), words.at(0), twiddles.at(0), polynomials as u32)
        };
        check(status, "the bootstrap key cannot be transformed on the GPU")?;
        Ok(Self::Fused { key: converted, twiddles })
    }

    /// Rotates and extracts into `out`: sample s of all accumulators lies before sample s + 1.
    pub(super) fn run(&self, stream: &Stream, p: &Parameters, batch: Batch, out: u64) -> Result<()> {
        match self {
            Self::Tfhe { key, scratch, identity } => {
                scratch.rotate(key, identity, p, batch, out);
                Ok(())
            }
            Self::Fused { key, twiddles } => rotate_fused(stream, (key, twiddles), p, batch, out),
        }
    }
}

fn rotate_fused(stream: &Stream, key: (&Buffer, &Buffer), p: &Parameters, batch: Batch, out: u64) -> Result<()> {
    // SAFETY: there are `count` accumulators and arguments, and `out` has room for `slots` samples of each; the key has the
    // parameters' dimensions.
    let status = unsafe {
        thex_cuda_rotate(
            stream.handle(),
            out,
            batch.accumulators,
            batch.arguments,
            key.0.at(0),
            key.1.at(0),
            batch.count as u32,
            p.lwe_dimension.0 as u32,
            p.bootstrap.base_log.0 as u32,
            p.bootstrap.level.0 as u32,
            batch.slots as u32,
            batch.stride as u32,
        )
    };
    check(status, "blind rotations cannot start on the GPU")
}

/// The tables of `rotate.cu`: exp(2πi·t(1 + 4b)/4096) for b < 16, t < 64, then exp(2πi·ub/64) for b < 16, u < 4.
fn twiddles() -> Vec<f64> {
    let first = (0..16).flat_map(|b| (0..64).map(move |t| f64::from(t * (1 + 4 * b)) / 4096.0));
    let second = (0..16).flat_map(|b| (0..4).map(move |u| f64::from(u * b) / 64.0));
    let root = |turns: f64| {
        let (sin, cos) = (std::f64::consts::TAU * turns).sin_cos();
        [cos, sin]
    };
    first.chain(second).flat_map(root).collect()
}

/// tfhe's working memory for blind rotations.
pub(super) struct Scratch {
    stream: Arc<Stream>,
    handle: *mut i8,
}

// SAFETY: an opaque handle, which is only passed to tfhe's functions.
unsafe impl Send for Scratch {}
// SAFETY: as above; those who use it take turns.
unsafe impl Sync for Scratch {}

impl Scratch {
    fn new(stream: &Arc<Stream>, p: &Parameters) -> Self {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the stream lives, and the handle is a live local.
        unsafe {
            scratch_cuda_programmable_bootstrap_64_async(
                stream.handle(),
                Stream::GPU,
                &raw mut handle,
                p.lwe_dimension.0 as u32,
                p.glwe_dimension.0 as u32,
                p.polynomial_size.0 as u32,
                p.bootstrap.level.0 as u32,
                BATCH as u32,
                true,
                PBS_MS_REDUCTION_T_CENTERED,
            );
        }
        Self { stream: Arc::clone(stream), handle }
    }

    fn rotate(&self, key: &Buffer, identity: &Buffer, p: &Parameters, batch: Batch, out: u64) {
        // SAFETY: there are `count` accumulators and arguments, and `out` has room for `slots` samples of each; the scratch was
        // made for [`BATCH`] of them, and `identity` has as many entries.
        unsafe {
            cuda_programmable_bootstrap_64_async(
                self.stream.handle(),
                Stream::GPU,
                out as *mut c_void,
                identity.pointer(),
                batch.accumulators as *const c_void,
                identity.pointer(),
                batch.arguments as *const c_void,
                identity.pointer(),
                key.pointer(),
                self.handle,
                p.lwe_dimension.0 as u32,
                p.glwe_dimension.0 as u32,
                p.polynomial_size.0 as u32,
                p.bootstrap.base_log.0 as u32,
                p.bootstrap.level.0 as u32,
                batch.count as u32,
                batch.slots as u32,
                batch.stride as u32,
            );
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: made by the matching function on the same stream, and not released before.
        unsafe { cleanup_cuda_programmable_bootstrap_64(self.stream.handle(), Stream::GPU, &raw mut self.handle) };
    }
}
