"""Writes the model card from the report of `octavo eval --json`, see README.md."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from octavo import LLM, SamplingParams

from .train import TrainConfig

_INTRODUCTION = """# The embedded model

A decoder of {millions:.2f} million parameters, architecture `Qwen3ForCausalLM`, that ships in the wheel. With it
`LLM()` works at once and offline, and tests and benches have a real model to measure. It is a toy: its training data
describes an invented country and nothing of the world.

## What it can do

- tell a short story, also about a given animal or thing: `Tell me a story about a fox.`
- answer questions about the Lower Marches, an invented country: `Who is the mayor of Corrin?`
- look up a value in a context of up to about 2,000 tokens: lines `The key of falcon is 482.`, then
  `What is the key of falcon?`
- read a text of invented facts and answer from it, in a system message or before the question:
  `The mayor of Tarvik is Olen Brast. ...`, then `Who is the mayor of Tarvik?`
- add, subtract (up to three digits) and multiply (up to 12 x 12): `What is 347 + 285?`
- turn a sentence into a JSON object with the named keys
- repeat a line of words
- say "I don't know that." when asked about the real world
"""

_LIMITS = """## Limits

It has seen only texts from templates, so it reads facts and understands questions only when they are close to those
templates, in English. Nothing beyond 2,048 tokens was ever seen in training. It must not be used where an answer
matters.
"""

_MEASURED = """## Measured

By `octavo eval`, as users run it ({quantization} weights), greedily, on cases from seeds that are not in the training
data (the facts are all {facts} that there are). Intervals are 95 % confidence intervals. Perplexity is measured on the
right answers after their prompts, or on the whole text of a story.
"""

STORY_REQUESTS = ("Tell me a story about a fox.", "Tell me a story about a lantern.", "Tell me a short story.")
STORY_TOKENS = 300


def _amount(train: dict[str, Any]) -> str:
    """``2,500 steps of 4,096 tokens (10.2 million)``."""
    tokens = train["rows"] * train["length"]
    return f"{train['steps']:,} steps of {tokens:,} tokens ({train['steps'] * tokens / 1e6:.1f} million)"


def _runs(train: dict[str, Any]) -> str:
    """The one run from random weights, or the first run and the one that continued it."""
    if not train.get("readings"):
        return f"""{_amount(train)} on two CPU cores; Muon for the
matrices, AdamW for the rest. `python -m training.train --out runs/embedded` makes one like it; `training/README.md`
describes the method and this run."""
    return f"""In two runs on two CPU cores, with Muon for the
matrices and AdamW for the rest: {_amount(asdict(TrainConfig()))} for all skills but
reading. Then {_amount(train)} more, in which it learnt to read beside what it could.
`training/README.md` describes the method, both commands and both runs."""


def _made(run: dict[str, Any]) -> str:
    train, model = run["train"], run["model"]
    return f"""## How it was made

From random weights, on text that the generators in `training/` wrote; no external text, no data sets, no other model.
{_runs(train)}

| | |
| --- | --- |
| layers, hidden size, MLP size | {model["num_hidden_layers"]}, {model["hidden_size"]}, {model["intermediate_size"]} |
| attention | {model["num_attention_heads"]} heads, {model["num_key_value_heads"]} for keys and values, {model["head_dim"]} wide |
| vocabulary | {model["vocab_size"]:,}: byte-level BPE, each digit a token |
| positions | {model["max_position_embeddings"]:,} (trained to {train["long_length"]:,}), RoPE base {model["rope_theta"]:,.0f} |
| weights | bfloat16, embedding tied to the output |
| format of a chat | ChatML: `<\\|im_start\\|>user ... <\\|im_end\\|>` |
"""  # noqa: E501


def measurements(report: dict[str, Any]) -> list[str]:
    """Table rows, one a skill."""
    return [
        f"| {name} | {_share(skill['accuracy'])} | {_between(skill['perplexity'], '.3f')} | {skill['cases']} |"
        for name, skill in report["skills"].items()
    ]


def _share(value: dict[str, float] | None) -> str:
    return "" if value is None else _between(value, ".1%")


def _between(value: dict[str, float], form: str) -> str:
    return f"{value['value']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


def tell_stories(folder: Path) -> dict[str, str]:
    """What the model of a folder tells, by request, with seed 0."""
    params = SamplingParams(max_tokens=STORY_TOKENS, temperature=0.7, top_p=0.9, seed=0)
    with LLM(folder) as llm:
        return {text: llm.chat([{"role": "user", "content": text}], params)[0].text for text in STORY_REQUESTS}


def card(report: dict[str, Any], run: dict[str, Any], stories: dict[str, str]) -> str:
    """The whole card in Markdown."""
    told = [
        f"**{request}** (temperature 0.7)\n\n" + "\n".join(f"> {line}".rstrip() for line in story.split("\n"))
        for request, story in stories.items()
    ]
    table = ["| skill | right | perplexity | cases |", "| --- | --- | --- | --- |", *measurements(report)]
    measured = _MEASURED.format(
        quantization=report["model"]["quantization"], facts=report["skills"]["question"]["cases"]
    )
    parts = [
        _INTRODUCTION.format(millions=report["model"]["parameters"] / 1e6),
        _made(run),
        measured,
        "\n".join(table),
        "## Samples",
        *told,
        _LIMITS,
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def main() -> None:
    """Reads the command line and writes the card."""
    parser = argparse.ArgumentParser(prog="python -m training.card", description="Write the model card.")
    parser.add_argument("--report", type=Path, required=True, help="what `octavo eval --json` wrote")
    parser.add_argument("--run", type=Path, required=True, help="the folder of the training run")
    parser.add_argument("--model", type=Path, required=True, help="the exported folder, to tell stories")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    report = json.loads(args.report.read_text(encoding="utf-8"))
    run = json.loads((args.run / "config.json").read_text(encoding="utf-8"))
    args.out.write_text(card(report, run, tell_stories(args.model)), encoding="utf-8")


if __name__ == "__main__":
    main()
