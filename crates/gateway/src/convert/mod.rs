//! Protos and the worker's words, one file for each vocabulary.
//!
//! In: messages of `holdfast.v1`. Out: types that can be trusted, or a failure that names the field; and back. Each
//! direction exists where something uses it: what is output only has no way in. Deliberately not here: which method is
//! called.

pub(crate) mod constraint;
pub(crate) mod event;
pub(crate) mod item;
pub(crate) mod model;
pub(crate) mod sampling;
pub(crate) mod session;
pub(crate) mod time;
pub(crate) mod tool;
pub(crate) mod turn;
pub(crate) mod update;
pub(crate) mod usage;

#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod tests;

use holdfast_types::Failure;

use crate::field::Field;

/// Reads an enum's number: a value of the contract, or a failure.
pub(crate) fn enumeration<T: TryFrom<i32>>(field: Field<'_>, number: i32) -> Result<T, Failure> {
    T::try_from(number).map_err(|_| field.invalid(format!("{number} is not a value of the enum")))
}
