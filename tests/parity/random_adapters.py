"""Random PEFT adapters, made and written by peft itself."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel


def write_adapter(model: PreTrainedModel, folder: Path, seed: int = 0, **options: Any) -> PeftModel:
    """Writes an adapter over a copy of `model` to `folder`; returns the copy with it, unmerged, in inference mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live = get_peft_model(copy.deepcopy(model), LoraConfig(**options)).eval()
        _spread(live, seed)
        live.save_pretrained(folder)
    return live


def _spread(live: PeftModel, seed: int) -> None:
    """Values under which every part of the adapter matters: the products are about a third of the weights."""
    draw = torch.Generator().manual_seed(seed)

    def noise(like: torch.Tensor, size: float) -> torch.Tensor:
        return torch.randn(like.shape, generator=draw) * size

    config = live.peft_config["default"]
    rank = max([config.r, *config.rank_pattern.values()])
    scale = config.lora_alpha / (rank**0.5 if config.use_rslora else rank)
    with torch.no_grad():
        for name, p in live.named_parameters():
            if "lora_A." in name or "lora_embedding_B." in name:
                p.copy_(noise(p, p.shape[-1] ** -0.5 if "lora_A" in name else p.shape[0] ** -0.5))
            elif "lora_B." in name and name.endswith("bias"):
                p.copy_(noise(p, 0.3))
            elif "lora_B." in name or "lora_embedding_A." in name:
                p.copy_(noise(p, 0.4 / (scale * rank**0.5)))
            elif "lora_magnitude_vector" in name:
                p.mul_(1 + noise(p, 0.15))
            elif p.requires_grad:
                # Whole matrices, biases and rows of embeddings.
                p.add_(noise(p, 0.2 * float(p.std()) + 0.02))
