//! What breaks a client, as a pure comparison of two descriptor sets: the wire (numbers, types, labels), the JSON form
//! (names), and generated code (packages, files, presence, oneofs, methods).
//!
//! In: the set that clients were built with, and the set of today. Out: breaking changes and additions, each one line.
//! Deliberately not here: options, comments and the order of things, which no client depends on.

use std::collections::{BTreeMap, BTreeSet};

use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, MethodDescriptorProto,
    ServiceDescriptorProto,
};

/// How two contracts differ. Empty in both lists: a client cannot tell them apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// What a client of the older contract would trip over.
    pub(super) breaks: Vec<String>,
    /// What only the newer contract has.
    pub(super) additions: Vec<String>,
}

/// Compares by full name: what was `old` must be in `new`, under the same name and number and of the same kind.
pub(super) fn compare(old: &FileDescriptorSet, new: &FileDescriptorSet) -> Difference {
    let (old, new) = (Contract::of(old), Contract::of(new));
    let mut difference = Difference::default();

    for (file, package) in &old.packages {
        if let Some(now) = new.packages.get(file).filter(|now| *now != package) {
            difference.breaks.push(format!("{file}: package {package} became {now}"));
        }
    }
    difference.match_up("message", &old.messages, &new.messages, compare_messages);
    difference.match_up("enum", &old.enums, &new.enums, compare_enums);
    difference.match_up("service", &old.services, &new.services, compare_services);
    difference
}

/// A descriptor set as maps of full names.
#[derive(Default)]
struct Contract<'a> {
    /// File to package.
    packages: BTreeMap<&'a str, &'a str>,
    messages: BTreeMap<String, Placed<'a, DescriptorProto>>,
    enums: BTreeMap<String, Placed<'a, EnumDescriptorProto>>,
    services: BTreeMap<String, Placed<'a, ServiceDescriptorProto>>,
}

/// An element and what its file says of it: Python and C++ clients import by file.
struct Placed<'a, T> {
    file: &'a str,
    syntax: &'a str,
    element: &'a T,
}

impl<'a> Contract<'a> {
    fn of(set: &'a FileDescriptorSet) -> Self {
        let mut contract = Self::default();
        for file in &set.file {
            let (name, package) = (file.name(), file.package());
            let syntax = if file.syntax().is_empty() { "proto2" } else { file.syntax() };
            contract.packages.insert(name, package);
            for element in &file.service {
                contract.services.insert(full(package, element.name()), Placed { file: name, syntax, element });
            }
            for element in &file.enum_type {
                contract.enums.insert(full(package, element.name()), Placed { file: name, syntax, element });
            }
            for element in &file.message_type {
                contract.take_message(package, Placed { file: name, syntax, element });
            }
        }
        contract
    }

    fn take_message(&mut self, scope: &str, message: Placed<'a, DescriptorProto>) {
        let Placed { file, syntax, element } = message;
        let name = full(scope, element.name());
        for nested in &element.nested_type {
            self.take_message(&name, Placed { file, syntax, element: nested });
        }
        for nested in &element.enum_type {
            self.enums.insert(full(&name, nested.name()), Placed { file, syntax, element: nested });
        }
        self.messages.insert(name, message);
    }
}

impl Difference {
    fn match_up<T>(
        &mut self,
        kind: &str,
        old: &BTreeMap<String, Placed<'_, T>>,
        new: &BTreeMap<String, Placed<'_, T>>,
        compare: fn(&mut Self, &str, &T, &T),
    ) {
        for (name, before) in old {
            let Some(now) = new.get(name) else {
                self.breaks.push(format!("{kind} {name} was removed"));
                continue;
            };
            if before.file != now.file {
                self.breaks.push(format!("{kind} {name} moved from {} to {}", before.file, now.file));
            }
            if before.syntax != now.syntax {
                self.breaks.push(format!("{kind} {name}: syntax {} became {}", before.syntax, now.syntax));
            }
            compare(self, name, before.element, now.element);
        }
        self.additions.extend(new.keys().filter(|name| !old.contains_key(*name)).map(|name| format!("{kind} {name}")));
    }

    fn changed<T: PartialEq + std::fmt::Display>(&mut self, what: &str, before: T, now: T) {
        if before != now {
            self.breaks.push(format!("{what}: {before} became {now}"));
        }
    }

    /// A number or name that was set aside must stay so: old clients may still send what it once meant.
    fn keep_reserved(&mut self, owner: &str, old: &Reserved, new: &Reserved) {
        for &(first, last) in &old.ranges {
            if !new.ranges.iter().any(|&(from, to)| from <= first && last <= to) {
                self.breaks.push(format!("{owner}: numbers {first} to {last} are no longer reserved"));
            }
        }
        for name in old.names.difference(&new.names) {
            self.breaks.push(format!("{owner}: the name {name} is no longer reserved"));
        }
    }
}

/// What a message or an enum has set aside; ranges with both ends included.
struct Reserved {
    ranges: Vec<(i32, i32)>,
    names: BTreeSet<String>,
}

