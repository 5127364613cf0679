"""Whole steps with the real kernels: in Triton's interpreter where there is no GPU, so sizes are tiny."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from backends import torch_llm
from octavo import SamplingParams
from octavo.gpu import load, sampler
from octavo.gpu.ops import kernel_ops
from octavo.gpu.plan import SAMPLE_SPEC
from octavo.triton_kernels.interpreter import make_bfloat16_right
from octavo.triton_kernels.launch import INTERPRETED
from octavo.triton_kernels.sampling import uniform_ref
from random_models import Case, write_model

GPU = torch.cuda.is_available()
ONE_LAYER: dict[str, object] = {
    "num_hidden_layers": 1,
    "vocab_size": 64,
    "max_position_embeddings": 96,
    "intermediate_size": 48,
}
# What kernels take: norms of heads, offset norms, soft caps, windows, partial and interleaved rope, GELU.
MODELS = [
    Case("llama", "llama", ONE_LAYER),
    Case("qwen3", "qwen3", {**ONE_LAYER, "head_dim": 16}),
    Case("glm4", "glm4", {**ONE_LAYER, "head_dim": 24}),
    Case(
        "gemma2",
        "gemma2",
        {**ONE_LAYER, "head_dim": 16, "sliding_window": 8, "attn_logit_softcapping": 2.0, "layer_types": None},
    ),
]
PARAMS = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, logprobs=2)
PROMPTS = [[5, 6, 7], [8] * 34]

pytestmark = pytest.mark.skipif(not (GPU or INTERPRETED), reason="needs a GPU, or TRITON_INTERPRET=1")


@pytest.fixture(autouse=True)
def _interpreter() -> Iterator[None]:
    make_bfloat16_right()
    # Places that are masked out may overflow on their way.
    with np.errstate(all="ignore"):
        yield


def kernels() -> load.Backend:
    return load.gpu() if GPU else load.Backend(torch.device("cpu"), kernel_ops())


def outputs(folder: Path, backend: load.Backend | None, **options: object) -> list[tuple[list[int], list[float]]]:
    with torch_llm(folder, backend, max_num_seqs=2, kv_cache_bytes=1 << 18, **options) as llm:
        found = [o.outputs[0] for o in llm.generate(PROMPTS, PARAMS, use_tqdm=False)]
    rows = [[c.logprob for row in o.logprobs or [] for c in row.values()] for o in found]
    return [(o.token_ids, row) for o, row in zip(found, rows, strict=True)]


@pytest.mark.parametrize("case", MODELS, ids=lambda c: c.name)
def test_kernels_compute_what_torch_does(case: Case, tmp_path: Path) -> None:
    write_model(case, tmp_path)
    want, got = outputs(tmp_path, None), outputs(tmp_path, kernels())
    assert [tokens for tokens, _ in got] == [tokens for tokens, _ in want]
    for (_, mine), (_, theirs) in zip(got, want, strict=True):
        assert mine == pytest.approx(theirs, abs=2e-4)


def test_draws_by_kernel_are_those_by_torch() -> None:
    draws = np.zeros(6, SAMPLE_SPEC)
    for name, column in {
        "temperature": [1.0, 0.7, 1.5, 0.0, 1.0, 2.0],
        "top_p": [1.0, 0.8, 1.0, 1.0, 0.5, 1.0],
        "top_k": [0, 9, 3, 0, 0, 0],
        "min_p": [0.0, 0.0, 0.0, 0.0, 0.01, 0.2],
        "seed": [1, 2**63 + 9, 3, 4, 5, 6],
        "sample": [0, 1, 2, 0, 0, 5],
        "position": range(6),
    }.items():
        draws[name] = column
    draws["uniform"] = [uniform_ref(int(d["seed"]), int(d["sample"]), int(d["position"])) for d in draws]
    device = kernels().device
    rules = sampler.Rules.of(draws, torch.from_numpy(draws.view(np.int32).reshape(6, -1).copy()).to(device))
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(2)).to(device) * 3
    logits[5, 7] = torch.nan
    want, got = sampler.sample(logits, rules), sampler.sample(logits, rules, kernels=True)
    assert got.tolist() == want.tolist()
    assert want[5] == -1
    logits[5, 7] = 0.0
    for mine, theirs in zip(
        sampler.logprobs(logits, got, 4, kernels=True), sampler.logprobs(logits, want, 4), strict=True
    ):
        assert torch.allclose(mine.double(), theirs.double(), atol=1e-5)


def test_int8_with_kernels(tmp_path: Path) -> None:
    write_model(MODELS[0], tmp_path)
    want, got = (outputs(tmp_path, backend, quantization="int8") for backend in (None, kernels()))
    for (_, mine), (_, theirs) in zip(got, want, strict=True):
        assert mine == pytest.approx(theirs, abs=5e-3)


def test_int8_blocks_with_kernels(tmp_path: Path) -> None:
    """The second prompt fills a block in its prefill."""
    write_model(MODELS[1], tmp_path)
    want, got = (outputs(tmp_path, backend, kv_cache_dtype="int8") for backend in (None, kernels()))
    assert [tokens for tokens, _ in got] == [tokens for tokens, _ in want]
    for (_, mine), (_, theirs) in zip(got, want, strict=True):
        assert mine == pytest.approx(theirs, abs=2e-4)


def test_the_eager_step_and_the_padded_one_agree(tmp_path: Path) -> None:
    write_model(MODELS[0], tmp_path)
    backend = kernels()
    want, got = outputs(tmp_path, replace(backend, graphs=False)), outputs(tmp_path, backend)
    assert [tokens for tokens, _ in got] == [tokens for tokens, _ in want]


def test_adapters_with_kernels(tmp_path: Path) -> None:
    """Shrink and expand in eager steps and in padded ones, beside a request without an adapter."""
    pytest.importorskip("peft", reason="adapters are written by peft: pip install 'octavo[test]'")
    from random_adapters import write_adapter

    model = write_model(MODELS[0], tmp_path / "model")
    write_adapter(model, tmp_path / "a", r=5, target_modules="all-linear", use_dora=True)
    write_adapter(model, tmp_path / "b", 1, r=20, target_modules=["q_proj", "down_proj"])
    params = [replace(PARAMS, lora=name) for name in ("a", "b", None)]
    found = []
    for backend in (None, kernels()):
        with torch_llm(tmp_path / "model", backend, max_num_seqs=4, kv_cache_bytes=1 << 18) as llm:
            for name in "ab":
                llm.load_adapter(name, tmp_path / name)
            outputs = llm.generate([*PROMPTS, PROMPTS[0]], params, use_tqdm=False)
            found.append([o.outputs[0] for o in outputs])
    assert [o.token_ids for o in found[0]] == [o.token_ids for o in found[1]]
    for mine, theirs in zip(*found, strict=True):
        for x, y in zip(mine.logprobs, theirs.logprobs, strict=True):
            assert {k: v.logprob for k, v in x.items()} == pytest.approx({k: v.logprob for k, v in y.items()}, abs=2e-4)
