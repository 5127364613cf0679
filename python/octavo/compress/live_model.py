"""Models in transformers: loading one, and making a smaller one of its kept parts."""

from __future__ import annotations

import copy
import importlib
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.compress.kept import Kept, slice_state
from octavo.compress.needs import need
from octavo.compress.sizes import Layout
from octavo.errors import CorruptModelError, UnsupportedModelError

if TYPE_CHECKING:
    import torch

__all__ = ["empty_model", "end_token", "layout_of", "load_model", "save_model", "smaller_model"]

# Fields that count or number layers, by what they hold.
_LISTS_BY_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")
_EXPERT_COUNTS = ("n_routed_experts", "num_local_experts", "num_experts")


def load_model(folder: Path, dtype: str = "float32") -> Any:
    """The causal model of `folder` in transformers, in evaluation mode. No code of the folder runs.

    `dtype`: a type of torch by name, or "auto" for that of the folder.

    Raises:
        UnsupportedModelError: transformers cannot load it.
    """
    need("torch", "transformers", "safetensors")
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype, dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModelError(f"{folder}: transformers cannot load it: {error}") from error
    model.eval()
    return model


def empty_model(folder: Path) -> Any:
    """The model of `folder` without its weights, for sizes.

    Raises:
        UnsupportedModelError: transformers does not know it.
    """
    need("torch", "transformers", "safetensors")
    import torch

    transformers: Any = importlib.import_module("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModelError(f"{folder}: transformers cannot load it: {error}") from error


def save_model(model: Any, folder: Path) -> None:
    """Writes a model folder without a tokenizer. It is complete or absent."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    partial.rename(folder)


def end_token(config: Any) -> int | None:
    """The token after a document: the first end that config.json names."""
    end = config.eos_token_id
    first = end[0] if isinstance(end, list) and end else end
    return first if isinstance(first, int) else None


def layout_of(model: Any) -> Layout:
    """The layout of a live model.

    Raises:
        UnsupportedModelError: pruning does not know one of its tensors.
    """
    return Layout.of(model.config, {name: tuple(t.shape) for name, t in model.state_dict().items()})


def smaller_model(model: Any, layout: Layout, kept: Kept) -> Any:
    """A live model of the same family with the kept parts of `model`."""
    transformers: Any = importlib.import_module("transformers")
    config = smaller_config(model.config, layout, kept)
    state = model.state_dict()
    if kept.hidden is not None:
        state = _rescaled(state, model.config, layout, len(kept.hidden))
    sliced = slice_state(state, layout, kept)
    fresh = transformers.AutoModelForCausalLM.from_config(config, dtype=model.dtype, trust_remote_code=False)
    missing, unexpected = fresh.load_state_dict(sliced, strict=False)
    tied = {"lm_head.weight"} if layout.tied else set()
    if set(missing) - tied or unexpected:
        raise CorruptModelError(f"the smaller model lacks {sorted(missing)} and has no {sorted(unexpected)}")
    fresh.tie_weights()
    fresh.generation_config = copy.deepcopy(model.generation_config)
    return fresh.eval()


def smaller_config(config: Any, layout: Layout, kept: Kept) -> Any:
    """The config of the kept parts."""
    small = copy.deepcopy(config)
    sizes = layout.sizes
    if kept.hidden is not None:
        small.hidden_size = len(kept.hidden)
    if kept.mlp:
        small.intermediate_size = len(next(iter(kept.mlp.values())))
    if kept.groups:
        groups = len(next(iter(kept.groups.values())))
        small.num_key_value_heads = groups
        small.num_attention_heads = groups * layout.queries_per_kv
    if not getattr(config, "kv_lora_rank", None):
        # It is hidden_size / num_attention_heads where it is not given.
        small.head_dim = getattr(config, "head_dim", None) or sizes.hidden // config.num_attention_heads
    if kept.experts:
        count = len(next(iter(kept.experts.values())))
        for name in _EXPERT_COUNTS:
            if getattr(small, name, None) is not None:
                setattr(small, name, count)
    if len(kept.layers) < sizes.layers:
        _keep_layers(small, config, kept.layers)
    return small


def _keep_layers(small: Any, config: Any, layers: list[int]) -> None:
    small.num_hidden_layers = len(layers)
    for name in _LISTS_BY_LAYER:
        if (values := getattr(config, name, None)) is not None:
            setattr(small, name, [values[n] for n in layers])
    if (first := getattr(config, "first_k_dense_replace", None)) is not None:
        small.first_k_dense_replace = sum(n < first for n in layers)
    if (step := getattr(config, "decoder_sparse_step", None)) is not None:
        dense = set(getattr(config, "mlp_only_layers", None) or [])
        small.decoder_sparse_step = 1
        small.mlp_only_layers = [new for new, old in enumerate(layers) if old in dense or (old + 1) % step]
    if (windows := getattr(config, "max_window_layers", None)) is not None:
        small.max_window_layers = sum(n < windows for n in layers)


def _rescaled(
    state: Mapping[str, torch.Tensor], config: Any, layout: Layout, hidden: int
) -> Mapping[str, torch.Tensor]:
    """The state, with an embedding and a last norm that make up for Gemma's factor sqrt(hidden size)."""
    if not str(getattr(config, "model_type", "")).startswith("gemma"):
        return state
    grown = math.sqrt(layout.sizes.hidden / hidden)
    changed = {**state, "model.embed_tokens.weight": state["model.embed_tokens.weight"] * grown}
    if layout.tied:
        # The same matrix makes the logits. The norm's factor is (1 + w).
        changed["model.norm.weight"] = (state["model.norm.weight"] + 1.0) / grown - 1.0
    return changed
