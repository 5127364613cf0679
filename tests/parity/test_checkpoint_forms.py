"""Checkpoints as people save them, against transformers: names, heads, experts, contexts, files that disagree."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import all_rows, assert_same_logprobs, reference_logprobs
from octavo import LLM, SamplingParams
from octavo.errors import CorruptModelError, InvalidRequestError, ModelNotFoundError, UnsupportedModelError
from octavo.quantize import quantize_folder
from random_models import CASES, Case, rope, write_model
from safetensors.torch import load_file, save_file, save_model
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

PROMPT = [5, 17, 190, 33, 7, 99, 150, 41, 3, 77, 12, 64]
Tensors = dict[str, torch.Tensor]


def case(model_type: str, **options: Any) -> Case:
    return Case(f"form-{model_type}", model_type, options)


def by_name(name: str) -> Case:
    return next(c for c in CASES if c.name == name)


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = folder / "model.safetensors"
    tensors = change(load_file(file))
    file.unlink()  # a file that is mapped keeps its content
    save_file({name: t.clone() for name, t in tensors.items()}, file, metadata={"format": "pt"})


def renamed(change: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "DROP"}))


def load(folder: Path, **options: Any) -> LLM:
    """A model, and its warnings in `info` instead of on the screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return LLM(folder, **{"dtype": "float32", "quantization": None, "kv_cache_memory": "16MiB", **options})


def rows_of(llm: LLM, prompt: list[int]) -> torch.Tensor:
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, logprobs=-1, prompt_logprobs=-1)
    return all_rows(llm.generate(prompt, params)[0], 199)


def reference(folder: Path, prompt: list[int] = PROMPT) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    return reference_logprobs(model, prompt)


def assert_like(want: torch.Tensor, folder: Path, prompt: list[int] = PROMPT, **options: Any) -> list[str]:
    """Returns the warnings."""
    with load(folder, **options) as llm:
        assert_same_logprobs(want, rows_of(llm, prompt), tolerance=2e-4)
        found: list[str] = llm.info()["warnings"]
    return found


# Names of tensors and architectures.


@pytest.mark.parametrize("tied", [True, False])
def test_tensors_without_the_prefix_load(tied: bool, tmp_path: Path) -> None:
    write_model(case("qwen3", head_dim=16, tie_word_embeddings=tied), tmp_path)
    rewrite(tmp_path, renamed(lambda name: name.removeprefix("model.")))
    assert assert_like(reference(tmp_path), tmp_path) == []


NAMES = [
    pytest.param(["Qwen3Model"], "qwen3", id="base model"),
    pytest.param(None, "qwen3", id="null"),
    pytest.param("DROP", "qwen3", id="absent"),
    pytest.param([], "qwen3", id="empty"),
    pytest.param(["Foo", "Qwen3ForCausalLM"], "qwen3", id="second"),
    pytest.param(["QWEN3ForCausalLM"], "qwen3", id="case"),
    pytest.param(["Foo"], "qwen3", id="unknown"),
    pytest.param(["LlamaForCausalLM"], "qwen3", id="another family"),
]


@pytest.mark.parametrize(("names", "model_type"), NAMES)
def test_the_model_type_decides(names: Any, model_type: str, tmp_path: Path) -> None:
    write_model(case(model_type, head_dim=16), tmp_path)
    edit(tmp_path, architectures=names)
    found = assert_like(reference(tmp_path), tmp_path)
    odd = names in (["Foo"], ["LlamaForCausalLM"])
    assert len(found) == odd
    assert not odd or names[0] in found[0]


def test_models_for_other_tasks_stay_refused(tmp_path: Path) -> None:
    write_model(case("qwen3", head_dim=16), tmp_path)
    edit(tmp_path, architectures=["Qwen3ForSequenceClassification"])
    with pytest.raises(UnsupportedModelError, match="Qwen3ForSequenceClassification"):
        load(tmp_path)


