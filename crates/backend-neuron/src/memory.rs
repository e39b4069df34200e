//! Memory for weights, taken from the system in large pieces that it may back with large pages: a step reads all of it in order, and
//! with pages of 4 KiB it waits for their addresses.
//!
//! In: how many numbers. Out: [`Plane`], zero until written. Deliberately not here: what they mean.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};

use crate::NeuronError;
use crate::kernels::matmul::Bf16;

/// Bytes of a piece, unless one plane is larger.
const PIECE: usize = 64 << 20;
/// Planes begin at multiples of it: a cache line and a vector register.
const ALIGNMENT: usize = 64;

/// Hands out planes, side by side.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// The piece that is being handed out, and how much of it is gone.
    piece: Option<(Arc<MmapRaw>, usize)>,
}

/// Numbers that any bytes may stand for, zeros for zero.
pub(crate) trait Number: Copy + Send + Sync {}
impl Number for u8 {}
impl Number for u16 {}
impl Number for Bf16 {}

/// Numbers in memory of their own.
pub(crate) struct Plane<T> {
    start: *mut T,
    len: usize,
    /// Keeps the memory; nobody else has this part of it.
    _piece: Arc<MmapRaw>,
}

// SAFETY: a plane is the only way to its part of the memory, as a `Box<[T]>` is.
unsafe impl<T: Number> Send for Plane<T> {}
// SAFETY: as above.
unsafe impl<T: Number> Sync for Plane<T> {}

impl Memory {
    /// A plane of zeros.
    pub(crate) fn zeros<T: Number>(&mut self, len: usize) -> Result<Plane<T>, NeuronError> {
        let bytes = (len * size_of::<T>()).next_multiple_of(ALIGNMENT);
        let (piece, used) = match &mut self.piece {
            Some((piece, used)) if piece.len() - *used >= bytes => (piece, used),
            other => {
                let (piece, used) = other.insert((Arc::new(map(bytes.max(PIECE))?), 0));
                (piece, used)
            }
        };
        let start = piece.as_mut_ptr().wrapping_add(*used).cast();
        *used += bytes;
        Ok(Plane { start, len, _piece: Arc::clone(piece) })
    }
}

fn map(bytes: usize) -> Result<MmapRaw, NeuronError> {
    let piece = MmapOptions::new().len(bytes).map_anon().map_err(NeuronError::Memory)?;
    #[cfg(target_os = "linux")]
    if let Err(error) = piece.advise(memmap2::Advice::HugePage) {
        tracing::debug!(%error, "weights lie in small pages");
    }
    Ok(piece.into())
}

impl<T: Number> Deref for Plane<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `Memory::zeros` made room for `len` numbers at an aligned start, any bytes are numbers, and only this plane reaches them.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl<T: Number> DerefMut for Plane<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl<T: Number> fmt::Debug for Plane<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} numbers", self.len)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn planes_are_apart_and_zero() {
        let mut memory = Memory::default();
        let mut planes: Vec<Plane<u16>> =
            [3, 0, 100, PIECE, 5].into_iter().map(|len| memory.zeros(len).unwrap()).collect();
        for (number, plane) in planes.iter_mut().enumerate() {
            assert!(plane.iter().all(|value| *value == 0));
            assert_eq!(plane.as_ptr() as usize % ALIGNMENT, 0);
            plane.fill(number as u16 + 1);
        }
        drop(memory);
        for (number, plane) in planes.iter().enumerate() {
            assert!(plane.iter().all(|value| *value == number as u16 + 1));
        }
    }
}
