//! The kernels through NVRTC: from CUDA C++ to the machine code of one architecture.
//!
//! In: an architecture. Out: a cubin. No GPU is needed. Deliberately not here: keeping what was compiled (`cache`), and loading it (`gpu`).

use std::ffi::{CStr, CString, c_char};
use std::path::Path;

use cudarc::nvrtc::{result, sys};

use crate::libraries::{self, NvrtcVersion};
use crate::{CudaError, cache, kernels};

/// What the kernels are held to compile for: Ampere, Hopper, Blackwell.
pub const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90", "sm_100"];

/// Beside the architecture. Multiplications and additions are not contracted, divisions and roots are rounded right: bits are part of the contract.
const OPTIONS: [&str; 5] = ["--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"];

/// The kernels for one architecture, for example `sm_90`.
///
/// # Errors
/// [`CudaError::NoNvrtc`]; [`CudaError::Compile`] with what the compiler says.
pub fn compile(architecture: &str, nvrtc: Option<&Path>) -> Result<Vec<u8>, CudaError> {
    let version = libraries::nvrtc(nvrtc)?;
    compile_with(version, architecture, &kernels::source())
}

/// The same, from the cache if it has them.
pub(crate) fn cached(architecture: &str, nvrtc: Option<&Path>, cache_dir: Option<&Path>) -> Result<Vec<u8>, CudaError> {
    let version = libraries::nvrtc(nvrtc)?;
    let source = kernels::source();
    let Some(folder) = cache_dir else { return compile_with(version, architecture, &source) };
    let options = OPTIONS.join(" ");
    let key = cache::key(&[&source, &options, architecture, &version.to_string()]);
    if let Some(cubin) = cache::read(folder, &key) {
        return Ok(cubin);
    }
    let cubin = compile_with(version, architecture, &source)?;
    if let Err(error) = cache::write(folder, &key, &cubin) {
        tracing::warn!(folder = %folder.display(), %error, "compiled kernels are not kept: the next start compiles them again");
    }
    Ok(cubin)
}

fn compile_with(version: NvrtcVersion, architecture: &str, source: &str) -> Result<Vec<u8>, CudaError> {
    let failed =
        |log: String| CudaError::Compile { version: version.to_string(), architecture: architecture.to_owned(), log };
    let source = CString::new(source).map_err(|_| failed("the sources hold a zero byte".to_owned()))?;
    let program = result::create_program(&source, Some(c"holdfast.cu")).map_err(|error| failed(error.to_string()))?;
    let mut options: Vec<String> = OPTIONS.map(str::to_owned).into();
    options.push(format!("--gpu-architecture={architecture}"));
    // SAFETY: the program was made above and is destroyed below.
    let compiled = unsafe { result::compile_program(program, &options) };
    let cubin = match compiled {
        Ok(()) => cubin_of(program).map_err(|error| failed(error.to_string())),
        Err(error) => Err(failed(format!("{error}\n{}", log_of(program)))),
    };
    // SAFETY: as above; it is not used any more.
    if let Err(error) = unsafe { result::destroy_program(program) } {
        tracing::warn!(%error, "NVRTC does not let go of a program");
    }
    cubin
}

fn cubin_of(program: sys::nvrtcProgram) -> Result<Vec<u8>, result::NvrtcError> {
    let mut size = 0;
    // SAFETY: the program was compiled for a real architecture, so that there is a cubin; the size can be written.
    unsafe { sys::nvrtcGetCUBINSize(program, &raw mut size) }.result()?;
    let mut cubin = vec![0u8; size];
    // SAFETY: as above, and the buffer is as long as the library says.
    unsafe { sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast::<c_char>()) }.result()?;
    Ok(cubin)
}

fn log_of(program: sys::nvrtcProgram) -> String {
    // SAFETY: the program is alive.
    let log = unsafe { result::get_program_log(program) }.unwrap_or_default();
    let log: Vec<u8> = log.into_iter().map(|byte| byte as u8).collect();
    CStr::from_bytes_until_nul(&log).map(|log| log.to_string_lossy().into_owned()).unwrap_or_default()
}
