"""Converts a checkpoint to CTranslate2's format with int8 weights. Token 17 is named "t17" there."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ..shapes import SHAPES


def write_ctranslate2(vocabulary: int, checkpoint: Path, folder: Path) -> None:
    """The converter takes the vocabulary from a tokenizer: it gets one that names every id."""
    names = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token="t0"))
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "checkpoint"
        copy.mkdir()
        shutil.copy(checkpoint / "config.json", copy)
        (copy / "model.safetensors").symlink_to(checkpoint / "model.safetensors")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=names, bos_token="t0", eos_token="t1", unk_token="t0")
        tokenizer.save_pretrained(copy)
        TransformersConverter(str(copy), low_cpu_mem_usage=True).convert(str(folder), quantization="int8", force=True)


if __name__ == "__main__":
    write_ctranslate2(SHAPES[sys.argv[1]].vocab_size, Path(sys.argv[2]), Path(sys.argv[3]))
