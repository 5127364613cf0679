"""schemathesis against a plugin's own document, under ASGI and WSGI: no 5xx, and every answer fits the document."""

from __future__ import annotations

import datetime
import enum
import re
from typing import Annotated, Any, Literal

import pytest
import weather_plugin
from octavo.plugins import Plugin
from octavo.plugins.idempotency import MemoryStore
from pydantic import BaseModel, Field

schemathesis = pytest.importorskip(
    "schemathesis", reason="schemathesis is not installed: pip install 'octavo[test-server]'"
)
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from schemathesis.generation import GenerationMode  # noqa: E402

DIGEST = re.compile("sha256:[0-9a-f]{64}")
SETTINGS = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Unit(enum.Enum):
    CELSIUS = "celsius"
    KELVIN = "kelvin"


class Node(BaseModel):
    name: Annotated[str, Field(min_length=1, max_length=20)]
    children: list[Node] = []


class Circle(BaseModel):
    kind: Literal["circle"]
    radius: Annotated[float, Field(gt=0, le=1e6)]


class Square(BaseModel):
    kind: Literal["square"]
    side: Annotated[int, Field(ge=1)]


Shape = Annotated[Circle | Square, Field(discriminator="kind")]


def build() -> Plugin:
    # Generated keys repeat, with other arguments: nothing is kept.
    plugin = Plugin("types", version="2.0.0", idempotency=MemoryStore(seconds=0))

    @plugin.operation(since="1.0")
    def scalars(
        text: str, number: int, real: float, yes: bool, unit: Unit = Unit.CELSIUS, note: str | None = None
    ) -> dict[str, str]:
        return {"text": text, "number": str(number), "real": str(real), "yes": str(yes), "note": str(note)}

    @plugin.operation()
    def tree(root: Node) -> Node:
        return root

    @plugin.operation()
    def shapes(shapes: Annotated[list[Shape], Field(max_length=5)], tags: dict[str, int] | None = None) -> list[Shape]:
        return shapes

    @plugin.operation()
    async def day(of: datetime.date, at: Annotated[list[int | str], Field(min_length=1)]) -> datetime.date:
        return of

    @plugin.convert(major=1, name="scalars")
    def older(text: str, number: Annotated[int, Field(ge=0)]) -> dict[str, Any]:
        return {"text": text, "number": number, "real": 0.5, "yes": True}

    @older.result
    def older_result(newer: dict[str, str]) -> str:
        return newer["text"]

    return plugin


def check(schema: Any) -> dict[str, int]:
    """Runs all checks of schemathesis on each operation. Status -> number of answers."""
    seen: dict[str, int] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        modes = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]

        @SETTINGS
        @given(case=st.one_of(modes), plain=st.integers(0, 3))
        def inner(case: Any, plain: int) -> None:
            # A valid digest is almost always another one, thus the arguments would never be read.
            if plain and DIGEST.fullmatch(case.headers.get("Octavo-Digest", "")):
                del case.headers["Octavo-Digest"]
            response = case.call()
            key = str(response.status_code)
            seen[key] = seen.get(key, 0) + 1
            case.validate_response(response)

        inner()
    return seen


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_a_plugin_fits_its_document(kind: str) -> None:
    with build() as plugin:
        if kind == "asgi":
            schema = schemathesis.openapi.from_asgi("/openapi.json", plugin.asgi_app)
        else:
            schema = schemathesis.openapi.from_wsgi("/openapi.json", plugin.wsgi_app)
        seen = check(schema)
    assert seen["200"] > 20, seen
    assert seen["422"] > 3, seen
    assert not [status for status in seen if status.startswith("5")]


@pytest.mark.parametrize("make", [build, weather_plugin.build])
def test_the_document_is_valid_openapi(make: Any) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    with make() as plugin:
        assert not list(validator.OpenAPIV31SpecValidator(plugin.openapi()).iter_errors())


def test_the_request_that_failed_is_shown_whole() -> None:
    from types import SimpleNamespace

    from hypothesis import strategies as st
    from octavo.plugins.conformance.generated import _operation

    case = SimpleNamespace(
        body={"padding": "a" * 500, "culprit": "x"}, call=lambda headers: SimpleNamespace(status_code=500)
    )
    operation: Any = SimpleNamespace(path="/v1/invoke/a", as_strategy=lambda generation_mode: st.just(case))
    found = _operation(operation, {}, 1)
    assert found.state == "fail"
    assert "'culprit': 'x'" in found.detail
