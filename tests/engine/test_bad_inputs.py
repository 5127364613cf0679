"""Each wrong input has its typed error, which names the input; nothing of it reaches the engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from octavo import LLM, SamplingParams
from octavo.errors import (
    ContextLengthError,
    CorruptModelError,
    InvalidRequestError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from octavo.hub import embedded_model

SHORT = SamplingParams(max_tokens=2)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        pytest.param("", "empty|no token", id="empty-text"),
        pytest.param([[]], "empty|no token", id="empty-ids"),
        pytest.param([10**6], "1000000", id="id-too-large"),
        pytest.param([-1], "-1|token ids", id="negative-id"),
        pytest.param([2**40], "1099511627776|token ids", id="id-beyond-32-bits"),
        pytest.param([1.5, 2.5], "integer", id="floats"),
        pytest.param([["a", "b"]], "integer", id="list-of-lists-of-texts"),
        pytest.param(b"bytes", "bytes", id="bytes"),
        pytest.param(7, "int", id="number"),
        pytest.param(None, "NoneType", id="none"),
        pytest.param({"text": "x"}, "text", id="dict"),
        pytest.param(["fine", None], "None|integers", id="one-of-two"),
    ],
)
def test_prompts(prompts: Any, words: str, llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        llm.generate(prompts, SHORT)


def test_prompt_beyond_the_context(llm: LLM) -> None:
    limit = llm.info()["limits"]["max_model_len"]
    with pytest.raises(ContextLengthError, match=str(limit)):
        llm.generate([5] * (limit + 1), SHORT)
    with pytest.raises(ValueError, match=str(limit)):
        llm.stream([5] * (limit + 1), SHORT)


def test_a_bad_prompt_is_found_before_anything_runs(llm: LLM) -> None:
    generated = llm.stats()["prompt_tokens"]
    with pytest.raises(InvalidRequestError):
        llm.generate(["fine"] * 50 + [""], SHORT)
    assert llm.stats()["prompt_tokens"] == generated


def test_accepted_forms_of_prompts(llm: LLM) -> None:
    ids = llm.tokenize("Once upon a time")
    params = SamplingParams(max_tokens=4, temperature=0)
    want = llm.generate("Once upon a time", params)[0].outputs
    forms: list[Any] = [ids, tuple(ids), np.array(ids), [np.array(ids, dtype=np.int32)], [ids], ["Once upon a time"]]
    for form in forms:
        outputs = llm.generate(form, params)
        assert len(outputs) == 1
        assert outputs[0].outputs == want
    assert [o.outputs for o in llm.generate(["Once upon a time", ids], params, use_tqdm=False)] == [want, want]
    assert [o.outputs for o in llm.generate(np.array([ids, ids]), params, use_tqdm=False)] == [want, want]
    assert llm.generate([]) == []


def test_negative_max_tokens() -> None:
    """At construction: no call ever sees such parameters."""
    for value in (-1, 0, -(2**40)):
        with pytest.raises(InvalidRequestError, match=f"max_tokens.*{value}"):
            SamplingParams(max_tokens=value)


def test_samples_that_the_pool_cannot_hold() -> None:
    """Refused at once though four samples fit `max_num_seqs`: each would end with eight blocks, and there are ten."""
    with LLM(max_model_len=256, max_num_seqs=4, kv_cache_memory="480KiB") as small:
        assert small.info()["limits"]["num_blocks"] == 10
        with pytest.raises(InvalidRequestError, match="KV blocks"):
            small.generate("x", SamplingParams(n=4, max_tokens=250))
        assert small.generate("x", SHORT)[0].finished


@pytest.mark.parametrize("params", [{"temperature": 0}, 5, [SHORT], [SHORT, None, SHORT]])
def test_params_of_the_wrong_kind(params: Any, llm: LLM) -> None:
    with pytest.raises(InvalidRequestError):
        llm.generate(["a", "b"], params)


def test_params_that_need_the_model(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="stop_token_ids"):
        llm.generate("x", SamplingParams(stop_token_ids=[10**6]))
    with pytest.raises(InvalidRequestError, match="logit_bias"):
        llm.generate("x", SamplingParams(logit_bias={10**6: 1.0}))
    seqs = llm.info()["limits"]["max_num_seqs"]
    with pytest.raises(InvalidRequestError, match="max_num_seqs"):
        llm.generate("x", SamplingParams(n=seqs + 1))


@pytest.mark.parametrize(
    "messages", ["text", {"role": "user"}, 5, [5], ["text"], [{"role": "user", "content": {1, 2}}]]
)
def test_messages(messages: Any, llm: LLM) -> None:
    with pytest.raises(InvalidRequestError):
        llm.chat(messages, SHORT)


def test_text_that_is_not_unicode(llm: LLM) -> None:
    """A lone surrogate cannot be encoded."""
    with pytest.raises((InvalidRequestError, UnicodeEncodeError)):
        llm.generate("broken \ud800 text", SHORT)


# --- model folders -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded model that a test may damage."""
    copy = tmp_path / "model"
    shutil.copytree(embedded_model(), copy)
    return copy


