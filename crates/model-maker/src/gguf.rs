//! A GGUF file, by llama.cpp's conventions (`docs/gguf.md` of ggml; `convert_hf_to_gguf.py` of llama.cpp).
//!
//! The container is written here because candle's writer, and every other that was looked at, wants all tensors in memory
//! at once; rounding to the quantised types is candle's. Tensors are drawn and written some rows at a time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor as Values};
use rayon::prelude::*;

use crate::tensors::{Tensor, gguf_tensors};
use crate::tokenizer::{self, END_OF_TEXT, END_OF_TURN, Tokenizer};
use crate::weights::Rows;
use crate::{Family, MakeError, Progress, Shape};

/// Tensors begin at multiples of this.
const ALIGNMENT: u64 = 32;
/// Version of the container.
const VERSION: u32 = 3;
/// Version of the quantised types' layout, ggml's `GGML_QNT_VERSION`.
const QUANTIZATION_VERSION: u32 = 2;
/// Elements that are drawn before they are written.
const ELEMENTS_AT_ONCE: usize = 1 << 22;

/// A value of the metadata.
enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
}

/// Makes the file, with matrices as `dtype`.
pub(crate) fn write(
    shape: &Shape,
    dtype: GgmlDType,
    seed: u64,
    path: &Path,
    progress: Progress<'_>,
) -> Result<(), MakeError> {
    let tensors = gguf_tensors(shape);
    let mut file = BufWriter::new(File::create_new(path)?);
    file.write_all(&header(&tensors, dtype, &metadata(shape, dtype)))?;
    let total = tensors.iter().map(|tensor| bytes_of(tensor, dtype)).sum();
    let mut done = 0;
    for tensor in &tensors {
        let rows = Rows::new(seed, tensor);
        let dtype = dtype_of(tensor, dtype);
        let row_bytes = bytes_of(tensor, dtype) as usize / tensor.rows;
        let rows_at_once = (ELEMENTS_AT_ONCE / tensor.width).max(1);
        for first in (0..tensor.rows).step_by(rows_at_once) {
            let count = rows_at_once.min(tensor.rows - first);
            let mut bytes = vec![0; count * row_bytes];
            bytes
                .par_chunks_mut(row_bytes)
                .enumerate()
                .try_for_each(|(i, bytes)| encode(rows.row(tensor.row_of_gguf(first + i)), dtype, bytes))?;
            file.write_all(&bytes)?;
            done += bytes.len() as u64;
            progress(done, total);
        }
        file.write_all(&padding(bytes_of(tensor, dtype)))?;
    }
    file.flush()?;
    Ok(())
}

/// Bytes of a tensor, where matrices are `dtype`.
pub(crate) fn bytes_of(tensor: &Tensor, dtype: GgmlDType) -> u64 {
    let dtype = dtype_of(tensor, dtype);
    tensor.elements() / dtype.block_size() as u64 * dtype.type_size() as u64
}

/// Vectors stay F32, as llama.cpp's converter and quantiser leave them.
fn dtype_of(tensor: &Tensor, dtype: GgmlDType) -> GgmlDType {
    if tensor.is_vector() { GgmlDType::F32 } else { dtype }
}

fn encode(row: Vec<f32>, dtype: GgmlDType, bytes: &mut [u8]) -> Result<(), MakeError> {
    let width = row.len();
    let row = QTensor::quantize(&Values::from_vec(row, width, &Device::Cpu)?, dtype)?;
    bytes.copy_from_slice(&row.data()?);
    Ok(())
}

