//! A fixed set of threads, and work dealt to them as they come free.
//!
//! In: a count of items and a function of an item. Out: the function was called once for each. Deliberately not here: anything that
//! could make a result depend on timing: which thread takes an item is open, so items write places of their own.
//!
//! A *region* is one call of [`Pool::run`]. The caller publishes it and takes items itself; helpers that are awake join and take items by a
//! shared counter until none is left. A helper that is asleep, or that the system runs something else on, is never waited for: only items
//! that were taken are. Between regions a helper looks for the next one for [`SPIN`] and then sleeps, so that an idle device costs nothing;
//! whoever waits for the last items of others sleeps as well, and looks again now and then, which lets the system run them in its place.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::NeuronError;

/// Multiply-adds below which waking another thread costs more than it gives (some microseconds of one core).
const WORK_MIN: usize = 150_000;
/// How long a thread looks for what it waits for before it sleeps: longer than what lies between two regions of a step, short beside
/// a scheduler's slice.
const SPIN: Duration = Duration::from_micros(50);
/// Looks between two readings of the clock.
const LOOKS: usize = 64;
/// How long a thread sleeps at most that waits for others inside of a region. When it falls asleep, its core is free, and the system may bring
/// it a thread that another process has displaced; but not one that ran less than half a millisecond ago, so that it has to be offered
/// again.
const NAP: Duration = Duration::from_micros(200);

#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// A region is open: one that is opened inside of it, or beside it, runs on its own thread alone.
    busy: AtomicBool,
}

/// What caller and helpers share.
#[derive(Debug, Default)]
struct Shared {
    /// Counts regions; 0 before the first.
    region: AtomicU64,
    /// The region that may be joined; 0 while there is none.
    open: AtomicU64,
    /// Helpers that are inside of a region, or look whether they still may join one.
    joined: AtomicUsize,
    /// The next item to take.
    next: Next,
    job: Job,
    /// Helpers that sleep, or are about to.
    asleep: AtomicUsize,
    /// The caller sleeps, or is about to.
    caller_asleep: AtomicBool,
    ended: AtomicBool,
    /// Guards no data: who is about to sleep looks once more while holding it.
    door: Mutex<()>,
    helpers_door: Condvar,
    caller_door: Condvar,
    /// What the first helper panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// The counter by itself on its cache line: every thread writes it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Next(AtomicUsize);

/// The function and the count of items of the open region.
#[derive(Debug, Default)]
struct Job(UnsafeCell<Option<Call>>);

#[derive(Clone, Copy)]
struct Call {
    f: *const (dyn Fn(usize) + Sync),
    items: usize,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} items", self.items)
    }
}

// SAFETY: the caller writes it while no region is open and no helper has joined; helpers read it after they joined and saw the region
// open. What it points to is `Sync` and lives until the region is closed and everyone has left.
unsafe impl Sync for Job {}
// SAFETY: as above.
unsafe impl Send for Job {}

impl Pool {
    /// `threads` threads, the caller's among them.
    pub(crate) fn new(threads: usize, ordinal: u32) -> Result<Self, NeuronError> {
        let mut pool = Self { shared: Arc::default(), helpers: Vec::new(), busy: AtomicBool::new(false) };
        for number in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let named = std::thread::Builder::new().name(format!("neuron{ordinal}-{number}"));
            pool.helpers.push(named.spawn(move || shared.help())?);
        }
        Ok(pool)
    }

    /// Threads that compute, the caller's among them.
    pub(crate) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `f` for every item below `items`. `work` is the whole's multiply-adds: little work stays on the calling thread.
    ///
    /// # Panics
    /// When `f` does, after every item that was taken has ended.
    pub(crate) fn run(&self, items: usize, work: usize, f: impl Fn(usize) + Sync) {
        let alone = self.helpers.is_empty() || items < 2 || work < 2 * WORK_MIN;
        if alone || self.busy.swap(true, SeqCst) {
            (0..items).for_each(f);
            return;
        }
        let f: &(dyn Fn(usize) + Sync) = &f;
        // SAFETY: only the lifetime changes; the region below ends before `f` does, because its guard waits on every way out.
        let f: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(f) };
        let region = Region { pool: self };
        region.open(Call { f, items });
        self.shared.take(Call { f, items });
        drop(region);
        if let Some(panic) = lock(&self.shared.panic).take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.ended.store(true, SeqCst);
        drop(lock(&self.shared.door));
        self.shared.helpers_door.notify_all();
        for helper in self.helpers.drain(..) {
            // It has caught every panic of an item.
            let _ = helper.join();
        }
    }
}

/// An open region; closed, and left by everyone, when it is dropped.
struct Region<'a> {
    pool: &'a Pool,
}

impl Region<'_> {
    fn open(&self, call: Call) {
        let shared = &self.pool.shared;
        // SAFETY: `busy` keeps other callers out; the region before was closed and left by all, and none is open.
        unsafe { *shared.job.0.get() = Some(call) };
        shared.next.0.store(0, SeqCst);
        let number = shared.region.load(SeqCst) + 1;
        shared.open.store(number, SeqCst);
        shared.region.store(number, SeqCst);
        if shared.asleep.load(SeqCst) > 0 {
            drop(lock(&shared.door));
            shared.helpers_door.notify_all();
        }
    }
}

