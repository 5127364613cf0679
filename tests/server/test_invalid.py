"""The text of a 400 for a wrong value is a plain sentence, for every kind of error that the request models can have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from octavo.server.errors import ApiError
from octavo.server.fields.invalid import EXPECTED, invalid
from octavo.server.fields.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    Strict,
    TokenizeRequest,
    read,
)
from pydantic import ValidationError

MESSAGES = [{"role": "user", "content": "Hi"}]
REQUESTS: list[tuple[type[Strict], dict[str, Any]]] = [
    (ChatRequest, {"messages": MESSAGES}),
    (CompletionRequest, {"prompt": "Hi"}),
    (EmbeddingRequest, {"input": "Hi"}),
    (TokenizeRequest, {"prompt": "Hi"}),
    (DetokenizeRequest, {"tokens": [1]}),
]
WRONG: list[Any] = [
    None, True, 3, -1, 2**70, 1.5, 1e300, float("inf"), "", "x", "a b" * 200, "\ud800", [], [None], [-1], ["x", 3],
    [[]], [[-1]], [{}], {}, {"x": 1}, {"type": "x"}, {"type": "function"}, {"type": "function", "function": {}},
    [{"type": "function", "function": {"name": "a b"}}], [{"role": "x"}], [{"role": "user", "content": 3}],
    [{"role": "user", "content": [{"type": 3}]}], [{"role": "assistant", "tool_calls": [{}]}],
    {"type": "json_schema", "json_schema": {"name": ""}}, {"choice": [3]}, {"json": 3}, {"include_usage": 3},
]  # fmt: skip


def errors() -> Iterator[tuple[dict[str, Any], ValidationError]]:
    for kind, body in REQUESTS:
        for name, field in kind.model_fields.items():
            for wrong in WRONG:
                given = {**body, field.alias or name: wrong}
                try:
                    kind.model_validate(given)
                except ValidationError as error:
                    yield given, error


def test_every_kind_of_error_has_its_sentence() -> None:
    seen = set()
    for body, error in errors():
        seen |= {e["type"] for e in error.errors()}
        refusal = invalid(body, error, {})
        assert refusal.param
        assert refusal.message.startswith(refusal.param)
        assert re.fullmatch(r"[\w.\[\]]+ is (missing|(?s:.+): .+ is expected)", refusal.message), refusal.message
        assert not re.search(r"\bit (list|string|value)\b|Input|dictionary|instance of", refusal.message)
    assert not seen - {"missing", *EXPECTED}, "kinds of errors without a sentence"
    assert len(seen) > 12


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        (ChatRequest, {"messages": []}, "messages is []: a list of at least 1 item is expected"),
        (ChatRequest, {"tools": [{"type": "function", "function": {"name": "a b"}}]},
         "tools[0].function.name is 'a b': a string that matches ^[a-zA-Z0-9_.-]{1,128}$ is expected"),
        (ChatRequest, {"stop": 3}, "stop is 3: a string or a list is expected"),
        (ChatRequest, {"temperature": "1"}, "temperature is '1': a number is expected"),
        (ChatRequest, {"temperature": 3}, "temperature is 3: at most 2 is expected"),
        (ChatRequest, {"stream": 1}, "stream is 1: true or false is expected"),
        (ChatRequest, {"tool_choice": "any"}, "tool_choice is 'any': 'none', 'auto' or 'required' is expected"),
        (CompletionRequest, {"prompt": [-1]}, "prompt[0] is -1: at least 0 is expected"),
        (CompletionRequest, {"prompt": [[1, -1]]}, "prompt[0][1] is -1: at least 0 is expected"),
        (CompletionRequest, {"prompt": ["a", 3]}, "prompt[1] is 3: a string is expected"),
        (CompletionRequest, {"prompt": [1, "a"]}, "prompt[1] is 'a': an integer is expected"),
        (CompletionRequest, {"prompt": 3}, "prompt is 3: a string or a list is expected"),
        (CompletionRequest, {"cache_salt": ""}, "cache_salt is '': a string of at least 1 character is expected"),
        (EmbeddingRequest, {"input": [[1], [-1]]}, "input[1][0] is -1: at least 0 is expected"),
    ],
)  # fmt: skip
def test_sentences(kind: type[Strict], more: dict[str, Any], message: str) -> None:
    start = dict(next(body for model, body in REQUESTS if model is kind))
    with pytest.raises(ApiError) as caught:
        read(kind, {**start, **more})
    assert caught.value.message == message
