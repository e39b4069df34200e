//! A model on disk to memory: config, weights, tokenizer, template, and the reference forward pass.
