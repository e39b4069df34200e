//! Which programs exist, and which of them a step runs.
//!
//! In: lists of sizes for each axis, the time of each bucket, the sequences of a step. Out: the lattice of [`Bucket`]s; for a step,
//! [`BucketRun`]s that hold every row exactly once. Deliberately not here: what a program is.
//!
//! A step's sequences are sorted by rows and context and cut into consecutive runs: the cheapest such cut whose runs have as
//! many sequences as a batch of the lattice, or are the last. So a step that one bucket holds is never split into dearer
//! ones, and a decode batch does not pay for a prefill chunk beside it. A sequence with more rows than the largest query is cut
//! into pieces of that size first.

use std::collections::BTreeMap;
use std::fmt;

use super::ProgramError;

/// Most numbers of a list.
const SIZES_MAX: usize = 16;
/// Most rows of one program: beyond it a batch of queries is run in parts.
const ROWS_MAX: u32 = 8_192;
/// Least context of the default lattice.
const CONTEXT_LEAST: u32 = 512;

/// A static shape: one program each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket {
    /// Sequences.
    pub batch: u32,
    /// Rows of each.
    pub query: u32,
    /// Tokens that each may see, its own rows included.
    pub context: u32,
}

impl Bucket {
    /// Rows of all sequences.
    pub fn rows(self) -> u32 {
        self.batch * self.query
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.batch, self.query, self.context)
    }
}

/// Sizes of the lattice; every combination of at most 8,192 rows is a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    /// Sequences.
    pub batch: Vec<u32>,
    /// Rows of each: 1 is decode, the others are segments of prefill.
    pub query: Vec<u32>,
    /// Tokens of each; empty is 512 and its doubles up to the device's context.
    pub context: Vec<u32>,
}

impl Default for Buckets {
    fn default() -> Self {
        Self {
            batch: vec![1, 2, 4, 8, 16, 32, 64],
            query: vec![1, 16, 64, 256, 512, 1_024, 2_048],
            context: Vec::new(),
        }
    }
}

impl Buckets {
    /// Every bucket, for a device whose sequences reach `context` tokens.
    ///
    /// # Errors
    /// [`ProgramError::Buckets`] and [`ProgramError::Context`].
    pub fn lattice(&self, context: u32) -> Result<Vec<Bucket>, ProgramError> {
        let contexts = match self.context.as_slice() {
            [] => doubles(context),
            given => given.to_vec(),
        };
        for (axis, sizes, most) in
            [("batch", &self.batch, ROWS_MAX), ("query", &self.query, ROWS_MAX), ("context", &contexts, 1 << 24)]
        {
            let rises = sizes.windows(2).all(|pair| pair[0] < pair[1]);
            let begins = sizes.first().is_some_and(|first| *first >= 1) && (axis == "context" || sizes[0] == 1);
            if !rises || !begins || sizes.len() > SIZES_MAX || sizes.last().is_some_and(|last| *last > most) {
                return Err(ProgramError::Buckets { axis, most, count: SIZES_MAX });
            }
        }
        let largest = contexts.last().copied().unwrap_or(0);
        if largest < context {
            return Err(ProgramError::Context { largest, context });
        }
        let mut all = Vec::new();
        for batch in &self.batch {
            for query in self.query.iter().filter(|query| u64::from(*batch) * u64::from(**query) <= ROWS_MAX.into()) {
                // A query longer than the context cannot come; the largest context holds what is left of it.
                let fits = contexts.iter().filter(|context| *context >= query || **context == largest);
                all.extend(fits.map(|context| Bucket { batch: *batch, query: *query, context: *context }));
            }
        }
        Ok(all)
    }
}

/// 512 and its doubles below `context`, and `context`.
fn doubles(context: u32) -> Vec<u32> {
    let below =
        std::iter::successors(Some(CONTEXT_LEAST), |size| size.checked_mul(2)).take_while(|size| *size < context);
    below.chain([context.max(1)]).collect()
}

/// What a sequence brings to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Rows, at least 1.
    pub rows: u32,
    /// Tokens that the last of them sees, itself included; at least `rows`.
    pub context: u32,
}

impl Span {
    /// (Row, key) pairs that attention needs.
    pub fn pairs(self, window: Option<u32>) -> u64 {
        let window = u64::from(window.unwrap_or(u32::MAX));
        let (last, rows) = (u64::from(self.context), u64::from(self.rows));
        let first = last - rows + 1;
        // Rows that see fewer keys than the window: their counts rise by one.
        let rising = (window.min(last + 1).max(first) - first).min(rows);
        (first + first + rising).saturating_sub(1) * rising / 2 + (rows - rising) * window
    }
}

/// One run of a bucket's program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketRun {
    /// Whose program.
    pub bucket: Bucket,
    /// What it holds: (sequence of the step, its rows in this run).
    pub pieces: Vec<(usize, Span)>,
}

