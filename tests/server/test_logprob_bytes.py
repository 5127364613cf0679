"""Bytes of tokens in `logprobs`, names of tokens, and `text_offset`, for text beyond ASCII."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from octavo import LLM
from octavo.server.logprobs import TextOffsets, by_name, name

MODEL = "octavo-embedded"
TEXT = "é😀日"


class Candidate:
    def __init__(self, token_id: int, data: bytes, logprob: float) -> None:
        self.token_id = token_id
        self.bytes = data
        self.token = data.decode("utf-8", "replace")
        self.logprob = logprob


@pytest.mark.parametrize("stream", [False, True])
def test_bytes_of_chat(client: openai.OpenAI, stream: bool) -> None:
    form: Any = {"type": "regex", "pattern": TEXT}
    ask: dict[str, Any] = {
        "model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 20, "logprobs": True,
        "top_logprobs": 3, "response_format": form,
    }  # fmt: skip
    if stream:
        chunks = list(client.chat.completions.create(**ask, stream=True))
        rows = [row for c in chunks if c.choices[0].logprobs for row in c.choices[0].logprobs.content or []]
    else:
        logprobs = client.chat.completions.create(**ask).choices[0].logprobs
        assert logprobs is not None
        rows = list(logprobs.content or [])
    assert bytes(b for row in rows for b in row.bytes or []).decode().startswith(TEXT)
    assert all(len({(t.token, *(t.bytes or [])) for t in row.top_logprobs}) == 3 for row in rows)


def test_echo_with_the_official_client(client: openai.OpenAI) -> None:
    done = client.completions.create(model=MODEL, prompt="Café déjà vu", echo=True, logprobs=3, max_tokens=4)
    choice = done.choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    tokens, offsets = logprobs.tokens or [], logprobs.text_offset or []
    assert tokens[0] == "C"
    assert offsets == sorted(offsets)
    assert offsets[-1] <= len(choice.text)
    for token, offset in zip(tokens, offsets, strict=True):
        if not token.startswith("bytes:") and not token.startswith("<|"):
            assert choice.text.startswith(token, offset)
    assert all(len(row) >= 3 for row in (logprobs.top_logprobs or [])[1:])


def test_stop_strings_end_the_offsets(client: openai.OpenAI) -> None:
    done = client.completions.create(model=MODEL, prompt="Once upon a time", logprobs=0, max_tokens=20, stop=["a"])
    choice = done.choices[0]
    assert choice.logprobs is not None
    assert max(choice.logprobs.text_offset or [0]) <= len(choice.text)


def test_names_of_candidates_are_distinct() -> None:
    halves: Any = [Candidate(1, b"\xc3", -1.0), Candidate(2, b"\xe6\x97", -2.0), Candidate(3, b"a", -3.0)]
    same: Any = [Candidate(4, b"a", -4.0), Candidate(5, b"a", -5.0), Candidate(3, b"a", -3.0)]
    found = by_name([*halves, *same], as_ids=False)
    assert found == {"bytes:\\xc3": -1, "bytes:\\xe6\\x97": -2, "a": -3, "bytes:\\x61": -4, "token_id:5": -5}
    assert by_name(halves, as_ids=True) == {"token_id:1": -1, "token_id:2": -2, "token_id:3": -3}
    assert name(7, "é", "é".encode(), as_ids=False) == "é"


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([b"a", b"b"], [0, 1]),
        ([b"\xc3", b"\xa9", b"x"], [0, 0, 1]),
        ([b"\xf0\x9f", b"\x98", b"\x80", b"!"], [0, 0, 0, 1]),
        ([b"a\xc3", b"\xa9b", b"c"], [0, 1, 3]),
        ([b"\xc3", b"x", b"y"], [0, 1, 2]),
        ([b"\xa9", b"x"], [0, 1]),
        ([b"ab", b"", b"c"], [0, 2, 2]),
    ],
)
def test_offsets_count_characters(tokens: list[bytes], expected: list[int]) -> None:
    offsets = TextOffsets()
    assert [offsets.push(token) for token in tokens] == expected


def test_prompt_logprobs_have_the_bytes(llm: LLM, client: openai.OpenAI) -> None:
    done: Any = client.completions.create(model=MODEL, prompt=TEXT, max_tokens=1, extra_body={"prompt_logprobs": 1})
    ids = llm.tokenize(TEXT)
    rows = done.choices[0].prompt_logprobs
    data = [row[str(i)]["bytes"] for i, row in zip(ids[1:], rows[1:], strict=True)]
    assert llm.token_bytes(ids[0]) + bytes(b for part in data for b in part) == TEXT.encode()