PREFIXES = {
    "model.model.": "model.lm_head.weight",
    "language_model.model.": "language_model.lm_head.weight",
    "model.language_model.": "lm_head.weight",
    "base_model.model.model.": "base_model.model.lm_head.weight",
    "_orig_mod.model.": "_orig_mod.lm_head.weight",
    "module.model.": "module.lm_head.weight",
    "module._orig_mod.model.": "module._orig_mod.lm_head.weight",
}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrappers_around_the_model_are_taken_off(prefix: str, tmp_path: Path) -> None:
    write_model(case("llama"), tmp_path)
    want = reference(tmp_path)
    vision = {"vision_tower.layers.0.weight": torch.zeros(2)} if "language" in prefix else {}

    def wrap(tensors: Tensors) -> Tensors:
        inner = {prefix + name.removeprefix("model."): t for name, t in tensors.items() if name != "lm_head.weight"}
        return {**inner, PREFIXES[prefix]: tensors["lm_head.weight"], **vision}

    rewrite(tmp_path, wrap)
    found = assert_like(want, tmp_path)
    assert [name for name in vision if any(name in text for text in found)] == list(vision)
    assert bool(found) == bool(vision)


def test_wrappers_of_single_layers_are_taken_off(tmp_path: Path) -> None:
    write_model(case("llama"), tmp_path)
    want = reference(tmp_path)
    rewrite(tmp_path, renamed(lambda name: name.replace("self_attn", "_checkpoint_wrapped_module.self_attn")))
    assert assert_like(want, tmp_path) == []