/// The buckets with what each costs, so that the cheapest that holds a shape is one look-up.
#[derive(Debug)]
pub(crate) struct Lattice {
    batch: Vec<u32>,
    query: Vec<u32>,
    context: Vec<u32>,
    /// `[batch][query][context]`: the cheapest bucket that holds the shape, and its cost.
    cheapest: Vec<Option<(f64, Bucket)>>,
}

impl Lattice {
    /// `costs` has the time of every bucket.
    pub(crate) fn new(costs: &BTreeMap<Bucket, f64>) -> Self {
        let axis = |of: fn(&Bucket) -> u32| {
            let mut sizes: Vec<u32> = costs.keys().map(of).collect();
            sizes.sort_unstable();
            sizes.dedup();
            sizes
        };
        let (batch, query, context) = (axis(|b| b.batch), axis(|b| b.query), axis(|b| b.context));
        let mut cheapest = Vec::with_capacity(batch.len() * query.len() * context.len());
        for b in &batch {
            for q in &query {
                for c in &context {
                    let holds = |(bucket, _): &(&Bucket, &f64)| {
                        bucket.batch >= *b && bucket.query >= *q && bucket.context >= *c
                    };
                    let best = costs.iter().filter(holds).min_by(|a, b| a.1.total_cmp(b.1));
                    cheapest.push(best.map(|(bucket, cost)| (*cost, *bucket)));
                }
            }
        }
        Self { batch, query, context, cheapest }
    }

    /// The cheapest bucket that holds `batch` sequences of at most `query` rows and `context` tokens.
    pub(crate) fn cheapest(&self, batch: u32, query: u32, context: u32) -> Option<(f64, Bucket)> {
        let at = |axis: &[u32], value: u32| axis.partition_point(|size| *size < value);
        let (b, q, c) = (at(&self.batch, batch), at(&self.query, query), at(&self.context, context));
        if b == self.batch.len() || q == self.query.len() || c == self.context.len() {
            return None;
        }
        self.cheapest[(b * self.query.len() + q) * self.context.len() + c]
    }

    /// The runs of a step. Empty for no sequences.
    ///
    /// Every sequence's context is at most the largest of the lattice: the device's limit.
    pub(crate) fn split(&self, spans: &[Span]) -> Vec<BucketRun> {
        let mut pieces = self.pieces(spans);
        pieces.sort_by_key(|(sequence, span)| (std::cmp::Reverse((span.rows, span.context)), *sequence));
        // best[i]: cost of the first i pieces, and where their last run begins.
        let mut best = vec![(f64::INFINITY, 0, None); pieces.len() + 1];
        best[0].0 = 0.0;
        for from in 0..pieces.len() {
            let left = pieces.len() - from;
            let mut context = 0;
            let mut sizes = self.batch.iter().map(|size| *size as usize).filter(|size| *size < left).chain([left]);
            let mut next = sizes.next();
            for count in 1..=left {
                context = context.max(pieces[from + count - 1].1.context);
                if next != Some(count) {
                    continue;
                }
                next = sizes.next();
                let Some((cost, bucket)) = self.cheapest(count as u32, pieces[from].1.rows, context) else { break };
                if best[from].0 + cost < best[from + count].0 {
                    best[from + count] = (best[from].0 + cost, from, Some(bucket));
                }
            }
        }
        let mut runs = Vec::new();
        let mut end = pieces.len();
        while let (_, from, Some(bucket)) = best[end] {
            runs.push(BucketRun { bucket, pieces: pieces[from..end].to_vec() });
            end = from;
        }
        runs.reverse();
        runs
    }

