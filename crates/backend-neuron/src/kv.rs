//! The KV pool: blocks of keys and values.
//!
//! In: geometry, then rows to write, blocks to copy, bytes to import. Out: pages for attention, bytes of a block. Deliberately not
//! here: which block belongs to whom.
//!
//! A block of a group is contiguous: `[layer][head][keys, values]`. How keys and values of a head lie, `kernels::attention` says.

use std::marker::PhantomData;

use crate::KvFormat;
use crate::kernels::attention::{Element, Elements, PAGE, PagedHead, width};

/// Bytes that loads of the kernels are aligned to: a cache line.
const ALIGNMENT: usize = 64;

/// What lies in a block; part of block keys.
pub(crate) fn layout_name(format: KvFormat, block_tokens: u32) -> String {
    let parts = match format {
        KvFormat::F32 => "f32le",
        KvFormat::Bf16 => "bf16le",
    };
    let (keys, values) = match format {
        KvFormat::F32 => ("dim,token", "token,dim"),
        KvFormat::Bf16 => ("dim/2,token,2", "token/2,dim,2"),
    };
    format!("{parts}/{block_tokens}/layer,head,(k[token/{PAGE},{keys}],v[token/{PAGE},{values}])")
}

/// Bytes that one position takes in one layer.
pub(crate) fn bytes_per_token_and_layer(format: KvFormat, kv_heads: usize, head_dim: usize) -> usize {
    let element = match format {
        KvFormat::F32 => size_of::<f32>(),
        KvFormat::Bf16 => size_of::<u16>(),
    };
    2 * kv_heads * width(head_dim) * element
}

/// How a block of a group lies in memory.
#[derive(Debug, Clone, Copy)]
struct Layout {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    block_tokens: usize,
}

/// Blocks of one group of layers.
#[derive(Debug)]
pub(crate) struct GroupPool {
    values: Values,
    layout: Layout,
}

#[derive(Debug)]
enum Values {
    F32(Aligned<f32>),
    Bf16(Aligned<u16>),
}

/// Numbers that begin at a cache line.
#[derive(Debug)]
struct Aligned<E> {
    values: Vec<E>,
    start: usize,
}

impl Layout {
    /// Elements of a block.
    fn stride(self) -> usize {
        self.layers * self.kv_heads * 2 * self.part()
    }

    /// Elements of the keys, or the values, of a layer and head.
    fn part(self) -> usize {
        width(self.head_dim) * self.block_tokens
    }

    /// Where keys and values of a layer and head begin in a block.
    fn offsets(self, layer: usize, head: usize) -> (usize, usize) {
        let keys = (layer * self.kv_heads + head) * 2 * self.part();
        (keys, keys + self.part())
    }
}

impl GroupPool {
    /// `blocks` blocks, all zero. The system hands out the memory when it is first written.
    pub(crate) fn new(
        format: KvFormat,
        blocks: usize,
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        block_tokens: usize,
    ) -> Self {
        let layout = Layout { layers, kv_heads, head_dim, block_tokens };
        let len = blocks * layout.stride();
        let values = match format {
            KvFormat::F32 => Values::F32(Aligned::zeros(len, 0.0)),
            KvFormat::Bf16 => Values::Bf16(Aligned::zeros(len, 0)),
        };
        Self { values, layout }
    }

