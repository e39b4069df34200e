//! The formats that a model is written in: [`Format`].

use std::fmt;
use std::str::FromStr;

use candle_core::quantized::GgmlDType;

use crate::tensors::{Tensor, gguf_tensors, tensors};
use crate::{MakeError, Shape, gguf};

/// How a model lies on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// A directory in Hugging Face layout: config, tokenizer and bf16 safetensors.
    HfBf16,
    /// One GGUF file, matrices as Q8_0.
    GgufQ8_0,
    /// One GGUF file, every matrix as Q4_0, embedding and output too: what `llama-quantize --pure` writes.
    GgufQ4_0,
    /// One GGUF file, matrices as F16.
    GgufF16,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::HfBf16, Self::GgufQ8_0, Self::GgufQ4_0, Self::GgufF16];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::HfBf16 => "hf-bf16",
            Self::GgufQ8_0 => "gguf-q8_0",
            Self::GgufQ4_0 => "gguf-q4_0",
            Self::GgufF16 => "gguf-f16",
        }
    }

    /// Bytes of a shape's weights in this format; the tokenizer and the headers, some megabytes, come on top.
    pub fn weight_bytes(self, shape: &Shape) -> u64 {
        match self.ggml() {
            Some(dtype) => gguf_tensors(shape).iter().map(|tensor| gguf::bytes_of(tensor, dtype)).sum(),
            None => tensors(shape).iter().map(Tensor::bf16_bytes).sum(),
        }
    }

    /// The element type of matrices in a GGUF file; `None` for a directory.
    pub(crate) fn ggml(self) -> Option<GgmlDType> {
        match self {
            Self::HfBf16 => None,
            Self::GgufQ8_0 => Some(GgmlDType::Q8_0),
            Self::GgufQ4_0 => Some(GgmlDType::Q4_0),
            Self::GgufF16 => Some(GgmlDType::F16),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = MakeError;

    fn from_str(name: &str) -> Result<Self, MakeError> {
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| MakeError::UnknownFormat {
            name: name.to_owned(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}
