"""Weights with values that are no numbers: the model loads, and its user is told which tensor."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
from octavo import LLM, SamplingParams
from octavo.errors import ExecutionError
from octavo.hub import embedded_model

# Bit patterns of NaN, little-endian.
NAN = {"BF16": b"\xc0\x7f", "F16": b"\x00\x7e", "F32": b"\x00\x00\xc0\x7f"}


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """The embedded model with one NaN in its last norm."""
    folder = tmp_path / "model"
    shutil.copytree(embedded_model(), folder)
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    size = int.from_bytes(content[:8], "little")
    entry = json.loads(content[8 : 8 + size])["model.norm.weight"]
    start = 8 + size + entry["data_offsets"][0]
    nan = NAN[entry["dtype"]]
    content[start : start + len(nan)] = nan
    file.write_bytes(content)
    return folder


def test_the_warning_names_the_tensor(damaged: Path) -> None:
    with pytest.warns(RuntimeWarning, match=r"model\.norm\.weight has 1 values"):
        made = LLM(damaged, max_model_len=64)
    with made:
        assert len(made.info()["warnings"]) == 1
        with pytest.raises(ExecutionError, match="not numbers"):
            made.generate("x", SamplingParams(max_tokens=2))


def test_a_sound_model_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with LLM(max_model_len=64) as made:
            assert made.info()["warnings"] == []
