"""attention="dynamic" over the torch executor: the CPU's choice and report for decodes, everything for prompts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import torch_llm
from octavo import LLM, DynamicAttention, SamplingParams
from octavo.attention import AttentionMetrics
from octavo.errors import InvalidRequestError
from octavo.gpu import load
from octavo.gpu.dynamic import _blocks_before
from random_models import CASES, write_model

PARAMS = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


def prompts(*lengths: int) -> list[list[int]]:
    draw = random.Random(7)
    return [[draw.randrange(199) for _ in range(n)] for n in lengths]


def outcome(llm: LLM, prompt: list[int]) -> tuple[list[int], AttentionMetrics]:
    output = llm.generate(prompt, PARAMS)[0]
    assert output.metrics is not None
    assert output.metrics.attention is not None
    return output.outputs[0].token_ids, output.metrics.attention


def test_decodes_choose_and_report_as_on_the_cpu(backend: load.Backend, tmp_path: Path) -> None:
    """Prompts are below `min_context` here: both executors read all of them. The CPU bounds masses, a GPU computes all
    scores: the CPU may read slightly more. Both keep to the bound."""
    write_model(next(c for c in CASES if c.name == "llama-head-30"), tmp_path)
    prompt = prompts(330)[0]
    attention = DynamicAttention(error_bound=0.3, min_context=331, local_blocks=1)
    options: dict[str, Any] = {"dtype": "float32", "quantization": None, "attention": attention}
    with LLM(tmp_path, device="cpu", **options) as llm:
        want, theirs = outcome(llm, prompt)
    with torch_llm(tmp_path, backend, attention=attention, max_num_batched_tokens=512) as llm:
        got, mine = outcome(llm, prompt)
        assert llm.info()["model"]["kv_cache_dtype"] == "int8"
        assert any(part["name"] == "attention_scores" for part in llm.info()["memory"])
        assert llm.stats()["attention"]["calls"] == mine.calls
    # The first token is the prompt's; what follows depends on what was left out.
    assert got[0] == want[0]
    assert mine.calls == theirs.calls
    for report in (mine, theirs):
        assert 0 < report.max_omitted_mass <= 0.3
        assert report.dense_head_fraction < 1
    assert theirs.kv_bytes_read_fraction - 0.02 < mine.kv_bytes_read_fraction < theirs.kv_bytes_read_fraction + 0.01
    assert mine.mean_omitted_mass == pytest.approx(theirs.mean_omitted_mass, rel=0.3)
    assert mine.max_output_error == pytest.approx(theirs.max_output_error, rel=0.3)


def test_prompts_and_short_sequences_read_everything(backend: load.Backend, tiny: Path) -> None:
    with torch_llm(tiny, backend, attention=DynamicAttention(min_context=1000)) as llm:
        _, report = outcome(llm, prompts(60)[0])
    assert report.dense_head_fraction == 1
    assert report.kv_bytes_read_fraction == 1
    assert report.max_omitted_mass == 0


def test_batches_mix_those_who_choose_and_those_who_do_not(backend: load.Backend, tiny: Path) -> None:
    asked = prompts(200, 5, 150, 31)
    attention = DynamicAttention(error_bound=0.2, min_context=96, local_blocks=1)
    with torch_llm(tiny, backend, attention=attention, max_num_batched_tokens=64, enable_prefix_caching=False) as llm:
        alone = [outcome(llm, p) for p in asked]
        together = llm.generate(asked, PARAMS, use_tqdm=False)
        assert llm.stats()["mixed_steps"] > 0
    for (tokens, report), output in zip(alone, together, strict=True):
        assert output.outputs[0].token_ids == tokens
        assert output.metrics is not None
        assert output.metrics.attention is not None
        assert output.metrics.attention.calls == report.calls
        assert output.metrics.attention.max_omitted_mass == pytest.approx(report.max_omitted_mass, rel=1e-2, abs=1e-6)
    assert alone[0][1].max_omitted_mass > 0
    assert alone[1][1].max_omitted_mass == 0


def test_blocks_are_counted_as_queries_see_them() -> None:
    for window in (None, 1, 40, 100):
        for end in (0, 1, 31, 32, 33, 130, 257):
            first = (lambda p: 0) if window is None else (lambda p, w=window: max(p - w + 1, 0) // 32)
            want = sum(p // 32 - first(p) for p in range(end))
            assert int(_blocks_before(np.int64(end), window)) == want, (window, end)


def test_what_does_not_fit_is_refused(tiny: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"kv_cache_dtype 'float32'.*int8"):
        torch_llm(tiny, attention=DynamicAttention(), kv_cache_dtype="float32")
    with pytest.raises(InvalidRequestError, match="deterministic"):
        torch_llm(tiny, attention=DynamicAttention(), deterministic=True)
    for attention in (DynamicAttention(mode="budget", max_blocks=4), DynamicAttention(audit=8)):
        with pytest.raises(InvalidRequestError, match=r"'certified' and nothing is audited"):
            torch_llm(tiny, attention=attention)
