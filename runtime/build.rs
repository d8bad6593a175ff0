//! Compiles the CUDA kernels of the feature `cuda` with nvcc (`NVCC` names another one); does nothing without it.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

const KERNELS: [&str; 2] = ["src/cuda/kernels.cu", "src/cuda/rotate.cu"];

fn main() -> Result<(), Box<dyn Error>> {
    for file in KERNELS {
        println!("cargo::rerun-if-changed={file}");
    }
    println!("cargo::rerun-if-env-changed=NVCC");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    let nvcc = env::var("NVCC").unwrap_or_else(|_| "nvcc".into());
    let folder = PathBuf::from(env::var("OUT_DIR")?);
    let library = folder.join("libthex_cuda.a");
    let mut command = Command::new(&nvcc);
    command.args(["-lib", "-O3", "-arch=all-major", "-Xcompiler", "-fPIC", "-o"]).arg(&library).args(KERNELS);
    let status = command.status().map_err(|e| format!("the feature `cuda` needs NVIDIA's compiler `{nvcc}`: {e}"))?;
    if !status.success() {
        return Err(format!("`{nvcc}` could not compile {KERNELS:?}").into());
    }
    println!("cargo::rustc-link-search=native={}", folder.display());
    println!("cargo::rustc-link-lib=static=thex_cuda");
    Ok(())
}
