//! What the contract knows and this version does not do: refused by name, never ignored.
//!
//! In: the place of the field, or the method. Out: `FIELD_NOT_IMPLEMENTED` or `METHOD_NOT_IMPLEMENTED`. The list, in one
//! place: ForkSession and SuspendSession; `on_busy` STEER and INTERRUPT; image and file
//! parts. Deliberately not here: fields that nobody knows, which protobuf drops before anyone sees them.

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
