//! Another file in the place of NVRTC is an error that names it, and no crash. In a process of its own: once NVRTC is open, no path is looked at.

#![allow(clippy::unwrap_used)]

use holdfast_backend_cuda::{CudaError, compile};

#[test]
fn a_library_that_is_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for content in [None, Some("no library")] {
        let path = folder.path().join("libnvrtc.so.13");
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let error = compile("sm_90", Some(&path)).unwrap_err();
        assert!(matches!(error, CudaError::NoNvrtc { .. }), "{error}");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
}
