//! The KV pool: blocks of keys and values, in f32.
//!
//! In: geometry, then rows to write, blocks to copy, bytes to import. Out: pages for attention, bytes of a block. Deliberately not
//! here: which block belongs to whom.
//!
//! A block of a group is contiguous: `[layer][keys of all heads, values of all heads]`; keys of a head are `[head_dim][token]`, so
//! that one query element meets the same element of many keys side by side; values are `[token][head_dim]`.

use crate::kernels::attention::PagedHead;

/// What lies in a block; part of block keys.
pub(crate) fn layout_name(block_tokens: u32) -> String {
    format!("f32le/{block_tokens}/layer,(k[head,dim,token],v[head,token,dim])")
}

/// Blocks of one group of layers.
#[derive(Debug)]
pub(crate) struct GroupPool {
    values: Vec<f32>,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    block_tokens: usize,
}

impl GroupPool {
    /// `blocks` blocks, all zero. The system hands out the memory when it is first written.
    pub(crate) fn new(blocks: usize, layers: usize, kv_heads: usize, head_dim: usize, block_tokens: usize) -> Self {
        let mut pool = Self { values: Vec::new(), layers, kv_heads, head_dim, block_tokens };
        pool.values = vec![0.0; blocks * pool.stride()];
        pool
    }

    /// Elements of a block.
    pub(crate) fn stride(&self) -> usize {
        self.layers * 2 * self.kv_heads * self.head_dim * self.block_tokens
    }

    /// One layer's KV of one token; `keys` and `values` are `[kv_heads][head_dim]`, `slot` is the place in the block.
    pub(crate) fn write(&mut self, layer: usize, block: u32, slot: usize, keys: &[f32], values: &[f32]) {
        let base = block as usize * self.stride();
        for head in 0..self.kv_heads {
            let (keys_at, values_at) = self.offsets(layer, head);
            let part = head * self.head_dim..(head + 1) * self.head_dim;
            let places = self.values[base + keys_at + slot..].iter_mut().step_by(self.block_tokens);
            places.zip(&keys[part.clone()]).for_each(|(place, key)| *place = *key);
            let at = base + values_at + slot * self.head_dim;
            self.values[at..at + self.head_dim].copy_from_slice(&values[part]);
        }
    }

    /// One layer and head, seen through a table.
    pub(crate) fn paged<'a>(&'a self, layer: usize, head: usize, table: &'a [u32]) -> PagedHead<'a> {
        let (keys_at, values_at) = self.offsets(layer, head);
        PagedHead {
            pool: &self.values,
            block_stride: self.stride(),
            keys_at,
            values_at,
            block_tokens: self.block_tokens,
            head_dim: self.head_dim,
            table,
        }
    }

    /// Copies a whole block.
    pub(crate) fn copy(&mut self, from: u32, to: u32) {
        let stride = self.stride();
        let from = from as usize * stride;
        self.values.copy_within(from..from + stride, to as usize * stride);
    }

    /// A block's bytes, little-endian.
    pub(crate) fn export(&self, block: u32) -> Vec<u8> {
        let stride = self.stride();
        self.values[block as usize * stride..][..stride].iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    /// Replaces a block; `bytes` is as long as a block.
    pub(crate) fn import(&mut self, block: u32, bytes: &[u8]) {
        let stride = self.stride();
        let (words, _) = bytes.as_chunks::<4>();
        let places = self.values[block as usize * stride..][..stride].iter_mut();
        places.zip(words).for_each(|(place, word)| *place = f32::from_le_bytes(*word));
    }

    /// Where keys and values of a layer and head begin in a block.
    fn offsets(&self, layer: usize, head: usize) -> (usize, usize) {
        let size = self.head_dim * self.block_tokens;
        let keys = (layer * 2 * self.kv_heads + head) * size;
        (keys, keys + self.kv_heads * size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_survives_copies_export_and_import() {
        let mut pool = GroupPool::new(4, 2, 3, 4, 16);
        let row = |seed: f32| -> Vec<f32> { (0..12).map(|at| seed + at as f32).collect() };
        for slot in 0..16 {
            pool.write(1, 2, slot, &row(slot as f32 * 100.0), &row(slot as f32 * -100.0));
        }
        pool.copy(2, 0);
        let bytes = pool.export(0);
        assert_eq!(bytes.len(), pool.stride() * 4);
        pool.import(3, &bytes);
        let head = pool.paged(1, 2, &[]);
        for slot in 0..16 {
            for dim in 0..4 {
                let at = 3 * head.block_stride;
                let key = head.pool[at + head.keys_at + dim * 16 + slot];
                let value = head.pool[at + head.values_at + slot * 4 + dim];
                assert_eq!(
                    (key, value),
                    (slot as f32 * 100.0 + 8.0 + dim as f32, slot as f32 * -100.0 + 8.0 + dim as f32)
                );
            }
        }
        assert!(pool.export(1).iter().all(|byte| *byte == 0), "other blocks are untouched");
    }
}
