//! Where in a request a value stands, for error messages: `session.config.tools[2].function.name`.
//!
//! In: the names of the proto's fields, while a converter walks down. Out: the path as text, built only when something is
//! wrong. Deliberately not here: what is wrong.

use std::fmt;

use holdfast_types::{Failure, Reason};

/// A field of a request, linked to the field that holds it.
#[derive(Clone, Copy)]
pub(crate) enum Field<'a> {
    /// The request itself, for converters of messages whose fields a request repeats.
    Request,
    /// A field of the request itself.
    Root(&'a str),
    /// A field of a message.
    Member(&'a Field<'a>, &'a str),
    /// An element of a repeated field.
    Element(&'a Field<'a>, usize),
}

impl<'a> Field<'a> {
    /// A field of the message in this field.
    pub(crate) fn member(&'a self, name: &'a str) -> Field<'a> {
        Field::Member(self, name)
    }

    /// An element of this repeated field.
    pub(crate) fn element(&'a self, index: usize) -> Field<'a> {
        Field::Element(self, index)
    }

    /// A failure that names this field.
    pub(crate) fn failure(&self, reason: Reason, problem: impl Into<String>) -> Failure {
        Failure::field(reason, self.to_string(), problem)
    }

    /// The common failure: a value outside its rule.
    pub(crate) fn invalid(&self, problem: impl Into<String>) -> Failure {
        self.failure(Reason::InvalidArgument, problem)
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request => f.write_str("request"),
            Self::Root(name) | Self::Member(Self::Request, name) => f.write_str(name),
            Self::Member(parent, name) => write!(f, "{parent}.{name}"),
            Self::Element(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_like_the_proto() {
        let input = Field::Root("input");
        let third = input.element(2);
        let message = third.member("message");
        assert_eq!(message.member("content").to_string(), "input[2].message.content");
        assert_eq!(Field::Request.member("model").to_string(), "model");
    }
}
