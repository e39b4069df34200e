//! A directory in Hugging Face layout: config, generation settings, tokenizer with template, bf16 safetensors.
//!
//! Tensors are drawn while the file is written, so memory holds one at a time. Beyond [`SHARD_BYTES_MAX`] the weights are
//! several files with an index, as the hub has them.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{View, serialize_to_file};
use serde_json::{Map, Value, json};

use crate::tensors::{Tensor, tensors};
use crate::tokenizer::{self, END_OF_TEXT, END_OF_TURN, Tokenizer};
use crate::weights::Rows;
use crate::{MakeError, Progress, Shape};

/// Most bytes of tensors in one file, unless one tensor alone has more.
pub(crate) const SHARD_BYTES_MAX: u64 = 4_000_000_000;

const CONFIG: &str = "config.json";

/// Makes the directory.
pub(crate) fn write(
    shape: &Shape,
    seed: u64,
    directory: &Path,
    shard_bytes_max: u64,
    progress: Progress<'_>,
) -> Result<(), MakeError> {
    fs::create_dir(directory)?;
    for (name, value) in text_files(shape) {
        fs::write(directory.join(name), format!("{value:#}\n"))?;
    }
    let shards = shards(tensors(shape), shard_bytes_max);
    let total = shards.iter().flatten().map(Tensor::bf16_bytes).sum();
    let progress = RefCell::new(Done { bytes: 0, total, progress });
    let mut places = Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        places.extend(shard.iter().map(|tensor| (tensor.name.clone(), name.clone().into())));
        let views = shard.iter().map(|tensor| {
            (
                &tensor.name,
                Drawn { tensor, dimensions: tensor.dimensions(), rows: Rows::new(seed, tensor), progress: &progress },
            )
        });
        let framework = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let path = directory.join(name);
        serialize_to_file(views, Some(framework), &path)?;
        // The crate makes files that only their owner may read.
        fs::set_permissions(&path, fs::metadata(directory.join(CONFIG))?.permissions())?;
    }
    if shards.len() > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": places});
        fs::write(directory.join("model.safetensors.index.json"), format!("{index:#}\n"))?;
    }
    Ok(())
}

fn text_files(shape: &Shape) -> [(&'static str, Value); 4] {
    let (end_of_text, end_of_turn) = (tokenizer::text_of(END_OF_TEXT), tokenizer::text_of(END_OF_TURN));
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": shape.context_limit,
        "clean_up_tokenization_spaces": false, "bos_token": end_of_text, "eos_token": end_of_turn,
        "pad_token": end_of_text, "chat_template": tokenizer::chat_template(),
    });
    let generation = json!({"bos_token_id": END_OF_TEXT, "eos_token_id": [END_OF_TURN, END_OF_TEXT],
        "pad_token_id": END_OF_TEXT});
    [
        (CONFIG, shape.config()),
        ("generation_config.json", generation),
        ("tokenizer.json", Tokenizer::new(shape.vocab_size).json),
        ("tokenizer_config.json", tokenizer_config),
    ]
}

/// Fills files in order.
fn shards(tensors: Vec<Tensor>, bytes_max: u64) -> Vec<Vec<Tensor>> {
    let mut shards: Vec<Vec<Tensor>> = Vec::new();
    let mut room = 0;
    for tensor in tensors {
        let bytes = tensor.bf16_bytes();
        match shards.last_mut() {
            Some(shard) if bytes <= room => shard.push(tensor),
            _ => {
                shards.push(vec![tensor]);
                room = bytes_max;
            }
        }
        room = room.saturating_sub(bytes);
    }
    shards
}

/// How much was drawn, and who wants to know.
struct Done<'a> {
    bytes: u64,
    total: u64,
    progress: Progress<'a>,
}

/// A tensor that is drawn when its bytes are asked for.
struct Drawn<'a, 'p> {
    tensor: &'a Tensor,
    dimensions: Vec<usize>,
    rows: Rows<'a>,
    progress: &'a RefCell<Done<'p>>,
}

impl View for Drawn<'_, '_> {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.dimensions
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        let rows = &self.rows;
        bytes.par_chunks_mut(2 * self.tensor.width).enumerate().for_each(|(row, bytes)| {
            for (value, bytes) in rows.row(row).iter().zip(bytes.chunks_exact_mut(2)) {
                // The upper half is all of it: see `Rows`.
                bytes.copy_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes());
            }
        });
        let mut done = self.progress.borrow_mut();
        done.bytes += bytes.len() as u64;
        let (so_far, total) = (done.bytes, done.total);
        (done.progress)(so_far, total);
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.tensor.bf16_bytes() as usize
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use holdfast_model::{Model, ModelSource};

    use super::*;

    #[test]
    fn weights_in_several_files_are_the_same_model() {
        let directory = tempfile::tempdir().unwrap();
        let shape = Shape::named("micro").unwrap();
        let load = |name: &str, shard_bytes_max| {
            let path = directory.path().join(name);
            write(shape, 5, &path, shard_bytes_max, &mut |_, _| ()).unwrap();
            (
                fs::read_dir(&path).unwrap().count(),
                Model::load(&ModelSource::Directory(path)).unwrap().weights().digest(),
            )
        };
        let (one, whole) = load("one", SHARD_BYTES_MAX);
        let (several, parts) = load("several", 60_000);
        assert_eq!(whole, parts);
        assert_eq!((one, several), (5, 5 + 4), "four files and an index in place of one file");
    }
}
