"""References, the canonical form, digests and validation; jsonschema is the reference."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from octavo.plugins import schema as schemas
from octavo.plugins import validation
from octavo.plugins.schema import SchemaError
from octavo.plugins.steps import OutOfTimeError, time_limit

CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
TREE = {
    "$defs": {
        "Leaf": {"type": "integer", "minimum": 0},
        "Node": {
            "type": "object",
            "properties": {
                "value": {"$ref": "#/$defs/Leaf"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
            },
            "required": ["value"],
        },
    },
    "$ref": "#/$defs/Node",
}


def test_a_digest_is_stable_across_releases() -> None:
    """Hosts and plugins of different releases compare digests: the value may never change."""
    assert schemas.digest(CITY, {"type": "string"}) == (
        "sha256:5a7378bb6aa31bf47533b225ad18bada09aadb9f29e0497a11cd47089f490a00"
    )


def test_digests_of_recursive_schemas_are_stable_across_releases() -> None:
    def node(i: int) -> dict[str, Any]:
        return {"type": "object", "properties": {"next": {"$ref": f"#/$defs/N{(i + 1) % 5}"}, "v": {"const": i}}}

    ring = {f"N{i}": node(i) for i in range(5)}
    both = {"$defs": ring, "properties": {"a": {"$ref": "#/$defs/N3"}, "b": {"$ref": "#/$defs/N0"}}}
    assert schemas.digest(TREE, None) == "sha256:1ee155b1db83dde978805ade3a43a35a57ce09c068aab8e9cc7c5f1164c01f5d"
    assert schemas.digest(both, TREE) == "sha256:33d1f53e30e475bc10072261007fc6a7cce7b1237583aa35c6a54d915639b8b3"


def test_what_changes_no_value_changes_no_digest() -> None:
    same = {
        "title": "X",
        "description": "other words",
        "required": ["city"],
        "properties": {
            "days": {"description": "how many", "examples": [1], "type": "integer"},
            "city": {"$ref": "#/$defs/City", "description": "where"},
        },
        "type": "object",
        "$defs": {"City": {"type": "string", "title": "City"}, "Unused": {"type": "null"}},
        "x-note": 1,
    }
    assert schemas.digest(same, {"type": "string"}) == schemas.digest(CITY, {"type": "string"})


@pytest.mark.parametrize(
    "changed",
    [
        {**CITY, "required": ["city", "days"]},
        {**CITY, "properties": {**CITY["properties"], "days": {"type": "number"}}},
        {**CITY, "properties": {**CITY["properties"], "days": {"type": "integer", "default": 3}}},
        {**CITY, "properties": {**CITY["properties"], "title": {"type": "string"}}},
        {**CITY, "additionalProperties": False},
    ],
    ids=["required", "type", "default", "a property named title", "additional"],
)
def test_what_changes_values_changes_the_digest(changed: dict[str, Any]) -> None:
    assert schemas.digest(changed, {}) != schemas.digest(CITY, {})


def test_the_order_of_sets_does_not_count() -> None:
    ordered = {"required": ["a", "b"], "enum": [1, {"x": 1}], "anyOf": [{"type": ["null", "string"]}, {"minimum": 1}]}
    other = {"anyOf": [{"minimum": 1.0}, {"type": ["string", "null"]}], "enum": [{"x": 1}, 1], "required": ["b", "a"]}
    assert schemas.digest(ordered, {}) == schemas.digest(other, {})
    # The order of these counts.
    assert schemas.digest({"prefixItems": [{"type": "null"}, {}]}, {}) != schemas.digest(
        {"prefixItems": [{}, {"type": "null"}]}, {}
    )


def test_values_are_data_and_not_schemas() -> None:
    """A `title` inside of `const`, `enum` or `default` is a part of the value."""
    for key, one, other in [
        ("const", {"title": "a"}, {"title": "b"}),
        ("default", {"description": "a"}, {}),
        ("enum", [{"title": "a"}], [{}]),
    ]:
        assert schemas.digest({key: one}, {}) != schemas.digest({key: other}, {})


def test_recursive_schemas_have_a_digest_that_names_do_not_change() -> None:
    renamed = json.loads(json.dumps(TREE).replace("Node", "Knot").replace("Leaf", "Blade"))
    assert schemas.digest(renamed, {}) == schemas.digest(TREE, {})
    written_out = schemas.dereference(TREE)
    assert schemas.digest(written_out, {}) == schemas.digest(TREE, {})
    other = json.loads(json.dumps(TREE).replace('"minimum": 0', '"minimum": 1'))
    assert schemas.digest(other, {}) != schemas.digest(TREE, {})


def test_the_order_of_mutually_recursive_parts_does_not_count() -> None:
    a = {"type": "object", "properties": {"b": {"$ref": "#/$defs/B"}}}
    b = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}, "n": {"type": "null"}}}
    ref_a, ref_b = {"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}
    one = {"properties": {"x": ref_a, "y": ref_b}, "$defs": {"A": a, "B": b}}
    other = {"$defs": {"B": b, "A": a}, "properties": {"y": ref_b, "x": ref_a}}
    swapped = {"properties": {"x": ref_b, "y": ref_a}, "$defs": {"A": a, "B": b}}
    assert schemas.digest(one, {}) == schemas.digest(other, {}) != schemas.digest(swapped, {})


@pytest.mark.parametrize("schema", [TREE, CITY], ids=["tree", "flat"])
def test_a_dereferenced_schema_accepts_the_same_values(schema: dict[str, Any]) -> None:
    values: list[Any] = [
        {"value": 1, "children": [{"value": 2}, {"value": 3, "children": []}]},
        {"value": 1, "children": [{"value": -1}]},
        {"city": "x", "days": 2},
        {"city": 1},
        3,
    ]
    flat = schemas.dereference(schema)
    for value in values:
        expected = jsonschema.Draft202012Validator(schema).is_valid(value)
        assert validation.matches(flat, value) is expected


def test_members_beside_a_reference_keep_their_meaning() -> None:
    base = {"type": "object", "properties": {"a": {}}, "additionalProperties": False}
    schema = {"$defs": {"Base": base}, "$ref": "#/$defs/Base", "properties": {"b": {"type": "integer"}}}
    for value in ({"a": 1}, {"b": 1}, {"b": "x"}):
        expected = jsonschema.Draft202012Validator(schema).is_valid(value)
        assert validation.matches(schemas.dereference(schema), value) is expected


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "http://127.0.0.1:1/x.json"}, "only references within the document"),
        ({"$ref": "#/$defs/Gone"}, "does not have"),
        ({"$ref": "#/required/0", "required": ["x"]}, "no schema"),
    ],
)
def test_a_bad_reference_is_named(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        schemas.dereference(schema)


def test_a_schema_that_multiplies_is_refused() -> None:
    defs: dict[str, Any] = {"0": {"type": "null"}}
    for i in range(1, 40):
        defs[str(i)] = {"anyOf": [{"$ref": f"#/$defs/{i - 1}"}, {"items": {"$ref": f"#/$defs/{i - 1}"}}]}
    with pytest.raises(SchemaError, match="make it smaller"):
        schemas.dereference({"$ref": "#/$defs/39", "$defs": defs})
    deep: dict[str, Any] = {}
    for _ in range(2000):
        deep = {"items": deep}
    with pytest.raises(SchemaError, match="make it smaller"):
        schemas.digest(deep, {})


def shuffled(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(k, shuffled(v, rng)) for k, v in value.items()]
        rng.shuffle(items)
        return dict(items)
    return value


LEAVES = st.sampled_from([{"type": "string"}, {"type": "integer", "minimum": 1}, {"enum": ["a", "b"]}, {}])
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda p: {"type": "object", "properties": p}, st.dictionaries(st.sampled_from("abc"), inner)),
        st.builds(lambda i: {"type": "array", "items": i}, inner),
        st.builds(lambda i, j: {"anyOf": [i, j]}, inner, inner),
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(SCHEMAS, st.randoms(use_true_random=False))
def test_the_order_of_members_never_changes_a_digest(schema: dict[str, Any], rng: random.Random) -> None:
    assert schemas.digest(shuffled(schema, rng), {}) == schemas.digest(schema, {})
    moved = {"$defs": {"S": schema}, "$ref": "#/$defs/S"}
    assert schemas.digest(moved, {}) == schemas.digest(schema, {})


@settings(max_examples=60, deadline=None)
@given(SCHEMAS, st.recursive(st.sampled_from(["a", 1, 0, None]), lambda i: st.lists(i, max_size=2), max_leaves=4))
def test_validation_agrees_with_jsonschema(schema: dict[str, Any], value: Any) -> None:
    for candidate in (value, {"a": value, "b": 1}):
        assert validation.matches(schema, candidate) is jsonschema.Draft202012Validator(schema).is_valid(candidate)


def test_faults_name_the_place() -> None:
    found = validation.faults(CITY, {"days": "x"})
    assert [(f.pointer, f.keyword) for f in found] == [("", "required"), ("/days", "type")]
    assert "'city'" in found[0].detail
    assert schemas.pointer(["a/b", 0, "c~d"]) == "/a~1b/0/c~0d"


def test_a_pattern_cannot_stall_the_validation() -> None:
    """Python's `re` needs hours for this pattern and text."""
    assert not validation.matches({"pattern": "^(a+)+$"}, "a" * 5000 + "b")
    assert validation.matches({"pattern": "^(a+)+$"}, "a" * 5000)
    only_names = {"patternProperties": {"^(x+)+$": {"type": "integer"}}}
    assert not validation.matches(only_names, {"xx": "text"})
    assert validation.matches(only_names, {"x" * 3000 + "y": "text"})
    # Look-around is left to the plugin.
    assert validation.matches({"pattern": "^(?!b)"}, "b")