impl Drop for Region<'_> {
    fn drop(&mut self) {
        let shared = &self.pool.shared;
        shared.open.store(0, SeqCst);
        let left = || shared.joined.load(SeqCst) == 0;
        if !spin(left) {
            shared.caller_asleep.store(true, SeqCst);
            let mut door = lock(&shared.door);
            while !left() {
                door = nap(&shared.caller_door, door);
            }
            shared.caller_asleep.store(false, SeqCst);
        }
        if std::thread::panicking() {
            // The caller's own panic is the one that is told.
            lock(&shared.panic).take();
        }
        self.pool.busy.store(false, SeqCst);
    }
}

impl Shared {
    /// The life of a helper.
    fn help(&self) {
        let mut seen = 0;
        while !self.ended.load(SeqCst) {
            let begun = || self.region.load(SeqCst) != seen || self.ended.load(SeqCst);
            if !spin(begun) {
                self.asleep.fetch_add(1, SeqCst);
                let mut door = lock(&self.door);
                while !begun() {
                    // The caller has not left the region: it may be the one that was displaced.
                    let is_open = seen != 0 && self.open.load(SeqCst) == seen;
                    door = match is_open {
                        true => nap(&self.helpers_door, door),
                        false => self.helpers_door.wait(door).unwrap_or_else(PoisonError::into_inner),
                    };
                }
                self.asleep.fetch_sub(1, SeqCst);
            }
            seen = self.region.load(SeqCst);
            self.joined.fetch_add(1, SeqCst);
            if self.open.load(SeqCst) == seen && seen != 0 {
                // SAFETY: the region is open and this helper has joined: it is not overwritten before the helper leaves.
                let call = unsafe { *self.job.0.get() };
                let taken = catch_unwind(AssertUnwindSafe(|| call.into_iter().for_each(|call| self.take(call))));
                if let Err(panic) = taken {
                    lock(&self.panic).get_or_insert(panic);
                }
            }
            if self.joined.fetch_sub(1, SeqCst) == 1 && self.caller_asleep.load(SeqCst) {
                drop(lock(&self.door));
                self.caller_door.notify_one();
            }
        }
    }

    /// Takes items until none is left.
    fn take(&self, call: Call) {
        // SAFETY: whoever calls holds the region open, and it outlives what it points to.
        let f = unsafe { &*call.f };
        loop {
            let item = self.next.0.fetch_add(1, SeqCst);
            if item >= call.items {
                return;
            }
            f(item);
        }
    }
}

/// Looks for [`SPIN`] whether something is so.
#[expect(clippy::disallowed_methods, reason = "how long a thread stays awake decides nothing else")]
pub(crate) fn spin(mut is_so: impl FnMut() -> bool) -> bool {
    let mut begun = None;
    loop {
        for _ in 0..LOOKS {
            if is_so() {
                return true;
            }
            std::hint::spin_loop();
        }
        let now = Instant::now();
        if now - *begun.get_or_insert(now) > SPIN {
            return false;
        }
    }
}

/// Sleeps for [`NAP`] or until it is woken.
fn nap<'a>(bell: &Condvar, door: MutexGuard<'a, ()>) -> MutexGuard<'a, ()> {
    bell.wait_timeout(door, NAP).unwrap_or_else(PoisonError::into_inner).0
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A slice that threads write disjoint pieces of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pieces<'a, T = f32> {
    start: *mut T,
    len: usize,
    slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` dealt out in pieces; `piece` demands that pieces of different threads are disjoint.
unsafe impl<T: Send> Send for Pieces<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Pieces<'_, T> {}

impl<'a, T> Pieces<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: std::marker::PhantomData }
    }

    /// Elements `at..at + len`.
    ///
    /// # Safety
    /// While the piece lives, no other piece overlaps it.
    #[expect(clippy::mut_from_ref, reason = "the point of the type; see its safety rule")]
    pub(crate) unsafe fn piece(&self, at: usize, len: usize) -> &mut [T] {
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
            assert_eq!(pool.helpers.len() + 1, threads);
            for items in [0, 1, 2, 7, 100].repeat(50) {
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

    #[test]
    fn regions_inside_of_regions_run_too() {
        let pool = Pool::new(3, 0).unwrap();
        let count = AtomicUsize::new(0);
        pool.run(5, usize::MAX, |_| {
            pool.run(7, usize::MAX, |_| {
                count.fetch_add(1, SeqCst);
            });
        });
        assert_eq!(count.into_inner(), 35);
    }

    #[test]
    fn a_panic_of_an_item_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(2, 0).unwrap();
        for bad in [0, 1, 17] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(18, usize::MAX, |item| assert!(item != bad, "item {bad}"));
            }));
            let text = result.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(*text, format!("item {bad}"));
        }
        let count = AtomicUsize::new(0);
        pool.run(10, usize::MAX, |_| {
            count.fetch_add(1, SeqCst);
        });
        assert_eq!(count.into_inner(), 10);
    }

    #[test]
    fn helpers_wake_up_again() {
        let pool = Pool::new(2, 0).unwrap();
        for _ in 0..5 {
            // Both items are only done if two threads are there at the same time: whoever takes one waits for the other.
            let met = AtomicUsize::new(0);
            pool.run(2, usize::MAX, |_| {
                met.fetch_add(1, SeqCst);
                while met.load(SeqCst) < 2 {
                    std::thread::yield_now();
                }
            });
            std::thread::sleep(4 * SPIN);
        }
    }
}
