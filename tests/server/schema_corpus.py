"""Schemas that programs really write: pydantic's and mcp's, made here by these libraries, and zod's by hand."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import enum
import ipaddress
import pathlib
import re
import uuid
from typing import Annotated, Any, Literal, NamedTuple

from mcp.server.mcpserver import MCPServer
from pydantic import (
    AnyUrl,
    AwareDatetime,
    Base64Str,
    BaseModel,
    ByteSize,
    ConfigDict,
    DirectoryPath,
    Field,
    FilePath,
    FiniteFloat,
    IPvAnyAddress,
    Json,
    NonNegativeInt,
    PastDate,
    PositiveFloat,
    PostgresDsn,
    RootModel,
    SecretBytes,
    SecretStr,
    StrictInt,
    TypeAdapter,
    conint,
    conlist,
    constr,
)
from typing_extensions import TypedDict

Corpus = dict[str, dict[str, Any]]


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=1, le=9)]


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Options(TypedDict, total=False):
    verbose: bool
    depth: int


class Point(NamedTuple):
    x: float
    y: float


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"a": 1}], "x-order": 2})
    a: int = Field(1, description="A number", examples=[3], deprecated=True)


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


TYPES: dict[str, Any] = {
    "set": set[int],
    "frozenset": frozenset[str],
    "path": pathlib.Path,
    "bytes": bytes,
    "secret": SecretStr,
    "secret bytes": SecretBytes,
    "base64": Base64Str,
    "address": IPvAnyAddress,
    "v4": ipaddress.IPv4Address,
    "v6": ipaddress.IPv6Address,
    "network": ipaddress.IPv4Network,
    "dsn": PostgresDsn,
    "url": AnyUrl,
    "enum keys": dict[Color, int],
    "enum": Color,
    "int enum": Level,
    "decimal": decimal.Decimal,
    "money": Annotated[decimal.Decimal, Field(max_digits=8, decimal_places=2)],
    "datetime": datetime.datetime,
    "date": datetime.date,
    "time": datetime.time,
    "delta": datetime.timedelta,
    "aware": AwareDatetime,
    "past": PastDate,
    "uuid": uuid.UUID,
    "constr": constr(min_length=2, max_length=5, pattern="^[a-z]+$"),
    "conint": conint(gt=3, multiple_of=2),
    "conlist": conlist(int, min_length=1, max_length=3),
    "optional": int | None,
    "union": int | str | None,
    "discriminated": Annotated[Cat | Dog, Field(discriminator="kind")],
    "recursive": Tree,
    "typed dict": Options,
    "named tuple": Point,
    "tuple": tuple[int, str],
    "tuple of any length": tuple[int, ...],
    "any": Any,
    "object": dict[str, Any],
    "nested": dict[str, list[Cat]],
    "literal": Literal["a", 1, None, True],
    "file": FilePath,
    "folder": DirectoryPath,
    "json": Json[list[int]],
    "size": ByteSize,
    "finite": FiniteFloat,
    "strict": StrictInt,
    "model": Strict,
    "loose": Loose,
    "non negative": NonNegativeInt,
    "positive": PositiveFloat,
    "root": RootModel[list[Cat]],
    "pattern": re.Pattern,
    "int64": Annotated[int, Field(ge=-(2**63), le=2**63 - 1)],
    "long": Annotated[str, Field(max_length=100_000)],
    "pattern keys": dict[Annotated[str, Field(pattern="^[a-z]{1,3}$")], int],
    "look ahead": Annotated[str, Field(json_schema_extra={"pattern": "^(?!admin).*$"})],
}


def pydantic_schemas() -> Corpus:
    """What pydantic writes for each type, as a field of a model and alone."""
    found: Corpus = {}
    for name, kind in TYPES.items():
        found[f"pydantic {name}"] = TypeAdapter(kind).json_schema()
        model = type("Model", (BaseModel,), {"__annotations__": {"x": kind, "note": str | None}, "note": None})
        found[f"field {name}"] = model.model_json_schema()
    return found


def mcp_schemas() -> Corpus:
    """The input schemas that mcp's server publishes for functions."""
    server = MCPServer("corpus")

    @server.tool()
    def nothing() -> str:
        """Takes nothing."""
        return ""

    @server.tool()
    def search(
        query: str,
        limit: Annotated[int, Field(ge=1, le=100)] = 10,
        tags: set[str] | None = None,
        since: datetime.datetime | None = None,
        where: pathlib.Path | None = None,
        by: Literal["date", "rank"] = "rank",
    ) -> str:
        """Searches."""
        return ""

    @server.tool()
    def draw(shape: Cat | Dog, at: Point, colors: dict[Color, int], options: Options | None = None) -> str:
        """Draws."""
        return ""

    @server.tool()
    def plant(tree: Tree, raw: dict[str, Any], any_of: Any = None) -> str:
        """Plants."""
        return ""

    async def tools() -> Corpus:
        return {f"mcp {tool.name}": tool.input_schema for tool in await server.list_tools()}

    return asyncio.run(tools())


