"""The edges of HTTP and JSON: what is not right is answered with 4xx in OpenAI's shape, and costs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from octavo import LLM
from octavo.server import create_app, create_wsgi_app
from starlette.testclient import TestClient

Post = Callable[..., tuple[int, Any]]


@pytest.fixture(params=["asgi", "wsgi"])
def post(request: pytest.FixtureRequest, llm: LLM) -> Post:
    """Posts bytes or a JSON value to a path of either application; (status, JSON)."""
    if request.param == "asgi":
        client: Any = TestClient(create_app(llm))
    else:
        from werkzeug.test import Client

        client = Client(create_wsgi_app(llm))

    def send(path: str, body: Any, content_type: str = "application/json") -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if request.param == "asgi":
            found = client.post(path, content=data, headers={"Content-Type": content_type})
            return found.status_code, json.loads(found.content)
        found = client.post(path, data=data, content_type=content_type)
        return found.status_code, json.loads(found.data)

    return send


def checked(status: int, body: Any) -> Any:
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"] == ("server_error" if status >= 500 else error["type"])
    return error


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"3", b'"x"', b"null", b"NaN", b'{"prompt": NaN}', b'{"prompt": Infinity}',
        b'{"prompt": "a", "temperature": 1e400}', b'{"prompt": "a", "n": 1e400}', b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "a", "max_tokens": 1, "max_tokens": 2}', b'{"prompt": "\\ud800"}', b"\xff\xfe", b"{} x",
        b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"prompt": "a", "x": [' + b"1," * 1_000_001 + b"1]}",
    ],
)  # fmt: skip
def test_what_is_no_strict_json_is_400(post: Post, body: bytes) -> None:
    status, found = post("/v1/completions", body)
    assert status == 400, found
    assert checked(status, found)["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0), ("n", -1), ("n", True), ("n", "1"), ("n", 1.5), ("n", 129), ("n", 10**30), ("n", [1]),
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 2**31), ("max_tokens", "5"), ("max_tokens", False),
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", "1"), ("temperature", True), ("temperature", {}),
        ("top_p", -1), ("top_p", 1.1), ("top_k", -2), ("top_k", 1.5), ("min_p", -0.1), ("min_p", 1.1),
        ("presence_penalty", 2.1), ("frequency_penalty", -2.1), ("repetition_penalty", 0), ("repetition_penalty", -1),
        ("seed", "x"), ("seed", 2**63), ("seed", 1.5), ("stop", 3), ("stop", [1]), ("stop", [""]),
        ("stop", ["a" * 257]),
        ("stop", ["a"] * 17), ("logit_bias", {"a": 1}), ("logit_bias", {"1": 101}), ("logit_bias", [1]),
        ("logit_bias", {str(i): 1 for i in range(1025)}),
        ("logit_bias", {"-1": 1}), ("logit_bias", {"4000000000000": 1}),
        ("logprobs", 21), ("logprobs", -1), ("logprobs", True), ("best_of", 21), ("best_of", -1), ("echo", 1),
        ("stream", "yes"), ("stream_options", 3), ("suffix", "x"), ("user", 3),
        ("min_tokens", -1), ("min_tokens", 99999),
        ("stop_token_ids", [-1]), ("stop_token_ids", ["a"]), ("stop_token_ids", [2**33]), ("bad_words", [""]),
        ("bad_words", "a"), ("prompt_logprobs", 21), ("priority", 2**40), ("cache_salt", ""), ("cache_salt", 3),
        ("attention_error_bound", 0), ("attention_error_bound", 1), ("attention_error_bound", "x"),
        ("timeout", 0), ("timeout", -1), ("ignore_eos", "x"), ("skip_special_tokens", 0), ("functions", [{}]),
        ("prompt", 3), ("prompt", []), ("prompt", [[]]), ("prompt", [1, "a"]), ("prompt", [[1], "a"]), ("prompt", {}),
        ("prompt", [-1]), ("prompt", [2048]), ("prompt", ["a"] * 257), ("prompt", ""),
        ("prompt", [""]), ("prompt", [1.5]),
        ("prompt", [True]), ("model", 3),
    ],
)  # fmt: skip
def test_a_bad_field_is_400_with_its_name(post: Post, field: str, value: Any) -> None:
    body = {"prompt": "a", "max_tokens": 4, field: value}
    status, found = post("/v1/completions", body)
    assert status == 400, found
    param = checked(status, found)["param"]
    assert param == field or param.startswith((f"{field}[", f"{field}.")), found


def test_null_is_not_given(post: Post) -> None:
    names = ("n", "temperature", "top_p", "stop", "logit_bias", "stream", "stream_options", "seed", "user", "suffix",
             "logprobs", "echo", "best_of", "model", "presence_penalty", "cache_salt", "priority")  # fmt: skip
    status, found = post("/v1/completions", {"prompt": "a", "max_tokens": 2, **dict.fromkeys(names)})
    assert status == 200, found


def test_unknown_fields_are_ignored_and_said_once(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        status, _found = post("/v1/completions", {"prompt": "a", "max_tokens": 1, "no_such_field": {"a": [1]}})
        assert status == 200
    assert sum("no_such_field" in r.getMessage() for r in caplog.records) == 1


def test_other_content_is_415(post: Post) -> None:
    """A page of another origin can post these without asking; it must not get to generate."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        status, found = post("/v1/completions", {"prompt": "a"}, kind)
        assert status == 415
        checked(status, found)


def test_paths_and_methods(llm: LLM) -> None:
    client = TestClient(create_app(llm))
    found = client.get("/v1/completions")
    assert (found.status_code, found.headers["allow"]) == (405, "POST")
    checked(405, found.json())
    checked(404, client.get("/v1/nothing").json())
    assert client.head("/health").status_code == 200
    assert client.head("/health").content == b""


def test_request_ids(llm: LLM) -> None:
    client = TestClient(create_app(llm))
    assert client.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for bad in ("a b", "x" * 65, "<b>"):
        assert client.get("/nothing", headers={"x-request-id": bad}).headers["x-request-id"].startswith("req-")


def test_tokenize_and_back(post: Post, llm: LLM) -> None:
    status, found = post("/tokenize", {"prompt": "Once upon a time", "return_token_strs": True})
    assert status == 200
    assert found["tokens"] == llm.tokenize("Once upon a time")
    assert (found["count"], "".join(found["token_strs"])) == (len(found["tokens"]), "Once upon a time")
    assert post("/detokenize", {"tokens": found["tokens"]}) == (200, {"prompt": "Once upon a time"})
    turns = [{"role": "user", "content": "Hello"}]
    _, chat = post("/tokenize", {"messages": turns})
    assert chat["tokens"] == llm.tokenize(llm.render_chat(turns), add_special_tokens=False)
    assert post("/tokenize", {})[0] == 400
    assert post("/detokenize", {"tokens": ["a"]})[0] == 400


def test_a_stream_that_fails_early_has_a_status(post: Post) -> None:
    status, found = post("/v1/completions", {"prompt": "a", "max_tokens": 2000, "timeout": 1e-6, "stream": True})
    assert status == 504
    assert checked(status, found)["code"] == "timeout"


def test_openapi_document(llm: LLM) -> None:
    document = TestClient(create_app(llm)).get("/openapi.json").json()
    assert "/v1/chat/completions" in document["paths"]
    assert "temperature" in document["components"]["schemas"]["ChatRequest"]["properties"]
