"""Distributions of octavo and of a reference side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from octavo.outputs import Logprob, RequestOutput
from transformers import PreTrainedModel


def reference_logprobs(model: PreTrainedModel, token_ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of the next token after each of `token_ids`, float32 `[tokens, vocab]`."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(token_ids)])).logits[0]
    return torch.log_softmax(logits.float(), dim=-1)


def as_rows(rows: Sequence[Mapping[int, Logprob] | None], vocab: int) -> torch.Tensor:
    """Reported candidates as `[rows, vocab]`; rows without candidates are left out. All of `vocab` must be there."""
    out = []
    for row in rows:
        if row is None:
            continue
        assert len(row) == vocab, f"{len(row)} candidates reported of {vocab}"
        values = torch.empty(vocab)
        values[list(row)] = torch.tensor([c.logprob for c in row.values()])
        out.append(values)
    return torch.stack(out)


def all_rows(output: RequestOutput, vocab: int) -> torch.Tensor:
    """Every distribution of a request made with `prompt_logprobs=-1, logprobs=-1`: `[prompt + output - 1, vocab]`."""
    assert output.prompt_logprobs is not None
    assert output.outputs[0].logprobs is not None
    assert output.prompt_logprobs[0] is None, "nothing precedes the first token"
    rows = [*output.prompt_logprobs, *output.outputs[0].logprobs]
    return as_rows(rows, vocab)


def assert_same_logprobs(want: torch.Tensor, got: torch.Tensor, tolerance: float) -> None:
    """Largest difference of log-probabilities, with the place where it is."""
    assert want.shape == got.shape, f"{tuple(want.shape)} is expected, {tuple(got.shape)} came"
    assert torch.isfinite(got).all()
    difference = (want - got).abs()
    row, token = divmod(int(difference.argmax()), want.shape[1])
    worst = float(difference[row, token])
    assert worst <= tolerance, (
        f"row {row}, token {token}: {float(want[row, token]):.6f} is expected, {float(got[row, token]):.6f} came; "
        f"largest difference {worst:.2e} > {tolerance:.0e}, mean {float(difference.mean()):.2e}"
    )


def assert_greedy(want: torch.Tensor, tokens: Sequence[int], gap: float = 1e-3) -> None:
    """`tokens[i]` is the best of `want[i]`, or so near to it that rounding may decide."""
    assert len(want) == len(tokens)
    for i, token in enumerate(tokens):
        behind = float(want[i].max() - want[i, token])
        assert behind < gap, f"step {i}: token {token} is {behind:.4f} behind {int(want[i].argmax())}"


def kl_rows(want: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
    """KL(want || got) of each row in nats."""
    return (want.exp() * (want - got)).sum(-1)


def mean_kl(want: torch.Tensor, got: torch.Tensor) -> float:
    """KL(want || got) in nats, mean over rows."""
    return float(kl_rows(want, got).mean())
