//! Which jobs run how many rows in one step. A pure function of the candidates and the budget.
//!
//! In: what each running job could compute, the budget in rows, sequences and predicted microseconds. Out: rows per job.
//! Deliberately not here: blocks (`plan.rs` finds them, and preempts when there are too few).
//!
//! 1. Jobs that are one row short of their end (decodes) go first: they are cheap, and somebody is reading along.
//! 2. Prefill fills the rest; one row, one sequence and [`MIN_PREFILL_ROWS`] of time are kept for it, so that at least one prefill
//!    makes progress in each step. Where a step holds only one sequence or one row, the two kinds share one queue.
//! 3. Within a kind: the flow served least, then whose last turn is longest ago (decodes), then who came first.

use crate::JobId;

/// Rows of prefill that run even when the time budget is spent: less would not pay for the step's fixed cost.
const MIN_PREFILL_ROWS: u32 = 16;

/// What steps cost on this device, as measured so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    /// A step's cost without any row, microseconds.
    pub step_us: f64,
    /// A row's cost, microseconds.
    pub row_us: f64,
}

impl Costs {
    /// Rows that fit into a step of `budget_us` microseconds.
    pub fn rows_within(&self, budget_us: u64) -> u32 {
        let rows = (budget_us as f64 - self.step_us) / self.row_us.max(f64::MIN_POSITIVE);
        rows.clamp(0.0, f64::from(u32::MAX)) as u32
    }
}

/// What a running job could do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) job: JobId,
    /// Rows to its end; at least 1.
    pub(crate) remaining: u32,
    /// Rows of one precision from here; at most `remaining`.
    pub(crate) uniform: u32,
    /// Service of its flow.
    pub(crate) served: u64,
    /// The last step that it ran in.
    pub(crate) last_step: u64,
    /// Its place in order of arrival.
    pub(crate) arrival: u64,
}

/// What one step may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    pub(crate) rows: u32,
    pub(crate) sequences: u32,
    /// Most rows of one prefill.
    pub(crate) chunk: u32,
    /// Rows that fit the time budget.
    pub(crate) timed_rows: u32,
}

/// Rows per job, at least 1 each, jobs in the order in which they were chosen.
pub(crate) fn choose(candidates: &[Candidate], budget: Budget) -> Vec<(JobId, u32)> {
    let (mut decodes, mut prefills): (Vec<&Candidate>, Vec<&Candidate>) =
        candidates.iter().partition(|candidate| candidate.remaining == 1);
    decodes.sort_by_key(|c| (c.served, c.last_step, c.arrival));
    prefills.sort_by_key(|c| (c.served, c.arrival));
    let both = !decodes.is_empty() && !prefills.is_empty();
    if both && budget.rows.min(budget.sequences) < 2 {
        let first = candidates.iter().min_by_key(|c| (c.served, c.last_step, c.arrival));
        return first.map(|c| (c.job, c.uniform.min(budget.rows).min(budget.chunk))).into_iter().collect();
    }
    let kept = u32::from(!prefills.is_empty());
    let places = budget.rows.min(budget.sequences) - kept;
    let mut chosen: Vec<(JobId, u32)> = decodes.iter().take(places as usize).map(|c| (c.job, 1)).collect();
    let decoded = chosen.len() as u32;
    let mut rows_left = budget.rows - decoded;
    let mut timed_left = budget.timed_rows.saturating_sub(decoded).max(MIN_PREFILL_ROWS);
    for candidate in prefills.into_iter().take((budget.sequences - decoded) as usize) {
        let rows = candidate.uniform.min(budget.chunk).min(rows_left).min(timed_left);
        if rows == 0 {
            break;
        }
        chosen.push((candidate.job, rows));
        rows_left -= rows;
        timed_left -= rows;
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(job: u64, remaining: u32, served: u64) -> Candidate {
        Candidate { job: JobId(job), remaining, uniform: remaining, served, last_step: 0, arrival: job }
    }

    const BUDGET: Budget = Budget { rows: 64, sequences: 8, chunk: 32, timed_rows: 1000 };

    fn rows(candidates: &[Candidate], budget: Budget) -> Vec<(u64, u32)> {
        choose(candidates, budget).into_iter().map(|(job, rows)| (job.0, rows)).collect()
    }

    #[test]
    fn decodes_go_first_and_prefill_fills_the_rest() {
        let jobs = [candidate(1, 100, 0), candidate(2, 1, 50), candidate(3, 40, 9), candidate(4, 1, 7)];
        assert_eq!(rows(&jobs, BUDGET), [(4, 1), (2, 1), (1, 32), (3, 30)]);
    }

    #[test]
    fn one_prefill_always_moves() {
        let mut jobs: Vec<Candidate> = (1..=9).map(|job| candidate(job, 1, 0)).collect();
        jobs.push(candidate(10, 100, 1_000_000));
        let chosen = rows(&jobs, BUDGET);
        assert_eq!(chosen.len(), 8);
        assert_eq!(chosen[7], (10, 32), "a place was kept");
        assert_eq!(rows(&jobs, Budget { timed_rows: 0, ..BUDGET })[7], (10, MIN_PREFILL_ROWS), "and some time");
    }

    #[test]
    fn time_bounds_prefill() {
        let jobs = [candidate(1, 1, 0), candidate(2, 100, 0), candidate(3, 100, 0)];
        assert_eq!(rows(&jobs, Budget { timed_rows: 41, ..BUDGET }), [(1, 1), (2, 32), (3, 8)]);
        assert_eq!(Costs { step_us: 100.0, row_us: 10.0 }.rows_within(500), 40);
        assert_eq!(Costs { step_us: 100.0, row_us: 0.0 }.rows_within(50), 0);
    }

    #[test]
    fn one_place_is_one_queue() {
        let jobs = [candidate(1, 1, 5), candidate(2, 100, 4)];
        assert_eq!(rows(&jobs, Budget { sequences: 1, ..BUDGET }), [(2, 32)]);
        assert_eq!(rows(&jobs, Budget { rows: 1, ..BUDGET }), [(2, 1)]);
    }

    #[test]
    fn decodes_that_do_not_fit_take_turns() {
        let mut jobs = [candidate(1, 1, 0), candidate(2, 1, 0), candidate(3, 1, 0)];
        jobs[0].last_step = 7;
        assert_eq!(rows(&jobs, Budget { rows: 2, ..BUDGET }), [(2, 1), (3, 1)]);
    }
}
