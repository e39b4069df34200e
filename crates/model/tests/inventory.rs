//! What a GGUF file is made of, told without loading it.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "the other tests of GGUF files use the rest")]
#[path = "gguf/file.rs"]
mod file;

use std::collections::BTreeMap;

use candle_core::quantized::GgmlDType;
use file::Gguf;
use holdfast_model::ModelSource;
use holdfast_model::random::MicroShape;

#[test]
fn a_gguf_file_tells_the_types_of_its_elements_and_its_text() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("micro.gguf");
    std::fs::write(&path, Gguf::of(&MicroShape::default(), GgmlDType::F16).bytes()).unwrap();
    // A directory with nothing else stands for the file.
    let source = ModelSource::at(directory.path()).unwrap();
    assert_eq!(source, ModelSource::File(path.clone()));
    let files = source.files().unwrap();
    assert_eq!(files.len(), 1);
    assert_eq!(files[0].bytes, std::fs::metadata(&path).unwrap().len());
    // Two layers of seven matrices and two norms; the embedding, and the last norm.
    let counts = BTreeMap::from([("F16".to_owned(), 2 * 7 + 1), ("F32".to_owned(), 2 * 2 + 1)]);
    assert_eq!(files[0].tensors, counts);
    let text = source.text_files().unwrap();
    assert!(text.tokenizer.contains("ByteLevel") && text.chat_template.is_some());
}
