//! What the contract knows and this version does not do: refused by name, never ignored.
//!
//! In: the place of the field, or the method. Out: `FIELD_NOT_IMPLEMENTED` or `METHOD_NOT_IMPLEMENTED`. The list, in one
//! place: ForkSession and SuspendSession; constraints of any form; `on_busy` STEER and INTERRUPT; image and file parts;
//! `include_modelled_cost`. Deliberately not here: fields that nobody knows, which protobuf drops before anyone sees them.

use holdfast_contracts::v1;
use holdfast_types::{Failure, FailureDetail, Reason};

use crate::field::Field;

/// A field, or a value of it, that is not built yet.
pub(crate) fn field(field: Field<'_>) -> Failure {
    let path = field.to_string();
    Failure::field(
        Reason::FieldNotImplemented,
        path.clone(),
        "is known and not built in this version; leave it out, or ask a runtime whose GetRuntime lists it",
    )
    .with(FailureDetail::Metadata { key: "field".into(), value: path })
}

/// A method that is not built yet.
pub(crate) fn method(name: &str) -> Failure {
    Failure::new(Reason::MethodNotImplemented, format!("{name} is known and not built in this version"))
        .with(FailureDetail::Metadata { key: "method".into(), value: name.to_owned() })
}

/// Refuses every constraint; one without a form is wrong before it is not built.
pub(crate) fn constraint(at: Field<'_>, constraint: Option<v1::Constraint>) -> Result<(), Failure> {
    use v1::constraint::Kind;
    let Some(constraint) = constraint else {
        return Ok(());
    };
    let form = match constraint.kind {
        None => return Err(at.invalid("has no form; leave the constraint out for free output")),
        Some(Kind::JsonSchema(_)) => "json_schema",
        Some(Kind::Regex(_)) => "regex",
        Some(Kind::Grammar(_)) => "grammar",
        Some(Kind::Choice(_)) => "choice",
    };
    Err(field(at.member(form)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_form_of_constraint_is_refused_by_its_path() {
        use v1::constraint::Kind;
        let options = Field::Root("options");
        let at = options.member("constraint");
        assert!(constraint(at, None).is_ok());
        assert_eq!(constraint(at, Some(v1::Constraint::default())).unwrap_err().reason, Reason::InvalidArgument);
        for (kind, name) in [
            (Kind::JsonSchema("{}".into()), "json_schema"),
            (Kind::Regex(".*".into()), "regex"),
            (Kind::Grammar("start:".into()), "grammar"),
            (Kind::Choice(v1::ChoiceConstraint::default()), "choice"),
        ] {
            let failure = constraint(at, Some(v1::Constraint { kind: Some(kind) })).unwrap_err();
            assert_eq!(failure.reason, Reason::FieldNotImplemented);
            let path = format!("options.constraint.{name}");
            assert!(failure.details.contains(&FailureDetail::Metadata { key: "field".into(), value: path }));
        }
    }
}
