"""Packs: answers have the bits of the full text, the memory is shared, and what does not fit is refused by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from octavo import LLM, Regex, SamplingParams, errors
from octavo.outputs import RequestOutput
from octavo.packs import SEPARATOR, join_documents, read_pack
from octavo.request_handle import RequestHandle

FACTS = [f"The key of {name} is {number}." for number, name in enumerate(("Aro", "Bel", "Cid", "Dun", "Eli"), 4100)]
DOCUMENTS = {"keys.md": "\n".join(FACTS * 4), "more.md": "\n".join(reversed(FACTS * 3))}
QUESTION = "What is the key of Cid?"


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 8, "logprobs": 2, **fields})


@pytest.fixture(scope="module")
def text_pack(llm: LLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packs") / "facts.pack"
    llm.make_pack(DOCUMENTS, path, form="text")
    return path


@pytest.fixture(scope="module")
def chat_pack(llm: LLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packs") / "facts.pack"
    llm.make_pack(DOCUMENTS, path, system="Answer from these.", form="chat")
    return path


@pytest.fixture
def loaded(llm: LLM, text_pack: Path) -> Iterator[LLM]:
    llm.load_pack("facts", text_pack)
    yield llm
    for pack in llm.packs():
        llm.unload_pack(pack.name)


def result(handle: RequestHandle[RequestOutput]) -> RequestOutput:
    return asyncio.run(handle.aresult())


def bits(output: Any) -> list[Any]:
    """Tokens and log-probabilities."""
    return [
        (o.token_ids, o.cumulative_logprob, [[p.logprob for p in row.values()] for row in o.logprobs])
        for o in output.outputs
    ]


def full_text() -> str:
    return join_documents(DOCUMENTS)[0] + SEPARATOR


def test_output_has_the_bits_of_the_full_text(loaded: LLM, text_pack: Path) -> None:
    with LLM(enable_prefix_caching=False) as fresh:
        expected = fresh.generate(full_text() + QUESTION, params())[0]
    [pack] = loaded.packs()
    found = loaded.generate(QUESTION, params(pack="facts"))[0]
    assert bits(found) == bits(expected)
    assert found.prompt_token_ids == expected.prompt_token_ids
    assert found.metrics is not None
    assert found.metrics.cached_prompt_tokens >= pack.tokens > 64
    assert (pack.tokens % 32, pack.name, pack.form, pack.adapter) == (0, "facts", "text", None)
    assert [s.title for s in pack.sources] == ["keys.md", "more.md"]
    text = read_pack(text_pack)["text"]
    assert [text[s.start : s.end] for s in pack.sources] == [d.strip() for d in DOCUMENTS.values()]


def test_token_prompts_and_other_calls_compose_the_same_way(loaded: LLM) -> None:
    expected = loaded.generate(full_text() + QUESTION, params())[0]
    ids = loaded.tokenize(QUESTION, add_special_tokens=False)
    assert loaded.generate([ids], params(pack="facts"))[0].prompt_token_ids[-len(ids) :] == ids
    streamed = "".join(o.outputs[0].text for o in loaded.stream(QUESTION, params(pack=["facts"])))
    assert streamed == expected.text
    composed = loaded.with_packs(QUESTION, "facts")
    assert composed == full_text() + QUESTION
    assert bits(result(loaded.submit(composed, params(pack="facts")))) == bits(expected)
    with pytest.raises(errors.InvalidRequestError, match='does not begin with the text of pack "facts": token 0'):
        loaded.submit(QUESTION, params(pack="facts"))


def test_chats_begin_the_system_message_with_the_pack(llm: LLM, chat_pack: Path) -> None:
    llm.load_pack("facts", chat_pack)
    try:
        text = join_documents(DOCUMENTS, "Answer from these.")[0]
        user = {"role": "user", "content": QUESTION}
        for own, system in (([], text), ([{"role": "system", "content": "Be brief."}], f"{text}{SEPARATOR}Be brief.")):
            expected = llm.chat([{"role": "system", "content": system}, user], params())[0]
            found = llm.chat([*own, user], params(pack="facts"))[0]
            assert found.prompt_token_ids == expected.prompt_token_ids
            assert bits(found) == bits(expected)
            assert found.metrics is not None
            assert found.metrics.cached_prompt_tokens >= llm.packs()[0].tokens
        with pytest.raises(errors.InvalidRequestError, match="has the form 'chat': use chat"):
            llm.generate(QUESTION, params(pack="facts"))
    finally:
        llm.unload_pack("facts")


def test_a_pack_goes_with_the_other_parameters(loaded: LLM) -> None:
    full = full_text() + QUESTION
    for fields in (
        {"n": 3, "temperature": 1.0, "seed": 5},
        {"prompt_logprobs": 1},
        {"stop": ["."], "max_tokens": 30},
        {"cache_salt": "tenant"},
        {"structured": Regex("[0-9]{4}")},
    ):
        expected = loaded.generate(full, params(**fields))[0]
        found = loaded.generate(QUESTION, params(pack="facts", **fields))[0]
        assert bits(found) == bits(expected), fields
        if "prompt_logprobs" in fields:
            assert found.metrics is not None
            assert found.metrics.cached_prompt_tokens == 0
            assert found.prompt_logprobs is not None
            assert len(found.prompt_logprobs) == len(found.prompt_token_ids)


def test_several_packs_are_their_texts_one_behind_the_other(loaded: LLM, tmp_path: Path) -> None:
    other = {"case.md": "The key of Fen is 9999. " * 12}
    loaded.make_pack(other, tmp_path / "case.pack", form="text")
    loaded.load_pack("case", tmp_path / "case.pack")
    text = full_text() + join_documents(other)[0] + SEPARATOR + QUESTION
    expected = loaded.generate(text, params())[0]
    found = loaded.generate(QUESTION, params(pack=["facts", "case"]))[0]
    assert found.prompt_token_ids == expected.prompt_token_ids
    assert bits(found) == bits(expected)
    with pytest.raises(errors.PackNotFoundError, match=r'pack "law" is not loaded.*Loaded: case, facts'):
        loaded.generate(QUESTION, params(pack=["facts", "law"]))


def test_64_requests_take_the_memory_of_a_pack_once(text_pack: Path, check_blocks: Callable[[LLM], None]) -> None:
    with LLM(max_num_seqs=64, max_model_len=1024) as llm:
        pack = llm.load_pack("facts", text_pack)
        blocks = pack.tokens // 32
        assert llm.stats()["blocks"]["pinned"] == blocks
        assert llm.stats()["blocks"]["free"] == llm.stats()["blocks"]["total"] - blocks
        asked = params(pack="facts", max_tokens=24)
        handles = [llm.submit(llm.with_packs(f"{i} {QUESTION}", "facts"), asked) for i in range(64)]
        most = 0
        while not all(handle.done for handle in handles):
            most = max(most, llm.stats()["blocks"]["live"])
            for handle in handles:
                handle.poll()
        # Beside the pack a request holds the tokens behind it alone: three blocks at most.
        assert most <= 64 * 3
        llm.unload_pack("facts")
        check_blocks(llm)
        assert llm.stats()["blocks"]["pinned"] == 0


def test_a_pack_survives_a_restart(text_pack: Path) -> None:
    for options in ({}, {"enable_prefix_caching": False}, {"threads": 1}):
        with LLM(**options) as llm:
            expected = llm.generate(full_text() + QUESTION, params())[0]
            pack = llm.load_pack("facts", text_pack)
            found = llm.generate(QUESTION, params(pack="facts"))[0]
            assert bits(found) == bits(expected)
            assert found.metrics is not None
            assert found.metrics.cached_prompt_tokens >= pack.tokens


def test_requests_go_on_when_their_pack_is_unloaded_or_replaced(llm: LLM, text_pack: Path) -> None:
    expected = llm.generate(full_text() + QUESTION, params(max_tokens=40, ignore_eos=True))[0]
    prompt = full_text() + QUESTION
    llm.load_pack("facts", text_pack)
    handles = []
    for round_ in range(6):
        handles += [llm.submit(prompt, params(pack="facts", max_tokens=40, ignore_eos=True)) for _ in range(4)]
        if round_ % 2:
            llm.load_pack("facts", text_pack)
        else:
            llm.unload_pack("facts")
            llm.load_pack("facts", text_pack)
    llm.unload_pack("facts")
    for handle in handles:
        assert bits(result(handle)) == bits(expected)
    with pytest.raises(errors.PackNotFoundError):
        llm.submit(prompt, params(pack="facts"))


def test_a_pack_that_leaves_no_room_is_refused(text_pack: Path, check_blocks: Callable[[LLM], None]) -> None:
    tokens = read_pack(text_pack)["tokens"]
    with LLM(max_model_len=1024, kv_cache_memory=block_bytes() * (32 + tokens // 32 - 1)) as llm:
        with pytest.raises(errors.InvalidRequestError, match=r"the pack needs \d+ KV blocks of \d+.*max_model_len"):
            llm.load_pack("facts", text_pack)
        assert llm.packs() == []
        assert llm.generate(QUESTION, params())[0].outputs[0].token_ids
        check_blocks(llm)
    with LLM(max_model_len=1024, kv_cache_memory=block_bytes() * (32 + tokens // 32)) as llm:
        llm.load_pack("facts", text_pack)
        with pytest.raises(errors.InvalidRequestError, match="packs hold"):
            llm.load_pack("again", text_pack)
        # The longest request beside the pack, and one that begins with it: neither waits for ever.
        ids = [5] * 1000
        assert len(llm.generate([ids], params(max_tokens=23, ignore_eos=True))[0].outputs[0].token_ids) == 23
        assert llm.generate(QUESTION, params(pack="facts"))[0].outputs[0].token_ids


def block_bytes() -> int:
    with LLM() as llm:
        info = llm.info()
    part = next(p for p in info["memory"] if p["name"] == "kv_cache")
    return int(part["bytes"]) // int(info["limits"]["num_blocks"])


@pytest.mark.parametrize("options", [{"kv_cache_dtype": "int8"}, {"attention": "dynamic"}, {"dtype": "float32"}])
def test_every_kind_of_cache(options: dict[str, Any], tmp_path: Path) -> None:
    with LLM(**options) as llm:
        made = llm.make_pack(DOCUMENTS, tmp_path / "facts.pack", form="text")
        expected = llm.generate(full_text() + QUESTION, params())[0]
    with LLM(**options) as llm:
        for block in range(made.tokens // 32):
            fields = {"operation": "load", "name": "facts", "path": str(made.path), "check_block": block}
            llm._engine.pack(fields)
        found = llm.generate(QUESTION, params(pack="facts"))[0]
        assert bits(found) == bits(expected)
        assert found.metrics is not None
        assert found.metrics.cached_prompt_tokens >= made.tokens
    with LLM() as llm, pytest.raises(errors.PackMismatchError, match=r"(dtype|kv_layout) is .*octavo pack --refresh"):
        llm.load_pack("facts", made.path)


def test_arguments_that_packs_do_not_have_are_named(llm: LLM) -> None:
    with pytest.raises(errors.UnknownArgumentError, match="one behind the other"):
        SamplingParams(compose="blend")  # type: ignore[call-arg]
    with pytest.raises(errors.UnknownArgumentError, match="one name, or a list of names"):
        SamplingParams(packs=["a"])  # type: ignore[call-arg]
    with pytest.raises(errors.InvalidRequestError, match="pack"):
        llm.embed("a", pack="facts")  # type: ignore[call-arg]
