//! The sampler that every backend shares.
