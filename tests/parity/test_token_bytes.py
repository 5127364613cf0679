"""The bytes of tokens in log-probabilities, for every kind of tokenizer: joined, they are the text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from octavo import LLM, SamplingParams
from octavo.server import create_app
from random_models import Case, write_model
from starlette.testclient import TestClient
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

PROMPTS = ["Café déjà vu", "é😀 日本", "ᚠᛇᚻ ⠓⠑ 🤷🏽", "plain text, no more", "two  spaces "]
MARKED = ["▁", "a", "b", "é", "e", "t", "d", "C", "f", "▁t", "▁d"]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_fallback() -> Tokenizer:
    tokens = [*MARKED, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def metaspace() -> Tokenizer:
    tokens = [*MARKED, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return tokenizer


@pytest.fixture(scope="module", params=[byte_level, byte_fallback, metaspace])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    make: Callable[[], Tokenizer] = request.param
    folder: Path = tmp_path_factory.mktemp(make.__name__)
    tokenizer = make()
    write_model(Case(make.__name__, "llama", {"vocab_size": tokenizer.get_vocab_size()}), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    with LLM(str(folder), kv_cache_memory="16MiB", threads=1) as llm:
        yield llm


def merged(text: str) -> str:
    """Runs of U+FFFD as one: for invalid bytes, the decoder of byte-fallback tokens writes one a byte, Python fewer."""
    return re.sub("\ufffd+", "\ufffd", text)


def places(tokens: list[bytes], text: str) -> list[int]:
    """Places of tokens, by the definition: the character of `text` in which a token begins."""
    starts = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
    of_byte = [i for i, c in enumerate(text) for _ in c.encode()]
    missing = len(b"".join(tokens)) - len(of_byte)
    return [of_byte[max(start - missing, 0)] for start in starts]


def test_bytes_of_a_prompt_are_its_text(model: LLM) -> None:
    for prompt in PROMPTS:
        output = model.generate(prompt, SamplingParams(prompt_logprobs=3, max_tokens=1))[0]
        rows = output.prompt_logprobs or []
        tokens = [model.token_bytes(output.prompt_token_ids[0])]
        tokens += [next(iter(row.values())).bytes for row in rows if row is not None]
        assert b"".join(tokens).decode().removeprefix(" ") == prompt.removeprefix(" ")
        for row in rows[1:]:
            for token_id, c in (row or {}).items():
                assert c.bytes == model.token_bytes(token_id)
                assert c.decoded_token == c.bytes.decode("utf-8", "replace")


def test_bytes_of_an_output_are_its_text(model: LLM) -> None:
    everything = SamplingParams(temperature=3.0, seed=5, logprobs=2, max_tokens=40, ignore_eos=True)
    for output in model.generate(PROMPTS, everything, use_tqdm=False):
        sample = output.outputs[0]
        tokens = [next(iter(row.values())).bytes for row in sample.logprobs or []]
        assert merged(b"".join(tokens).decode("utf-8", "replace")) == merged(sample.text)


def test_echo(model: LLM) -> None:
    http = TestClient(create_app(model))
    for prompt in PROMPTS:
        body = {"prompt": prompt, "echo": True, "logprobs": 5, "max_tokens": 0, "add_special_tokens": False}
        choice = http.post("/v1/completions", json=body).json()["choices"][0]
        found = choice["logprobs"]
        data = [as_bytes(token) for token in found["tokens"]]
        assert b"".join(data).decode() == choice["text"]
        assert choice["text"].removeprefix(" ") == prompt.removeprefix(" ")
        assert found["text_offset"] == places(data, choice["text"])
        # Five candidates and the token itself, which may be one of them.
        assert all(len(row) in (5, 6) for row in found["top_logprobs"][1:])
        ids = http.post("/v1/completions", json={**body, "return_tokens_as_token_ids": True}).json()["choices"][0]
        assert [len(row) for row in ids["logprobs"]["top_logprobs"][1:]] == [len(r) for r in found["top_logprobs"][1:]]


def test_chat_bytes(model: LLM) -> None:
    app = create_app(model)
    body = {"prompt": "é", "max_tokens": 20, "temperature": 0, "logprobs": 3}
    forced = {**body, "structured_outputs": {"regex": "é😀日"}}
    found = TestClient(app).post("/v1/completions", json=forced).json()["choices"][0]
    assert found["text"] == "é😀日"
    data = [as_bytes(token) for token in found["logprobs"]["tokens"]]
    assert b"".join(data).decode().startswith(found["text"])
    text = [place for place, token in zip(found["logprobs"]["text_offset"], data, strict=True) if token]
    assert text[: len("é😀日".encode())] == sorted(text)[: len("é😀日".encode())]


def as_bytes(token: str) -> bytes:
    if token.startswith("bytes:"):
        return bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))
    return token.encode()
