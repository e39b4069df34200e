//! Every kernel through NVRTC for every architecture that the crate promises, where NVRTC is there. No GPU is needed.

#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::process::Command;

use holdfast_backend_cuda::{ARCHITECTURES, CudaError, compile};

/// Names NVRTC's library for this test.
const VARIABLE: &str = "NVRTC_LIBRARY";
/// Tells where a Python package brought it.
const PYTHON: &str = "import glob, os, nvidia
found = [path for root in nvidia.__path__ for path in sorted(glob.glob(os.path.join(root, '*', 'lib', 'libnvrtc.so.1?')))]
print(found[-1] if found else '')";

fn library() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(VARIABLE) {
        return Some(named.into());
    }
    let out = Command::new("python3").args(["-c", PYTHON]).output().ok().filter(|out| out.status.success())?;
    let path = String::from_utf8(out.stdout).ok()?.trim().to_owned();
    (!path.is_empty()).then(|| path.into())
}

#[test]
fn kernels_compile_for_every_architecture() {
    let library = library();
    for architecture in ARCHITECTURES {
        match compile(architecture, library.as_deref()) {
            Ok(cubin) => {
                assert_eq!(cubin.get(..4), Some(&b"\x7fELF"[..]), "machine code for {architecture}");
                println!("{architecture}: {} bytes", cubin.len());
            }
            Err(error @ CudaError::NoNvrtc { .. }) => {
                let said = error.to_string();
                assert!(said.contains("nvidia-cuda-nvrtc") && said.contains("device.nvrtc"), "{said}");
                println!("skipped: {said}");
                return;
            }
            Err(error) => panic!("{error}"),
        }
    }
}