def change(name: str, **values: Any) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        file = folder / name
        content = json.loads(file.read_text())
        content.update(values)
        file.write_text(json.dumps(content))

    return act


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return act


def cut(name: str, size: int) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:size])

    return act


NORM = "model.norm.weight"


def change_header(act: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """The header of the weights as `act` leaves it, or as the text that it returns."""

    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        changed = act(header)
        again = (changed if isinstance(changed, str) else json.dumps(header)).encode()
        file.write_bytes(len(again).to_bytes(8, "little") + again + content[8 + size :])

    return damage


def duplicate_tensor(header: dict[str, Any]) -> str:
    """The header names one tensor twice."""
    return json.dumps(header)[:-1] + f', "{NORM}": {json.dumps(header[NORM])}}}'


def overlap(header: dict[str, Any]) -> None:
    """The norm lies where another tensor lies."""
    other = header["model.layers.0.input_layernorm.weight"]
    header[NORM]["data_offsets"] = other["data_offsets"]


def outside(header: dict[str, Any]) -> None:
    """The last tensor ends behind the file."""
    last = max((e for name, e in header.items() if name != "__metadata__"), key=lambda e: e["data_offsets"][1])
    last["data_offsets"] = [at + (1 << 40) for at in last["data_offsets"]]


def other_dtype(header: dict[str, Any]) -> None:
    """As many bytes, of a kind that no weight has."""
    header[NORM]["dtype"] = "I16"


def missing_shard(folder: Path) -> None:
    """An index that names a file which is not there."""
    content = (folder / "model.safetensors").read_bytes()
    names = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    names.pop("__metadata__", None)
    files = dict.fromkeys(names, "model-00001-of-00002.safetensors") | {NORM: "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


# A normalizer of which the tokenizers crate panics.
PANICKING_TOKENIZER = (
    b'{"version": "1.0", "added_tokens": [], "normalizer": {"type": "Precompiled", "precompiled_charsmap": "////"}, '
    b'"model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0}}}'
)


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        pytest.param(remove("config.json"), ModelNotFoundError, "config.json", id="no-config"),
        pytest.param(remove("tokenizer.json"), ModelNotFoundError, "tokenizer", id="no-tokenizer"),
        pytest.param(remove("model.safetensors"), ModelNotFoundError, "safetensors", id="no-weights"),
        pytest.param(write("config.json", b"{"), CorruptModelError, "config.json", id="config-not-json"),
        pytest.param(write("config.json", b"[]"), CorruptModelError, "config.json", id="config-not-object"),
        pytest.param(write("tokenizer.json", b"{}"), CorruptModelError, "tokenizer", id="tokenizer-empty"),
        pytest.param(cut("model.safetensors", 4), CorruptModelError, "model.safetensors", id="weights-4-bytes"),
        pytest.param(cut("model.safetensors", 5000), CorruptModelError, "model.safetensors", id="weights-cut"),
        pytest.param(
            write("model.safetensors", b"\xff" * 64), CorruptModelError, "model.safetensors", id="weights-noise"
        ),
        pytest.param(
            write("model.safetensors", (1 << 40).to_bytes(8, "little") + b"{}"),
            CorruptModelError,
            "model.safetensors",
            id="header-oversize",
        ),
        pytest.param(change_header(duplicate_tensor), CorruptModelError, NORM, id="duplicate-tensor"),
        pytest.param(change_header(overlap), CorruptModelError, "model.safetensors", id="tensors-overlap"),
        pytest.param(change_header(outside), CorruptModelError, "model.safetensors", id="tensor-outside"),
        pytest.param(change_header(other_dtype), CorruptModelError, f"{NORM}.*I16", id="tensor-dtype"),
        pytest.param(missing_shard, (CorruptModelError, ModelNotFoundError), "00002-of-00002", id="missing-shard"),
        pytest.param(
            write("tokenizer.json", PANICKING_TOKENIZER), CorruptModelError, "tokenizer", id="tokenizer-panics"
        ),
        pytest.param(
            change("config.json", architectures=["BertModel"], model_type="bert"),
            UnsupportedModelError,
            "BertModel",
            id="architecture",
        ),
        pytest.param(change("config.json", hidden_act="relu6"), UnsupportedModelError, "relu6", id="activation"),
        pytest.param(
            change("config.json", rope_parameters={"rope_type": "spiral"}), UnsupportedModelError, "spiral", id="rope"
        ),
        pytest.param(
            change("config.json", quantization_config={"bits": 4}),
            UnsupportedModelError,
            "quantization_config",
            id="quantised",
        ),
        pytest.param(change("config.json", hidden_size=-5), CorruptModelError, "hidden_size", id="negative-size"),
        pytest.param(change("config.json", hidden_size=10**30), CorruptModelError, "hidden_size", id="huge-size"),
        pytest.param(change("config.json", vocab_size="many"), CorruptModelError, "vocab_size", id="text-size"),
        pytest.param(change("config.json", hidden_size=128), CorruptModelError, "128", id="wrong-shape"),
        pytest.param(change("config.json", num_hidden_layers=99), CorruptModelError, "layers", id="missing-layers"),
    ],
)
def test_damaged_folders(damage: Callable[[Path], None], error: type[Exception], words: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(error, match=words):
        LLM(folder)


def test_the_copy_itself_loads(folder: Path) -> None:
    with LLM(folder, max_model_len=64) as made:
        assert made.model == folder


def test_code_in_a_folder_is_never_run(folder: Path) -> None:
    """`auto_map` and Python files are what other loaders run; here they are just files."""
    (folder / "modeling.py").write_text("raise SystemExit('ran')")
    change("config.json", auto_map={"AutoModelForCausalLM": "modeling.Model"})(folder)
    with LLM(folder, max_model_len=64) as made:
        assert made.generate("x", SHORT)[0].finished


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float8"}, "dtype"),
        ({"dtype": "float16"}, "bfloat16"),
        ({"quantization": "int3"}, "quantization"),
        ({"kv_cache_dtype": "int1"}, "kv_cache_dtype"),
        ({"kv_cache_memory": "lots"}, "kv_cache_memory"),
        ({"kv_cache_memory": 10}, "kv_cache_memory"),
        ({"kv_cache_memory": 1.5}, "kv_cache_memory"),
        ({"kv_cache_memory": "100KB", "max_model_len": 2048}, "kv_cache_memory"),
        ({"max_model_len": 0}, "max_model_len"),
        ({"max_model_len": 10**6}, "max_model_len"),
        ({"max_model_len": -3}, "max_model_len"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens"),
        ({"max_queue": 0}, "max_queue"),
        ({"threads": 0}, "threads"),
        ({"threads": "two"}, "threads"),
        ({"attention": "sparse"}, "attention"),
        ({"device": "tpu"}, "device"),
        ({"max_model_length": 5}, "max_model_len"),
        ({"temperature": 0.5}, "temperature"),
        ({"chat_template": "{% if"}, "template"),
        ({"chat_template": "x" * (2 << 20)}, "template"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)
def test_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        LLM(**options)


def test_tokenizer_elsewhere(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "tokenizer.json"
    (folder / "tokenizer.json").rename(elsewhere)
    with LLM(folder, tokenizer=elsewhere, max_model_len=64) as made:
        assert made.tokenize("Once")
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        LLM(folder, tokenizer=tmp_path / "nowhere")


def test_more_kv_cache_than_the_machine_has() -> None:
    with pytest.raises(InvalidRequestError, match="kv_cache_memory"):
        LLM(kv_cache_memory="100TiB")


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", id="endless"),
        pytest.param("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", id="recursion"),
        pytest.param("{{ '{:>100000000000}'.format(1) }}", id="wide"),
        pytest.param("{{ raise_exception('no system message') }}", id="its-own-error"),
    ],
)
def test_hostile_templates(template: str) -> None:
    """The chat is refused with the typed error, and the model serves prompts on."""
    with LLM(max_model_len=64, chat_template=template) as made:
        with pytest.raises(InvalidRequestError, match="template"):
            made.chat([{"role": "user", "content": "Hello"}], SHORT)
        assert made.generate("x", SHORT)[0].finished


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        LLM(tmp_path / "nowhere")


def test_a_lone_surrogate_in_messages(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="messages"):
        llm.chat([{"role": "user", "content": "\ud800"}])


def test_a_broken_template_of_the_model_is_told_when_it_is_used(llm: LLM, folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% if %}", encoding="utf-8")
    params = SamplingParams(max_tokens=3, temperature=0)
    with LLM(folder) as broken:
        assert broken.generate("One day", params)[0].text == llm.generate("One day", params)[0].text
        assert broken.info()["model"]["chat_template"] is False
        with pytest.raises(InvalidRequestError, match="template"):
            broken.chat([{"role": "user", "content": "Hello"}], params)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        pytest.param(lambda llm: llm.load_adapter("\ud800", "."), "name is .*lone surrogate", id="adapter-surrogate"),
        pytest.param(lambda llm: llm.unload_adapter("\ud800"), "name is .*lone surrogate", id="unload-surrogate"),
        pytest.param(lambda llm: llm.load_pack("\ud800", "."), "name is .*lone surrogate", id="pack-surrogate"),
        pytest.param(lambda llm: llm.load_adapter(5, "."), "name is a int", id="adapter-name"),
        pytest.param(
            lambda llm: llm.load_adapter("a", 5), "path is a int: the folder of an adapter", id="adapter-path"
        ),
        pytest.param(lambda llm: llm.load_pack("a", 5), "path is a int: the folder of a pack", id="pack-path"),
        pytest.param(lambda llm: llm.with_packs("x", 5), "names is a int", id="pack-names"),
        pytest.param(lambda llm: llm.with_packs_chat([], 5), "names is a int", id="pack-names-of-a-chat"),
        pytest.param(lambda llm: llm.make_pack(["x"], "p", system=5), "system is a int", id="pack-system"),
    ],
)
def test_names_and_paths(llm: LLM, call: Callable[[LLM], Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        call(llm)