    /// Lets threads write rows.
    pub(crate) fn writer(&mut self) -> Writer<'_> {
        let (start, len) = match &mut self.values {
            Values::F32(values) => (Start::F32(values.all_mut().as_mut_ptr()), values.all().len()),
            Values::Bf16(values) => (Start::Bf16(values.all_mut().as_mut_ptr()), values.all().len()),
        };
        Writer { start, blocks: len / self.layout.stride(), layout: self.layout, pool: PhantomData }
    }

    /// One layer and head, seen through a table.
    pub(crate) fn paged<'a>(&'a self, layer: usize, head: usize, table: &'a [u32]) -> PagedHead<'a> {
        let (keys_at, values_at) = self.layout.offsets(layer, head);
        PagedHead {
            pool: match &self.values {
                Values::F32(values) => Elements::F32(values.all()),
                Values::Bf16(values) => Elements::Bf16(values.all()),
            },
            block_stride: self.layout.stride(),
            keys_at,
            values_at,
            block_tokens: self.layout.block_tokens,
            head_dim: self.layout.head_dim,
            table,
        }
    }

    /// Copies a whole block.
    pub(crate) fn copy(&mut self, from: u32, to: u32) {
        let stride = self.layout.stride();
        match &mut self.values {
            Values::F32(values) => values.copy(stride, from, to),
            Values::Bf16(values) => values.copy(stride, from, to),
        }
    }

    /// A block's bytes, little-endian.
    pub(crate) fn export(&self, block: u32) -> Vec<u8> {
        let stride = self.layout.stride();
        match &self.values {
            Values::F32(values) => values.block(stride, block).iter().flat_map(|value| value.to_le_bytes()).collect(),
            Values::Bf16(values) => values.block(stride, block).iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }

    /// Replaces a block; `bytes` is as long as a block.
    pub(crate) fn import(&mut self, block: u32, bytes: &[u8]) {
        let stride = self.layout.stride();
        match &mut self.values {
            Values::F32(values) => {
                let places = values.block_mut(stride, block).iter_mut();
                places.zip(bytes.as_chunks().0).for_each(|(place, bytes)| *place = f32::from_le_bytes(*bytes));
            }
            Values::Bf16(values) => {
                let places = values.block_mut(stride, block).iter_mut();
                places.zip(bytes.as_chunks().0).for_each(|(place, bytes)| *place = u16::from_le_bytes(*bytes));
            }
        }
    }
}

impl<E: Copy> Aligned<E> {
    fn zeros(len: usize, zero: E) -> Self {
        let values = vec![zero; len + ALIGNMENT / size_of::<E>()];
        let start = values.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT / size_of::<E>());
        let mut aligned = Self { values, start };
        aligned.values.truncate(start + len);
        aligned
    }

    fn all(&self) -> &[E] {
        &self.values[self.start..]
    }

    fn all_mut(&mut self) -> &mut [E] {
        &mut self.values[self.start..]
    }

    fn block(&self, stride: usize, block: u32) -> &[E] {
        &self.all()[block as usize * stride..][..stride]
    }

    fn block_mut(&mut self, stride: usize, block: u32) -> &mut [E] {
        &mut self.all_mut()[block as usize * stride..][..stride]
    }

    fn copy(&mut self, stride: usize, from: u32, to: u32) {
        let from = from as usize * stride;
        self.all_mut().copy_within(from..from + stride, to as usize * stride);
    }
}

/// Writes rows into a pool from several threads.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    start: Start,
    blocks: usize,
    layout: Layout,
    pool: PhantomData<&'a mut GroupPool>,
}

#[derive(Debug, Clone, Copy)]
enum Start {
    F32(*mut f32),
    Bf16(*mut u16),
}

// SAFETY: it is a `&mut GroupPool` whose rows are dealt out; `write` demands that threads write different ones.
unsafe impl Send for Writer<'_> {}
// SAFETY: as above.
unsafe impl Sync for Writer<'_> {}

impl Writer<'_> {
    /// One layer's KV of one token; `keys` and `values` are `[kv_heads][head_dim]`, `slot` is the place in the block.
    ///
    /// # Safety
    /// No two calls at the same time are for the same place.
    pub(crate) unsafe fn write(&self, layer: usize, block: u32, slot: usize, keys: &[f32], values: &[f32]) {
        let Layout { layers, kv_heads, head_dim, block_tokens } = self.layout;
        assert!((block as usize) < self.blocks && layer < layers && slot < block_tokens, "a place inside the pool");
        let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim)).take(kv_heads);
        for (head, (keys, values)) in heads.enumerate() {
            let (keys_at, values_at) = self.layout.offsets(layer, head);
            let base = block as usize * self.layout.stride();
            // SAFETY: layer, head, block and slot lie inside the pool; no other thread writes the place.
            unsafe {
                match self.start {
                    Start::F32(start) => {
                        write_head(start.add(base + keys_at), start.add(base + values_at), slot, keys, values);
                    }
                    Start::Bf16(start) => {
                        write_head(start.add(base + keys_at), start.add(base + values_at), slot, keys, values);
                    }
                }
            }
        }
    }
}

