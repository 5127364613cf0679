"""The model that ships in the wheel: whole, small, and as able as its card says."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from octavo import LLM
from octavo.evaluation import Case, evaluate, held_out_cases
from tokenizers import Tokenizer

from training import card, held_out
from training.document import CHAT_TEMPLATE
from training.tokenizer import token_id

# Longer texts are harder to read; the card has the shares of all cases.
READS = {"reading, 400 tokens": 0.5, "reading, 1000 tokens": 0.25}
ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "python" / "octavo" / "embedded"
HELD_OUT = ROOT / "python" / "octavo" / "evaluation" / "held_out.jsonl.gz"
REPORT = ROOT / "benches" / "results" / "embedded_model.json"


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


def test_the_held_out_cases_are_those_of_the_generators() -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    rows = [json.loads(line) for line in gzip.decompress(HELD_OUT.read_bytes()).decode().splitlines()]
    assert rows == list(held_out.cases(tokenizer)), "write them again with training.held_out"


def test_it_can_what_its_card_says() -> None:
    cases: dict[str, list[Case]] = {}
    for case in held_out_cases():
        cases.setdefault(case.skill, []).append(case)
    with LLM() as llm:
        report = evaluate(llm, [case for skill in cases.values() for case in skill[:12]])
    for name, skill in report.skills.items():
        if skill.accuracy is not None:
            least = READS.get(name, 0.75)
            assert skill.accuracy.value >= least, f"{name}: {skill.right} of {skill.cases}"
    assert READS.keys() <= report.skills.keys()
    assert report.skills["story"].perplexity.value < 2


def test_the_card_says_what_was_measured() -> None:
    report = json.loads(REPORT.read_text())
    text = (FOLDER / "MODEL_CARD.md").read_text()
    for row in card.measurements(report):
        assert row in text, f"{row} is not in the card; write it again with training.card"
    with LLM() as llm:
        assert report["model"]["parameters"] == llm.info()["model"]["parameters"]
