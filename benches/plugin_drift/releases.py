"""Releases of a simulated plugin: one operation on typed fields, its schema, and what arguments mean to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from benches.plugin_drift.concepts import BY_ID, Concept, Meaning, Value, decode, encode

MISSING = object()


class RefusedError(Exception):
    """Arguments that a release does not accept; (pointer, detail)."""

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(f"{pointer}: {detail}")
        self.pointer, self.detail = pointer, detail


@dataclass(frozen=True)
class Field:
    """One argument. `default` None: none. `low`, `high`, `choices`: what is accepted; None: everything."""

    concept_id: str
    name: str
    phrase: int = 0
    shape: str = "plain"
    required: bool = True
    default: Value | None = None
    low: int | None = None
    high: int | None = None
    choices: tuple[str, ...] | None = None
    aliases: tuple[str, ...] = ()
    wide: bool = False

    @property
    def concept(self) -> Concept:
        return BY_ID[self.concept_id]

    def accepts(self, value: Value) -> bool:
        """Whether the release accepts a value of the concept."""
        if self.choices is not None and value not in self.choices:
            return False
        if self.low is not None and isinstance(value, int) and value < self.low:
            return False
        return not (self.high is not None and isinstance(value, int) and value > self.high)

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the argument."""
        kinds = {"text": "string", "choice": "string", "count": "integer", "share": "number", "flag": "boolean"}
        kind = "string" if self.shape == "text" else kinds[self.concept.kind]
        if self.wide and kind == "integer":
            kind = "number"
        part: dict[str, Any] = {"type": kind}
        if self.shape != "text":
            if self.low is not None:
                part["minimum"] = self.low
            if self.high is not None:
                part["maximum"] = self.high
        if self.choices is not None:
            part["enum"] = list(self.choices)
        if self.shape == "list":
            part = {"type": "array", "items": part, "minItems": 1, "maxItems": 1}
        part["description"] = self.concept.phrases[self.phrase]
        if self.default is not None:
            part["default"] = encode(self.default, self.shape)
        return part


@dataclass(frozen=True)
class Release:
    """One version of the plugin. `fields` None: the operation is gone.

    `factor` is part of the meaning that no schema shows: a lawless change of units multiplies it.
    """

    major: int
    minor: int
    operation: str
    fields: tuple[Field, ...] | None
    consequential: bool = False
    idempotent: bool = True
    result_name: str = "answer"
    summary: str = "Answers the question."
    factor: int = 1

    @property
    def version(self) -> str:
        return f"{self.major}.{self.minor}.0"

    def known(self) -> tuple[Field, ...]:
        return self.fields or ()

    def field_of(self, concept_id: str) -> Field | None:
        return next((f for f in self.known() if f.concept_id == concept_id), None)

    def aliases(self) -> dict[str, list[str]]:
        return {f.name: list(f.aliases) for f in self.known() if f.aliases}

    def parameters(self, closed: bool = True) -> dict[str, Any]:
        """The schema of the arguments. `closed`: unknown members are refused."""
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {f.name: f.schema() for f in self.known()},
            "required": [f.name for f in self.known() if f.required],
        }
        return {**schema, "additionalProperties": False} if closed else schema

    def result(self) -> dict[str, Any]:
        return {"type": "object", "properties": {self.result_name: {"type": "string"}}, "required": [self.result_name]}

    def meaning(self, arguments: dict[str, Any], closed: bool = True) -> Meaning:
        """What the release does with arguments: concept -> value, its own defaults included.

        Raises:
            RefusedError: arguments that the schema does not accept.
        """
        names = {f.name for f in self.known()}
        if closed and (unknown := sorted(arguments.keys() - names)):
            raise RefusedError(f"/{unknown[0]}", f"unknown argument; known: {', '.join(sorted(names))}")
        found: Meaning = {}
        for f in self.known():
            given = arguments.get(f.name, MISSING)
            if given is MISSING:
                if f.required:
                    raise RefusedError(f"/{f.name}", "required argument missing")
                if f.default is not None:
                    found[f.concept_id] = f.default
                continue
            try:
                value = decode(given, f.concept, f.shape)
            except (ValueError, TypeError, OverflowError):
                raise RefusedError(f"/{f.name}", f"expected {f.schema()['type']}") from None
            if not f.accepts(value):
                raise RefusedError(f"/{f.name}", "outside what is accepted")
            found[f.concept_id] = value
        return found

    def answer(self, meaning: Meaning) -> dict[str, Any]:
        """The result, which shows what was done."""
        text = ";".join(f"{key}={meaning[key]!r}" for key in sorted(meaning))
        return {self.result_name: f"{self.factor}*{text}"}

    def with_field(self, field: Field) -> Release:
        """The same release with a field replaced, by its concept."""
        return replace(self, fields=tuple(field if f.concept_id == field.concept_id else f for f in self.known()))