def test_an_invalid_schema_is_an_error_of_the_schema() -> None:
    with pytest.raises(SchemaError, match="/type"):
        validation.faults({"type": "strng"}, "x")
    with pytest.raises(SchemaError, match="cannot be used"):
        validation.faults({"$ref": "http://127.0.0.1:1/never-fetched.json"}, "x")


@pytest.mark.parametrize("schema", [{"default": float("nan")}, {"const": float("inf")}, {"enum": [[[]], float("nan")]}])
def test_numbers_that_json_has_not_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(SchemaError, match="JSON cannot hold"):
        schemas.digest(schema, {})
    assert schemas.digest({"$ref": 3}, {})


def reaches_itself(ref: str, uses: dict[str, list[str]]) -> bool:
    """By definition, where `_recursive` has a linear algorithm."""
    seen: set[str] = set()
    todo = list(uses[ref])
    while todo:
        found = todo.pop()
        if found not in seen:
            seen.add(found)
            todo += uses[found]
    return ref in seen


NAMES = "abcdefgh"
GRAPHS = st.fixed_dictionaries({name: st.lists(st.sampled_from(NAMES), max_size=4, unique=True) for name in NAMES})


@settings(max_examples=300, deadline=None)
@given(GRAPHS)
def test_definitions_that_reach_themselves_are_found(uses: dict[str, list[str]]) -> None:
    assert schemas._recursive(uses) == {ref for ref in uses if reaches_itself(ref, uses)}


