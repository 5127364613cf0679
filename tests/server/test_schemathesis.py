"""schemathesis against the server's own schema and against OpenAI's: whatever is sent, no 5xx, and answers that fit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from octavo import LLM
from octavo.server import ServerConfig, create_app, create_wsgi_app
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
    if isinstance(body, dict) and ("prompt" in body or "messages" in body):
        given = body.get("max_tokens")
        body = {**body, "max_tokens": given if given in (0, -1, "x") else 3}
        body.pop("max_completion_tokens", None)
    elif isinstance(body, dict) and "input" in body:
        body = {**body, "max_output_tokens": 3}
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
        if case.path.startswith("/v1/messages"):
            # Anthropic's form
            assert set(error) - {"details"} == {"message", "type"}
        else:
            assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_own_schema(llm: LLM, kind: str, tmp_path: Path) -> None:
    config = ServerConfig(admin_api_keys=("admin",), lora_root=tmp_path)
    app = create_app(llm, config)
    schema = schemathesis.openapi.from_dict(app.openapi())
    client = TestClient(app, raise_server_exceptions=True)
    from werkzeug.test import Client

    flask = Client(create_wsgi_app(llm, config))
    key = {"authorization": "Bearer admin"}

    def send(case: Any) -> tuple[int, str, bytes]:
        given = case.body if isinstance(case.body, (dict, list, str, int, float, bool, type(None))) else {}
        body = json.dumps(short(given), default=str)
        path = case.formatted_path
        if kind == "asgi":
            found = client.request(case.method, path, content=body, headers={**key, "content-type": "application/json"})
            return found.status_code, found.headers.get("content-type", ""), found.content
        answer = flask.open(path, method=case.method, data=body, content_type="application/json", headers=key)
        return answer.status_code, answer.headers.get("content-type", ""), answer.data

    for operation in operations(schema):
        run(operation, send, check_error)


# Parts of OpenAI's API that are refused, or whose random values hardly ever fit a small model.
_REFUSED = (
    "suffix", "best_of", "functions", "function_call", "audio", "modalities", "web_search_options", "logit_bias",
    "tools", "tool_choice", "response_format", "text", "background", "previous_response_id", "conversation", "prompt",
)  # fmt: skip


def answerable(body: dict[str, Any], path: str) -> dict[str, Any]:
    """The body with what would be refused on sight left out, so that enough of them are answered."""
    kept = {k: v for k, v in body.items() if k not in _REFUSED or (k == "prompt" and path == "/completions")}
    if "model" in kept:
        kept["model"] = "octavo-embedded"
    if isinstance(kept.get("n"), int) and kept["n"] > 2:
        kept["n"] = 2
    if path == "/embeddings":
        # The description knows numbers only, and no model has a million dimensions.
        kept.pop("dimensions", None)
        kept["encoding_format"] = "float"
    return kept


SERVED = {"/chat/completions", "/completions", "/responses", "/embeddings", "/models", "/models/{model}"}


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
            body = answerable(short(body), case.path)
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
    # A floor that shows that answers, too, are compared.
    assert answered >= 10


def _known(error: Any) -> bool:
    """The description wants a number for every token; the first one of an echo has none, in OpenAI's answers too."""
    return "token_logprobs" in error.absolute_path or "top_logprobs" in error.absolute_path
