//! Tensors beside good text files. The first byte says how the rest is written: as the file that it is; as a header, up to the
//! first zero byte, and data, with the length that belongs before them; or as two such shards under an index.
#![no_main]

use std::sync::LazyLock;

use holdfast_fuzz::{Place, bounded};
use holdfast_model::{Model, ModelSource};
use libfuzzer_sys::fuzz_target;

static PLACE: LazyLock<Place> = LazyLock::new(Place::with_micro);
static SHARDS: LazyLock<Place> = LazyLock::new(|| {
    let place = Place::with_micro();
    place.write(
        "model.safetensors.index.json",
        br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#,
    );
    place
});

/// A file of the bytes before the first zero as its header, and of those behind it.
fn framed(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let header = &bytes[..end];
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(bytes.get(end + 1..).unwrap_or_default());
    file
}

fuzz_target!(|bytes: &[u8]| {
    let Some((how, bytes)) = bytes.split_first() else { return };
    let place = match how % 3 {
        0 => {
            PLACE.write("model.safetensors", bytes);
            &PLACE
        }
        1 => {
            PLACE.write("model.safetensors", &framed(bytes));
            &PLACE
        }
        _ => {
            let half = bytes.len() / 2;
            SHARDS.write("model-1.safetensors", &framed(&bytes[..half]));
            SHARDS.write("model-2.safetensors", &framed(&bytes[half..]));
            &SHARDS
        }
    };
    let source = ModelSource::Directory(place.path().to_owned());
    // The good text files are a part of what is read.
    drop(bounded(bytes.len() + (1 << 16), || Model::load(&source)));
    drop(bounded(bytes.len() + (1 << 16), || source.files()));
});
