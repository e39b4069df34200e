//! A mixture of experts: which rows go to which, and the sum of what these make.
//!
//! In: normed rows on the card. Out: for each row, the sum over its experts of share times output, in the change. Deliberately not here: an expert itself, which
//! is a gated feed-forward like others (`forward`).
//!
//! The router's choice comes to the host, which launches only experts that were chosen, each once for all of its rows, by rising number. Products do not mix
//! rows, so that a row's bits do not depend on the others. Waiting for the choice costs a layer some microseconds.

use crate::card::{Card, CardError, Launch, launch};
use crate::decoder::Experts;
use crate::forward::{Forward, Rows, rows};
use crate::kernels::{FILL_VALUE, FillParams, Kernel, ROW_THREADS, RouteParams, RouterParams, ShareParams};
use crate::matrix::fill_of;
use crate::step::{Arranged, List, Precisions, push};

/// The rows of one expert.
#[derive(Debug, Clone, PartialEq)]
struct Routes {
    expert: usize,
    /// At 8 bits, then those at 4.
    rows: Vec<u32>,
    wide: usize,
    shares: Vec<f32>,
}

impl Forward {
    /// The mixture for every row of the step.
    pub(crate) fn experts(&self, card: &mut dyn Card, step: &Arranged, experts: &Experts) -> Result<(), CardError> {
        let (memory, sum, width) = self.mixture();
        let count = experts.experts.len() as u32;
        let blocks = (step.rows * count).div_ceil(ROW_THREADS);
        let params = RouterParams {
            values: memory.normed,
            router: experts.router,
            bias: experts.router_bias,
            logits: memory.logits,
            rows: step.rows,
            experts: count,
            width,
        };
        launch(card, Kernel::Router, Launch { grid: [blocks, 1, 1], shared_bytes: 0 }, &params)?;
        let routes = step.rows * experts.chosen;
        let shares = memory.routes.plus(u64::from(routes) * 4);
        let params = RouteParams {
            logits: memory.logits,
            chosen: memory.routes,
            shares,
            rows: step.rows,
            experts: count,
            count: experts.chosen,
        };
        let grid = [step.rows.div_ceil(ROW_THREADS), 1, 1];
        launch(card, Kernel::Route, Launch { grid, shared_bytes: 0 }, &params)?;
        let mut words = vec![0u32; 2 * routes as usize];
        card.download(memory.routes, bytemuck::cast_slice_mut(&mut words))?;
        let (chosen, shares) = words.split_at(routes as usize);
        let by_expert = by_expert(chosen, bytemuck::cast_slice(shares), experts.chosen as usize, &step.is_narrow);

        let mut bytes = Vec::new();
        let lists: Vec<(List, List)> =
            by_expert.iter().map(|routes| (push(&mut bytes, &routes.rows), push(&mut bytes, &routes.shares))).collect();
        card.upload(memory.lists, &bytes)?;
        // The change is the sum: it begins at zero.
        let words = u64::from(step.rows) * u64::from(width);
        let zeros = FillParams { words: sum, count: words, seed: 0, kind: FILL_VALUE, value: 0, scale: 0.0 };
        launch(card, Kernel::Fill, fill_of(words), &zeros)?;
        for (routes, (list, shares)) in by_expert.iter().zip(lists) {
            let wide = List { at: list.at, count: routes.wide as u32 };
            let narrow = List { at: list.at + 4 * routes.wide as u64, count: list.count - wide.count };
            let of = Rows {
                precisions: Precisions::Two { wide, narrow },
                lists: memory.lists,
                list: memory.lists.plus(list.at),
                count: list.count,
            };
            self.gated(card, step, &experts.experts[routes.expert], of, memory.made)?;
            let params =
                ShareParams { made: memory.made, rows: of.list, shares: memory.lists.plus(shares.at), sum, width };
            launch(card, Kernel::AddShares, rows(list.count, 0), &params)?;
        }
        Ok(())
    }
}

/// Turns the choice of each row (`[rows][of_row]`) into the rows of each expert that was chosen, by rising number.
fn by_expert(chosen: &[u32], shares: &[f32], of_row: usize, is_narrow: &[bool]) -> Vec<Routes> {
    let mut all: Vec<(u32, bool, usize, f32)> = chosen
        .iter()
        .zip(shares)
        .enumerate()
        .map(|(at, (expert, share))| (*expert, is_narrow[at / of_row], at / of_row, *share))
        .collect();
    // Stable: rows stay in their order.
    all.sort_by_key(|(expert, narrow, ..)| (*expert, *narrow));
    let routes = |routes: &[(u32, bool, usize, f32)]| Routes {
        expert: routes[0].0 as usize,
        rows: routes.iter().map(|(.., row, _)| *row as u32).collect(),
        wide: routes.iter().filter(|(_, narrow, ..)| !narrow).count(),
        shares: routes.iter().map(|(.., share)| *share).collect(),
    };
    all.chunk_by(|a, b| a.0 == b.0).map(routes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_gathered_by_expert_and_precision() {
        let routes = by_expert(&[3, 1, 3, 0, 1, 3], &[0.6, 0.4, 0.5, 0.5, 0.7, 0.3], 2, &[true, false, false]);
        let seen: Vec<_> = routes.iter().map(|r| (r.expert, r.rows.as_slice(), r.wide)).collect();
        assert_eq!(seen, [(0, &[1][..], 1), (1, &[2, 0][..], 1), (3, &[1, 2, 0][..], 2)]);
        assert_eq!(routes[2].shares, [0.5, 0.3, 0.6]);
    }
}
