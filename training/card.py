"""Writes the model card from an evaluation report, see README.md."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

_INTRODUCTION = """# The embedded model

A decoder of {millions:.2f} million parameters, architecture `Qwen3ForCausalLM`, that ships in the wheel
so that `LLM()` answers at once, offline, and so that tests and benches have a real model to measure. It is a
toy: it knows an invented country and nothing of the world.

## What it can do

- tell a short story, also about a given animal or thing: `Tell me a story about a fox.`
- answer questions about the Lower Marches, an invented country: `Who is the mayor of Corrin?`
- look up a value in a context of several hundred tokens: lines `The key of falcon is 482.`, then
  `What is the key of falcon?`
- add, subtract (up to three digits) and multiply (up to 12 x 12): `What is 347 + 285?`
- turn a sentence into a JSON object with the named keys
- repeat a line of words
- say "I don't know that." when asked about the real world
"""

_LIMITS = """## Limits

It has seen only texts from templates, so it understands questions only when they are close to those
templates, in English. Its stories read well by the sentence, but a hero may change the name on the way. The
table says how sure a look-up is at which distance. Nothing beyond 2,048 tokens was ever seen in training. It must
not be used where an answer matters.
"""


_MEASURED = """## Measured

By `python -m training.evaluate`, on seeds that training did not see, in float32 from the exported bfloat16
weights; {cases} cases a row (questions: all {facts}). Perplexity is of the tokens to be answered or told, not
of those to be read.
"""


def _made(run: dict[str, Any]) -> str:
    train, model = run["train"], run["model"]
    tokens = train["steps"] * train["rows"] * train["length"]
    return f"""## How it was made

From random weights, on text that the generators in `training/` wrote; no external text, no data sets, no other model.
{train["steps"]:,} steps of {train["rows"] * train["length"]:,} tokens ({tokens / 1e6:.1f} million) on two CPU cores; Muon for the
matrices, AdamW for the rest. `python -m training.train --out runs/embedded` makes one like it; `training/README.md`
tells how, and how this run went.

| | |
| --- | --- |
| layers, hidden size, MLP size | {model["num_hidden_layers"]}, {model["hidden_size"]}, {model["intermediate_size"]} |
| attention | {model["num_attention_heads"]} heads, {model["num_key_value_heads"]} for keys and values, {model["head_dim"]} wide |
| vocabulary | {model["vocab_size"]:,}: byte-level BPE, each digit a token |
| positions | {model["max_position_embeddings"]:,} (trained to {train["long_length"]:,}), RoPE base {model["rope_theta"]:,.0f} |
| weights | bfloat16, embedding tied to the output |
| format of a chat | ChatML: `<\\|im_start\\|>user ... <\\|im_end\\|>` |
"""  # noqa: E501


def measurements(value: dict[str, Any], prefix: str = "") -> list[str]:
    """Table rows of nested measurements, one a number."""
    rows = []
    for name, inner in value.items():
        label = f"{prefix}: {name}" if prefix else name
        rows += measurements(inner, label) if isinstance(inner, dict) else [f"| {label} | {inner:.1%} |"]
    return rows


def card(report: dict[str, Any], run: dict[str, Any]) -> str:
    """The whole card in Markdown."""
    accuracy = "\n".join(["| exactly right, greedy | share |", "| --- | --- |", *measurements(report["accuracy"])])
    perplexity = "\n".join(
        ["| held-out text | perplexity |", "| --- | --- |"]
        + [f"| {name} | {value:.2f} |" for name, value in report["perplexity"].items()]
    )
    stories = "\n\n".join(
        f"**{story['request']}** (temperature 0.7)\n\n"
        + "\n".join(f"> {line}".rstrip() for line in story["story"].split("\n"))
        for story in report["stories"]
    )
    measured = _MEASURED.format(cases=report["cases"] // 2, facts=report["facts"])
    return (
        "\n\n".join(
            [
                _INTRODUCTION.format(millions=report["parameters"] / 1e6).rstrip(),
                _made(run).rstrip(),
                measured.rstrip(),
                accuracy,
                perplexity,
                "## Samples",
                stories,
                _LIMITS.rstrip(),
            ]
        )
        + "\n"
    )


def main() -> None:
    """Reads the command line and writes the card."""
    parser = argparse.ArgumentParser(prog="python -m training.card", description="Write the model card.")
    parser.add_argument("--report", type=Path, required=True, help="what training.evaluate wrote")
    parser.add_argument("--run", type=Path, required=True, help="the folder of the training run")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    report = json.loads(args.report.read_text(encoding="utf-8"))
    run = json.loads((args.run / "config.json").read_text(encoding="utf-8"))
    args.out.write_text(card(report, run), encoding="utf-8")


if __name__ == "__main__":
    main()