fn compare_messages(difference: &mut Difference, name: &str, old: &DescriptorProto, new: &DescriptorProto) {
    for before in &old.field {
        let what = format!("field {name}.{}", before.name());
        let Some(now) = new.field.iter().find(|now| now.number() == before.number()) else {
            difference.breaks.push(match new.field.iter().find(|now| now.name() == before.name()) {
                Some(now) => format!("{what}: number {} became {}", before.number(), now.number()),
                None => format!("{what} = {} was removed", before.number()),
            });
            continue;
        };
        if before.name() != now.name() {
            difference.breaks.push(format!("{what} = {} was renamed to {}", before.number(), now.name()));
        } else {
            difference.changed(&format!("{what}: JSON name"), before.json_name(), now.json_name());
        }
        difference.changed(&format!("{what}: type"), kind(before), kind(now));
        difference.changed(&format!("{what}: label"), label(before), label(now));
        difference.changed(&format!("{what}: oneof"), oneof(old, before), oneof(new, now));
    }
    for now in &new.field {
        let known = |before: &FieldDescriptorProto| before.number() == now.number() || before.name() == now.name();
        if !old.field.iter().any(known) {
            difference.additions.push(format!("field {name}.{} = {}", now.name(), now.number()));
            if label(now) == "required" {
                difference.breaks.push(format!("field {name}.{} is new and required", now.name()));
            }
        }
    }
    let reserved = |of: &DescriptorProto| Reserved {
        // descriptor.proto: a message's ranges exclude their end.
        ranges: of.reserved_range.iter().map(|range| (range.start(), range.end() - 1)).collect(),
        names: of.reserved_name.iter().cloned().collect(),
    };
    difference.keep_reserved(name, &reserved(old), &reserved(new));
}

fn compare_enums(difference: &mut Difference, name: &str, old: &EnumDescriptorProto, new: &EnumDescriptorProto) {
    for before in &old.value {
        let what = format!("enum value {name}.{}", before.name());
        if let Some(now) = new.value.iter().find(|now| now.name() == before.name()) {
            difference.changed(&format!("{what}: number"), before.number(), now.number());
        } else {
            difference.breaks.push(match new.value.iter().find(|now| now.number() == before.number()) {
                Some(now) => format!("{what} = {} was renamed to {}", before.number(), now.name()),
                None => format!("{what} = {} was removed", before.number()),
            });
        }
    }
    for now in &new.value {
        if !old.value.iter().any(|before| before.name() == now.name() || before.number() == now.number()) {
            difference.additions.push(format!("enum value {name}.{} = {}", now.name(), now.number()));
        }
    }
    let reserved = |of: &EnumDescriptorProto| Reserved {
        // descriptor.proto: an enum's ranges include their end.
        ranges: of.reserved_range.iter().map(|range| (range.start(), range.end())).collect(),
        names: of.reserved_name.iter().cloned().collect(),
    };
    difference.keep_reserved(name, &reserved(old), &reserved(new));
}

fn compare_services(
    difference: &mut Difference,
    name: &str,
    old: &ServiceDescriptorProto,
    new: &ServiceDescriptorProto,
) {
    let streams = |method: &MethodDescriptorProto| match (method.client_streaming(), method.server_streaming()) {
        (false, false) => "none",
        (false, true) => "from the server",
        (true, false) => "from the client",
        (true, true) => "both ways",
    };
    for before in &old.method {
        let what = format!("method {name}.{}", before.name());
        let Some(now) = new.method.iter().find(|now| now.name() == before.name()) else {
            difference.breaks.push(format!("{what} was removed"));
            continue;
        };
        difference.changed(&format!("{what}: request"), before.input_type(), now.input_type());
        difference.changed(&format!("{what}: response"), before.output_type(), now.output_type());
        difference.changed(&format!("{what}: streaming"), streams(before), streams(now));
    }
    for now in &new.method {
        if !old.method.iter().any(|before| before.name() == now.name()) {
            difference.additions.push(format!("method {name}.{}", now.name()));
        }
    }
}

fn full(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

/// `string`, or `message .shop.v1.Cart`.
fn kind(field: &FieldDescriptorProto) -> String {
    let scalar = field.r#type().as_str_name().trim_start_matches("TYPE_").to_lowercase();
    format!("{scalar} {}", field.type_name()).trim_end().to_owned()
}

/// `repeated`, `required`, or one of the two kinds of presence: with `optional`, absent and zero differ.
fn label(field: &FieldDescriptorProto) -> &'static str {
    use prost_types::field_descriptor_proto::Label;
    match field.label() {
        Label::Repeated => "repeated",
        Label::Required => "required",
        Label::Optional if field.proto3_optional() => "optional",
        Label::Optional => "singular",
    }
}

/// The oneof that a person wrote; `optional` makes a synthetic one, which does not count.
fn oneof<'a>(message: &'a DescriptorProto, field: &FieldDescriptorProto) -> &'a str {
    let written = field.oneof_index.filter(|_| !field.proto3_optional());
    let index = written.and_then(|index| usize::try_from(index).ok());
    index.and_then(|index| message.oneof_decl.get(index)).map_or("none", |oneof| oneof.name())
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
