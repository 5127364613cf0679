"""The model card, written from a report."""

from __future__ import annotations

from dataclasses import asdict

from training import card
from training.model import ModelConfig
from training.train import CONTINUED


def test_a_continued_run_names_both_runs() -> None:
    run = {"train": asdict(CONTINUED), "model": asdict(ModelConfig())}
    report = {
        "model": {"parameters": 2_500_000, "quantization": "int8"},
        "skills": {"question": {"cases": 7, "accuracy": None, "perplexity": {"value": 1.5, "low": 1.2, "high": 1.7}}},
    }
    text = card.card(report, run, {})
    assert "2,500 steps of 4,096 tokens (10.2 million) for all skills but" in text
    assert f"{CONTINUED.steps:,} steps of 4,096 tokens" in text


def test_the_card_holds_the_measured_numbers() -> None:
    estimate = {"value": 0.5, "low": 0.25, "high": 0.75}
    report = {
        "model": {"parameters": 2_500_000, "quantization": "int8"},
        "skills": {
            "story": {"cases": 6, "accuracy": None, "perplexity": {"value": 1.5, "low": 1.25, "high": 1.75}},
            "question": {"cases": 7, "accuracy": estimate, "perplexity": estimate},
        },
    }
    run = {
        "train": {"steps": 1000, "rows": 8, "length": 512, "decay": 300, "seed": 20, "long_length": 2048},
        "model": {name: getattr(ModelConfig(), name) for name in ModelConfig.__dataclass_fields__},
    }
    text = card.card(report, run, {"A story, please.": "One day.\n\nThe end."})
    assert "2.50 million parameters" in text
    assert "1,000 steps of 4,096 tokens (4.1 million)" in text
    assert "| story |  | 1.500 (1.250 to 1.750) | 6 |" in text
    assert "| question | 50.0% (25.0% to 75.0%) | 0.500 (0.250 to 0.750) | 7 |" in text
    assert "**A story, please.** (temperature 0.7)\n\n> One day.\n>\n> The end." in text
