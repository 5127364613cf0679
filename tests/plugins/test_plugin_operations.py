"""What `@plugin.operation` and `@plugin.convert` refuse, and what they make of types."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
from typing import Annotated, Any, Literal

import pytest
from octavo.errors import InvalidRequestError
from octavo.plugins import Deprecation, Plugin, ProblemError, Request, Response, bearer
from octavo.plugins.typed import Result
from pydantic import BaseModel, ConfigDict, Field


def make(version: str = "2.1.0") -> Plugin:
    return Plugin("p", version=version)


def invoke(plugin: Plugin, path: str, arguments: Any) -> Response:
    with plugin:
        return plugin.handle(Request("POST", path, {}, json.dumps({"arguments": arguments}).encode()))


def same(x: int) -> int:
    return x


def untyped(x) -> int:  # type: ignore[no-untyped-def]
    return 1


def many(*values: int) -> int:
    return 1


def keywords(**values: int) -> int:
    return 1


def only_positional(x: int, /) -> int:
    return 1


def no_schema(x: logging.Logger) -> int:
    return 1


def no_result_schema(x: int) -> logging.Logger:
    return logging.getLogger()


def unknown_type(x: Nowhere) -> int:  # type: ignore[name-defined]  # noqa: F821
    return 1


def infinite(x: float = float("inf")) -> float:
    return x


def not_a_number(x: Annotated[float, Field(examples=[float("nan")])]) -> float:
    return x


@pytest.mark.parametrize("function", [infinite, not_a_number])
def test_a_schema_that_json_cannot_hold_is_named_where_it_is_defined(function: Any) -> None:
    plugin = make()
    with pytest.raises(InvalidRequestError, match=f"the schema of {function.__name__} cannot be served"):
        plugin.operation(function)
    with pytest.raises(InvalidRequestError, match="cannot be served"):
        plugin.convert(major=1)(function)
    plugin.operation(same)
    assert invoke(plugin, "v2/invoke/same", {"x": 1}).status == 200


@pytest.mark.parametrize(
    "given",
    [(1_764_547_200_000,), (1_764_547_200, 1_764_547_200_000), (-1,), (1.5,), (True,), ("2026-12-01",), (None,)],
)
def test_a_time_that_is_no_second_is_no_deprecation(given: Any) -> None:
    with pytest.raises(InvalidRequestError, match="seconds since 1970"):
        Deprecation(*given)
    last = Deprecation.on("9999-12-31T23:59:59", sunset="9999-12-31T23:59:59")
    plugin = make()
    plugin.operation(deprecated=last)(same)
    answer = invoke(plugin, "v2/invoke/same", {"x": 1})
    assert (answer.status, answer.headers["sunset"]) == (200, "Fri, 31 Dec 9999 23:59:59 GMT")


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (untyped, {}, "parameter x of untyped has no type"),
        (many, {}, "has no name in a call"),
        (keywords, {}, "has no name in a call"),
        (only_positional, {}, "has no name in a call"),
        (no_schema, {}, "the parameters of no_schema have no JSON Schema"),
        (no_result_schema, {}, "the result of no_result_schema has no JSON Schema"),
        (unknown_type, {}, "Nowhere"),
        (same, {"name": "a-b"}, "name is 'a-b'"),
        (same, {"since": "soon"}, "since of same is 'soon'"),
        (same, {"since": "2.2"}, "above the plugin's version"),
        (same, {"aliases": {"y": ["x"]}}, "which is no parameter: use one of x"),
        (same, {"aliases": {"x": ["x"]}}, "must be a former name"),
        (same, {"aliases": {"x": ["a", "a"]}}, "must be a former name"),
        (same, {"consequential": "yes"}, "consequential of same is 'yes'"),
        (same, {"idempotent": 1}, "idempotent of same is 1"),
        (same, {"deprecated": "2026-12-01"}, "Deprecation.on"),
        (3, {}, "must be a function, not int"),
    ],
)
def test_a_wrong_operation_is_named(function: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        make().operation(**options)(function)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "2x", "version": "1.0.0"}, "name is '2x'"),
        ({"name": "a__b", "version": "1.0.0"}, "without __"),
        ({"name": "a", "version": "1"}, "version is '1'"),
        ({"name": "a", "version": 1.0}, "version is 1.0"),
        ({"name": "a", "version": "1.0.0", "concurrency": 0}, "concurrency is 0"),
        ({"name": "a", "version": "1.0.0", "allowed_origins": "https://a"}, "a list of origins"),
    ],
)
def test_a_wrong_plugin_is_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        Plugin(**arguments)


@pytest.mark.parametrize("tokens", [(), ("",), (" ",), (None,), ("a", "")])
def test_a_token_that_every_request_would_have_is_refused(tokens: Any) -> None:
    with pytest.raises(InvalidRequestError, match="environment variable"):
        bearer(*tokens)


def test_the_decorator_needs_no_parentheses() -> None:
    plugin = make()

    @plugin.operation
    def plain(x: int) -> int:
        return x

    assert plain(1) == 1
    assert invoke(plugin, "v2/invoke/plain", {"x": 3}).json()["result"] == 3


def test_two_operations_cannot_share_a_name() -> None:
    plugin = make()
    plugin.operation()(same)
    with pytest.raises(InvalidRequestError, match="two operations called same"):
        plugin.operation()(same)


def test_nothing_is_added_once_it_serves() -> None:
    plugin = make()
    plugin.manifest()
    with pytest.raises(InvalidRequestError, match="before the first request"):
        plugin.operation()(same)
    with pytest.raises(InvalidRequestError, match="before the first request"):
        plugin.convert(major=1)(same)


def converted(major: int, since: str = "1.0", version: str = "3.0.0", **options: Any) -> Plugin:
    plugin = make(version)
    plugin.operation(since=since)(same)

    @plugin.convert(major=major, name=options.pop("name", "same"), **options)
    def older(y: int) -> dict[str, int]:
        return {"x": y}

    return plugin


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"major": 3}, "only majors 1 to 2"),
        ({"major": 0}, "only majors 1 to 2"),
        ({"major": 0, "version": "0.3.0", "since": "0.1"}, "there is no older major"),
        ({"major": 2, "to": "gone"}, "major 3 does not have"),
        ({"major": 2, "name": "other"}, "major 3 does not have"),
        ({"major": 2, "since": "3.0"}, "contradicts since='3.0'"),
    ],
)
def test_a_wrong_converter_is_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        converted(**arguments).manifest()


def test_a_result_converter_has_one_parameter() -> None:
    plugin = make()

    @plugin.convert(major=1)
    def older(x: int) -> dict[str, int]:
        return {"x": x}

    assert older(3) == {"x": 3}
    with pytest.raises(InvalidRequestError, match="one parameter"):
        older.result(lambda: 1)  # type: ignore[arg-type, misc]


def test_converters_are_chained_over_two_steps() -> None:
    plugin = make("3.0.0")

    @plugin.operation(since="1.0")
    def area(width_m: float, height_m: float) -> dict[str, float]:
        return {"square_m": width_m * height_m}

    @plugin.convert(major=2, name="area")
    def area_2(width_cm: float, height_cm: float) -> dict[str, float]:
        return {"width_m": width_cm / 100, "height_m": height_cm / 100}

    @area_2.result
    def in_cm(newer: dict[str, float]) -> dict[str, float]:
        return {"square_cm": newer["square_m"] * 10_000}

    @plugin.convert(major=1, name="square", to="area")
    def square_1(side_cm: float) -> dict[str, float]:
        return {"width_cm": side_cm, "height_cm": side_cm}

    class Area(BaseModel):
        square_cm: float

    @square_1.result
    def down(newer: Area) -> float:
        return newer.square_cm

    with plugin:
        assert invoke(plugin, "v1/invoke/square", {"side_cm": 200}).json()["result"] == 40_000.0
        half = invoke(plugin, "v2/invoke/area", {"width_cm": 100, "height_cm": 50})
        assert half.json()["result"] == {"square_cm": 5000.0}
        assert invoke(plugin, "v3/invoke/area", {"width_m": 2, "height_m": 3}).json()["result"] == {"square_m": 6.0}
        # The renamed operation has no other way into major 1.
        assert [(e["major"], e["id"]) for e in plugin.manifest()["operations"]] == [
            (3, "area"),
            (2, "area"),
            (1, "square"),
        ]


def test_a_broken_converter_is_the_plugins_fault() -> None:
    plugin = make()
    plugin.operation(since="1.0")(same)

    @plugin.convert(major=1, name="same")
    def older(y: int) -> dict[str, int]:
        return [y]  # type: ignore[return-value]

    response = invoke(plugin, "v1/invoke/same", {"y": 1})
    assert (response.status, response.json()["type"]) == (500, "urn:octavo-plugin:internal")


def test_an_operation_exists_from_its_version_on() -> None:
    plugin = make("4.2.0")
    for name, since in (("old", "1.5"), ("middle", "3.0"), ("new", None)):
        plugin.operation(since=since, name=name)(same)
    listed = [(entry["id"], entry["major"]) for entry in plugin.manifest()["operations"]]
    assert sorted(listed) == [("middle", 3), ("middle", 4), ("new", 4), ("old", 2), ("old", 3), ("old", 4)]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int = 1


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


def test_types_become_schemas_and_values() -> None:
    plugin = make()

    @plugin.operation()
    def all_of(
        day: datetime.date,
        point: Point,
        choice: Literal["a", "b"] = "a",
        schema: dict[str, int] | None = None,
        model_config: int = 1,
        *,
        copy: Annotated[list[int], Field(max_length=2)] = [],  # noqa: B006
    ) -> dict[str, Any]:
        return {"day": day, "point": point, "rest": [choice, schema, model_config, copy]}

    with plugin:
        found = invoke(plugin, "v2/invoke/all_of", {"day": "2026-12-01", "point": {"x": 1}, "model_config": 2}).json()
        assert found["result"] == {"day": "2026-12-01", "point": {"x": 1, "y": 0}, "rest": ["a", None, 2, []]}
        for wrong in ({"z": 1}, {"x": 1, "z": 1}, {"x": "1"}):
            assert invoke(plugin, "v2/invoke/all_of", {"day": "2026-12-01", "point": wrong}).status == 422


def test_a_model_that_takes_anything_keeps_its_choice() -> None:
    plugin = make()

    @plugin.operation()
    def keep(given: Open) -> dict[str, Any]:
        return given.model_dump()

    with plugin:
        assert invoke(plugin, "v2/invoke/keep", {"given": {"b": 2}}).json()["result"] == {"a": 1, "b": 2}
        assert invoke(plugin, "v2/invoke/keep", {"given": {}, "more": 1}).status == 422


def test_the_docstring_is_the_description_and_the_function_stays() -> None:
    plugin = make()

    @plugin.operation(deprecated=Deprecation(1))
    def named(x: int) -> int:
        """Says the number.

        Twice.
        """
        return x * 2

    assert named(2) == 4
    post = plugin.openapi()["paths"]["/v2/invoke/named"]["post"]
    text = "Says the number.\n\nTwice."
    assert (post["summary"], post["description"], post["deprecated"]) == ("Says the number.", text, True)


def test_a_problem_of_the_author_keeps_its_members() -> None:
    plugin = make()

    @plugin.operation()
    def refuse(x: int) -> int:
        raise ProblemError("forbidden", "x is not yours", limit=x)

    response = invoke(plugin, "v2/invoke/refuse", {"x": 3})
    assert (response.status, response.json()["detail"], response.json()["limit"]) == (403, "x is not yours", 3)


def test_a_value_in_a_wrong_result_is_not_shown() -> None:
    result = Result("f", list[int])
    with pytest.raises(Exception, match="/1") as caught:
        result.to_json([1, "secret-value"])
    assert "secret" not in str(caught.value)
