"""Canonical JSON, written anew from docs/plugin-protocol.md, gives the digests of octavo."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from octavo.plugins.schema import canonical_json, digest

_SHORT = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def _text(value: str) -> str:
    return '"' + "".join(_SHORT.get(c, f"\\u{ord(c):04x}" if ord(c) < 0x20 else c) for c in value) + '"'


def _number(value: float) -> str:
    if value == int(value):
        return str(int(value))
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    text, point = "".join(map(str, digits)), len(digits) + int(exponent)
    if abs(value) >= 0.0001:
        padded = "0" * max(1 - point, 0) + text
        cut = max(point, 1)
        body = f"{padded[:cut]}.{padded[cut:]}"
    else:
        body = text[0] + ("." + text[1:] if len(text) > 1 else "") + f"e-{1 - point:02d}"
    return "-" * sign + body


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{_text(k)}:{_written(v)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _text(value) if isinstance(value, str) else _number(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    )
)
def test_the_text_says_how_json_is_written(value: Any) -> None:
    assert canonical_json(value) == _written(value)


@pytest.mark.parametrize(
    ("schema", "form"),
    [
        ({"multipleOf": 1e-7}, {"multipleOf": 1e-7}),
        ({"multipleOf": 0.00001}, {"multipleOf": 0.00001}),
        ({"maximum": 1e22}, {"maximum": 10**22}),
        ({"properties": {"\U0001f600": True, "\uff5e": True}}, {"properties": {"\uff5e": True, "\U0001f600": True}}),
        ({"type": "object", "required": []}, {"type": "object"}),
        ({"dependentRequired": {"a": ["c", "b"]}}, {"dependentRequired": {"a": ["b", "c"]}}),
        ({"type": "string", "deprecated": True, "$comment": "c", "xml": {}, "readOnly": True}, {"type": "string"}),
        ({"default": {"title": "a", "x-y": 1}}, {"default": {"title": "a", "x-y": 1}}),
    ],
)
def test_the_text_says_what_is_removed_and_sorted(schema: Any, form: Any) -> None:
    whole = _written({"arguments": form, "result": {}})
    assert digest(schema, {}) == "sha256:" + hashlib.sha256(whole.encode()).hexdigest()


def test_the_text_says_how_recursion_is_hashed() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/N"}}}
    schema = {"properties": {"first": {"$ref": "#/$defs/N"}}, "$defs": {"N": node}}
    # One round, in which the hash of the target is empty.
    inner = _written({"type": "object", "properties": {"next": {"$ref": ""}}})
    form = {"properties": {"first": {"$ref": hashlib.sha256(inner.encode()).hexdigest()}}}
    whole = _written({"arguments": form, "result": {}})
    assert digest(schema, {}) == "sha256:" + hashlib.sha256(whole.encode()).hexdigest()
