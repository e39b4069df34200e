//! The form that an answer is held to.
//!
//! In: a constraint as a client writes it. Out: one that has a form, within the limits of its size. Deliberately not here: whether
//! the form can be held to, which depends on the model's vocabulary; the worker says so, with the place in a schema.

use holdfast_contracts::v1;
use holdfast_types::{Constraint, Failure, Limits};

use crate::field::Field;
use crate::limits::at_most;

/// Reads a constraint; absent is none.
pub(crate) fn constraint(
    limits: &Limits,
    field: Field<'_>,
    constraint: Option<v1::Constraint>,
) -> Result<Option<Constraint>, Failure> {
    use v1::constraint::Kind;
    let Some(constraint) = constraint else { return Ok(None) };
    let (name, form) = match constraint.kind {
        None => return Err(field.invalid("has no form; leave the constraint out for free output")),
        Some(Kind::JsonSchema(schema)) => ("json_schema", Constraint::JsonSchema(schema)),
        Some(Kind::Regex(expression)) => ("regex", Constraint::Regex(expression)),
        Some(Kind::Grammar(grammar)) => ("grammar", Constraint::Grammar(grammar)),
        Some(Kind::Choice(choice)) => {
            at_most!(limits.constraint_choices, choice.values.len(), field.member("choice").member("values"))?;
            ("choice", Constraint::Choice(choice.values))
        }
    };
    at_most!(limits.constraint_bytes, form.bytes(), field.member(name))?;
    Ok(Some(form))
}