# As zod 3 and 4, and servers written in TypeScript, Go and Java, write them.
_ZOD_EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
_DRAFT7 = "http://json-schema.org/draft-07/schema#"
HAND_WRITTEN: Corpus = {
    "zod email": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "required": ["to"],
        "properties": {
            "to": {
                "type": "string",
                "format": "email",
                "pattern": _ZOD_EMAIL,
            }
        },
        "additionalProperties": False,
    },
    "zod record": {
        "$schema": _DRAFT7,
        "type": "object",
        "properties": {
            "env": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "string"}}
        },
    },
    "zod enum record": {
        "type": "object",
        "properties": {
            "scores": {
                "type": "object",
                "propertyNames": {"type": "string", "enum": ["a", "b"]},
                "additionalProperties": {"type": "number"},
                "required": ["a", "b"],
            }
        },
        "required": ["scores"],
    },
    "zod integers": {
        "type": "object",
        "required": ["n"],
        "properties": {
            "n": {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991},
            "p": {"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991},
        },
    },
    "zod never": {"type": "object", "properties": {"a": {"not": {}}, "b": {"type": "null"}}, "required": ["b"]},
    "zod tuple of draft 7": {
        "$schema": _DRAFT7,
        "type": "object",
        "properties": {
            "p": {"type": "array", "minItems": 2, "maxItems": 2, "items": [{"type": "number"}, {"type": "string"}]}
        },
    },
    "zod intersection": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "number"}}, "required": ["b"]},
        ],
    },
    "zod union": {
        "type": "object",
        "properties": {"v": {"anyOf": [{"type": "string"}, {"type": "array", "items": {}}]}},
    },
    "ids": {
        "$id": "https://example.com/tool.json",
        "type": "object",
        "properties": {"a": {"$ref": "#item"}, "b": {"$ref": "#/$defs/x"}},
        "$defs": {"x": {"$anchor": "item", "type": "integer"}},
    },
    "openapi": {
        "type": "object",
        "required": None,
        "example": {"a": 1},
        "properties": {
            "a": {"type": "string", "nullable": True, "format": "byte"},
            "b": {"type": "integer", "format": "int64"},
            "c": {"type": "number", "format": "double", "maximum": 1.7976931348623157e308},
        },
    },
    "gemini": {
        "type": "OBJECT",
        "properties": {"a": {"type": "STRING"}, "b": {"type": "ARRAY", "items": {"type": "NUMBER"}}},
    },
    "draft 3": {"type": "object", "properties": {"a": {"type": "string", "required": True}, "b": {"type": "any"}}},
    "conditional": {
        "type": "object",
        "properties": {"mode": {"enum": ["a", "b"]}, "x": {"type": "string"}},
        "if": {"properties": {"mode": {"const": "a"}}},
        "then": {"required": ["x"]},
        "dependentRequired": {"x": ["mode"]},
    },
    "one of required": {
        "type": "object",
        "properties": {"id": {"type": "string"}, "name": {"type": "string"}},
        "oneOf": [{"required": ["id"]}, {"required": ["name"]}],
    },
    "odd names": {
        "type": "object",
        "properties": {"user-id": {"type": "integer"}, "$filter": {"type": "string"}, "@type": {}},
    },
    "components": {
        "type": "object",
        "properties": {"p": {"$ref": "#/components/schemas/Pet"}},
        "components": {
            "schemas": {"Pet": {"type": "object", "properties": {"n": {"type": "string", "uniqueItems": False}}}}
        },
    },
    "elsewhere": {"type": "object", "properties": {"p": {"$ref": "https://example.com/pet.json"}}},
    "wrong": {"type": "object", "properties": {"a": None, "b": "string", "c": {"type": "object", "required": ["z"]}}},
}


def corpus() -> Corpus:
    """All schemas by name."""
    return {**pydantic_schemas(), **mcp_schemas(), **HAND_WRITTEN}
