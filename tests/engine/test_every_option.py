"""Nothing is dropped in silence: each sampling field, engine option and embedding option changes something, or is
refused by name."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from octavo import LLM, JsonSchema, SamplingParams
from octavo.config import EngineConfig
from octavo.errors import InvalidRequestError, OctavoError, UnsupportedDeviceError
from octavo.hub import embedded_model
from octavo.params import EmbeddingOptions
from small_adapters import write_small

# Several blocks of the prefix cache.
PROMPT = "One day Sam went to the market, and the fox said that the old mill was gone. " * 30
# Field of SamplingParams -> a value, and the fields that it needs beside it.
SAMPLING: dict[str, tuple[Any, dict[str, Any]]] = {
    "n": (2, {}),
    "max_tokens": (3, {}),
    "min_tokens": (6, {"stop": ["a", "e", "i", "o"]}),
    "temperature": (1.5, {"seed": 1}),
    "top_p": (0.01, {"temperature": 2.0, "seed": 1}),
    "top_k": (1, {"temperature": 2.0, "seed": 1}),
    "min_p": (0.99, {"temperature": 2.0, "seed": 1}),
    "repetition_penalty": (4.0, {}),
    "presence_penalty": (2.0, {"ignore_eos": True, "max_tokens": 120}),
    "frequency_penalty": (2.0, {"ignore_eos": True, "max_tokens": 60}),
    "seed": (2, {"temperature": 2.0}),
    "stop": (["e"], {}),
    "stop_token_ids": ("first token", {}),
    "include_stop_str_in_output": (True, {"stop": ["e"]}),
    "ignore_eos": (True, {"logit_bias": {2: 100}}),
    "bad_words": ("first word", {}),
    "logit_bias": ({30: 100}, {}),
    "allowed_token_ids": ([30, 31], {}),
    "logprobs": (2, {}),
    "prompt_logprobs": (2, {}),
    "skip_special_tokens": (False, {"logit_bias": {1: 100}}),
    "timeout": (1e-9, {}),
    "cache_salt": ("another", {}),
    "lora": ("small", {}),
    "pack": ("none has this name", {}),
    "attention_error_bound": (1e-6, {}),
    "structured": (JsonSchema({"type": "object"}), {}),
}
# Only seen beside others: tests/engine/test_batching.py and the scheduler's tests show it.
BESIDE_OTHERS = {"priority"}
EMBEDDING: dict[str, Any] = {
    "pooling": "last", "normalize": False, "dimensions": 8, "timeout": 1e-9, "cache_salt": "another",
    "lora": "none has this name",
}  # fmt: skip


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(attention="dynamic") as llm:
        llm.load_adapter("small", write_small(tmp_path_factory.mktemp("small"), 1))
        yield llm


def plain(value: Any) -> Any:
    """An output without times and its id."""
    if isinstance(value, OctavoError):
        return type(value).__name__, str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {k: plain(v) for k, v in fields.items() if k != "request_id" and not k.endswith("_seconds")}
    return [plain(v) for v in value] if isinstance(value, list) else value


def outcome(llm: LLM, **fields: Any) -> Any:
    try:
        return plain(llm.generate(PROMPT, SamplingParams(**{"max_tokens": 12, "temperature": 0, **fields})))
    except OctavoError as error:
        return plain(error)


def test_every_sampling_field_has_a_case() -> None:
    assert SAMPLING.keys() | BESIDE_OTHERS == {f.name for f in dataclasses.fields(SamplingParams)}
    assert EMBEDDING.keys() | BESIDE_OTHERS == set(EmbeddingOptions.__annotations__)


@pytest.mark.parametrize("name", SAMPLING)
def test_a_sampling_field_changes_the_output(dynamic: LLM, name: str) -> None:
    value, needs = SAMPLING[name]
    # The prefix cache is as warm for the second as for the third.
    outcome(dynamic, **needs)
    without = outcome(dynamic, **needs)
    if value == "first token":
        value = [without[0]["outputs"][0]["token_ids"][0]]
    elif value == "first word":
        value = [without[0]["outputs"][0]["text"].split()[0]]
    assert outcome(dynamic, **needs, **{name: value}) != without


@pytest.mark.parametrize("name", EMBEDDING)
def test_an_embedding_option_changes_the_vector(llm: LLM, name: str) -> None:
    def embed(**options: Any) -> Any:
        try:
            return plain(llm.embed(PROMPT, **{"pooling": "last" if name == "cache_salt" else "mean", **options}))
        except OctavoError as error:
            return plain(error)

    embed()
    assert embed(**{name: EMBEDDING[name]}) != embed()


def facts(llm: LLM) -> Any:
    info = llm.info()
    info["model"].pop("load_seconds")
    info["machine"].pop("memory_bytes", None)
    twice = [llm.generate(PROMPT, SamplingParams(max_tokens=4, temperature=2.0))[0] for _ in range(2)]
    said = [(o.text, o.metrics.cached_prompt_tokens if o.metrics else 0) for o in twice]
    chat = llm.render_chat([{"role": "user", "content": "Hi"}])
    return info["model"], info["memory"], info["kernels"], info["limits"], said, chat, llm.tokenize("One day")


OPTIONS: dict[str, Any] = {
    "dtype": "float32", "quantization": None, "kv_cache_dtype": "float32", "attention": "dynamic",
    "kv_cache_memory": "64MiB", "max_model_len": 1024, "max_num_seqs": 3, "max_num_batched_tokens": 64, "threads": 1,
    "chat_template": "x", "enable_prefix_caching": False, "seed": 7, "max_queue": 5, "tokenizer": "another",
    "max_loras": 2, "max_lora_rank": 16, "max_lora_memory": "1MiB",
}  # fmt: skip
# On the CPU every output is batch-invariant, as the documents say.
OF_GPUS = {"deterministic"}
REFUSED = {"device": "cuda", "revision": "main"}


def test_every_engine_option_has_a_case() -> None:
    assert OPTIONS.keys() | OF_GPUS | REFUSED.keys() == {f.name for f in dataclasses.fields(EngineConfig)}
    assert "always batch-invariant" in inspect.getdoc(EngineConfig), "said of deterministic"


@pytest.fixture(scope="module")
def usual() -> Any:
    with LLM() as llm:
        return facts(llm)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_engine_option_changes_something(usual: Any, tmp_path: Path, name: str) -> None:
    value = OPTIONS[name]
    if name == "tokenizer":
        from tokenizers import Tokenizer, processors

        made = Tokenizer.from_file(str(embedded_model() / "tokenizer.json"))
        made.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
        value = tmp_path / "model"
        shutil.copytree(embedded_model(), value)
        made.save(str(value / "tokenizer.json"))
    with LLM(**{name: value}) as llm:
        assert facts(llm) != usual


@pytest.mark.parametrize("folder", [None, embedded_model()])
def test_a_revision_of_a_model_that_has_none_is_refused(folder: Path | None) -> None:
    with pytest.raises(InvalidRequestError, match="revision is 'main': only a hub id"):
        LLM(folder, revision="main")


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises((UnsupportedDeviceError, ImportError)):
        LLM(embedded_model(), device="cuda")
