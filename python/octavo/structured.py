"""What an output must be: a JSON schema, a regular expression, or a grammar. Valid by construction, token by token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from octavo.calls import names_arguments
from octavo.errors import InvalidRequestError

__all__ = ["Budgeted", "Grammar", "JsonSchema", "Regex", "Structure", "Structured"]


@names_arguments()
@dataclass(frozen=True)
class JsonSchema:
    """A JSON document under a schema of draft 2020-12.

    Attributes:
        schema: a dict, the text of one, a pydantic model, or True for any JSON.
        disable_additional_properties: objects that name their properties take no others, unless `additionalProperties`
            says so. False: JSON Schema's own rule, by which they take any.

    Keywords that cannot be enforced are refused when the request is made, not skipped. A `format` that is not known is
    an annotation.
    """

    schema: Any
    disable_additional_properties: bool = True

    def as_pair(self) -> tuple[str, str]:
        """The kind and its text, as the engine takes them."""
        schema, kind = self.schema, "json_schema" if self.disable_additional_properties else "open_json_schema"
        if hasattr(schema, "model_json_schema"):
            schema = schema.model_json_schema()
        if isinstance(schema, str):
            return kind, schema
        if not isinstance(schema, (Mapping, bool)):
            raise InvalidRequestError(
                f"structured: JsonSchema of a {type(schema).__name__}: a dict, a text or a pydantic model is expected"
            )
        try:
            return kind, json.dumps(schema, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequestError(f"structured: the schema cannot be written as JSON: {error}") from error


@names_arguments()
@dataclass(frozen=True)
class Regex:
    """A text that matches a regular expression from its beginning to its end (syntax of Rust's regex crate)."""

    pattern: str

    def as_pair(self) -> tuple[str, str]:
        return "regex", _text("Regex", self.pattern)


@names_arguments()
@dataclass(frozen=True)
class Grammar:
    """A text of a context-free grammar, in llguidance's form of Lark; its first rule is called `start`."""

    lark: str

    def as_pair(self) -> tuple[str, str]:
        return "grammar", _text("Grammar", self.lark)


Structure: TypeAlias = JsonSchema | Regex | Grammar


@dataclass(frozen=True)
class Budgeted:
    """Free text of limited length, such as reasoning, before an answer.

    Attributes:
        output: the whole output.
        begin: the mark at which free text begins; None: the output begins with free text.
        end: the mark at which free text ends.
        answer: what follows free text that reaches its limit. It begins with `end`.
        max_tokens: the limit of the free text in tokens, its marks included; None: none of its own.
        answer_tokens: tokens that stay for the answer. Free text ends when so many are left, or half of all.
    """

    output: Structure
    begin: str | None
    end: str
    answer: Structure
    max_tokens: int | None
    answer_tokens: int

    def as_pair(self) -> tuple[str, str]:
        fields = {
            "output": self.output.as_pair(),
            "begin": self.begin,
            "end": self.end,
            "answer": self.answer.as_pair(),
            "max_tokens": self.max_tokens,
            "answer_tokens": self.answer_tokens,
        }
        return "budgeted", json.dumps(fields, ensure_ascii=False)


Structured: TypeAlias = Structure | Budgeted


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(f"structured: {name} of a {type(value).__name__}: a text is expected")
    return value
