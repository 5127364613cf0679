"""Width pruning: a smaller model of every family loads in transformers and in octavo, and both agree."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import all_rows, assert_same_logprobs, reference_logprobs
from octavo import LLM, SamplingParams
from octavo.compress.importance import measure_importance
from octavo.compress.kept import Kept, most_important
from octavo.compress.live_model import layout_of, load_model, smaller_model
from octavo.compress.sizes import Layout, Sizes, choose_sizes
from octavo.hub import embedded_model
from octavo.model_files import copy_files
from random_models import CASES, Case, write_model

BY_NAME = {case.name: case for case in CASES}
TOKENS = 40
# Cases that differ from another one in the spelling of config.json alone.
# Two ropes of transformers depend on the length of the sequence.
BY_LENGTH = ("llama-dynamic-rope", "phi3-longrope-long")
PRUNED = [case for case in CASES if not case.old_spelling and case.name not in BY_LENGTH]


def prompt(vocab: int) -> list[int]:
    draw = random.Random(vocab)
    return [draw.randrange(vocab) for _ in range(TOKENS)]


def smaller(layout: Layout, depth: int) -> Sizes:
    """Sizes of which none is a round part of what it was; `depth` layers."""
    sizes, kv_heads = layout.sizes, max(1, layout.sizes.kv_heads // 2)
    heads = kv_heads * layout.queries_per_kv
    return Sizes(
        hidden=heads * (layout.hidden_per_head or sizes.hidden * 3 // 4 // heads),
        mlp=sizes.mlp * 5 // 8,
        kv_heads=kv_heads,
        layers=depth,
        experts=sizes.experts,
    )


def rows(vocab: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(vocab)
    return [torch.randint(vocab, (2, 32), generator=generator) for _ in range(2)]


def assert_both_load(folder: Path, live: Any, limits: dict[str, Any]) -> None:
    """transformers and octavo give the logits of `live` from its folder."""
    vocab = live.config.vocab_size
    tokens = prompt(vocab)
    want = reference_logprobs(live, tokens)
    assert_same_logprobs(want, reference_logprobs(load_model(folder), tokens), 1e-5)
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=-1, prompt_logprobs=-1)
    with LLM(folder, dtype="float32", quantization=None, **limits) as llm:
        got = all_rows(llm.generate(tokens, params)[0], vocab)
    assert_same_logprobs(want, got, 1e-4)


def pruned(model: Any, layout: Layout, depth: int) -> Any:
    importance = measure_importance(model, layout, rows(model.config.vocab_size))
    sizes = smaller(layout, depth)
    small = smaller_model(model, layout, most_important(importance, sizes))
    assert layout.can_have(sizes)
    # The only layer with experts may be the one that goes.
    assert dataclasses.replace(layout_of(small).sizes, experts=sizes.experts) == sizes
    return small


@pytest.mark.parametrize("case", PRUNED, ids=lambda case: case.name)
def test_a_pruned_model_loads_in_both_programs(case: Case, tmp_path: Path) -> None:
    write_model(case, tmp_path / "model")
    model = load_model(tmp_path / "model")
    layout = layout_of(model)
    small = pruned(model, layout, layout.sizes.layers)
    counted = sum(t.numel() for name, t in small.state_dict().items() if not (layout.tied and name == "lm_head.weight"))
    assert counted == layout.parameters(layout_of(small).sizes)
    small.save_pretrained(tmp_path / "small")
    copy_files(tmp_path / "model", tmp_path / "small")
    assert_both_load(tmp_path / "small", small, case.limits)


@pytest.mark.parametrize(
    "name",
    ["llama", "qwen2-upper-window", "smollm3-window", "olmo3", "gemma3", "qwen2-moe-mixed-old-config", "deepseek-v2"],
)
def test_a_model_with_fewer_layers_loads_in_both_programs(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    write_model(case, tmp_path / "model")
    model = load_model(tmp_path / "model")
    layout = layout_of(model)
    small = pruned(model, layout, layout.sizes.layers - 1)
    small.save_pretrained(tmp_path / "small")
    copy_files(tmp_path / "model", tmp_path / "small")
    assert_both_load(tmp_path / "small", small, case.limits)


def test_keeping_everything_changes_nothing(tmp_path: Path) -> None:
    for name in ("gemma2", "phi3", "deepseek-v3", "qwen3-moe"):
        write_model(BY_NAME[name], tmp_path / name)
        model = load_model(tmp_path / name)
        layout = layout_of(model)
        small = smaller_model(model, layout, pruned_of_all(model, layout))
        tokens = prompt(model.config.vocab_size)
        assert torch.equal(reference_logprobs(model, tokens), reference_logprobs(small, tokens))


def pruned_of_all(model: Any, layout: Layout) -> Kept:
    return most_important(measure_importance(model, layout, rows(model.config.vocab_size)), layout.sizes)


@pytest.mark.parametrize("name", ["llama", "phi3", "glm4", "deepseek-v3", "gemma3", "cohere2", "qwen2"])
def test_parts_that_do_nothing_go_first_and_nothing_is_lost(name: str, tmp_path: Path) -> None:
    """Half of the MLP channels and one group of heads are silenced; pruning as much gives the same logits."""
    write_model(BY_NAME[name], tmp_path / "model")
    model = load_model(tmp_path / "model")
    layout = layout_of(model)
    sizes = dataclasses.replace(layout.sizes, mlp=layout.sizes.mlp // 2, kv_heads=layout.sizes.kv_heads // 2)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in model.model.layers:
            silent = torch.randperm(layout.sizes.kv_heads, generator=generator)[: layout.sizes.kv_heads // 2]
            weight = layer.self_attn.o_proj.weight
            weight.view(weight.shape[0], layout.sizes.kv_heads, -1)[:, silent] = 0
            if hasattr(layer.mlp, "down_proj"):
                silent = torch.randperm(layout.sizes.mlp, generator=generator)[: layout.sizes.mlp // 2]
                layer.mlp.down_proj.weight[:, silent] = 0
    kept = most_important(measure_importance(model, layout, rows(model.config.vocab_size)), sizes)
    small = smaller_model(model, layout, kept)
    assert small.config.num_attention_heads < model.config.num_attention_heads
    tokens = prompt(model.config.vocab_size)
    assert_same_logprobs(reference_logprobs(model, tokens), reference_logprobs(small, tokens), 2e-5)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "llama-tied", "qwen3"])
def test_silent_channels_of_the_residual_stream_go_first(name: str, tmp_path: Path) -> None:
    """Channels that hold 0 are dropped, and nothing is lost but the factor of the mean over fewer channels."""
    case = BY_NAME[name]
    write_model(case, tmp_path / "model")
    model = load_model(tmp_path / "model")
    layout = layout_of(model)
    silent = torch.randperm(layout.sizes.hidden, generator=torch.Generator().manual_seed(7))[: layout.sizes.hidden // 2]
    with torch.no_grad():
        for parameter_name, p in model.named_parameters():
            axes = layout.tensors[parameter_name]
            for dimension, parts in enumerate(axes.dimensions):
                if parts == (parts[0],) and parts[0].value == "hidden" and p.ndim > 1:
                    p.index_fill_(dimension, silent, 0.0)
            if p.ndim == 1 and axes.name.endswith(("norm.weight", "layernorm.weight")) and "self_attn" not in axes.name:
                p.index_fill_(0, silent, -1.0 if name.startswith("gemma") else 0.0)
    kept = most_important(
        measure_importance(model, layout, rows(model.config.vocab_size)),
        dataclasses.replace(layout.sizes, hidden=layout.sizes.hidden // 2),
    )
    assert kept.hidden is not None
    assert not set(kept.hidden.tolist()) & set(silent.tolist())
    small = smaller_model(model, layout, kept)
    # The root mean square over half of the channels is sqrt(2) times that over all, half of which are 0.
    offset = 1.0 if name.startswith("gemma") else 0.0
    with torch.no_grad():
        for parameter in small.parameters():
            if parameter.shape == (small.config.hidden_size,):
                parameter.copy_((parameter + offset) * 2**0.5 - offset)
    tokens = prompt(model.config.vocab_size)
    assert_same_logprobs(reference_logprobs(model, tokens), reference_logprobs(small, tokens), 2e-3)


def test_the_embedded_model_is_pruned_as_planned(tmp_path: Path) -> None:
    model = load_model(embedded_model())
    layout = layout_of(model)
    assert layout.sizes == Sizes(hidden=192, mlp=512, kv_heads=2, layers=6)
    assert layout.parameters(layout.sizes) == sum(p.numel() for p in model.parameters())
    small = choose_sizes(layout, 1 / 3.5)
    assert layout.parameters(small) <= layout.parameters(layout.sizes) / 3.5
