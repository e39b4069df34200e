//! A fixed set of threads, and work dealt to them by number.
//!
//! In: a count of items and a function of an item. Out: the function was called once for each. Deliberately not here: stealing
//! or any other choice that could depend on timing; which thread takes an item is fixed, and does not matter to the result.

use crate::NeuronError;

/// Multiply-adds below which waking another thread costs more than it gives (about ten microseconds of one core).
const WORK_MIN: usize = 150_000;

#[derive(Debug)]
pub(crate) struct Pool {
    /// `None` when the calling thread is the only one.
    helpers: Option<rayon::ThreadPool>,
    threads: usize,
}

impl Pool {
    /// `threads` threads, the caller's among them.
    pub(crate) fn new(threads: usize, ordinal: u32) -> Result<Self, NeuronError> {
        let helpers = match threads {
            0 | 1 => None,
            _ => Some(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(threads - 1)
                    .thread_name(move |index| format!("neuron{ordinal}-{}", index + 1))
                    .build()?,
            ),
        };
        Ok(Self { helpers, threads: threads.max(1) })
    }

    /// Threads that compute, the caller's among them.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `f` for every item below `items`; item i runs on thread i modulo their number. `work` is the whole's
    /// multiply-adds: little work stays on the calling thread.
    pub(crate) fn run(&self, items: usize, work: usize, f: impl Fn(usize) + Sync) {
        let parts = self.threads.min(items).min(work / WORK_MIN + 1);
        let deal = |part: usize| (part..items).step_by(parts).for_each(&f);
        match &self.helpers {
            Some(helpers) if parts > 1 => helpers.in_place_scope(|scope| {
                for part in 1..parts {
                    let deal = &deal;
                    scope.spawn(move |_| deal(part));
                }
                deal(0);
            }),
            _ => (0..items).for_each(&f),
        }
    }
}

/// A slice that threads write disjoint pieces of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pieces<'a> {
    start: *mut f32,
    len: usize,
    slice: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a `&mut [f32]` dealt out in pieces; `piece` demands that pieces of different threads are disjoint, and f32
// may be sent and shared.
unsafe impl Send for Pieces<'_> {}
// SAFETY: as above.
unsafe impl Sync for Pieces<'_> {}

impl<'a> Pieces<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: std::marker::PhantomData }
    }

    /// Elements `at..at + len`.
    ///
    /// # Safety
    /// While the piece lives, no other piece overlaps it.
    #[expect(clippy::mut_from_ref, reason = "the point of the type; see its safety rule")]
    pub(crate) unsafe fn piece(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at <= self.len && len <= self.len - at, "a piece lies inside its slice");
        // SAFETY: inside the slice by the assertion; disjoint from every other piece by the caller's promise; the
        // slice is borrowed mutably for 'a, so nobody else reaches it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_item_runs_once_on_any_number_of_threads() {
        for threads in [1, 2, 3, 5] {
            let pool = Pool::new(threads, 0).unwrap();
            for items in [0, 1, 2, 7, 100] {
                let mut seen = vec![0.0; items];
                let pieces = Pieces::new(&mut seen);
                pool.run(items, usize::MAX / 2, |item| {
                    // SAFETY: every item has its own element.
                    let own = unsafe { pieces.piece(item, 1) };
                    own[0] += 1.0 + item as f32;
                });
                assert!(seen.iter().enumerate().all(|(item, got)| *got == 1.0 + item as f32));
            }
        }
    }
}
