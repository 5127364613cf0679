//! What is rewritten, closed and loosened.

use serde_json::{Value, json};

use super::*;
use crate::structured::pointers::pointer_of;

/// The schema that fits, and each loss as pointer and keyword.
fn fitted(schema: Value) -> (Value, Vec<(String, String)>) {
    let found = fit_schema(&schema.to_string(), true).expect("fits");
    (found.schema, found.losses.into_iter().map(|loss| (loss.pointer, loss.keyword)).collect())
}

fn same(given: Value, wanted: Value) {
    assert_eq!(fitted(given.clone()), (wanted, vec![]), "{given}");
}

#[test]
fn what_says_nothing_is_left_out_in_silence() {
    let text = json!({"type": "string"});
    for more in [
        json!({"uniqueItems": false}),
        json!({"required": null}),
        json!({"properties": null}),
        json!({"format": "password"}),
        json!({"propertyNames": {"type": "string"}}),
        json!({"not": false}),
        json!({"if": {"type": "null"}}),
        json!({"dependentRequired": {}}),
        json!({"minContains": 2}),
        json!({"unevaluatedProperties": true}),
    ] {
        let mut given = text.clone();
        given.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        same(given, text.clone());
    }
    let found = fit_schema(r#"{"type": "string", "format": "regex"}"#, true).expect("fits");
    assert_eq!(found.formats.into_iter().collect::<Vec<_>>(), ["regex"]);
}

#[test]
fn what_has_other_words_is_rewritten() {
    same(
        json!({"$id": "https://e/x", "$ref": "https://e/x#/$defs/a", "$defs": {"a": {"type": "null"}}}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}),
    );
    same(
        json!({"$ref": "#a", "$defs": {"x": {"$anchor": "a", "type": "null"}}}),
        json!({"$ref": "#/$defs/x", "$defs": {"x": {"type": "null"}}}),
    );
    let color = json!({"enum": ["red", "blue"], "type": "string"});
    same(
        json!({"type": "object", "propertyNames": {"$ref": "#/$defs/c"}, "additionalProperties": {"type": "null"},
               "$defs": {"c": color}}),
        json!({"type": "object", "additionalProperties": false, "$defs": {"c": color},
               "properties": {"red": {"type": "null"}, "blue": {"type": "null"}}}),
    );
    let way = |tag: &str| json!({"type": "object", "properties": {"t": {"const": tag}}, "required": ["t"], "additionalProperties": false});
    same(
        json!({"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {"a": way("a"), "b": way("b")}}),
        json!({"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {"a": way("a"), "b": way("b")}}),
    );
}

#[test]
fn objects_are_closed_where_nothing_else_names_properties() {
    same(json!({"type": "object"}), json!({"type": "object"}));
    let open = json!({"properties": {"a": {}}, "additionalProperties": true});
    same(open.clone(), open);
    same(
        json!({"properties": {"a": {}}, "required": ["b"]}),
        json!({"properties": {"a": {}, "b": true}, "required": ["b"], "additionalProperties": false}),
    );
    let joined = json!({"allOf": [{"$ref": "#/$defs/a"}, {"properties": {"y": {}}}], "$defs": {"a": {"properties": {"x": {}}}}});
    same(joined.clone(), joined);
    // Each alternative alone is a whole object.
    same(
        json!({"anyOf": [{"properties": {"x": {}}}, {"type": "null"}]}),
        json!({"anyOf": [{"properties": {"x": {}}, "additionalProperties": false}, {"type": "null"}]}),
    );
}

#[test]
fn a_part_that_is_not_held_is_loosened_alone() {
    for (part, keyword, rest) in [
        (json!({"type": "string", "pattern": "^(?!x)"}), "pattern", json!({"type": "string"})),
        (json!({"type": "string", "maxLength": 100_000}), "maxLength", json!({"type": "string"})),
        (json!({"type": "integer", "minimum": i64::MIN}), "minimum", json!({"type": "integer"})),
        (json!({"type": "number", "maximum": f64::MAX}), "maximum", json!({"type": "number"})),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems", json!({"type": "array"})),
        (json!({"type": "string", "enum": [1]}), "enum", json!({"type": "string"})),
        (json!({"type": "STRING"}), "type", json!({"type": "string"})),
        (json!({"type": "any"}), "type", json!({})),
        (json!({"$ref": "https://e/x"}), "$ref", json!({})),
        (json!({"multipleOf": 1_000_003}), "multipleOf", json!({})),
        (
            json!({"oneOf": [{"type": "string"}, {"minLength": 3, "type": "string"}]}),
            "oneOf",
            json!({"anyOf": [{"type": "string"}, {"minLength": 3, "type": "string"}]}),
        ),
    ] {
        let whole = |part: &Value| json!({"properties": {"x": part, "y": {"type": "null"}}, "additionalProperties": false});
        let (found, losses) = fitted(whole(&part));
        assert_eq!((found, losses), (whole(&rest), vec![("/properties/x".into(), keyword.into())]), "{part}");
    }
}

#[test]
fn a_recursive_schema_keeps_its_recursion() {
    let node = |bad: Value| {
        json!({"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "additionalProperties": false, "properties": {
            "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}, "bad": bad}}}})
    };
    let (found, losses) = fitted(node(json!({"type": "string", "pattern": "(?=x)"})));
    assert_eq!(found, node(json!({"type": "string"})));
    assert_eq!(losses, [("/$defs/n/properties/bad".into(), "pattern".into())]);
}

#[test]
fn hostile_schemas_end_soon() {
    let deep =
        (0..30).fold(json!({"pattern": "(?=x)"}), |inner, i| json!({"properties": {format!("p{i}"): inner}}));
    let wide: Vec<Value> =
        (0..400).map(|i| json!({"type": "string", "pattern": format!("(?={i})")})).collect();
    let cycle = json!({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"});
    let counts = json!({"maxItems": 1000, "items": {"maxItems": 1000, "items": {"maxLength": 1000}}});
    for schema in
        [deep, json!({"anyOf": wide}), cycle, counts, json!({"$ref": "#"}), json!({"allOf": [{"$ref": "#"}]})]
    {
        let begin = std::time::Instant::now();
        assert!(fit_schema(&schema.to_string(), true).is_ok());
        // A limit for hangs, not a measurement.
        assert!(begin.elapsed().as_secs() < 60, "{schema}");
    }
    assert!(fit_schema("[", true).is_err());
    assert!(fit_schema("3", true).is_err());
}

#[test]
fn references_are_read_as_pointers() {
    assert_eq!(pointer_of("#/$defs/a%20b~1c").as_deref(), Some("/$defs/a b~1c"));
    assert_eq!([pointer_of("x"), pointer_of("#x"), pointer_of("#/%zz")], [None, None, None]);
    assert_eq!(pointer_of("#").as_deref(), Some(""));
}
