"""docs/fidelity.md, written from what fidelity.py measured."""

from __future__ import annotations

from typing import Any

_TEXT = """# Fidelity

The cost of each approximation, measured on the embedded model. `python benches/fidelity.py` writes this page and
[benches/results/fidelity.json](../benches/results/fidelity.json). The reference is the same engine in float32, which
`tests/parity` compares with transformers. Intervals are 95 % confidence intervals.

## Formats

{tokens:,} tokens of {cases} held-out cases: answers after their prompts, and stories. KL is KL(float32 || format)
of the next token's whole distribution, in nats. The change of perplexity is paired over the same tokens. The checkpoint
is in bfloat16, and bfloat16 weights are exact. int8 weights come with int8 activations.

{formats}

These positions are mostly certain: an answer has one right next token. The next table is the harder one.

## Every position of real text

`python -m benches.text_fidelity` compares every position of five kinds of text and of random words, about 300 tokens
each, on three models ([results](../benches/results/text_fidelity.json)). The weights of Gemma 3 and SmolLM2 come from
4-bit files, read as bfloat16. KL counts the 600 likeliest tokens, and the rest as one: it is a lower bound. The row of
llama.cpp in F32 shows how far two engines differ by themselves.

{text}

int8 weights and activations are rotated in groups of 128 before they are rounded. A Hadamard matrix behind fixed signs
spreads each outlier over its group ([QuaRot](https://arxiv.org/abs/2404.00456) does it for whole rows).

## Skills

Share of right answers, decoded greedily, of every fifth case of `octavo eval`.

{skills}

## Which error makes which KL

Weights in float32 with random noise. The size of the noise is its root mean square, relative to the tensor's own. For
independent inputs, the tensor's outputs have the same relative error.

{noise}

KL grows with the square of the error. `quantization="auto"` estimates the error of every projection when it quantises.
The estimate is the expected error of rounding weights and inputs to int8. It assumes independent inputs, with the
channel magnitudes of the norm before them. A projection with an estimate above 0.05 stays in bfloat16, and
`octavo info` names it. At 0.05 in every tensor the noise above costs about {at_budget:.4f} nats, and the budget
of int8 is 0.005. Tensors without outliers are near 0.01. Rounding weights alone cannot exceed the budget: each group of
128 columns has its own scale. A channel can exceed it that a norm scales down and the weights scale up, or the reverse,
by a large factor. Then the other channels of its group lose their resolution. `tests/engine/test_mixed_precision.py`
makes such a model.
"""


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _between(value: dict[str, float], form: str) -> str:
    return f"{value['value']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


def _text_table(models: dict[str, Any]) -> str:
    """KL and the share of the same best token: a row for each form of each model, a column for each text."""
    texts = list(next(iter(next(iter(models.values())).values())))
    rows = [
        [
            model,
            form,
            *(f"{row[text]['kl_mean']['value']:.4f}, {row[text]['same_best_token']['value']:.1%}" for text in texts),
        ]
        for model, forms in models.items()
        for form, row in forms.items()
    ]
    return table(["model", "format", *texts], rows)


def document(report: dict[str, Any], text: dict[str, Any]) -> str:
    """The page, from the results of fidelity.py and of text_fidelity."""
    measured = {name: row for name, row in report["formats"].items() if "kl_mean" in row}
    formats = table(
        [
            "format",
            *("KL, mean", "99 % below", "largest"),
            *("same best token", "perplexity", "change of perplexity"),
        ],
        [
            [
                name,
                _between(row["kl_mean"], ".6f"),
                f"{row['kl_p99']:.4f}",
                f"{row['kl_max']:.4f}",
                _between(row["top1_agreement"], ".2%"),
                f"{row['perplexity']:.4f}",
                _between(row["perplexity_change"], "+.3%"),
            ]
            for name, row in measured.items()
        ],
    )
    every = {name: row["skills"] for name, row in report["formats"].items()}
    shown = [name for name, skill in every["float32"].items() if skill["accuracy"] is not None]
    skills = table(
        ["skill", *every],
        [[skill, *(_share(row[skill]["accuracy"]) for row in every.values())] for skill in shown],
    )
    noise = table(
        ["moved", "size of the noise", "KL, mean"],
        [[row["moved"], f"{row['relative_error']:g}", _between(row["kl_mean"], ".6f")] for row in report["noise"]],
    )
    alike = [row for row in report["noise"] if row["moved"] == "all"]
    nearest = min(alike, key=lambda row: abs(row["relative_error"] - 0.05))
    at_budget = nearest["kl_mean"]["value"] * (0.05 / nearest["relative_error"]) ** 2
    tokens = next(iter(measured.values()))["tokens"]
    return _TEXT.format(
        tokens=tokens,
        cases=report["cases"],
        formats=formats,
        text=_text_table(text["models"]),
        skills=skills,
        noise=noise,
        at_budget=at_budget,
    )


def _share(value: dict[str, float]) -> str:
    return f"{value['value']:.1%} ({value['low']:.1%} to {value['high']:.1%})"
