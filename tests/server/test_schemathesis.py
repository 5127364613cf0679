"""schemathesis against the server's own schema and against OpenAI's: whatever is sent, no 5xx, and answers that fit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from octavo import LLM
from octavo.server import create_app, create_wsgi_app
from starlette.testclient import TestClient

schemathesis = pytest.importorskip(
    "schemathesis", reason="schemathesis is not installed: pip install 'octavo[test-server]'"
)
from hypothesis import HealthCheck, Phase, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

# OpenAI's public description of its API; it is not a part of the project.
OPENAI = Path(os.environ.get("OCTAVO_OPENAI_SCHEMA", ""))
SETTINGS = settings(
    max_examples=int(os.environ.get("OCTAVO_SCHEMATHESIS_EXAMPLES", "40")),
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def short(body: Any) -> Any:
    """The body with an end that comes soon: what is tested is the reading of requests, not the length of answers."""
    if isinstance(body, dict):
        body = {**body, "max_tokens": body.get("max_tokens") if body.get("max_tokens") in (0, -1, "x") else 3}
        body.pop("max_completion_tokens", None)
    return body


def operations(schema: Any) -> list[Any]:
    return [found.ok() for found in schema.get_all_operations()]


def run(operation: Any, send: Any, check: Any) -> None:
    @SETTINGS
    @given_case(operation)
    def inner(case: Any) -> None:
        status, content_type, body = send(case)
        assert status < 500 or status in (503, 504), (status, body[:500])
        check(case, status, content_type, body)

    inner()


def given_case(operation: Any) -> Any:
    from hypothesis import given
    from schemathesis.generation import GenerationMode

    both = st.one_of(
        operation.as_strategy(generation_mode=GenerationMode.POSITIVE),
        operation.as_strategy(generation_mode=GenerationMode.NEGATIVE),
    )
    return given(case=both)


def check_error(case: Any, status: int, content_type: str, body: bytes) -> None:
    if status >= 400 and case.method != "HEAD":
        assert content_type == "application/json"
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_own_schema(llm: LLM, kind: str) -> None:
    app = create_app(llm)
    schema = schemathesis.openapi.from_dict(app.openapi())
    client = TestClient(app, raise_server_exceptions=True)
    from werkzeug.test import Client

    flask = Client(create_wsgi_app(llm))

    def send(case: Any) -> tuple[int, str, bytes]:
        given = case.body if isinstance(case.body, (dict, list, str, int, float, bool, type(None))) else {}
        body = json.dumps(short(given), default=str)
        path = case.formatted_path
        if kind == "asgi":
            found = client.request(case.method, path, content=body, headers={"content-type": "application/json"})
            return found.status_code, found.headers.get("content-type", ""), found.content
        answer = flask.open(path, method=case.method, data=body, content_type="application/json")
        return answer.status_code, answer.headers.get("content-type", ""), answer.data

    for operation in operations(schema):
        run(operation, send, check_error)


SERVED = {"/chat/completions", "/completions", "/models", "/models/{model}"}


@pytest.mark.skipif(not OPENAI.is_file(), reason="OCTAVO_OPENAI_SCHEMA names no file with OpenAI's OpenAPI description")
def test_openai_schema(llm: LLM) -> None:
    """Requests that OpenAI's description allows (and ones that it does not) get answers that it describes, or 4xx."""
    from jsonschema import Draft202012Validator

    raw = json.loads(OPENAI.read_text())
    schema = schemathesis.openapi.from_dict(raw)
    client = TestClient(create_app(llm))
    answered = 0

    def send(case: Any) -> tuple[int, str, bytes]:
        body = case.body if isinstance(case.body, (dict, list, str, int, float, bool, type(None))) else {}
        if isinstance(body, dict):
            body = {**short(body), "model": "octavo-embedded"} if "model" in body else short(body)
        text = json.dumps(body, default=str)
        path = "/v1" + case.formatted_path
        found = client.request(case.method, path, content=text, headers={"content-type": "application/json"})
        return found.status_code, found.headers.get("content-type", ""), found.content

    def check(case: Any, status: int, content_type: str, body: bytes) -> None:
        nonlocal answered
        check_error(case, status, content_type, body)
        if status == 200 and content_type == "application/json":
            answered += 1
            described = raw["paths"][case.path][case.method.lower()]["responses"]["200"]["content"]
            wanted = {**described["application/json"]["schema"], "components": raw["components"]}
            errors = [e for e in Draft202012Validator(wanted).iter_errors(json.loads(body)) if not _known(e)]
            assert not errors, errors[0]

    for operation in operations(schema):
        if operation.path in SERVED:
            run(operation, send, check)
    assert answered > 10


def _known(error: Any) -> bool:
    """The description wants a number for every token; the first one of an echo has none, in OpenAI's answers too."""
    return "token_logprobs" in error.absolute_path or "top_logprobs" in error.absolute_path