REFUSED = {
    "foreign prefix": (renamed(lambda name: f"policy.{name}"), "policy.model."),
    "two models": (
        lambda t: {**{f"actor.{n}": x for n, x in t.items()}, **{f"critic.{n}": x for n, x in t.items()}},
        "critic",
    ),
    "unmerged adapter": (lambda t: {**t, "model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(1)}, "lora_A"),
    "unmerged base layers": (renamed(lambda n: n.replace("q_proj", "q_proj.base_layer")), "adapter"),
    "names of another program": (
        renamed(
            lambda n: (
                n.replace("model.layers", "h")
                .replace("self_attn", "attention")
                .replace("norm", "ln")
                .replace("embed_tokens", "wte")
            )
        ),
        "not named as",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_names_are_refused_by_name(name: str, tmp_path: Path) -> None:
    change, words = REFUSED[name]
    write_model(case("llama"), tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        load(tmp_path)
    assert "corrupt" not in str(caught.value)


# Output heads.


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_base_model_embeds_and_says_that_it_has_no_head(prefix: str, tmp_path: Path) -> None:
    write_model(case("qwen3", head_dim=16), tmp_path)
    rewrite(tmp_path, lambda t: {prefix + n.removeprefix("model."): x for n, x in t.items() if n != "lm_head.weight"})
    edit(tmp_path, architectures=["Qwen3Model"])
    model = AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        want = model(input_ids=torch.tensor([PROMPT])).last_hidden_state[0, -1]
    packed = tmp_path / "packed"
    quantize_folder(tmp_path, packed)
    for folder in (tmp_path, packed):
        with load(folder, quantization=None if folder == tmp_path else "auto") as llm:
            got = torch.tensor(llm.embed([PROMPT], pooling="last", normalize=False, use_tqdm=False)[0].embedding)
            assert torch.cosine_similarity(want, got, 0) > 0.999
            if folder == tmp_path:
                assert float((want - got).abs().max()) < 2e-4
            with pytest.raises(InvalidRequestError, match="no output head"):
                llm.generate(PROMPT, SamplingParams(max_tokens=1))


def test_a_tied_base_model_generates(tmp_path: Path) -> None:
    write_model(case("qwen3", head_dim=16, tie_word_embeddings=True), tmp_path)
    edit(tmp_path, architectures=["Qwen3Model"])
    assert assert_like(reference(tmp_path), tmp_path) == []


def test_a_missing_head_of_a_whole_model_stays_refused(tmp_path: Path) -> None:
    write_model(case("qwen3", head_dim=16), tmp_path)
    rewrite(tmp_path, lambda t: {n: x for n, x in t.items() if n != "lm_head.weight"})
    with pytest.raises(CorruptModelError, match=r"lm_head\.weight is missing"):
        load(tmp_path)


TIED = {"llama": {}, "qwen2": {}, "gemma": {"head_dim": 24}, "cohere2": {"sliding_window": 11}}


@pytest.mark.parametrize("model_type", TIED)
def test_a_head_of_its_own_is_used_though_config_says_tied(model_type: str, tmp_path: Path) -> None:
    write_model(case(model_type, tie_word_embeddings=True, **TIED[model_type]), tmp_path)
    embed = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    head = embed + 0.3 * embed.std() * torch.randn_like(embed)
    rewrite(tmp_path, lambda t: {**t, "lm_head.weight": head})
    want = reference(tmp_path)
    (warning,) = assert_like(want, tmp_path)
    assert "lm_head.weight" in warning
    assert "tie_word_embeddings" in warning


def test_a_head_of_its_own_is_kept_by_quantising(tmp_path: Path) -> None:
    write_model(case("qwen2", tie_word_embeddings=True), tmp_path)
    rewrite(tmp_path, lambda t: {**t, "lm_head.weight": -t["model.embed_tokens.weight"]})
    packed = tmp_path / "packed"
    assert any("lm_head" in text for text in quantize_folder(tmp_path, packed).warnings)
    with load(tmp_path, quantization="auto") as plain, load(packed, quantization="auto") as mapped:
        assert torch.equal(rows_of(plain, PROMPT), rows_of(mapped, PROMPT))


@pytest.mark.parametrize("model_type", TIED)
def test_of_two_equal_tied_tensors_one_is_enough(model_type: str, tmp_path: Path) -> None:
    model = write_model(case(model_type, tie_word_embeddings=True, **TIED[model_type]), tmp_path)
    want = reference(tmp_path)
    rewrite(tmp_path, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"]})
    assert assert_like(want, tmp_path) == [], "both, with equal values"
    (tmp_path / "model.safetensors").unlink()
    save_model(model, str(tmp_path / "model.safetensors"))
    assert "model.embed_tokens.weight" not in load_file(tmp_path / "model.safetensors"), "the case itself"
    assert assert_like(want, tmp_path) == [], "the head alone"


def test_doubles_are_read_as_singles(tmp_path: Path) -> None:
    write_model(case("qwen2"), tmp_path)
    want = reference(tmp_path)
    rewrite(tmp_path, lambda t: {name: tensor.double() for name, tensor in t.items()})
    edit(tmp_path, dtype="float64")
    assert assert_like(want, tmp_path) == []


# Experts.


@pytest.mark.parametrize(
    "name", ["mixtral", "qwen2-moe", "qwen2-moe-mixed-old-config", "qwen3-moe", "deepseek-v2", "deepseek-v3"]
)
def test_stacked_experts_load(name: str, tmp_path: Path) -> None:
    model = write_model(by_name(name), tmp_path)
    want = reference_logprobs(model, PROMPT)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert any(key.endswith("experts.gate_up_proj") for key in state), "the case itself"
    rewrite(tmp_path, lambda _: state)
    assert assert_like(want, tmp_path) == []


def test_a_stack_of_another_shape_is_named(tmp_path: Path) -> None:
    model = write_model(by_name("qwen3-moe"), tmp_path)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    state = model.state_dict()
    rewrite(tmp_path, lambda _: {**state, name: state[name].transpose(1, 2).contiguous()})
    with pytest.raises(CorruptModelError, match=name):
        load(tmp_path)


# Contexts.


CONTEXTS = {
    "yarn": (rope("yarn", factor=4.0, original_max_position_embeddings=64), 256, 256),
    "yarn, no original": (rope("yarn", factor=4.0), 256, 256),
    "linear": (rope("linear", factor=4.0), 256, 256),
    "llama3": (
        rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
        256,
        256,
    ),
    "llama3 that has grown": (
        rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
        64,
        256,
    ),
    "yarn that has grown": (rope("yarn", factor=2.0, original_max_position_embeddings=32), 64, 64),
    "dynamic": (rope("dynamic", factor=4.0), 64, 256),
    "none": ({}, 64, 64),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_rope_scaling_lengthens_the_context(name: str, tmp_path: Path) -> None:
    options, default, longest = CONTEXTS[name]
    write_model(case("qwen2", max_position_embeddings=64, **options), tmp_path)
    if name in ("yarn", "linear"):  # the spelling of Qwen's recipe
        scaling = options["rope_parameters"]
        edit(tmp_path, rope_parameters="DROP", rope_theta=scaling["rope_theta"], rope_scaling=scaling)
    with load(tmp_path) as llm:
        assert llm.info()["limits"]["max_model_len"] == default
    with load(tmp_path, max_model_len=longest) as llm:
        assert llm.info()["limits"]["max_model_len"] == longest
        prompt = [i % 190 for i in range(longest - 2)]
        if name != "dynamic":  # which transformers fits to each prompt
            assert_same_logprobs(reference(tmp_path, prompt), rows_of(llm, prompt), tolerance=2e-4)
    with pytest.raises(Exception, match="max_model_len"):
        load(tmp_path, max_model_len=longest + 1)


# Files.


@pytest.fixture
def sharded(tmp_path: Path) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path / "sharded"
    model = write_model(case("llama"), folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*"))) > 2
    return folder, model


def index_of(folder: Path, change: Callable[[dict[str, str]], Any]) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))


@pytest.mark.parametrize("shards", ["kept", "deleted", "index deleted"])
def test_one_file_goes_before_an_index(shards: str, sharded: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    folder, _ = sharded
    write_model(Case("another", "llama"), tmp_path / "new")
    shutil.copy(tmp_path / "new" / "model.safetensors", folder)
    if shards == "deleted":
        for shard in folder.glob("model-0*"):
            shard.unlink()
    if shards == "index deleted":
        (folder / "model.safetensors.index.json").unlink()
    want = reference(folder)
    assert_same_logprobs(reference(tmp_path / "new"), want, tolerance=0)
    (warning,) = assert_like(want, folder)
    assert "model.safetensors" in warning
    assert "model-0" in warning


def test_an_index_of_one_file_is_no_contradiction(tmp_path: Path) -> None:
    write_model(case("llama"), tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert assert_like(reference(tmp_path), tmp_path) == []


def test_an_entry_that_no_shard_holds_is_a_warning(sharded: tuple[Path, PreTrainedModel]) -> None:
    folder, _ = sharded
    index_of(folder, lambda m: m.update({"model.rotary.inv_freq": next(iter(m.values()))}))
    (warning,) = assert_like(reference(folder), folder)
    assert "model.rotary.inv_freq" in warning


def test_a_missing_entry_is_no_loss(sharded: tuple[Path, PreTrainedModel]) -> None:
    folder, _ = sharded
    index_of(folder, lambda m: m.pop("model.norm.weight"))
    assert assert_like(reference(folder), folder) == []


@pytest.mark.parametrize("last", [True, False])
def test_of_two_shards_with_a_tensor_the_later_counts(last: bool, sharded: tuple[Path, PreTrainedModel]) -> None:
    folder, _ = sharded
    name = "model.norm.weight"
    shards = sorted(folder.glob("model-*"))
    holder = next(s for s in shards if name in load_file(s))
    other = next(s for s in (reversed(shards) if last else shards) if s != holder)
    tensors = load_file(other)
    other.unlink()
    save_file({**tensors, name: torch.full((64,), 3.0)}, other, metadata={"format": "pt"})
    (warning,) = assert_like(reference(folder), folder)
    assert name in warning


def test_shards_that_the_index_does_not_name_are_a_warning(sharded: tuple[Path, PreTrainedModel]) -> None:
    folder, _ = sharded
    shutil.copy(next(folder.glob("model-00001*")), folder / "model-00001-of-00099.safetensors")
    (warning,) = assert_like(reference(folder), folder)
    assert "model-00001-of-00099.safetensors" in warning


def test_a_missing_shard_is_named(sharded: tuple[Path, PreTrainedModel]) -> None:
    folder, _ = sharded
    gone = sorted(folder.glob("model-*"))[1]
    gone.unlink()
    with pytest.raises(ModelNotFoundError, match=gone.name):
        load(folder)


def test_tensors_that_nothing_uses_are_a_warning(tmp_path: Path) -> None:
    write_model(case("llama"), tmp_path)
    extra = {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    want = reference(tmp_path)
    rewrite(tmp_path, lambda t: {**t, **extra, **buffers})
    (warning,) = assert_like(want, tmp_path)
    assert next(iter(extra)) in warning
    assert "inv_freq" not in warning
