//! A mixture of experts: which rows go to which, and the sum of what these make.
//!
//! In: normed rows. Out: for each row, the sum over its experts of share times output. Deliberately not here: an expert itself, which is a gated
//! feed-forward like others (`forward`).
//!
//! Only chosen experts are computed, each once for all of its rows. A row's bits do not depend on the others: its choice and its shares come from
//! its own logits, products do not mix rows, and its experts are added by rising number, whatever rows they are computed with.

use crate::decoder::Experts;
use crate::forward::{Forward, Inner};
use crate::kernels::activation::exp;
use crate::rows::Rows;

/// Kept between steps.
#[derive(Debug, Default)]
pub(crate) struct Routed {
    /// `[rows][experts]`.
    logits: Vec<f32>,
    routes: Vec<Route>,
    /// Experts by falling logit.
    order: Vec<usize>,
    /// The rows of one expert, and what it makes of them.
    input: Rows,
    out: Vec<f32>,
}

/// A row that goes to an expert.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Route {
    expert: usize,
    row: usize,
    share: f32,
}

impl Forward {
    /// The mixture for every row of `input`, `[rows][hidden]`.
    pub(crate) fn experts(
        &self,
        experts: &Experts,
        input: &Rows,
        inner: &mut Inner,
        routed: &mut Routed,
        sum: &mut Vec<f32>,
    ) {
        self.product(&experts.router, input, &mut routed.logits);
        route(&routed.logits, experts.experts.len(), experts.chosen, &mut routed.order, &mut routed.routes);
        let width = experts.experts.first().map_or(0, |expert| expert.down.width());
        sum.clear();
        sum.resize(input.count() * width, 0.0);
        for routes in routed.routes.chunk_by(|a, b| a.expert == b.expert) {
            routed.input.begin(routes.iter().map(|route| input.is_narrow(route.row)), false);
            self.fill(&mut routed.input, width, |at, out| out.copy_from_slice(input.row(routes[at].row)));
            self.gated(&experts.experts[routes[0].expert], &routed.input, inner, &mut routed.out);
            for (route, made) in routes.iter().zip(routed.out.chunks_exact(width)) {
                let sum = &mut sum[route.row * width..][..width];
                sum.iter_mut().zip(made).for_each(|(sum, made)| *sum += route.share * made);
            }
        }
    }
}

/// Chooses the experts with the largest logits for every row, of equal ones the first; their shares are the softmax over their logits. Routes
/// are sorted by expert, then by row.
fn route(logits: &[f32], experts: usize, chosen: usize, order: &mut Vec<usize>, routes: &mut Vec<Route>) {
    routes.clear();
    for (row, logits) in logits.chunks_exact(experts).enumerate() {
        order.clear();
        order.extend(0..experts);
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let first = routes.len();
        let most = logits[order[0]];
        routes.extend(order[..chosen].iter().map(|expert| Route {
            expert: *expert,
            row,
            share: exp(logits[*expert] - most),
        }));
        let total = routes[first..].iter().fold(0.0, |total, route| total + route.share);
        routes[first..].iter_mut().for_each(|route| route.share /= total);
    }
    // Stable: rows stay in their order.
    routes.sort_by_key(|route| route.expert);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_to_their_largest_logits_in_shares_that_add_up() {
        let (mut order, mut routes) = (Vec::new(), Vec::new());
        route(&[0.0, 3.0, 1.0, 2.0, 5.0, 5.0, -1.0, 5.0], 4, 2, &mut order, &mut routes);
        let places: Vec<_> = routes.iter().map(|route| (route.expert, route.row)).collect();
        // Row 1 has three equal logits, of which the first two are taken.
        assert_eq!(places, [(0, 1), (1, 0), (1, 1), (3, 0)]);
        let larger = 1.0 / (1.0 + (-1.0_f32).exp());
        for (route, want) in routes.iter().zip([0.5, larger, 0.5, 1.0 - larger]) {
            assert!((route.share - want).abs() < 1e-6, "{route:?} {want}");
        }
        route(&[1.0, 1.0], 1, 1, &mut order, &mut routes);
        assert_eq!(routes, [Route { expert: 0, row: 0, share: 1.0 }, Route { expert: 0, row: 1, share: 1.0 }]);
    }
}
