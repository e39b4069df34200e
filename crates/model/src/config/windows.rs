//! The keys that say which layers turn, and which attend to a sliding window.
//!
//! In: the keys of a `config.json`. Out: for each layer, whether it has rotary embedding, and its window. Deliberately not here: what
//! turns a layer (`rope`).

use serde_json::Value;

use super::json::{Keys, LAYERS_MAX, brief};
use super::{Architecture, DIMENSION_MAX, WindowRule};

/// Which layers turn their queries and keys.
pub(super) fn turned_layers(keys: &mut Keys<'_>, row: &Architecture, count: usize) -> Result<Vec<bool>, String> {
    let Some(interval) = row.unturned_interval else { return Ok(vec![true; count]) };
    let interval = keys.count("no_rope_layer_interval", LAYERS_MAX)?.unwrap_or(interval);
    let Some(list) = keys.get("no_rope_layers") else {
        return Ok((1..=count).map(|number| !number.is_multiple_of(interval)).collect());
    };
    // In spite of the key's name, 1 is a layer with rotary embedding.
    let turns = |value: &Value| value.as_u64().filter(|flag| *flag <= 1).map(|flag| flag == 1);
    let all = list.as_array().filter(|list| list.len() == count).and_then(|list| list.iter().map(turns).collect());
    all.ok_or_else(|| format!("no_rope_layers is {}, expected {count} times 0 or 1", brief(list)))
}

/// The window of each layer; `turned` says which have rotary embedding.
pub(super) fn windows(keys: &mut Keys<'_>, row: &Architecture, turned: &[bool]) -> Result<Vec<Option<u32>>, String> {
    const WINDOW: &str = "sliding_window";
    const PERIOD: &str = "sliding_window_pattern";
    let listed = sliding_layers(keys, turned.len())?;
    let mut from = 0;
    let window = match row.windows {
        WindowRule::Never => None,
        WindowRule::Every { absent } | WindowRule::Alternating { absent, .. } if !keys.map.contains_key(WINDOW) => {
            absent.map(|window| window as usize)
        }
        WindowRule::Every { .. } | WindowRule::Alternating { .. } => keys.count(WINDOW, DIMENSION_MAX)?,
        WindowRule::Upper | WindowRule::Unturned if keys.flag("use_sliding_window")? != Some(true) => {
            // Without the switch these mean nothing.
            keys.pass(WINDOW);
            keys.pass("max_window_layers");
            None
        }
        WindowRule::Upper | WindowRule::Unturned => {
            let first = keys.get("max_window_layers");
            if row.windows == WindowRule::Upper && listed.is_none() {
                let first = first.and_then(Value::as_u64).and_then(|first| usize::try_from(first).ok());
                from = first.ok_or("use_sliding_window is true, but max_window_layers is no whole number")?;
            }
            let window = keys.count(WINDOW, DIMENSION_MAX)?;
            Some(window.ok_or("use_sliding_window is true, but sliding_window is missing")?)
        }
    };
    let period = match row.windows {
        WindowRule::Alternating { period, .. } => keys.count(PERIOD, LAYERS_MAX)?.unwrap_or(period),
        _ => 1,
    };
    let slides = |layer: usize| match row.windows {
        WindowRule::Never => false,
        WindowRule::Every { .. } => true,
        WindowRule::Alternating { .. } => !(layer + 1).is_multiple_of(period),
        WindowRule::Upper => layer >= from,
        WindowRule::Unturned => !turned[layer],
    };
    let by_list = window.is_some() && !matches!(row.windows, WindowRule::Never | WindowRule::Every { .. });
    (0..turned.len())
        .map(|layer| {
            let by_rule = window.is_some() && slides(layer);
            let sliding = listed.as_ref().map_or(by_rule, |listed| listed[layer]);
            if sliding != by_rule && !by_list {
                let found = if sliding { "a" } else { "no" };
                return Err(format!("layer_types gives layer {layer} {found} sliding window, other keys do not"));
            }
            Ok(window.filter(|_| sliding).map(|window| window as u32))
        })
        .collect()
}

/// Whether each layer is a sliding one, if `layer_types` is there.
fn sliding_layers(keys: &mut Keys<'_>, count: usize) -> Result<Option<Vec<bool>>, String> {
    let Some(list) = keys.get("layer_types") else { return Ok(None) };
    let sliding = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Some(false),
        Some("sliding_attention") => Some(true),
        _ => None,
    };
    let all = list.as_array().filter(|list| list.len() == count).and_then(|list| list.iter().map(sliding).collect());
    all.map(Some).ok_or_else(|| {
        let found = brief(list);
        format!("layer_types is {found}, expected {count} times \"full_attention\" or \"sliding_attention\"")
    })
}