/// # Safety
/// Keys and values of a block's head begin at `keys_at` and `values_at`, and `slot` is one of its positions.
unsafe fn write_head<E: Element>(keys_at: *mut E, values_at: *mut E, slot: usize, keys: &[f32], values: &[f32]) {
    let head_dim = keys.len();
    for (dim, (key, value)) in keys.iter().zip(values).enumerate() {
        // SAFETY: by the caller's promise.
        unsafe {
            keys_at.add(E::key_at(head_dim, slot, dim)).write(E::of(*key));
            values_at.add(E::value_at(head_dim, slot, dim)).write(E::of(*value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Key and value of an element as stored.
    fn stored(pool: &GroupPool, layer: usize, head: usize, block: usize, slot: usize, dim: usize) -> (f32, f32) {
        fn of<E: Element>(all: &[E], head: &PagedHead<'_>, block: usize, slot: usize, dim: usize) -> (f32, f32) {
            let base = block * head.block_stride;
            let key = all[base + head.keys_at + E::key_at(head.head_dim, slot, dim)];
            (key.value(), all[base + head.values_at + E::value_at(head.head_dim, slot, dim)].value())
        }
        let paged = pool.paged(layer, head, &[]);
        match paged.pool {
            Elements::F32(all) => of(all, &paged, block, slot, dim),
            Elements::Bf16(all) => of(all, &paged, block, slot, dim),
        }
    }

    #[test]
    fn a_block_survives_copies_export_and_import() {
        for format in [KvFormat::F32, KvFormat::Bf16] {
            for (head_dim, block_tokens) in [(4, 16), (17, 32), (32, 48)] {
                let mut pool = GroupPool::new(format, 4, 2, 3, head_dim, block_tokens);
                // Small whole numbers, which bf16 holds as they are; another one in every place.
                let number = |slot: usize, at: usize| (slot * 3 + at) as f32;
                let row = |slot: usize| -> Vec<f32> { (0..3 * head_dim).map(|at| number(slot, at)).collect() };
                for slot in 0..block_tokens {
                    let (keys, values) = (row(slot), row(slot).iter().map(|value| -value).collect::<Vec<_>>());
                    // SAFETY: one thread writes.
                    unsafe { pool.writer().write(1, 2, slot, &keys, &values) };
                }
                pool.copy(2, 0);
                let bytes = pool.export(0);
                let size = 2 * block_tokens * bytes_per_token_and_layer(format, 3, head_dim);
                assert_eq!(bytes.len(), size, "layers, tokens");
                pool.import(3, &bytes);
                for (slot, head) in (0..block_tokens).flat_map(|slot| (0..3).map(move |head| (slot, head))) {
                    for dim in 0..head_dim {
                        let want = number(slot, head * head_dim + dim);
                        assert_eq!(stored(&pool, 1, head, 3, slot, dim), (want, -want), "{format:?} {slot} {dim}");
                    }
                }
                assert_eq!(pool.export(3), bytes);
                assert!(pool.export(1).iter().all(|byte| *byte == 0), "other blocks are untouched");
            }
        }
    }

    #[test]
    fn pages_begin_at_cache_lines() {
        for format in [KvFormat::F32, KvFormat::Bf16] {
            let pool = GroupPool::new(format, 3, 1, 2, 20, 16);
            let at = match pool.paged(0, 0, &[]).pool {
                Elements::F32(all) => all.as_ptr() as usize,
                Elements::Bf16(all) => all.as_ptr() as usize,
            };
            assert_eq!(at % ALIGNMENT, 0);
        }
    }

    #[test]
    fn bf16_is_the_nearest_and_even_where_two_are() {
        let rounded = |bits: u32| <u16 as Element>::of(f32::from_bits(bits));
        for (bits, want) in [
            (0x3f80_0000, 0x3f80),
            (0x3f80_7fff, 0x3f80),
            (0x3f80_8000, 0x3f80),
            (0x3f80_8001, 0x3f81),
            (0x3f81_8000, 0x3f82),
            (0xbf81_8000, 0xbf82),
            (0x7f7f_ffff, 0x7f80),
            (0xff80_0000, 0xff80),
            (0, 0),
        ] {
            assert_eq!(rounded(bits), want, "{bits:x}");
        }
        assert!(<u16 as Element>::of(f32::NAN).value().is_nan());
        assert!(rounded(0x7f80_0001).value().is_nan(), "a NaN whose upper half is an infinity's");
    }

    #[test]
    fn formats_have_names_of_their_own() {
        assert_eq!(layout_name(KvFormat::F32, 16), "f32le/16/layer,head,(k[token/16,dim,token],v[token/16,token,dim])");
        let bf16 = layout_name(KvFormat::Bf16, 32);
        assert_eq!(bf16, "bf16le/32/layer,head,(k[token/16,dim/2,token,2],v[token/16,token/2,dim,2])");
    }
}
