"""The model card, written from a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from training import card
from training.evaluate import evaluate
from training.export import export
from training.model import Decoder, ModelConfig, initialise


def test_the_card_holds_the_measured_numbers(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
                         num_key_value_heads=1, head_dim=16, vocab_size=1024)  # fmt: skip
    model = Decoder(config)
    initialise(model, 1)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    export(model, tmp_path / "tokenizer.json", tmp_path / "model")
    monkeypatch.setattr("training.evaluate.STORY_TOKENS", 4)
    report = evaluate(tmp_path / "model", 2)
    assert report["accuracy"]["look-up by distance in tokens"]["2000"] == 0.0, "a random model cannot know"
    (tmp_path / "report.json").write_text(json.dumps(report))
    run = {
        "train": {"steps": 1000, "rows": 8, "length": 512, "decay": 300, "seed": 20, "long_length": 2048},
        "model": {name: getattr(config, name) for name in ModelConfig.__dataclass_fields__},
    }
    text = card.card(report, run)
    assert f"| story | {report['perplexity']['story']:.2f} |" in text
    assert "1,000 steps of 4,096 tokens (4.1 million)" in text
    assert "| look-up by distance in tokens: 2000 | 0.0% |" in text
