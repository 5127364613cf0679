"""Repair keeps the meaning, or there is none. Each repair is named; nothing is guessed."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from octavo.plugins.host.repair import check, repair

CITY = {"type": "string", "description": "The city."}
DAYS = {"type": "integer", "description": "How many days.", "default": 3}


def schema(required: tuple[str, ...] = (), /, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


OLD = schema(("city",), city=CITY, days=DAYS)


def fit(new: dict[str, Any], arguments: dict[str, Any], old: dict[str, Any] = OLD, **options: Any) -> Any:
    aliases = options.pop("aliases", {})
    done = repair(old, new, arguments, aliases, **options)
    return (done.arguments, [r.kind for r in done.repairs]) if not done.faults else [f.pointer for f in done.faults]


def test_rename_by_alias() -> None:
    new = schema(("place",), place={"type": "string"}, days=DAYS)
    assert fit(new, {"city": "x", "days": 2}, aliases={"place": ("city",)}) == ({"days": 2, "place": "x"}, ["rename"])


def test_rename_without_an_alias_needs_the_same_words() -> None:
    same = schema(("place",), place=CITY, days=DAYS)
    assert fit(same, {"city": "x"}) == ({"place": "x"}, ["rename"])
    # The type alone is no evidence: this may be anything.
    other = schema(("country",), country={"type": "string", "description": "The country."}, days=DAYS)
    assert fit(other, {"city": "x"}) != ({"country": "x"}, ["rename"])
    silent_old = schema(("city",), city={"type": "string"})
    silent_new = schema(("place",), place={"type": "string"})
    assert "/city" in fit(silent_new, {"city": "x"}, silent_old)
    # Two candidates are none.
    two = schema((), a=CITY, b=CITY, days=DAYS)
    assert "/city" in fit(two, {"city": "x"})


def test_an_alias_does_not_overwrite_an_argument() -> None:
    new = schema(("place",), place=CITY, days=DAYS)
    old = schema((), city=CITY, place=CITY, days=DAYS)
    assert "/city" in fit(new, {"city": "x", "place": "y"}, old, aliases={"place": ("city",)})


def test_only_a_default_may_be_dropped() -> None:
    new = schema(("city",), city=CITY)
    assert fit(new, {"city": "x", "days": 3}) == ({"city": "x"}, ["drop"])
    assert fit(new, {"city": "x", "days": 4})[0] == "/days"
    assert fit(new, {"city": "x"}) == ({"city": "x"}, [])


def test_the_default_that_was_shown_is_kept() -> None:
    new = schema(("city",), city=CITY, days={**DAYS, "default": 7})
    assert fit(new, {"city": "x"}) == ({"city": "x", "days": 3}, ["default"])
    assert fit(new, {"city": "x", "days": 5}) == ({"city": "x", "days": 5}, [])
    gone = {k: v for k, v in DAYS.items() if k != "default"}
    assert fit(schema(("city",), city=CITY, days=gone), {"city": "x"}) == ({"city": "x", "days": 3}, ["default"])
    # `true` and 1 are different defaults.
    flag = {"type": ["boolean", "integer"], "default": True}
    one = schema((), flag={**flag, "default": 1})
    assert fit(one, {}, schema((), flag=flag)) == ({"flag": True}, ["default"])
    # No default was shown: the caller meant none.
    assert fit(schema(("city",), city=CITY, days=DAYS), {"city": "x"}, schema(("city",), city=CITY, days=gone)) == [
        "/days"
    ]


def test_a_default_follows_a_rename() -> None:
    new = schema(("city",), city=CITY, length={**DAYS, "default": 7})
    assert fit(new, {"city": "x"}, aliases={"length": ("days",)}) == ({"city": "x", "length": 3}, ["default"])


def test_an_argument_that_may_live_on_under_a_new_name_is_not_left_out() -> None:
    new = schema(("city",), city=CITY, span={"type": "integer", "description": "The span.", "default": 7})
    assert fit(new, {"city": "x"}) == ["/span"]
    assert fit(new, {"city": "x", "days": 3}) == ["/span"]


def test_a_name_in_use_again_hides_no_argument_that_lives_on() -> None:
    # `days` counts travellers now, and the days may be the new `span`, whose default is another.
    span = {"type": "integer", "description": "The span.", "default": 7}
    people = {"type": "integer", "description": "How many people.", "default": 3}
    assert fit(schema(("city",), city=CITY, days=people, span=span), {"city": "x"}) == ["/span"]
    of_another_type = {"type": "boolean", "description": "How many days."}
    assert "/span" in fit(schema(("city",), city=CITY, days=of_another_type, span=span), {"city": "x"})


def test_a_new_required_argument_with_a_default() -> None:
    unit = {"type": "string", "default": "C"}
    assert fit(schema(("city", "unit"), city=CITY, days=DAYS, unit=unit), {"city": "x"}) == (
        {"city": "x", "unit": "C"},
        ["default"],
    )
    assert fit(schema(("city", "unit"), city=CITY, days=DAYS, unit={"type": "string"}), {"city": "x"}) == [""]


@pytest.mark.parametrize(
    ("kind", "value", "after"),
    [
        ("string", 7, "7"),
        ("string", True, "true"),
        ("string", 1.5, None),
        ("integer", "7", 7),
        ("integer", "-12", -12),
        ("integer", "07", None),
        ("integer", "7.0", None),
        ("integer", " 7", None),
        ("integer", "-0", None),
        ("integer", "1e3", None),
        ("integer", "\u0667", None),
        ("integer", 7.5, None),
        ("integer", True, None),
        ("boolean", "true", True),
        ("boolean", "yes", None),
        ("boolean", 1, None),
        ("string", None, None),
        (["integer", "boolean"], "true", True),
    ],
)
def test_coercion_without_loss(kind: Any, value: Any, after: Any) -> None:
    old = schema((), a={"description": "It."})
    new = schema((), a={"type": kind, "description": "It."})
    expected = ["/a"] if after is None else ({"a": after}, ["coerce"])
    assert fit(new, {"a": value}, old) == expected
    # Level 0: no rule keeps the meaning of a name.
    assert fit(new, {"a": value}, old, coerce=False) == ["/a"]
    # Without words there is no evidence.
    assert fit(schema((), a={"type": kind}), {"a": value}, schema((), a={})) == ["/a"]


def test_a_scalar_is_wrapped() -> None:
    tags = {"type": "array", "items": {"type": "string"}, "description": "Tags."}
    old = schema((), tags={"type": "string", "description": "Tags."})
    assert fit(schema((), tags=tags), {"tags": "a"}, old) == ({"tags": ["a"]}, ["wrap"])
    assert fit(schema((), tags={**tags, "items": {"type": "integer"}}), {"tags": "a"}, old) == ["/tags"]
    assert fit(schema((), tags={**tags, "minItems": 2}), {"tags": "a"}, old) == ["/tags"]
    assert fit(schema((), tags={**tags, "items": {"type": "string", "enum": ["b"]}}), {"tags": "a"}, old) == ["/tags"]


def test_a_name_with_other_words_is_another_argument() -> None:
    new = schema(("city",), city={"type": "string", "description": "The country."}, days={**DAYS, "maximum": 9})
    assert fit(new, {"city": "x"}) == ["/city"]


def test_a_narrower_type_is_not_bent() -> None:
    assert fit(schema(("city",), city=CITY, days={**DAYS, "maximum": 5}), {"city": "x", "days": 6}) == ["/days"]
    enum = {**CITY, "enum": ["a", "b"]}
    assert fit(schema(("city",), city=enum, days=DAYS), {"city": "x"}) == ["/city"]


def test_members_below_are_not_lost() -> None:
    def at(*names: str, **more: Any) -> dict[str, Any]:
        inner = {"type": "object", "properties": {name: {"type": "string"} for name in names}, **more}
        return schema((), at={**inner, "description": "Where."})

    old = at("street", "town")
    # The object is open: a server would ignore the former name.
    assert fit(at("road", "town"), {"at": {"street": "x"}}, old) == ["/at/street"]
    assert fit(at("road", "town"), {"at": {"town": "x"}}, old) == ({"at": {"town": "x"}}, [])
    optional = schema((), at={"anyOf": [at("road")["properties"]["at"], {"type": "null"}], "description": "Where."})
    assert fit(optional, {"at": {"street": "x"}}, old) == ["/at/street"]


def test_what_has_consequences_is_never_repaired() -> None:
    new = schema(("place",), place={"type": "string"}, days=DAYS)
    assert fit(new, {"city": "x"}, aliases={"place": ("city",)}, frozen=True)[0] == "/city"
    changed = schema(("city",), city=CITY, days={**DAYS, "default": 7})
    assert fit(changed, {"city": "x"}, frozen=True) == ["/days"]
    # Nothing to repair: an addition harms no one.
    assert fit(schema(("city",), city=CITY, days=DAYS, more=CITY), {"city": "x"}, frozen=True) == ({"city": "x"}, [])


def test_schemas_with_branches_are_compared_as_a_whole() -> None:
    branchy = {"anyOf": [schema(("city",), city=CITY), schema(("zip",), zip=CITY)], "type": "object"}
    assert fit(branchy, {"city": "x"}) == [""]
    assert fit(branchy, {"city": "x"}, branchy) == ({"city": "x"}, [])


def test_an_unknown_argument_is_a_fault_even_if_the_schema_is_open() -> None:
    open_schema = {"type": "object", "properties": {"a": {}}}
    assert [f.pointer for f in check(open_schema, {"a": 1, "b": 2})] == ["/b"]
    assert check({**open_schema, "additionalProperties": True}, {"b": 2}) == []
    assert check({**open_schema, "additionalProperties": {"type": "integer"}}, {"b": 2}) == []


NAMES = st.sampled_from(["a", "b", "c", "d"])
WORDS = st.sampled_from(["", "One.", "Two."])
VALUES = st.sampled_from([0, 1, 7, "x", "7", "true", True, False, None, ["x"], 1.5])


@st.composite
def schemas(draw: st.DrawFn) -> dict[str, Any]:
    properties = {}
    for name in draw(st.sets(NAMES, max_size=4)):
        part: dict[str, Any] = {"type": draw(st.sampled_from(["string", "integer", "boolean", "array"]))}
        if words := draw(WORDS):
            part["description"] = words
        if draw(st.booleans()):
            part["default"] = draw(VALUES)
        properties[name] = part
    return schema(tuple(n for n in properties if draw(st.booleans())), **properties)


@settings(max_examples=400, deadline=None)
@given(schemas(), schemas(), st.dictionaries(NAMES, VALUES, max_size=4), st.dictionaries(NAMES, st.tuples(NAMES)))
def test_whatever_is_sent_is_valid_and_explained(
    old: dict[str, Any], new: dict[str, Any], given_: dict[str, Any], aliases: dict[str, tuple[str, ...]]
) -> None:
    done = repair(old, new, given_, aliases)
    if done.faults:
        return
    jsonschema.Draft202012Validator(new).validate(done.arguments)
    # Replaying the named repairs on what was given gives what is sent: nothing else changed.
    replayed = dict(given_)
    for step in done.repairs:
        name = step.pointer[1:]
        if step.kind == "rename":
            moved = [n for n in done.arguments if n not in replayed and n in new["properties"]]
            assert moved
            target = next(n for n in moved if f"now {n!r}" in step.detail)
            replayed[target] = replayed.pop(name)
        elif step.kind == "drop":
            assert replayed.pop(name) == old["properties"][name]["default"]
        else:
            replayed[name] = step.after
    assert replayed == done.arguments


@settings(max_examples=200, deadline=None)
@given(schemas(), st.dictionaries(NAMES, VALUES, max_size=4))
def test_nothing_is_repaired_where_nothing_changed(old: dict[str, Any], given_: dict[str, Any]) -> None:
    done = repair(old, old, given_, {})
    valid = jsonschema.Draft202012Validator(old).is_valid(given_)
    assert (not done.faults) == valid
    assert not valid or (done.arguments, done.repairs) == (given_, [])
