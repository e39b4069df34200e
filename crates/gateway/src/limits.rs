//! The bounds on a request's shape: counts, bytes, characters, and which control characters a text may hold.
//!
//! In: [`Limits`] and the sizes of what came. Out: nothing, or a failure that names the limit and the field. The rule on
//! characters: what a person says or a tool returns (text parts, reasoning, tool arguments, instructions) may hold any
//! UTF-8, NUL included; names, labels, call ids, stop strings and the like are shown, logged and compared, so they hold no
//! control character but line feed, carriage return and tab; ids and resource names hold none at all. Deliberately not
//! here: bounds that depend on what a session already holds, which are the worker's.

use holdfast_types::{Failure, FailureDetail, Limits, Reason};

use crate::field::Field;

/// Fails when `requested` is more than the limit of that name: `at_most!(limits.stop_strings, count, field)?`.
macro_rules! at_most {
    ($limits:ident.$name:ident, $requested:expr, $field:expr) => {
        $crate::limits::check(stringify!($name), $limits.$name, $requested, $field)
    };
}
pub(crate) use at_most;

/// The check behind [`at_most`].
pub(crate) fn check(name: &str, limit: u32, requested: usize, field: Field<'_>) -> Result<(), Failure> {
    let (limit, requested) = (u64::from(limit), u64::try_from(requested).unwrap_or(u64::MAX));
    if requested <= limit {
        return Ok(());
    }
    Err(Failure::limit(name, limit, requested)
        .with(FailureDetail::Field { path: field.to_string(), problem: format!("{requested} is more than {limit}") }))
}

/// Refuses control characters other than line feed, carriage return and tab.
pub(crate) fn plain(field: Field<'_>, text: &str) -> Result<(), Failure> {
    match text.char_indices().find(|(_, c)| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        Some((at, found)) => Err(field.invalid(format!("holds the control character {found:?} at byte {at}"))),
        None => Ok(()),
    }
}

/// Refuses every control character.
pub(crate) fn no_control(field: Field<'_>, reason: Reason, text: &str) -> Result<(), Failure> {
    match text.char_indices().find(|(_, c)| c.is_control()) {
        Some((at, found)) => Err(field.failure(reason, format!("holds the control character {found:?} at byte {at}"))),
        None => Ok(()),
    }
}

/// The request id, if there is one: at most `request_id_chars` characters, none of them a control character.
pub(crate) fn request_id(limits: &Limits, text: String) -> Result<Option<String>, Failure> {
    let field = Field::Root("request_id");
    if text.is_empty() {
        return Ok(None);
    }
    at_most!(limits.request_id_chars, text.chars().count(), field)?;
    no_control(field, Reason::InvalidArgument, &text)?;
    Ok(Some(text))
}

/// The number of items of one request.
pub(crate) fn item_count(limits: &Limits, count: usize, field: Field<'_>) -> Result<(), Failure> {
    at_most!(limits.items_per_request, count, field)
}

/// The start of a text, at most `bytes` long, cut between characters.
pub(crate) fn clip(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// The longest number of leading elements whose sizes together stay within `bytes`.
pub(crate) fn fitting(sizes: impl IntoIterator<Item = usize>, bytes: usize) -> usize {
    let mut left = bytes;
    sizes
        .into_iter()
        .take_while(|size| match left.checked_sub(*size) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        })
        .count()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_limit_is_named_with_its_value_and_the_field() {
        let limits = Limits::default();
        let field = Field::Root("stop");
        assert!(at_most!(limits.stop_strings, 16, field).is_ok());
        let failure = at_most!(limits.stop_strings, 17, field).unwrap_err();
        assert_eq!(failure.reason, Reason::LimitExceeded);
        assert!(failure.details.contains(&FailureDetail::Limit {
            name: "stop_strings".into(),
            limit: 16,
            requested: 17
        }));
        assert!(matches!(&failure.details[1], FailureDetail::Field { path, .. } if path == "stop"));
    }

    #[test]
    fn request_ids_are_bounded_in_characters_and_plain() {
        let limits = Limits::default();
        assert_eq!(request_id(&limits, String::new()).unwrap(), None);
        assert!(request_id(&limits, "ü".repeat(128)).unwrap().is_some());
        assert_eq!(request_id(&limits, "ü".repeat(129)).unwrap_err().reason, Reason::LimitExceeded);
        assert_eq!(request_id(&limits, "a\nb".into()).unwrap_err().reason, Reason::InvalidArgument);
    }

    #[test]
    fn labels_may_hold_line_feeds_but_no_other_control_characters() {
        let field = Field::Root("display_name");
        assert!(plain(field, "two\nlines\twith a tab\r").is_ok());
        for bad in ["\0", "a\u{1b}[31m", "\u{7f}", "\u{85}"] {
            assert!(plain(field, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn texts_are_clipped_between_characters() {
        assert_eq!(clip("häh", 2), "h");
        assert_eq!(clip("häh", 3), "hä");
        assert_eq!(clip("häh", 99), "häh");
        assert_eq!(clip("", 0), "");
    }

    #[test]
    fn fitting_counts_whole_elements() {
        assert_eq!(fitting([3, 3, 3], 8), 2);
        assert_eq!(fitting([9], 8), 0);
        assert_eq!(fitting([4, 4], 8), 2);
        assert_eq!(fitting([], 0), 0);
    }
}