fn metadata(shape: &Shape, dtype: GgmlDType) -> Vec<(String, Meta)> {
    let architecture = match shape.family {
        Family::Llama => "llama",
        Family::Qwen3 => "qwen3",
    };
    // The numbers of llama.cpp's `llama_ftype`.
    let file_type = match dtype {
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q8_0 => 7,
        _ => 1,
    };
    let Tokenizer { tokens, merges, .. } = Tokenizer::new(shape.vocab_size);
    // The numbers of llama.cpp's `llama_token_type`: normal, control, user-defined.
    let kinds = (0..tokens.len()).map(|id| match tokenizer::added(id) {
        None => 1,
        Some(true) => 3,
        Some(false) => 4,
    });
    let own = |key: &str| format!("{architecture}.{key}");
    let number = |number: usize| Meta::U32(number as u32);
    let text = |text: &str| Meta::Text(text.to_owned());
    let mut all = vec![
        ("general.architecture".to_owned(), text(architecture)),
        ("general.type".to_owned(), text("model")),
        ("general.name".to_owned(), Meta::Text(format!("{} with random weights", shape.name))),
        ("general.file_type".to_owned(), Meta::U32(file_type)),
        ("general.quantization_version".to_owned(), Meta::U32(QUANTIZATION_VERSION)),
        ("general.alignment".to_owned(), Meta::U32(ALIGNMENT as u32)),
        (own("block_count"), number(shape.layers)),
        (own("context_length"), Meta::U32(shape.context_limit)),
        (own("embedding_length"), number(shape.hidden)),
        (own("feed_forward_length"), number(shape.ffn)),
        (own("attention.head_count"), number(shape.heads)),
        (own("attention.head_count_kv"), number(shape.kv_heads)),
        (own("attention.key_length"), number(shape.head_dim)),
        (own("attention.value_length"), number(shape.head_dim)),
        (own("attention.layer_norm_rms_epsilon"), Meta::F32(shape.norm_eps as f32)),
        (own("rope.freq_base"), Meta::F32(shape.rope.theta as f32)),
    ];
    if shape.family == Family::Llama {
        all.push((own("vocab_size"), Meta::U32(shape.vocab_size)));
        all.push((own("rope.dimension_count"), number(shape.head_dim)));
    }
    let vocabulary = [
        ("model", text("gpt2")),
        ("pre", text("gpt-2")),
        ("token_type", Meta::I32s(kinds.collect())),
        ("tokens", Meta::Texts(tokens)),
        ("merges", Meta::Texts(merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect())),
        ("bos_token_id", Meta::U32(END_OF_TEXT)),
        ("eos_token_id", Meta::U32(END_OF_TURN)),
        ("eot_token_id", Meta::U32(END_OF_TURN)),
        ("padding_token_id", Meta::U32(END_OF_TEXT)),
        ("add_bos_token", Meta::Bool(false)),
    ];
    all.extend(vocabulary.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)));
    all.push(("tokenizer.chat_template".to_owned(), Meta::Text(tokenizer::chat_template())));
    all
}

/// Everything before the tensors' bytes.
fn header(tensors: &[Tensor], dtype: GgmlDType, metadata: &[(String, Meta)]) -> Vec<u8> {
    let mut out = Vec::from(*b"GGUF");
    out.extend(VERSION.to_le_bytes());
    push_length(&mut out, tensors.len());
    push_length(&mut out, metadata.len());
    for (key, value) in metadata {
        push_text(&mut out, key);
        push_value(&mut out, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        let dimensions = tensor.dimensions();
        push_text(&mut out, &tensor.gguf_name);
        out.extend((dimensions.len() as u32).to_le_bytes());
        // The fastest one first.
        dimensions.iter().rev().for_each(|dimension| push_length(&mut out, *dimension));
        out.extend(type_number(dtype_of(tensor, dtype)).to_le_bytes());
        out.extend(u64::to_le_bytes(offset));
        offset += bytes_of(tensor, dtype).next_multiple_of(ALIGNMENT);
    }
    let padding = padding(out.len() as u64);
    out.extend(padding);
    out
}

fn push_value(out: &mut Vec<u8>, value: &Meta) {
    // The numbers of `gguf_type`: 4 u32, 5 i32, 6 f32, 7 bool, 8 string, 9 array.
    let mut number = |number: u32| out.extend(number.to_le_bytes());
    match value {
        Meta::U32(value) => [4, *value].into_iter().for_each(number),
        Meta::F32(value) => [6, value.to_bits()].into_iter().for_each(number),
        Meta::Bool(value) => {
            number(7);
            out.push(u8::from(*value));
        }
        Meta::Text(text) => {
            number(8);
            push_text(out, text);
        }
        Meta::Texts(texts) => {
            [9, 8].into_iter().for_each(number);
            push_length(out, texts.len());
            texts.iter().for_each(|text| push_text(out, text));
        }
        Meta::I32s(numbers) => {
            [9, 5].into_iter().for_each(number);
            push_length(out, numbers.len());
            out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
    }
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    push_length(out, text.len());
    out.extend(text.as_bytes());
}

fn push_length(out: &mut Vec<u8>, length: usize) {
    out.extend((length as u64).to_le_bytes());
}

/// Zeros up to the next aligned place after `bytes`.
fn padding(bytes: u64) -> Vec<u8> {
    vec![0; (bytes.next_multiple_of(ALIGNMENT) - bytes) as usize]
}

/// The number of `ggml_type`; candle keeps its own to itself.
fn type_number(dtype: GgmlDType) -> u32 {
    match dtype {
        GgmlDType::F16 => 1,
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q8_0 => 8,
        _ => 0,
    }
}
