"""quantization="auto" keeps in bfloat16 what int8 would change too much, and says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from octavo import LLM, SamplingParams
from octavo.cli import app
from octavo.hub import embedded_model
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

TEXT = "Once upon a time, there was a curious fox who lived in a forest. One day the fox met"
# A power of two: in floating point nothing is rounded.
SHIFT = 2.0**10
CHANNEL = 5


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same function, worse to quantise: a norm turns a channel down, and the MLP after it turns it up again."""
    folder = tmp_path_factory.mktemp("shifted") / "model"
    shutil.copytree(embedded_model(), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.post_attention_layernorm.weight"][CHANNEL] /= SHIFT
    for name in ("gate_proj", "up_proj"):
        tensors[f"model.layers.2.mlp.{name}.weight"][:, CHANNEL] *= SHIFT
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logprobs(folder: Path | None, **options: str | None) -> np.ndarray:
    """Log-probabilities at each position of TEXT, [positions, vocab]."""
    with LLM(folder, max_model_len=128, **options) as llm:  # type: ignore[arg-type]
        output = llm.generate(TEXT, SamplingParams(max_tokens=1, prompt_logprobs=-1))[0]
    rows = [row for row in output.prompt_logprobs or [] if row is not None]
    table = np.empty((len(rows), len(rows[0])))
    for at, row in enumerate(rows):
        table[at, list(row)] = [candidate.logprob for candidate in row.values()]
    return table


def test_only_what_int8_would_break_is_spared(shifted: Path) -> None:
    with LLM(max_model_len=128) as llm:
        assert llm.info()["model"]["kept_in_bf16"] == [], "a sound tensor is spared"
    with LLM(shifted, max_model_len=128) as llm:
        info = llm.info()
    names = [text.split()[0] for text in info["model"]["kept_in_bf16"]]
    assert names == [f"model.layers.2.mlp.{name}.weight" for name in ("gate_proj", "up_proj")]
    assert all("at most" in text for text in info["model"]["kept_in_bf16"])
    assert "2 tensors of them as Bf16" in info["memory"][0]["reason"]
    with LLM(shifted, max_model_len=128, quantization="int8") as llm:
        assert llm.info()["model"]["kept_in_bf16"] == []


def test_what_is_spared_is_worth_it(shifted: Path) -> None:
    exact = {"dtype": "float32", "quantization": None}
    want = logprobs(shifted, **exact)
    assert np.array_equal(want, logprobs(None, **exact)), "the shifted model is another function"

    def kl(got: np.ndarray) -> float:
        return float((np.exp(want) * (want - got)).sum(axis=1).mean())

    as_int8, mixed = kl(logprobs(shifted, quantization="int8")), kl(logprobs(shifted))
    assert mixed < 5e-3
    assert as_int8 > 10 * mixed, f"int8 costs {as_int8:.5f} nats, mixed {mixed:.5f}: nothing had to be spared"


def test_info_shows_them(shifted: Path) -> None:
    shown = CliRunner().invoke(app, ["info", str(shifted)]).stdout
    assert "model.layers.2.mlp.up_proj.weight" in " ".join(shown.split())
