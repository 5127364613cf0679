"""Expert pruning: the experts that add nothing go first, and the smaller model loads in both programs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import assert_same_logprobs, reference_logprobs
from octavo.compress.experts import experts_per_layer, most_used_experts, score_experts
from octavo.compress.live_model import layout_of, load_model, smaller_model
from octavo.errors import InvalidRequestError, UnsupportedModelError
from octavo.model_files import copy_files
from random_models import CASES, write_model
from test_compress_width import assert_both_load, prompt, rows

BY_NAME = {case.name: case for case in CASES}
WITH_EXPERTS = ["mixtral", "qwen2-moe", "qwen2-moe-mixed-old-config", "qwen3-moe", "deepseek-v2", "deepseek-v3"]


def opened(name: str, tmp_path: Path, **options: Any) -> Any:
    case = BY_NAME[name]
    write_model(dataclasses.replace(case, options={**case.options, **options}), tmp_path / "model")
    return load_model(tmp_path / "model")


@pytest.mark.parametrize("name", [*WITH_EXPERTS, "deepseek-v2-groups-old-config"])
def test_a_model_with_fewer_experts_loads_in_both_programs(name: str, tmp_path: Path) -> None:
    # In groups of two no expert can go.
    grouped = name in ("deepseek-v3", "deepseek-v2-groups-old-config")
    model = opened(name, tmp_path, **({"n_routed_experts": 16} if grouped else {}))
    layout = layout_of(model)
    count = experts_per_layer(model.config, layout, 0.6 if name == "mixtral" else 0.75)
    assert count < layout.sizes.experts
    scores = score_experts(model, rows(model.config.vocab_size))
    small = smaller_model(model, layout, most_used_experts(scores, layout, model.config, count))
    assert layout_of(small).sizes.experts == count
    small.save_pretrained(tmp_path / "small")
    copy_files(tmp_path / "model", tmp_path / "small")
    assert_both_load(tmp_path / "small", small, BY_NAME[name].limits)


@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_scores_are_the_mean_of_weight_times_length(name: str, tmp_path: Path) -> None:
    """Against the experts' own forward pass, one expert and one token at a time."""
    model = opened(name, tmp_path)
    ids = torch.arange(24)[None] % model.config.vocab_size
    scores = score_experts(model, [ids])
    number = max(scores)
    experts = model.model.layers[number].mlp.experts
    seen: list[tuple[Any, ...]] = []
    handle = experts.register_forward_pre_hook(
        lambda _, inputs, named: seen.append((*inputs, *named.values())), with_kwargs=True
    )
    with torch.no_grad():
        model(input_ids=ids)
        handle.remove()
        x, chosen, weights = seen[0][:3]
        for expert in range(scores[number].numel()):
            found = []
            for token, place in torch.nonzero(chosen == expert).tolist():
                alone = experts(
                    x[token : token + 1], chosen[token : token + 1, [place]], weights[token : token + 1, [place]]
                )
                found.append(float(alone.norm()))
            want = sum(found) / len(found) if found else 0.0
            assert float(scores[number][expert]) == pytest.approx(want, rel=1e-4)


def test_experts_that_add_nothing_go_first(tmp_path: Path) -> None:
    """Two experts of each layer are silenced."""
    model = opened("qwen3-moe", tmp_path)
    layout = layout_of(model)
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            silent = [number, 5]
            layer.mlp.experts.down_proj[silent] = 0
            layer.mlp.gate.weight[silent] = 0
    kept = most_used_experts(
        score_experts(model, rows(model.config.vocab_size)), layout, model.config, layout.sizes.experts - 2
    )
    for number, experts in kept.experts.items():
        assert not {number, 5} & set(experts.tolist())


def test_equally_many_experts_of_each_group_stay(tmp_path: Path) -> None:
    model = opened("deepseek-v3", tmp_path)
    layout = layout_of(model)
    assert layout.sizes.experts == 8
    scores = {1: torch.tensor([9.0, 8.0, 7.0, 6.0, 0.1, 0.2, 0.4, 0.3])}
    model.config.n_group = 2
    kept = most_used_experts(scores, layout, model.config, 4)
    assert kept.experts[1].tolist() == [0, 1, 6, 7]


def test_keeping_all_experts_changes_nothing(tmp_path: Path) -> None:
    model = opened("deepseek-v2", tmp_path)
    layout = layout_of(model)
    scores = score_experts(model, rows(model.config.vocab_size))
    same = smaller_model(model, layout, most_used_experts(scores, layout, model.config, layout.sizes.experts))
    tokens = prompt(model.config.vocab_size)
    assert_same_logprobs(reference_logprobs(model, tokens), reference_logprobs(same, tokens), 0.0)


def test_what_cannot_be_pruned_is_refused(tmp_path: Path) -> None:
    model = opened("deepseek-v3", tmp_path)
    layout = layout_of(model)
    # Four groups of two experts: the router scores a group by its best two.
    with pytest.raises(InvalidRequestError, match="of 8 experts in 4 groups at least 8 must stay"):
        experts_per_layer(model.config, layout, 0.5)
    with pytest.raises(InvalidRequestError, match="experts is 1"):
        experts_per_layer(model.config, layout, 1.0)
    dense = opened("llama", tmp_path / "dense")
    with pytest.raises(UnsupportedModelError, match="no routed experts"):
        experts_per_layer(dense.config, layout_of(dense), 0.5)
