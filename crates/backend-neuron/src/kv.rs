//! The KV pool: blocks of keys and values.
//!
//! In: geometry, then rows to write, blocks to copy, bytes to import. Out: pages for attention, bytes of a block. Deliberately not
//! here: which block belongs to whom.
//!
//! A block of a group is contiguous: `[layer][head][keys, values]`. How keys and values of a head, and their scales in int8, lie,
//! `kernels::attention` says.

use std::marker::PhantomData;

use crate::KvFormat;
use crate::kernels::attention::{Element, Elements, PAGE, PagedHead, part, scale_at};

/// Bytes that loads of the kernels are aligned to: a cache line.
const ALIGNMENT: usize = 64;

/// What lies in a block; part of block keys.
pub(crate) fn layout_name(format: KvFormat, block_tokens: u32) -> String {
    let (parts, keys, values, scales) = match format {
        KvFormat::F32 => ("f32le", "dim,token", "token,dim", ""),
        KvFormat::Bf16 => ("bf16le", "dim/2,token,2", "token/2,dim,2", ""),
        KvFormat::Int8 => ("int8", "dim/2,token,2", "token/2,dim,2", ",f32le[token]"),
    };
    format!("{parts}/{block_tokens}/layer,head,(k[token/{PAGE},{keys}]{scales},v[token/{PAGE},{values}]{scales})")
}

/// Bytes that one position takes in one layer.
pub(crate) fn bytes_per_token_and_layer(format: KvFormat, kv_heads: usize, head_dim: usize) -> usize {
    let bytes = match format {
        KvFormat::F32 => part::<f32>(head_dim, 1) * size_of::<f32>(),
        KvFormat::Bf16 => part::<u16>(head_dim, 1) * size_of::<u16>(),
        KvFormat::Int8 => part::<i8>(head_dim, 1),
    };
    2 * kv_heads * bytes
}

/// How a block of a group lies in memory.
#[derive(Debug, Clone, Copy)]
struct Layout {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    block_tokens: usize,
    /// Elements of the keys, or the values, of a layer and head, their scales among them.
    part: usize,
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
    Int8(Aligned<i8>),
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
        self.layers * self.kv_heads * 2 * self.part
    }

    /// Where keys and values of a layer and head begin in a block.
    fn offsets(self, layer: usize, head: usize) -> (usize, usize) {
        let keys = (layer * self.kv_heads + head) * 2 * self.part;
        (keys, keys + self.part)
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
        let part = match format {
            KvFormat::F32 => part::<f32>(head_dim, block_tokens),
            KvFormat::Bf16 => part::<u16>(head_dim, block_tokens),
            KvFormat::Int8 => part::<i8>(head_dim, block_tokens),
        };
        let layout = Layout { layers, kv_heads, head_dim, block_tokens, part };
        let len = blocks * layout.stride();
        let values = match format {
            KvFormat::F32 => Values::F32(Aligned::zeros(len, 0.0)),
            KvFormat::Bf16 => Values::Bf16(Aligned::zeros(len, 0)),
            KvFormat::Int8 => Values::Int8(Aligned::zeros(len, 0)),
        };
        Self { values, layout }
    }

    /// Lets threads write rows.
    pub(crate) fn writer(&mut self) -> Writer<'_> {
        let (start, len) = match &mut self.values {
            Values::F32(values) => (Start::F32(values.all_mut().as_mut_ptr()), values.all().len()),
            Values::Bf16(values) => (Start::Bf16(values.all_mut().as_mut_ptr()), values.all().len()),
            Values::Int8(values) => (Start::Int8(values.all_mut().as_mut_ptr()), values.all().len()),
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
                Values::Int8(values) => Elements::Int8(values.all()),
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
            Values::Int8(values) => values.copy(stride, from, to),
        }
    }

    /// A block's bytes, little-endian.
    pub(crate) fn export(&self, block: u32) -> Vec<u8> {
        let stride = self.layout.stride();
        match &self.values {
            Values::F32(values) => values.block(stride, block).iter().flat_map(|value| value.to_le_bytes()).collect(),
            Values::Bf16(values) => values.block(stride, block).iter().flat_map(|value| value.to_le_bytes()).collect(),
            Values::Int8(values) => bytemuck::cast_slice(values.block(stride, block)).to_vec(),
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
            Values::Int8(values) => values.block_mut(stride, block).copy_from_slice(bytemuck::cast_slice(bytes)),
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
    Int8(*mut i8),
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
        let Layout { layers, kv_heads, head_dim, block_tokens, .. } = self.layout;
        assert!((block as usize) < self.blocks && layer < layers && slot < block_tokens, "a place inside the pool");
        let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim)).take(kv_heads);
        for (head, (keys, values)) in heads.enumerate() {
            let (keys_at, values_at) = self.layout.offsets(layer, head);
            let base = block as usize * self.layout.stride();
            // SAFETY: layer, head, block and slot lie inside the pool; no other thread writes the place.
            unsafe {
                match self.start {
                    Start::F32(start) => {
                        write_row(start.add(base + keys_at), f32::key_at, slot, block_tokens, keys);
                        write_row(start.add(base + values_at), f32::value_at, slot, block_tokens, values);
                    }
                    Start::Bf16(start) => {
                        write_row(start.add(base + keys_at), u16::key_at, slot, block_tokens, keys);
                        write_row(start.add(base + values_at), u16::value_at, slot, block_tokens, values);
                    }
                    Start::Int8(start) => {
                        write_row(start.add(base + keys_at), i8::key_at, slot, block_tokens, keys);
                        write_row(start.add(base + values_at), i8::value_at, slot, block_tokens, values);
                    }
                }
            }
        }
    }
}

