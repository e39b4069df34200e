//! Holds the contracts to their own rules: which services it has, that every element is commented, that names follow
//! buf's style, and that nothing but the well-known types is imported. Whether a change breaks clients is not asked here:
//! `cargo xtask check` compares the descriptor set with its baseline.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};

use holdfast_contracts::{DEVICE_FILE_DESCRIPTOR_SET, FILE_DESCRIPTOR_SET, v1};
use prost::Message as _;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

/// Each package with its descriptor set and the folder of its files.
const PACKAGES: [(&str, &[u8], &str); 2] = [
    ("holdfast.v1", FILE_DESCRIPTOR_SET, "holdfast/v1/"),
    ("holdfast.device.v1", DEVICE_FILE_DESCRIPTOR_SET, "holdfast/device/v1/"),
];

/// Field numbers of descriptor.proto, of which the paths of source locations are made.
mod path {
    pub(super) const FILE_MESSAGE: i32 = 4;
    pub(super) const FILE_ENUM: i32 = 5;
    pub(super) const FILE_SERVICE: i32 = 6;
    pub(super) const FILE_SYNTAX: i32 = 12;
    pub(super) const MESSAGE_FIELD: i32 = 2;
    pub(super) const MESSAGE_NESTED: i32 = 3;
    pub(super) const MESSAGE_ENUM: i32 = 4;
    pub(super) const MESSAGE_ONEOF: i32 = 8;
    pub(super) const ENUM_VALUE: i32 = 2;
    pub(super) const SERVICE_METHOD: i32 = 2;
}

fn descriptors(set: &[u8]) -> FileDescriptorSet {
    FileDescriptorSet::decode(set).expect("the descriptor set decodes")
}

/// The files of all packages.
fn own_files() -> Vec<FileDescriptorProto> {
    let of = |(package, set, _): (&str, &[u8], &str)| {
        let files: Vec<_> = descriptors(set).file.into_iter().filter(|file| file.package() == package).collect();
        assert!(!files.is_empty(), "no file of package {package}");
        files
    };
    PACKAGES.into_iter().flat_map(of).collect()
}

/// Every named element of a file with its source path, well-defined names only (no map entries, no synthetic oneofs).
fn elements(file: &FileDescriptorProto) -> Vec<(String, Vec<i32>)> {
    fn enumeration(found: &mut Vec<(String, Vec<i32>)>, of: &EnumDescriptorProto, at: Vec<i32>) {
        for (i, value) in of.value.iter().enumerate() {
            found.push((format!("{}.{}", of.name(), value.name()), [&at[..], &[path::ENUM_VALUE, i as i32]].concat()));
        }
        found.push((of.name().to_owned(), at));
    }
    fn message(found: &mut Vec<(String, Vec<i32>)>, of: &DescriptorProto, at: Vec<i32>) {
        let synthetic: BTreeSet<i32> =
            of.field.iter().filter(|field| field.proto3_optional()).filter_map(|field| field.oneof_index).collect();
        for (i, field) in of.field.iter().enumerate() {
            found.push((
                format!("{}.{}", of.name(), field.name()),
                [&at[..], &[path::MESSAGE_FIELD, i as i32]].concat(),
            ));
        }
        for (i, oneof) in of.oneof_decl.iter().enumerate().filter(|(i, _)| !synthetic.contains(&(*i as i32))) {
            found.push((
                format!("{}.{}", of.name(), oneof.name()),
                [&at[..], &[path::MESSAGE_ONEOF, i as i32]].concat(),
            ));
        }
        for (i, nested) in of.nested_type.iter().enumerate() {
            if !nested.options.as_ref().is_some_and(|options| options.map_entry()) {
                message(found, nested, [&at[..], &[path::MESSAGE_NESTED, i as i32]].concat());
            }
        }
        for (i, nested) in of.enum_type.iter().enumerate() {
            enumeration(found, nested, [&at[..], &[path::MESSAGE_ENUM, i as i32]].concat());
        }
        found.push((of.name().to_owned(), at));
    }

    let mut found = Vec::new();
    for (i, of) in file.message_type.iter().enumerate() {
        message(&mut found, of, vec![path::FILE_MESSAGE, i as i32]);
    }
    for (i, of) in file.enum_type.iter().enumerate() {
        enumeration(&mut found, of, vec![path::FILE_ENUM, i as i32]);
    }
    for (i, service) in file.service.iter().enumerate() {
        let at = [path::FILE_SERVICE, i as i32];
        for (j, method) in service.method.iter().enumerate() {
            found.push((
                format!("{}.{}", service.name(), method.name()),
                [&at[..], &[path::SERVICE_METHOD, j as i32]].concat(),
            ));
        }
        found.push((service.name().to_owned(), at.to_vec()));
    }
    found
}

