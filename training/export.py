"""Exports a run as a Hugging Face model folder: ``python -m training.export --run RUN --out FOLDER``."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from .document import CHAT_TEMPLATE, END_OF_TEXT, SPECIAL_TOKENS, TURN_END
from .model import Decoder, ModelConfig
from .tokenizer import token_id


def hf_config(config: ModelConfig, end_of_text: int) -> dict[str, Any]:
    """config.json as transformers writes it for Qwen3ForCausalLM."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "dtype": "bfloat16",
        "eos_token_id": end_of_text,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "layer_types": ["full_attention"] * config.num_hidden_layers,
        "max_position_embeddings": config.max_position_embeddings,
        "max_window_layers": config.num_hidden_layers,
        "model_type": "qwen3",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "pad_token_id": end_of_text,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }


def tokenizer_config(max_length: int) -> dict[str, Any]:
    """tokenizer_config.json: the special tokens and the chat template."""
    return {
        "add_prefix_space": False,
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": TURN_END,
        "extra_special_tokens": [SPECIAL_TOKENS[1]],
        "model_max_length": max_length,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def generation_config(end_of_text: int, turn_end: int) -> dict[str, Any]:
    """generation_config.json: where to stop, and sampling that keeps stories lively and look-ups right."""
    return {
        "do_sample": True,
        "eos_token_id": [turn_end, end_of_text],
        "pad_token_id": end_of_text,
        "temperature": 0.7,
        "top_p": 0.9,
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Indented, with an end of line."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(model: Decoder, tokenizer_file: Path, out: Path) -> None:
    """Writes the folder: weights in bfloat16, tied output matrix left out, tokenizer and configs."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    end_of_text, turn_end = token_id(tokenizer, END_OF_TEXT), token_id(tokenizer, TURN_END)
    tensors = {f"model.{name}": value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    # Renamed when whole, so that nobody maps half a file.
    partial = out / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(out / "model.safetensors")
    write_json(out / "config.json", hf_config(model.config, end_of_text))
    write_json(out / "tokenizer_config.json", tokenizer_config(model.config.max_position_embeddings))
    write_json(out / "generation_config.json", generation_config(end_of_text, turn_end))
    shutil.copyfile(tokenizer_file, out / "tokenizer.json")


def load_exported(folder: Path) -> tuple[Decoder, Tokenizer]:
    """The model of an exported folder, in float32, with its tokenizer. Raises ValueError for quantised weights."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = [name for name in ModelConfig.__dataclass_fields__ if name != "rope_theta"]
    config = ModelConfig(**{name: values[name] for name in names}, rope_theta=values["rope_parameters"]["rope_theta"])
    model = Decoder(config)
    tensors = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise ValueError(f"{folder}: {name} is {value.dtype}; give the folder from before its quantisation")
    model.load_state_dict({name.removeprefix("model."): value.float() for name, value in tensors.items()})
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def main() -> None:
    """Reads the command line and exports the newest checkpoint of a run."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description="Export a run as a model folder.")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    config = ModelConfig(**json.loads((args.run / "config.json").read_text())["model"])
    model = Decoder(config)
    state = torch.load(args.run / "checkpoint.pt", weights_only=True)
    model.load_state_dict(state["model"])
    export(model, args.run / "tokenizer.json", args.out)
    size = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"step {state['step']}: {args.out}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