/// Writes one row of one position to where `place` says.
///
/// # Safety
/// The keys, or the values, of a head begin at `at` in a block of `block_tokens` positions, of which `slot` is one.
#[inline(always)]
unsafe fn write_row<E: Element>(
    at: *mut E,
    place: impl Fn(usize, usize, usize) -> usize,
    slot: usize,
    block_tokens: usize,
    row: &[f32],
) {
    let (head_dim, scale) = (row.len(), E::scale(row));
    if E::SCALED {
        // SAFETY: by the caller's promise, as is all below.
        unsafe { at.cast::<u8>().add(scale_at(head_dim, block_tokens, slot)).cast::<f32>().write_unaligned(scale) };
    }
    for (dim, value) in row.iter().enumerate() {
        // SAFETY: as above.
        unsafe { at.add(place(head_dim, slot, dim)).write(E::of(*value, scale)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Key and value of an element as stored.
    fn stored(pool: &GroupPool, layer: usize, head: usize, block: usize, slot: usize, dim: usize) -> (f32, f32) {
        fn of<E: Element>(all: &[E], head: &PagedHead<'_>, block: usize, slot: usize, dim: usize) -> (f32, f32) {
            let base = block * head.block_stride;
            let number = |at: usize, inside: usize| {
                let scale = match E::SCALED {
                    // SAFETY: the scale of that row, which lies behind its codes.
                    true => unsafe {
                        let scales = all[base + at..].as_ptr().cast::<u8>();
                        scales.add(scale_at(head.head_dim, head.block_tokens, slot)).cast::<f32>().read_unaligned()
                    },
                    false => 1.0,
                };
                all[base + at + inside].value() * scale
            };
            let key = number(head.keys_at, E::key_at(head.head_dim, slot, dim));
            (key, number(head.values_at, E::value_at(head.head_dim, slot, dim)))
        }
        let paged = pool.paged(layer, head, &[]);
        match paged.pool {
            Elements::F32(all) => of(all, &paged, block, slot, dim),
            Elements::Bf16(all) => of(all, &paged, block, slot, dim),
            Elements::Int8(all) => of(all, &paged, block, slot, dim),
        }
    }

    #[test]
    fn a_block_survives_copies_export_and_import() {
        for format in [KvFormat::F32, KvFormat::Bf16, KvFormat::Int8] {
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
                        // Half a step of the largest number of the head.
                        let step = number(slot, (head + 1) * head_dim - 1) / 127.0;
                        let near = if format == KvFormat::Int8 { 0.501 * step } else { 0.0 };
                        let (key, value) = stored(&pool, 1, head, 3, slot, dim);
                        assert!((key - want).abs() <= near, "{format:?} {slot} {dim}: {key} {want}");
                        assert_eq!(value, -key, "{format:?} {slot} {dim}");
                    }
                }
                assert_eq!(pool.export(3), bytes);
                assert!(pool.export(1).iter().all(|byte| *byte == 0), "other blocks are untouched");
            }
        }
    }

    #[test]
    fn pages_begin_at_cache_lines() {
        for format in [KvFormat::F32, KvFormat::Bf16, KvFormat::Int8] {
            let pool = GroupPool::new(format, 3, 1, 2, 20, 16);
            let at = match pool.paged(0, 0, &[]).pool {
                Elements::F32(all) => all.as_ptr() as usize,
                Elements::Bf16(all) => all.as_ptr() as usize,
                Elements::Int8(all) => all.as_ptr() as usize,
            };
            assert_eq!(at % ALIGNMENT, 0);
        }
    }

    #[test]
    fn bf16_is_the_nearest_and_even_where_two_are() {
        let rounded = |bits: u32| <u16 as Element>::of(f32::from_bits(bits), 1.0);
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
        assert!(<u16 as Element>::of(f32::NAN, 1.0).value().is_nan());
        assert!(rounded(0x7f80_0001).value().is_nan(), "a NaN whose upper half is an infinity's");
    }

    #[test]
    fn int8_rows_are_as_long_as_their_largest_number_says() {
        let mut rng = fastrand::Rng::with_seed(9);
        for size in [1e-30, 1e-3, 1.0, 1e30] {
            let row: Vec<f32> = (0..64).map(|_| (rng.f32() * 2.0 - 1.0) * size).collect();
            let scale = <i8 as Element>::scale(&row);
            let most = row.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            assert_eq!(scale, most / 127.0);
            let codes: Vec<i8> = row.iter().map(|value| Element::of(*value, scale)).collect();
            if size > 1e-20 {
                let near = |(value, code): (&f32, &i8)| (value - f32::from(*code) * scale).abs() <= 0.501 * scale;
                assert!(row.iter().zip(&codes).all(near));
                assert_eq!(codes.iter().map(|code| code.unsigned_abs()).max(), Some(127));
            } else {
                assert!(codes.iter().all(|code| *code == 0));
            }
        }
        let broken = [1.0, f32::NAN];
        assert!(<i8 as Element>::scale(&broken).is_nan(), "a row with what is no number gives none");
    }

    #[test]
    fn formats_have_names_of_their_own() {
        assert_eq!(layout_name(KvFormat::F32, 16), "f32le/16/layer,head,(k[token/16,dim,token],v[token/16,token,dim])");
        let bf16 = layout_name(KvFormat::Bf16, 32);
        assert_eq!(bf16, "bf16le/32/layer,head,(k[token/16,dim/2,token,2],v[token/16,token/2,dim,2])");
        let int8 = layout_name(KvFormat::Int8, 16);
        let want = "int8/16/layer,head,(k[token/16,dim/2,token,2],f32le[token],v[token/16,token/2,dim,2],f32le[token])";
        assert_eq!(int8, want);
    }
}
