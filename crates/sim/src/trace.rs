//! What a simulated world did: the last actions in words, and a digest over all of them.
//!
//! In: one line per action. Out: the tail for a person who replays a seed, the digest for the test that a seed is a seed.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};

/// Actions that a failure shows.
const TAIL: usize = 40;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    tail: VecDeque<String>,
    count: u64,
    hasher: DefaultHasher,
}

impl Trace {
    /// Notes an action.
    pub fn note(&mut self, line: String) {
        self.count += 1;
        self.hasher.write(line.as_bytes());
        self.hasher.write_u8(b'\n');
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    /// Actions so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Digest over all lines so far; equal for equal runs of one build.
    pub fn digest(&self) -> u64 {
        self.hasher.finish()
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.count - self.tail.len() as u64 + 1;
        (first..).zip(&self.tail).try_for_each(|(number, line)| writeln!(f, "{number:>6}  {line}"))
    }
}
