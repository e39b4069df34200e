//! The rules of the comparison, one test each: two small contracts in, the exact lines out.
#![allow(clippy::unwrap_used)]

use super::*;

/// One file, compiled as the command compiles the real ones.
fn set(body: &str) -> FileDescriptorSet {
    files(&[("shop.proto", &format!("package shop.v1;\n{body}"))])
}

fn files(files: &[(&str, &str)]) -> FileDescriptorSet {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let syntax = if text.contains("syntax =") { "" } else { "syntax = \"proto3\";\n" };
        std::fs::write(folder.path().join(name), format!("{syntax}{text}")).unwrap();
    }
    let mut compiler = protox::Compiler::new([folder.path()]).unwrap();
    compiler.include_imports(false).include_source_info(false);
    compiler.open_files(files.iter().map(|(name, _)| folder.path().join(name))).unwrap();
    compiler.file_descriptor_set()
}

fn breaks(old: &str, new: &str) -> Vec<String> {
    compare(&set(old), &set(new)).breaks
}

fn fields(old: &str, new: &str) -> Vec<String> {
    breaks(&format!("message Cart {{ {old} }}"), &format!("message Cart {{ {new} }}"))
}

#[test]
fn the_same_contract_has_no_difference() {
    let contract =
        set("message Cart { string id = 1; map<string, int32> items = 2; oneof pay { bool card = 3; Kind kind = 4; } }
         enum Kind { KIND_UNSPECIFIED = 0; }
         service Shop { rpc Get(Cart) returns (stream Cart); }");
    assert_eq!(compare(&contract, &contract), Difference::default());
}

#[test]
fn additions_are_listed_and_break_nothing() {
    let old = set("message Cart { string id = 1; oneof pay { bool card = 3; } }
         enum Kind { KIND_UNSPECIFIED = 0; }
         service Shop { rpc Get(Cart) returns (Cart); }");
    let new =
        set("message Cart { string id = 1; optional int32 size = 2; oneof pay { bool card = 3; bool cash = 4; } }
         message Extra { enum Inner { INNER_UNSPECIFIED = 0; } }
         enum Kind { KIND_UNSPECIFIED = 0; KIND_BIG = 1; }
         service Shop { rpc Get(Cart) returns (Cart); rpc Put(Cart) returns (Cart); }
         service More {}");
    let difference = compare(&old, &new);
    assert_eq!(difference.breaks, Vec::<String>::new());
    assert_eq!(
        difference.additions,
        [
            "field shop.v1.Cart.size = 2",
            "field shop.v1.Cart.cash = 4",
            "message shop.v1.Extra",
            "enum value shop.v1.Kind.KIND_BIG = 1",
            "enum shop.v1.Extra.Inner",
            "method shop.v1.Shop.Put",
            "service shop.v1.More",
        ]
    );
}

#[test]
fn removed_messages_enums_and_services_break() {
    let found = breaks("message A { message B {} } enum E { E_UNSPECIFIED = 0; } service S {}", "message A {}");
    assert_eq!(
        found,
        ["message shop.v1.A.B was removed", "enum shop.v1.E was removed", "service shop.v1.S was removed"]
    );
}

#[test]
fn a_removed_field_breaks_even_when_its_number_is_reserved() {
    assert_eq!(fields("string id = 1; int32 n = 2;", "string id = 1;"), ["field shop.v1.Cart.n = 2 was removed"]);
    let found = fields("string id = 1; int32 n = 2;", "string id = 1; reserved 2; reserved \"n\";");
    assert_eq!(found, ["field shop.v1.Cart.n = 2 was removed"]);
}

#[test]
fn a_renamed_field_breaks() {
    assert_eq!(fields("string id = 1;", "string name = 1;"), ["field shop.v1.Cart.id = 1 was renamed to name"]);
}

#[test]
fn a_renumbered_field_breaks() {
    assert_eq!(fields("string id = 1;", "string id = 2;"), ["field shop.v1.Cart.id: number 1 became 2"]);
}

#[test]
fn two_fields_that_swap_numbers_break_twice() {
    let found = fields("string a = 1; string b = 2;", "string a = 2; string b = 1;");
    assert_eq!(found, ["field shop.v1.Cart.a = 1 was renamed to b", "field shop.v1.Cart.b = 2 was renamed to a"]);
}

#[test]
fn a_retyped_field_breaks() {
    assert_eq!(fields("int32 n = 1;", "sint32 n = 1;"), ["field shop.v1.Cart.n: type: int32 became sint32"]);
    let found =
        breaks("message A { B x = 1; } message B {} message C {}", "message A { C x = 1; } message B {} message C {}");
    assert_eq!(found, ["field shop.v1.A.x: type: message .shop.v1.B became message .shop.v1.C"]);
}

#[test]
fn a_retyped_map_value_breaks() {
    let found = fields("map<string, int32> items = 1;", "map<string, int64> items = 1;");
    assert_eq!(found, ["field shop.v1.Cart.ItemsEntry.value: type: int32 became int64"]);
}

#[test]
fn a_changed_label_or_presence_breaks() {
    assert_eq!(
        fields("int32 n = 1;", "repeated int32 n = 1;"),
        ["field shop.v1.Cart.n: label: singular became repeated"]
    );
    assert_eq!(
        fields("optional int32 n = 1;", "int32 n = 1;"),
        ["field shop.v1.Cart.n: label: optional became singular"]
    );
}

#[test]
fn moving_a_field_into_out_of_or_between_oneofs_breaks() {
    assert_eq!(fields("int32 n = 1;", "oneof one { int32 n = 1; }"), ["field shop.v1.Cart.n: oneof: none became one"]);
    assert_eq!(fields("oneof one { int32 n = 1; }", "int32 n = 1;"), ["field shop.v1.Cart.n: oneof: one became none"]);
    let found = fields("oneof a { int32 n = 1; int32 m = 2; }", "oneof a { int32 m = 2; } oneof b { int32 n = 1; }");
    assert_eq!(found, ["field shop.v1.Cart.n: oneof: a became b"]);
}

#[test]
fn a_changed_json_name_breaks() {
    let found = fields("int32 big_n = 1;", "int32 big_n = 1 [json_name = \"n\"];");
    assert_eq!(found, ["field shop.v1.Cart.big_n: JSON name: bigN became n"]);
}

#[test]
fn giving_back_what_was_reserved_breaks() {
    assert_eq!(
        fields("reserved 2 to 4; reserved \"old\";", "reserved 2, 3; string old = 1;"),
        ["shop.v1.Cart: numbers 2 to 4 are no longer reserved", "shop.v1.Cart: the name old is no longer reserved"]
    );
    assert_eq!(fields("reserved 2 to 4;", "reserved 1 to 9;"), Vec::<String>::new());
    let found = breaks("enum E { E_UNSPECIFIED = 0; reserved 5; }", "enum E { E_UNSPECIFIED = 0; E_NEW = 5; }");
    assert_eq!(found, ["shop.v1.E: numbers 5 to 5 are no longer reserved"]);
}

#[test]
fn removed_renamed_and_renumbered_enum_values_break() {
    let old = "enum E { E_UNSPECIFIED = 0; E_A = 1; E_B = 2; E_C = 3; }";
    let new = "enum E { E_UNSPECIFIED = 0; E_X = 1; E_C = 4; }";
    assert_eq!(
        breaks(old, new),
        [
            "enum value shop.v1.E.E_A = 1 was renamed to E_X",
            "enum value shop.v1.E.E_B = 2 was removed",
            "enum value shop.v1.E.E_C: number: 3 became 4"
        ]
    );
}

#[test]
fn removed_and_changed_methods_break() {
    let old = "message A {} message B {} service S { rpc Gone(A) returns (A); rpc Kept(A) returns (A); }";
    let new = "message A {} message B {} service S { rpc Kept(B) returns (B); }";
    assert_eq!(
        breaks(old, new),
        [
            "method shop.v1.S.Gone was removed",
            "method shop.v1.S.Kept: request: .shop.v1.A became .shop.v1.B",
            "method shop.v1.S.Kept: response: .shop.v1.A became .shop.v1.B"
        ]
    );
}

#[test]
fn changed_streaming_breaks() {
    let old = "message A {} service S { rpc R(A) returns (stream A); }";
    let new = "message A {} service S { rpc R(stream A) returns (A); }";
    assert_eq!(breaks(old, new), ["method shop.v1.S.R: streaming: from the server became from the client"]);
}

#[test]
fn a_changed_package_breaks() {
    let old = files(&[("a.proto", "package shop.v1; message A {}")]);
    let new = files(&[("a.proto", "package shop.v2; message A {}")]);
    let found = compare(&old, &new).breaks;
    assert_eq!(found, ["a.proto: package shop.v1 became shop.v2", "message shop.v1.A was removed"]);
}

#[test]
fn moving_a_message_to_another_file_breaks_the_imports_of_clients() {
    let old = files(&[("a.proto", "package s; message A {} message B {}"), ("b.proto", "package s;")]);
    let new = files(&[("a.proto", "package s; message A {}"), ("b.proto", "package s; message B {}")]);
    assert_eq!(compare(&old, &new).breaks, ["message s.B moved from a.proto to b.proto"]);
}

#[test]
fn a_changed_syntax_breaks() {
    let old = files(&[("a.proto", "package s; message A {}")]);
    let new = files(&[("a.proto", "syntax = \"proto2\"; package s; message A {}")]);
    assert_eq!(compare(&old, &new).breaks, ["message s.A: syntax proto3 became proto2"]);
}

#[test]
fn a_new_required_field_breaks() {
    let old = files(&[("a.proto", "syntax = \"proto2\"; package s; message A {}")]);
    let new = files(&[("a.proto", "syntax = \"proto2\"; package s; message A { required int32 n = 1; }")]);
    assert_eq!(compare(&old, &new).breaks, ["field s.A.n is new and required"]);
}
