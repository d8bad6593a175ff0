//! A GPU, its stream, and memory on it: the only module that calls our own CUDA functions for memory.
//!
//! Everything runs in order on one stream. Memory is allocated and released in that order too, so that a buffer may be
//! dropped while kernels that use it still wait. Errors of these functions come back as [`RuntimeError::Device`]; tfhe's own
//! functions abort the process instead, so what can be checked is checked before they are called.
#![allow(unsafe_code, reason = "calls into CUDA; each says why it is sound")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;

use tfhe_cuda_backend::cuda_bind::{cuda_create_stream_ffi, cuda_destroy_stream};

use crate::error::{Result, RuntimeError};

unsafe extern "C" {
    fn thex_cuda_message(status: c_int) -> *const c_char;
    fn thex_cuda_count(count: *mut c_int) -> c_int;
    fn thex_cuda_describe(
        gpu: u32,
        name: *mut c_char,
        capacity: u64,
        major: *mut c_int,
        minor: *mut c_int,
        free_bytes: *mut u64,
        total_bytes: *mut u64,
    ) -> c_int;
    fn thex_cuda_allocate(stream: *mut c_void, out: *mut *mut c_void, bytes: u64) -> c_int;
    fn thex_cuda_release(stream: *mut c_void, address: *mut c_void) -> c_int;
    fn thex_cuda_upload(stream: *mut c_void, to: *mut c_void, from: *const c_void, bytes: u64) -> c_int;
    fn thex_cuda_download(stream: *mut c_void, to: *mut c_void, from: *const c_void, bytes: u64) -> c_int;
    fn thex_cuda_wait(stream: *mut c_void) -> c_int;
}

/// Least compute capability: tfhe's keyswitch by matrix products asks for 8.0 (A100).
const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// The error for a CUDA status, if it is one.
pub(super) fn check(status: c_int, what: &str) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: returns a static string for every number.
    let message = unsafe { CStr::from_ptr(thex_cuda_message(status)) };
    Err(RuntimeError::Device(format!("{what}: {}", message.to_string_lossy())))
}

/// What a GPU is.
#[derive(Clone, Debug)]
pub(super) struct Description {
    /// "NVIDIA H100 80GB HBM3".
    pub(super) name: String,
    /// Compute capability.
    pub(super) capability: (i32, i32),
    /// Memory that is free now.
    pub(super) free_bytes: u64,
}

fn describe(gpu: u32) -> Result<Description> {
    let mut name: [c_char; 256] = [0; 256];
    let (mut major, mut minor, mut free_bytes, mut total_bytes) = (0, 0, 0, 0);
    // SAFETY: all pointers are to live locals; the name is bounded by its capacity and ends with 0.
    let status = unsafe {
        thex_cuda_describe(
            gpu,
            name.as_mut_ptr(),
            name.len() as u64,
            &mut major,
            &mut minor,
            &mut free_bytes,
            &mut total_bytes,
        )
    };
    check(status, "the GPU cannot be asked what it is")?;
    // SAFETY: the function above wrote a string that ends within the array.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    Ok(Description { name, capability: (major, minor), free_bytes })
}

/// A stream of the first GPU. Kernels and copies run on it in the order in which they are given.
pub(super) struct Stream {
    handle: *mut c_void,
    description: Description,
}

// SAFETY: a CUDA stream may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: CUDA's functions may be called from several threads at once.
unsafe impl Sync for Stream {}

impl Stream {
    /// GPU that is used; `CUDA_VISIBLE_DEVICES` decides which one that is.
    pub(super) const GPU: u32 = 0;

    /// Opens the GPU.
    pub(super) fn open() -> Result<Arc<Self>> {
        let mut count = 0;
        // SAFETY: the pointer is to a live local.
        check(unsafe { thex_cuda_count(&mut count) }, "no GPU can be used")?;
        if count == 0 {
            return Err(RuntimeError::Device("no GPU can be used: there is none".into()));
        }
        let description = describe(Self::GPU)?;
        if description.capability < LEAST_CAPABILITY {
            let (name, (major, minor)) = (&description.name, description.capability);
            let reason = format!("{name} has compute capability {major}.{minor}, and 8.0 or more is needed");
            return Err(RuntimeError::Device(reason));
        }
        // SAFETY: the GPU exists, as was just found.
        let handle = unsafe { cuda_create_stream_ffi(Self::GPU) };
        Ok(Arc::new(Self { handle, description }))
    }