    /// Sequences, those with more rows than the largest query in pieces.
    fn pieces(&self, spans: &[Span]) -> Vec<(usize, Span)> {
        let most = self.query.last().copied().unwrap_or(1);
        let mut pieces = Vec::with_capacity(spans.len());
        for (sequence, span) in spans.iter().enumerate() {
            let mut left = span.rows;
            while left > 0 {
                let rows = left.min(most);
                left -= rows;
                pieces.push((sequence, Span { rows, context: span.context - left }));
            }
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn lattice(random: &mut fastrand::Rng) -> (Lattice, BTreeMap<Bucket, f64>) {
        let buckets = Buckets { batch: vec![1, 2, 4], query: vec![1, 8, 32], context: vec![64, 128, 512] };
        let all = buckets.lattice(512).unwrap();
        // Costs without any order: a larger bucket may be cheaper.
        let costs: BTreeMap<Bucket, f64> = all.into_iter().map(|bucket| (bucket, 1.0 + random.f64())).collect();
        (Lattice::new(&costs), costs)
    }

    fn spans(random: &mut fastrand::Rng, most: usize) -> Vec<Span> {
        let span = |random: &mut fastrand::Rng| {
            let rows = if random.bool() { 1 } else { random.u32(1..=100) };
            Span { rows, context: random.u32(rows..=512) }
        };
        (0..random.usize(0..=most)).map(|_| span(random)).collect()
    }

    #[test]
    fn the_bucket_of_a_shape_is_the_cheapest_that_holds_it() {
        let random = &mut fastrand::Rng::with_seed(1);
        for _ in 0..50 {
            let (lattice, costs) = lattice(random);
            let (b, q, c) = (random.u32(1..=5), random.u32(1..=40), random.u32(1..=600));
            let holds = |bucket: &Bucket| bucket.batch >= b && bucket.query >= q && bucket.context >= c;
            let all = costs.iter().filter(|(bucket, _)| holds(bucket));
            let want = all.map(|(_, cost)| *cost).min_by(f64::total_cmp);
            assert_eq!(lattice.cheapest(b, q, c).map(|(cost, _)| cost), want, "{b} {q} {c}");
        }
    }

    #[test]
    fn a_split_covers_every_row_exactly_once_and_every_run_holds_its_pieces() {
        let random = &mut fastrand::Rng::with_seed(2);
        for _ in 0..200 {
            let (lattice, _) = lattice(random);
            let spans = spans(random, 12);
            let mut seen: Vec<Vec<u32>> = spans.iter().map(|_| Vec::new()).collect();
            for run in lattice.split(&spans) {
                assert!(run.pieces.len() <= run.bucket.batch as usize);
                for (sequence, piece) in run.pieces {
                    assert!(piece.rows <= run.bucket.query && piece.context <= run.bucket.context);
                    seen[sequence].extend(piece.context - piece.rows..piece.context);
                }
            }
            for (span, mut positions) in spans.iter().zip(seen) {
                positions.sort_unstable();
                assert_eq!(positions, (span.context - span.rows..span.context).collect::<Vec<_>>());
            }
        }
    }

    /// The least cost over every cut of the sorted pieces into consecutive runs of the allowed sizes.
    fn brute(lattice: &Lattice, pieces: &[(usize, Span)]) -> f64 {
        if pieces.is_empty() {
            return 0.0;
        }
        let sizes = (1..=pieces.len()).filter(|n| *n == pieces.len() || lattice.batch.contains(&(*n as u32)));
        let cost = |n: usize| {
            let query = pieces[..n].iter().map(|(_, span)| span.rows).max()?;
            let context = pieces[..n].iter().map(|(_, span)| span.context).max()?;
            Some(lattice.cheapest(n as u32, query, context)?.0 + brute(lattice, &pieces[n..]))
        };
        sizes.filter_map(cost).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn a_split_is_the_cheapest_cut_and_never_dearer_than_one_bucket() {
        let random = &mut fastrand::Rng::with_seed(3);
        for _ in 0..100 {
            let (lattice, costs) = lattice(random);
            let spans = spans(random, 6);
            let runs = lattice.split(&spans);
            let cost: f64 = runs.iter().map(|run| costs[&run.bucket]).sum();
            let mut pieces = lattice.pieces(&spans);
            pieces.sort_by_key(|(sequence, span)| (std::cmp::Reverse((span.rows, span.context)), *sequence));
            assert!((cost - brute(&lattice, &pieces)).abs() < 1e-9);
            let query = spans.iter().map(|span| span.rows).max().unwrap_or(0);
            let context = spans.iter().map(|span| span.context).max().unwrap_or(0);
            if let Some((one, _)) = lattice.cheapest(spans.len() as u32, query, context) {
                assert!(cost <= one + 1e-9);
            }
        }
    }

    #[test]
    fn pairs_are_counted_as_a_loop_would() {
        for window in [None, Some(1), Some(7), Some(40), Some(1_000)] {
            for context in [1_u32, 2, 7, 8, 39, 40, 41, 90] {
                for rows in 1..=context {
                    let want: u32 = (context - rows..context).map(|at| (at + 1).min(window.unwrap_or(u32::MAX))).sum();
                    assert_eq!(Span { rows, context }.pairs(window), u64::from(want), "{window:?} {context} {rows}");
                }
            }
        }
    }

    #[test]
    fn lists_that_cannot_be_meant_are_refused_by_axis() {
        let with = |change: fn(&mut Buckets)| {
            let mut buckets = Buckets::default();
            change(&mut buckets);
            buckets.lattice(4_096).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(with(|_| {}), "");
        assert!(with(|b| b.batch = vec![]).contains("batch"));
        assert!(with(|b| b.batch = vec![2, 4]).contains("batch"));
        assert!(with(|b| b.query = vec![1, 64, 64]).contains("query"));
        assert!(with(|b| b.query = vec![1, 16_384]).contains("query"));
        assert!(with(|b| b.context = vec![512, 2_048]).contains("the largest context is 2048"));
        assert_eq!(doubles(4_096), [512, 1_024, 2_048, 4_096]);
        assert_eq!(doubles(5_000), [512, 1_024, 2_048, 4_096, 5_000]);
        assert_eq!(doubles(300), [300]);
    }
}
