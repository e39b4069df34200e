//! Usage, outwards.
//!
//! In: the house's counts. Out: the contract's, in the same three disjoint parts:
//! `input_tokens = cached_tokens + computed_tokens + recomputed_tokens`. Modelled cost is written apart, by the one call that may ask
//! for it.

use holdfast_contracts::v1;
use holdfast_types::{CachedTokens, KvByteSeconds, ModelledUsage, PrecisionTokens, Usage};

/// Writes usage; parts that are all zero are left out.
pub(crate) fn usage(usage: &Usage) -> v1::Usage {
    v1::Usage {
        input_tokens: usage.input_tokens,
        cached_tokens: usage.cached.total(),
        cached_by_source: (usage.cached != CachedTokens::default()).then_some(v1::CachedTokens {
            device: usage.cached.device,
            host: usage.cached.host,
            disk: usage.cached.disk,
            object_store: usage.cached.object_store,
            shared: usage.cached.shared,
        }),
        computed_tokens: usage.computed_tokens,
        recomputed_tokens: usage.recomputed_tokens,
        preempted_tokens: usage.preempted_tokens,
        output_tokens: usage.output_tokens,
        reasoning_tokens: usage.reasoning_tokens,
        tokens_by_precision: (usage.by_precision != PrecisionTokens::default()).then_some(v1::PrecisionTokens {
            native: usage.by_precision.native,
            int8: usage.by_precision.int8,
            int4: usage.by_precision.int4,
        }),
        time_to_first_token_us: usage.time_to_first_token_us,
        queue_time_us: usage.queue_time_us,
        duration_us: usage.duration_us,
        device_time_us: usage.device_time_us,
        kv_byte_seconds: (usage.kv_byte_seconds != KvByteSeconds::default()).then_some(v1::KvByteSeconds {
            device: usage.kv_byte_seconds.device,
            host: usage.kv_byte_seconds.host,
            disk: usage.kv_byte_seconds.disk,
            object_store: usage.kv_byte_seconds.object_store,
        }),
        context_used_tokens: usage.context_used,
        context_limit_tokens: usage.context_limit,
        modelled_cost: None,
    }
}

/// Writes what it would have taken on a chip, rounded to the nearest microsecond and millionth of a dollar.
pub(crate) fn modelled_cost(modelled: &ModelledUsage) -> v1::ModelledCost {
    v1::ModelledCost {
        chip: modelled.chip.to_string(),
        chip_time_us: modelled.chip_time_ns.saturating_add(500) / 1_000,
        cost_usd_micros: modelled.cost_usd.map(|usd| (usd * 1e6).round() as u64),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_three_parts_of_the_input_stay_disjoint_and_nothing_empty_is_sent() {
        let out = usage(&Usage {
            input_tokens: 115,
            cached: CachedTokens { device: 60, shared: 40, ..CachedTokens::default() },
            computed_tokens: 10,
            recomputed_tokens: 5,
            preempted_tokens: 3,
            ..Usage::default()
        });
        assert_eq!(out.input_tokens, out.cached_tokens + out.computed_tokens + out.recomputed_tokens);
        assert_eq!((out.recomputed_tokens, out.preempted_tokens), (5, 3));
        assert!(out.cached_by_source.is_some());
        assert!(out.tokens_by_precision.is_none() && out.kv_byte_seconds.is_none() && out.modelled_cost.is_none());
    }
    #[test]
    fn modelled_cost_is_rounded_and_has_no_price_where_none_is_known() {
        let chip = "trn1".parse().unwrap();
        let out = modelled_cost(&ModelledUsage { chip, chip_time_ns: 1_500, cost_usd: Some(0.000_002_6) });
        assert_eq!((out.chip.as_str(), out.chip_time_us, out.cost_usd_micros), ("trn1", 2, Some(3)));
        let out = modelled_cost(&ModelledUsage { chip, chip_time_ns: 1_499, cost_usd: None });
        assert_eq!((out.chip_time_us, out.cost_usd_micros), (1, None));
    }
}
