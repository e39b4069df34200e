//! Finding CUDA's libraries, before anything is called in them: a call into a library that is not there would panic.
//!
//! In: perhaps the path of NVRTC. Out: nothing, once they are there and work, or the error that says what is missing. Deliberately not here: what
//! they are used for.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::driver::{result, sys};
use cudarc::nvrtc;

use crate::CudaError;
use crate::gpu::card_error;

/// Names of NVRTC's library, the newest first.
const NVRTC_NAMES: [&str; 2] = ["libnvrtc.so.13", "libnvrtc.so.12"];
/// Where toolkits lie if nobody says otherwise.
const TOOLKIT_FOLDERS: [&str; 2] = ["/usr/local/cuda/lib64", "/opt/cuda/lib64"];
/// What names a toolkit's folder, by convention.
const TOOLKIT_VARIABLES: [&str; 2] = ["CUDA_HOME", "CUDA_PATH"];

/// NVRTC's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NvrtcVersion {
    pub(crate) major: i32,
    pub(crate) minor: i32,
}

impl std::fmt::Display for NvrtcVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Starts the driver.
///
/// # Errors
/// [`CudaError::NoDriver`], or [`CudaError::Driver`] with what it says.
pub(crate) fn driver() -> Result<(), CudaError> {
    // SAFETY: opens a library and closes it again; the driver's initialisers are the vendor's, as for every program that uses it.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    result::init().map_err(|error| CudaError::Driver(card_error("cuInit", error)))
}

/// Opens NVRTC: where `named` says, else by its name, else in the usual folders.
///
/// # Errors
/// [`CudaError::NoNvrtc`].
pub(crate) fn nvrtc(named: Option<&Path>) -> Result<NvrtcVersion, CudaError> {
    /// Libraries that were opened by their paths stay open: then their names alone find them.
    static OPENED: OnceLock<Vec<libloading::Library>> = OnceLock::new();
    let is_there = || {
        // SAFETY: as for the driver.
        unsafe { nvrtc::sys::is_culib_present() }
    };
    let open = |path: PathBuf| {
        // SAFETY: as for the driver; the operator names the library, or it lies in a toolkit's folder.
        let library = unsafe { libloading::Library::new(&path) };
        library.is_ok_and(|library| {
            // What it opens itself, by name, when it compiles: the file of the same folder.
            let parts = builtins(path.parent()).filter_map(|part| {
                // SAFETY: as above.
                unsafe { libloading::Library::new(part) }.ok()
            });
            OPENED.set(parts.chain([library]).collect()).is_ok()
        })
    };
    let missing = || CudaError::NoNvrtc { named: named.map(Path::to_owned) };
    if OPENED.get().is_none() {
        match named {
            Some(path) => {
                if !open(path.to_owned()) {
                    return Err(missing());
                }
            }
            None if is_there() => {}
            None => {
                let folders =
                    TOOLKIT_VARIABLES.iter().filter_map(std::env::var_os).map(|home| PathBuf::from(home).join("lib64"));
                let mut folders = folders.chain(TOOLKIT_FOLDERS.iter().map(PathBuf::from));
                folders.any(|folder| NVRTC_NAMES.iter().any(|name| open(folder.join(name))));
            }
        }
    }
    if !is_there() {
        return Err(missing());
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there; both places can be written.
    match unsafe { nvrtc::sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result() {
        Ok(()) => Ok(NvrtcVersion { major, minor }),
        Err(_) => Err(missing()),
    }
}

/// The files of NVRTC's second library in a folder.
fn builtins(folder: Option<&Path>) -> impl Iterator<Item = PathBuf> {
    let entries = folder.and_then(|folder| std::fs::read_dir(folder).ok());
    entries.into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("libnvrtc-builtins.so"))
    })
}