def test_many_large_recursive_definitions_are_refused() -> None:
    wide = {f"p{i}": {"type": "string"} for i in range(40)}
    defs = {f"S{i}": {"properties": {**wide, "next": {"$ref": f"#/$defs/S{(i + 1) % 400}"}}} for i in range(400)}
    with pytest.raises(SchemaError, match="make it smaller"):
        schemas.digest({"$defs": defs, "$ref": "#/$defs/S0"}, None)


def test_reading_and_checking_end_when_no_time_is_left() -> None:
    many = {"properties": {f"p{i}": {"type": "string"} for i in range(2000)}}
    value = {f"p{i}": "x" for i in range(2000)}
    for work in (
        lambda: schemas.dereference(many),
        lambda: schemas.digest(many, None),
        lambda: validation.faults(many, value),
        lambda: validation.faults({"uniqueItems": True}, list(range(2000))),
        lambda: validation.faults({"items": {"enum": list(range(100))}}, list(range(100))),
    ):
        work()
        with pytest.raises(OutOfTimeError), time_limit(lambda: 0.0):
            work()
        # Outside of the limit there is none.
        work()


KEYWORDS = st.sampled_from(
    [
        {"uniqueItems": True},
        {"enum": [1, "a", None, [1], {"a": 1}, True]},
        {"additionalProperties": False, "properties": {"a": {}}},
        {"additionalProperties": {"type": "integer"}, "patternProperties": {"^b": {}}},
        {"items": {"enum": [0, False]}, "uniqueItems": True},
    ]
)
VALUES = st.recursive(
    st.sampled_from([0, 1, 1.0, True, False, None, "a", "b"]),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(KEYWORDS, VALUES)
def test_own_keywords_agree_with_jsonschema(schema: dict[str, Any], value: Any) -> None:
    assert validation.matches(schema, value) == jsonschema.Draft202012Validator(schema).is_valid(value)
