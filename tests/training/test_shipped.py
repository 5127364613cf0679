"""The model that ships in the wheel: whole, small, and as able as its card says."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from training import card, evaluate, questions
from training.document import CHAT_TEMPLATE
from training.export import load_exported
from training.model import Decoder
from training.tokenizer import token_id

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "python" / "octavo" / "embedded"
REPORT = ROOT / "benches" / "results" / "embedded_model.json"


@pytest.fixture(scope="module")
def shipped() -> tuple[Decoder, Tokenizer]:
    """The shipped model and its tokenizer."""
    return load_exported(FOLDER)


def test_the_folder_is_whole_and_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 10_000_000
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["max_position_embeddings"] >= 2304
    assert json.loads((FOLDER / "tokenizer_config.json").read_text())["chat_template"] == CHAT_TEMPLATE
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    stops = json.loads((FOLDER / "generation_config.json").read_text())["eos_token_id"]
    assert stops == [token_id(tokenizer, "<|im_end|>"), token_id(tokenizer, "<|endoftext|>")]


def test_it_answers_questions_about_the_world(shipped: tuple[Decoder, Tokenizer]) -> None:
    rng = random.Random(1)
    turns = [questions.ask(fact, rng) for fact in rng.sample(questions.FACTS, 40)]
    assert evaluate.accuracy(*shipped, turns) >= 0.85


def test_it_looks_up_what_is_near(shipped: tuple[Decoder, Tokenizer]) -> None:
    rng = random.Random(2)
    turns = [evaluate.lookup_case(shipped[1], rng, 64)[0] for _ in range(20)]
    assert evaluate.accuracy(*shipped, turns) >= 0.8


def test_the_card_says_what_was_measured() -> None:
    report = json.loads(REPORT.read_text())
    text = (FOLDER / "MODEL_CARD.md").read_text()
    for row in card.measurements(report["accuracy"]):
        assert row in text, f"{row} is not in the card; write it again with training.card"
    assert report["parameters"] == sum(p.numel() for p in load_exported(FOLDER)[0].parameters())
