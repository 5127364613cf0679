"""docs/fidelity.md, written from what fidelity.py measured."""

from __future__ import annotations

from typing import Any

_TEXT = """# Fidelity

What each approximation costs, measured on the embedded model by `python benches/fidelity.py`, which wrote this page and
[benches/results/fidelity.json](../benches/results/fidelity.json). The reference is the same engine in float32, which
`tests/parity` compares with transformers. Intervals are of 95 %.

## Formats

{tokens:,} tokens of {cases} held-out cases: answers after their prompts, and stories. KL is that of the next token's
whole distribution, KL(float32 || format), in nats. The change of perplexity is paired: of the same tokens. The
checkpoint is in bfloat16, so bfloat16 weights round nothing; int8 weights come with int8 activations.

{formats}

## Skills

Share of right answers, decoded greedily, of every fifth case of `octavo eval`.

{skills}

## Which error makes which KL

Weights in float32, moved by random noise. The size of the noise is its root mean square as a share of the tensor's own:
so is, for independent inputs, the error of the tensor's outputs.

{noise}

KL grows with the square of the error. `quantization="auto"` foretells the error of every projection when it quantises:
that of rounding its weights and its inputs to int8, expected over independent inputs whose channels have the magnitudes
that the norm before them gives. A projection whose error would be above 0.05 stays in bfloat16, and `octavo info` names
it. At 0.05 in every tensor the noise above costs about {at_budget:.4f} nats, where int8 is allowed 0.005; sound tensors
are near 0.01. Rounding weights alone cannot reach the budget, since a group of 128 columns has a scale of its own. What
can is a channel that a norm turns down and the weights turn up, or the reverse: it leaves the others of its group no
resolution. `tests/engine/test_mixed_precision.py` makes such a model.
"""


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _between(value: dict[str, float], form: str) -> str:
    return f"{value['value']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


def document(report: dict[str, Any]) -> str:
    """The page."""
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
        tokens=tokens, cases=report["cases"], formats=formats, skills=skills, noise=noise, at_budget=at_budget
    )


def _share(value: dict[str, float]) -> str:
    return f"{value['value']:.1%} ({value['low']:.1%} to {value['high']:.1%})"
