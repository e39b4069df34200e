//! How keys and values of one head lie in a block.
//!
//! In: positions and elements of a head. Out: places, and pages for the kernels. Deliberately not here: blocks of several layers
//! and heads, which `crate::kv` lays out.
//!
//! A block of a head is a row of pages of [`PAGE`] positions, keys and values apart, and a head is padded to [`width`] elements. A page of
//! keys has the same element of all positions side by side, so that one element of a query meets sixteen keys at once; a page of values has
//! the elements of a position side by side. In bf16 and int8, two neighbours on the other axis share a word: elements 2d and 2d + 1
//! of a key, positions 2t and 2t + 1 of a value. One load then gives two vectors of f32.
//!
//! In int8, a key and a value each have a scale of their own, an f32: those of all positions of a block lie behind its codes. A score is the
//! product of a query with codes, times the key's scale; a weight is multiplied by the value's scale before it meets the codes.

use holdfast_model::nested::{CODE_MAX, rounded};

use super::lanes::Lanes;
use crate::kernels::LANES;
use crate::kernels::quantise::LEAST;

/// Positions of a page.
pub(crate) const PAGE: usize = LANES;

/// Stored elements of a head: `head_dim`, rounded up to a multiple of 16.
pub const fn width(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// What keys and values are stored in.
pub(crate) trait Element: Copy {
    /// Neighbours on the other axis that share a word.
    const SHARED: usize;

    /// Whether rows have scales.
    const SCALED: bool = false;

    /// The scale of a row of one position.
    fn scale(_row: &[f32]) -> f32 {
        1.0
    }

    /// The nearest stored value of a row with this scale, ties to even.
    fn of(value: f32, scale: f32) -> Self;
    /// What a stored value stands for, but for its scale.
    #[cfg(test)]
    fn value(self) -> f32;

    /// Where element `dim` of the key of position `slot` of a block lies.
    #[inline(always)]
    fn key_at(head_dim: usize, slot: usize, dim: usize) -> usize {
        let page = slot / PAGE * PAGE * width(head_dim);
        page + dim / Self::SHARED * Self::SHARED * PAGE + slot % PAGE * Self::SHARED + dim % Self::SHARED
    }

    /// Where element `dim` of the value of position `slot` of a block lies.
    #[inline(always)]
    fn value_at(head_dim: usize, slot: usize, dim: usize) -> usize {
        slot / Self::SHARED * Self::SHARED * width(head_dim) + dim * Self::SHARED + slot % Self::SHARED
    }

    /// The vectors of sixteen at rows 2i and 2i + 1 of a page, where `at` is the place of the first and rows are `stride` apart.
    ///
    /// # Safety
    /// Both rows lie inside one allocation.
    unsafe fn two_rows<L: Lanes>(at: *const Self, stride: usize) -> (L, L);
    /// Asks for the cache lines of what [`Element::two_rows`] loads.
    fn prefetch<L: Lanes>(at: *const Self, stride: usize);
}

impl Element for f32 {
    const SHARED: usize = 1;

    #[inline(always)]
    fn of(value: f32, _scale: f32) -> Self {
        value
    }

    #[cfg(test)]
    fn value(self) -> f32 {
        self
    }

    #[inline(always)]
    unsafe fn two_rows<L: Lanes>(at: *const Self, stride: usize) -> (L, L) {
        // SAFETY: by the caller's promise.
        unsafe { (L::load(at), L::load(at.add(stride))) }
    }

    #[inline(always)]
    fn prefetch<L: Lanes>(at: *const Self, stride: usize) {
        L::prefetch(at.cast());
        L::prefetch(at.wrapping_add(stride).cast());
    }
}

/// bf16, the upper half of an f32, as its bits.
impl Element for u16 {
    const SHARED: usize = 2;

    #[inline(always)]
    fn of(value: f32, _scale: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        // A rounded NaN could become an infinity or a zero.
        if value.is_nan() { (bits >> 16 | 0x40) as u16 } else { rounded as u16 }
    }

    #[cfg(test)]
    fn value(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }

    #[inline(always)]
    unsafe fn two_rows<L: Lanes>(at: *const Self, _: usize) -> (L, L) {
        // SAFETY: by the caller's promise.
        unsafe { L::load_bf16_pairs(at) }
    }

    #[inline(always)]
    fn prefetch<L: Lanes>(at: *const Self, _: usize) {
        L::prefetch(at.cast());
    }
}

/// int8 under a scale: codes of -127..=127.
impl Element for i8 {
    const SHARED: usize = 2;
    const SCALED: bool = true;

    #[inline(always)]
    fn scale(row: &[f32]) -> f32 {
        // Sizes are ordered as their bits are; what is no number makes the scale none.
        let most = row.iter().fold(0u32, |most, value| most.max(value.to_bits() & 0x7fff_ffff));
        f32::from_bits(most) / CODE_MAX
    }

    #[inline(always)]
    fn of(value: f32, scale: f32) -> Self {
        /// Rows whose largest size is not above it are zeros: the inverse of their scale may not be a number.
        const SCALE_MIN: f32 = LEAST / CODE_MAX;
        if scale > SCALE_MIN { rounded((value / scale).clamp(-CODE_MAX, CODE_MAX)) } else { 0 }
    }

    #[cfg(test)]
    fn value(self) -> f32 {
        f32::from(self)
    }

    #[inline(always)]
    unsafe fn two_rows<L: Lanes>(at: *const Self, _: usize) -> (L, L) {
        // SAFETY: by the caller's promise.
        unsafe { L::load_i8_pairs(at) }
    }

    #[inline(always)]
    fn prefetch<L: Lanes>(at: *const Self, _: usize) {
        L::prefetch(at.cast());
    }
}

/// Bytes of a scale.
pub(crate) const SCALE: usize = size_of::<f32>();

/// Elements that a head's keys, or values, take in a block, and its scales if it has any.
pub(crate) fn part<E: Element>(head_dim: usize, block_tokens: usize) -> usize {
    let scale = if E::SCALED { SCALE / size_of::<E>() } else { 0 };
    (width(head_dim) + scale) * block_tokens
}

/// Where the scale of position `slot` lies in such a part.
#[inline(always)]
pub(crate) fn scale_at(head_dim: usize, block_tokens: usize, slot: usize) -> usize {
    width(head_dim) * block_tokens + slot * SCALE
}

/// Elements of a pool of blocks.
#[derive(Debug, Clone, Copy)]
pub enum Elements<'a> {
    /// As computed.
    F32(&'a [f32]),
    /// Rounded to bf16.
    Bf16(&'a [u16]),
    /// int8 with a scale for each position.
    Int8(&'a [i8]),
}

/// One layer and KV head inside a pool of blocks.
#[derive(Debug, Clone, Copy)]
pub struct PagedHead<'a> {
    /// The pool.
    pub pool: Elements<'a>,
    /// Elements between two blocks.
    pub block_stride: usize,
    /// Where the keys of this layer and head begin in a block.
    pub keys_at: usize,
    /// Where the values begin.
    pub values_at: usize,
    /// Positions of a block: a multiple of 16.
    pub block_tokens: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Block of each entry.
    pub table: &'a [u32],
}

/// Keys and values of [`PAGE`] positions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page<E> {
    pub(super) keys: *const E,
    pub(super) values: *const E,
    /// Of its positions, where elements have scales.
    pub(super) key_scales: *const u8,
    pub(super) value_scales: *const u8,
}

/// The scales of a page.
///
/// # Safety
/// [`PAGE`] of them can be read at `at`.
#[inline(always)]
pub(super) unsafe fn scales<L: Lanes>(at: *const u8) -> L {
    // SAFETY: by the caller's promise; an array of sixteen can be loaded.
    unsafe {
        let scales: [f32; PAGE] = at.cast::<[f32; PAGE]>().read_unaligned();
        L::load(scales.as_ptr())
    }
}

impl PagedHead<'_> {
    /// The page that holds `position`, in `pool`; all parts lie inside it.
    #[inline(always)]
    pub(super) fn page<E: Element>(&self, pool: &[E], position: usize) -> Page<E> {
        let size = PAGE * width(self.head_dim);
        let block = self.table[position / self.block_tokens] as usize * self.block_stride;
        let number = position % self.block_tokens / PAGE;
        let part = |at: usize| pool[block + at + number * size..][..size].as_ptr();
        let scales = |at: usize| {
            let first = block + at + scale_at(self.head_dim, self.block_tokens, number * PAGE);
            if E::SCALED { pool[first..][..PAGE * SCALE].as_ptr().cast() } else { std::ptr::null() }
        };
        Page {
            keys: part(self.keys_at),
            values: part(self.values_at),
            key_scales: scales(self.keys_at),
            value_scales: scales(self.values_at),
        }
    }
}