fn upper_snake(name: &str) -> String {
    let mut out = String::new();
    for (i, c) in name.char_indices() {
        if c.is_ascii_uppercase() && i > 0 {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
    }
    out
}

#[test]
fn every_element_has_a_leading_comment() {
    let mut seen = 0;
    let mut bare = Vec::new();
    for file in own_files() {
        let locations = &file.source_code_info.as_ref().expect("source info is kept").location;
        let comments: BTreeMap<&[i32], &str> = locations
            .iter()
            .filter_map(|location| {
                let text = location.leading_comments.as_deref()?.trim();
                (!text.is_empty()).then_some((location.path.as_slice(), text))
            })
            .collect();
        let heading = locations.iter().find(|location| location.path == [path::FILE_SYNTAX]);
        if heading.is_none_or(|location| {
            location.leading_comments().is_empty() && location.leading_detached_comments.is_empty()
        }) {
            bare.push(format!("{} (the file)", file.name()));
        }
        for (name, at) in elements(&file) {
            seen += 1;
            if !comments.contains_key(at.as_slice()) {
                bare.push(format!("{}: {name}", file.name()));
            }
        }
    }
    assert!(seen > 300, "only {seen} elements were looked at");
    assert!(bare.is_empty(), "without a comment:\n{}", bare.join("\n"));
}

#[test]
fn only_the_well_known_types_are_imported() {
    for (package, set, folder) in PACKAGES {
        let set = descriptors(set);
        let names: BTreeSet<&str> = set.file.iter().map(|file| file.name()).collect();
        for file in &set.file {
            let name = file.name();
            assert!(name.starts_with(folder) || name.starts_with("google/protobuf/"), "{name} is in the set");
            assert_eq!(file.package() == package, name.starts_with(folder), "{name} is package {}", file.package());
            for import in &file.dependency {
                let allowed = import.starts_with("google/protobuf/") || import.starts_with(folder);
                assert!(allowed, "{name} imports {import}");
                assert!(names.contains(import.as_str()), "{import} is missing: reflection could not resolve {name}");
            }
        }
    }
}

#[test]
fn the_services_are_these() {
    let mut found = BTreeMap::new();
    for file in own_files() {
        for service in &file.service {
            let methods: Vec<String> = service
                .method
                .iter()
                .map(|method| {
                    let streams = match (method.client_streaming(), method.server_streaming()) {
                        (false, false) => "",
                        (false, true) => " (stream)",
                        (true, false) => " (of a stream)",
                        (true, true) => " (both ways)",
                    };
                    format!("{}{streams}", method.name())
                })
                .collect();
            found.insert(service.name().to_owned(), methods.join(", "));
        }
    }
    let expected = [
        ("CompletionService", "Generate (stream)"),
        ("DeviceService", "Describe, RunSteps (both ways), ExportBlock (stream), ImportBlock (of a stream)"),
        ("ModelService", "ListModels, GetModel"),
        ("RuntimeService", "GetRuntime"),
        (
            "SessionService",
            "CreateSession, GetSession, ListSessions, UpdateSession, DeleteSession, ForkSession, SuspendSession, \
             RunTurn (stream), CreateTurn, SubmitToolResults, AttachTurn (stream), WatchSession (stream), CancelTurn, \
             GetTurn, ListTurns, ListItems, AppendItems",
        ),
        ("TokenService", "CountTokens"),
    ];
    let expected: BTreeMap<String, String> =
        expected.into_iter().map(|(name, methods)| (name.to_owned(), methods.to_owned())).collect();
    assert_eq!(found, expected);
}

#[test]
fn enums_begin_with_unspecified_and_carry_their_name() {
    for file in own_files() {
        assert!(file.message_type.iter().all(|message| message.enum_type.is_empty()), "enums stand at the top level");
        for of in &file.enum_type {
            let prefix = upper_snake(of.name());
            let zero = &of.value[0];
            assert_eq!((zero.name(), zero.number()), (format!("{prefix}_UNSPECIFIED").as_str(), 0));
            for value in &of.value {
                assert!(value.name().starts_with(&format!("{prefix}_")), "{} in {}", value.name(), of.name());
            }
        }
    }
}

#[test]
fn names_follow_the_style() {
    let lower_snake = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    for file in own_files() {
        let stem = file.name().rsplit('/').next().unwrap_or_default().trim_end_matches(".proto");
        assert!(lower_snake(stem), "{}", file.name());
        for service in &file.service {
            assert!(service.name().ends_with("Service"), "{}", service.name());
            assert_eq!(upper_snake(service.name()).to_lowercase(), stem, "a service has a file of its name");
            for method in &service.method {
                let input = method.input_type().rsplit('.').next().unwrap_or_default();
                assert_eq!(input, format!("{}Request", method.name()), "a request is its method's own");
            }
        }
        for message in &file.message_type {
            for field in &message.field {
                assert!(lower_snake(field.name()), "{}.{}", message.name(), field.name());
            }
        }
    }
}

#[test]
fn reasons_are_numbered_without_gaps_and_fit_error_info() {
    let mut words = 0;
    for number in 1.. {
        let Ok(reason) = v1::ErrorReason::try_from(number) else { break };
        let word = reason.as_str_name().strip_prefix("ERROR_REASON_").expect("the prefix");
        assert!(word.len() <= 63, "{word}");
        words += 1;
    }
    let declared = own_files()
        .iter()
        .flat_map(|file| &file.enum_type)
        .find(|of| of.name() == "ErrorReason")
        .map(|of| of.value.len())
        .expect("the enum");
    assert_eq!(words + 1, declared, "numbers of the closed list have a gap");
}