    pub(super) fn handle(&self) -> *mut c_void {
        self.handle
    }

    pub(super) fn description(&self) -> &Description {
        &self.description
    }

    /// Waits until all that was launched is done.
    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: the stream lives.
        check(unsafe { thex_cuda_wait(self.handle) }, "the GPU stopped with an error")
    }

    /// Room for `bytes` bytes, uninitialised.
    pub(super) fn allocate(self: &Arc<Self>, bytes: usize) -> Result<Buffer> {
        let mut address = std::ptr::null_mut();
        // SAFETY: the stream lives, and the pointer is to a live local. An empty buffer would have no address.
        let status = unsafe { thex_cuda_allocate(self.handle, &mut address, bytes.max(8) as u64) };
        check(status, &format!("{:.1} GB of the GPU's memory are not free", bytes as f64 / 1e9))?;
        Ok(Buffer { stream: Arc::clone(self), address, bytes })
    }

    /// A copy of `values` on the GPU.
    pub(super) fn upload<T: Plain>(self: &Arc<Self>, values: &[T]) -> Result<Buffer> {
        let buffer = self.allocate(size_of_val(values))?;
        buffer.write(0, values)?;
        Ok(buffer)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the handle came from `cuda_create_stream_ffi`, and buffers keep the stream alive.
        unsafe { cuda_destroy_stream(self.handle, Self::GPU) };
    }
}

/// Numbers that are copied byte by byte.
pub(super) trait Plain: Copy {}
impl Plain for u64 {}
impl Plain for u32 {}
impl Plain for i32 {}
impl Plain for f64 {}

/// Memory on the GPU, released in stream order when dropped.
pub(super) struct Buffer {
    stream: Arc<Stream>,
    address: *mut c_void,
    bytes: usize,
}

// SAFETY: an address on the GPU, which is only passed to CUDA's functions.
unsafe impl Send for Buffer {}
// SAFETY: as above; access is ordered by the stream.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Address of a byte.
    pub(super) fn at(&self, byte: usize) -> u64 {
        debug_assert!(byte <= self.bytes);
        self.address as u64 + byte as u64
    }

    pub(super) fn pointer(&self) -> *mut c_void {
        self.address
    }

    /// Copies values in, from byte `offset` on.
    fn write<T: Plain>(&self, offset: usize, values: &[T]) -> Result<()> {
        let bytes = size_of_val(values);
        if bytes == 0 {
            return Ok(());
        }
        if offset + bytes > self.bytes {
            return Err(RuntimeError::Internal("a copy to the GPU overruns its buffer".into()));
        }
        // SAFETY: source and target have that many bytes. CUDA copies from pageable memory before it returns.
        let status = unsafe {
            thex_cuda_upload(self.stream.handle, self.address.byte_add(offset), values.as_ptr().cast(), bytes as u64)
        };
        check(status, "a copy to the GPU failed")
    }

    /// Copies words out, from byte `offset` on; waits for what was launched before.
    pub(super) fn read(&self, offset: usize, out: &mut [u64]) -> Result<()> {
        let bytes = size_of_val(out);
        if bytes == 0 {
            return Ok(());
        }
        if offset + bytes > self.bytes {
            return Err(RuntimeError::Internal("a copy from the GPU overruns its buffer".into()));
        }
        // SAFETY: source and target have that many bytes, and the function returns when they are written.
        let status = unsafe {
            thex_cuda_download(self.stream.handle, out.as_mut_ptr().cast(), self.address.byte_add(offset), bytes as u64)
        };
        check(status, "a copy from the GPU failed")
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated on the same stream, and not released before. An error will show at the next call.
        let _status = unsafe { thex_cuda_release(self.stream.handle, self.address) };
    }
}
