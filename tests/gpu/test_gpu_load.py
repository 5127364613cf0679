"""Checkpoints on the device, int8 there, limits and memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from backends import BLOCK_BYTES, torch_llm
from compare import all_rows, assert_same_logprobs, kl_rows, reference_logprobs
from octavo import LLM, SamplingParams, _core
from octavo.errors import CorruptModelError, DeviceMemoryError, InvalidRequestError, ModelNotFoundError
from octavo.gpu import linear, load
from random_models import CASES, write_model
from safetensors.torch import load_file, save_file
from test_int8_checkpoint import clamp_codes, write_int8

PROMPT = [7 * i % 190 for i in range(60)]
ALL = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=-1, prompt_logprobs=-1)


def rows_of(llm: LLM) -> torch.Tensor:
    return all_rows(llm.generate(PROMPT, ALL)[0], 199)


@pytest.mark.parametrize("name", ["llama-wide", "gemma2", "qwen2-moe", "llama-tied"])
def test_int8_has_the_numbers_of_the_cpu(name: str, backend: load.Backend, tmp_path: Path) -> None:
    """The same codes, the same exact sums of products: only the order of float additions differs."""
    reference_model = write_model(next(c for c in CASES if c.name == name), tmp_path)
    with LLM(tmp_path, device="cpu", dtype="float32", quantization="int8") as llm:
        want = rows_of(llm)
    with torch_llm(tmp_path, backend, quantization="int8") as llm:
        assert llm.info()["model"]["quantization"] == "int8"
        got = rows_of(llm)
    floats = reference_logprobs(reference_model, PROMPT)
    assert float(kl_rows(floats, got[: len(floats)]).mean()) > 1e-6, "nothing was quantised"
    rows = kl_rows(want, got)
    # A row on the edge between two codes may fall to the other side, and from there on to another expert.
    assert float(rows.median()) < 1e-5, f"median KL to the CPU's int8 is {float(rows.median()):.2e}"
    assert float(rows.mean()) < 1e-3


def test_codes_are_those_of_the_cpu() -> None:
    """By the rule itself: scales are the largest magnitude / 127 rounded up to bfloat16, codes the nearest."""
    torch.manual_seed(4)
    weight = torch.randn(7, 300) * torch.rand(7, 1) * 3
    weight[2, 128:256] = 0.0
    weight[3, 5] = torch.nan
    codes, scales = linear.quantize(weight, rotated=False)
    assert codes.shape == (7, 300)
    assert scales.shape == (7, 3)
    for row in range(7):
        for group in range(3):
            values = weight[row, 128 * group : 128 * group + 128]
            got, scale = codes[row, 128 * group : 128 * group + 128], float(scales[row, group])
            if not values.isfinite().all():
                assert scale != scale
                continue
            exact = float(values.abs().max()) / 127
            assert exact <= scale <= exact * (1 + 2**-7)
            if exact:
                assert torch.equal(got, (values / scale).round().to(torch.int8))
    fine = torch.ones(7, dtype=torch.bool)
    fine[3] = False
    error = (linear.dequantize(codes, scales) - weight)[fine].abs()
    assert float((error / weight[fine].abs().amax(-1, keepdim=True)).max()) < 0.5 / 127 * 1.01


@pytest.mark.parametrize("quantization", ["auto", None])
def test_int8_checkpoints_are_read(quantization: str | None, backend: load.Backend, tmp_path: Path) -> None:
    reference_model = write_int8(tmp_path, "llama-wide", torch.bfloat16)
    clamp_codes(tmp_path)
    with torch_llm(tmp_path, backend, quantization=quantization) as llm:
        assert llm.info()["model"]["quantization"] == ("int8" if quantization else "none")
        output = llm.generate(PROMPT, ALL)[0]
    want = reference_logprobs(reference_model, [*PROMPT, *output.outputs[0].token_ids])[:-1]
    if quantization is None:
        assert_same_logprobs(want, all_rows(output, 199), tolerance=2e-4)
    else:
        assert 0 < float(kl_rows(want, all_rows(output, 199)).mean()) < 1.5e-2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_close(dtype: str, backend: load.Backend, tmp_path: Path) -> None:
    reference_model = write_model(CASES[0], tmp_path)
    with torch_llm(tmp_path, backend, dtype=dtype) as llm:
        output = llm.generate(PROMPT, ALL)[0]
        assert llm.info()["model"]["kv_cache_dtype"] == dtype
    want = reference_logprobs(reference_model, [*PROMPT, *output.outputs[0].token_ids])[:-1]
    assert 0 < float(kl_rows(want, all_rows(output, 199)).mean()) < 1e-3


def test_a_sharded_checkpoint(tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    model = write_model(CASES[0], one)
    model.save_pretrained(many, max_shard_size="100KB")
    (many / "tokenizer.json").write_bytes((one / "tokenizer.json").read_bytes())
    assert len(list(many.glob("*.safetensors"))) > 1
    outputs = []
    for folder in (one, many):
        with torch_llm(folder) as llm:
            outputs.append(
                llm.generate([5, 6, 7], SamplingParams(temperature=0, max_tokens=8, logprobs=2))[0].outputs[0]
            )
    assert outputs[0] == outputs[1]


def test_a_tied_head_is_held_once(tmp_path: Path) -> None:
    write_model(next(c for c in CASES if c.name == "llama-tied"), tmp_path)
    with torch_llm(tmp_path) as llm:
        info = llm.info()
    weights = next(p for p in info["memory"] if p["name"] == "weights")["bytes"]
    assert weights == 4 * info["model"]["parameters"]


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    write_model(CASES[0], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CorruptModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        torch_llm(tmp_path)
    with pytest.raises(ModelNotFoundError, match="there is no such folder"):
        torch_llm(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "dtype is 'int4'"),
        ({"quantization": "int4"}, "quantization is 'int4'"),
        ({"kv_cache_dtype": "int4"}, "kv_cache_dtype is 'int4'"),
        ({"kv_cache_dtype": "bfloat16"}, "cached in the model's dtype"),
        ({"max_model_len": 513}, "at most 512 tokens"),
        ({"max_model_len": 1}, "from 2 on"),
        ({"kv_cache_bytes": BLOCK_BYTES, "max_model_len": 96}, "raise kv_cache_memory"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, object], message: str, tiny: Path) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        torch_llm(tiny, **options)


def test_the_pool_is_what_memory_gives(tiny: Path, tmp_path: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 320}))

    def limits(options: dict[str, object], free: int, total: int) -> tuple[dict[str, int], str]:
        facts = {"total_bytes": total, "free_bytes": free, "block_bytes": 1000}
        resolved = _core.resolve(str(tmp_path), options, facts)
        return resolved["limits"], next(p["reason"] for p in resolved["memory"] if p["name"] == "kv_cache")

    few = {"max_num_seqs": 4}
    enough, reason = limits(few, 10**6, 10**7)
    assert (enough["num_blocks"], enough["max_model_len"]) == (40, 320)
    assert "4 sequences of 320 tokens" in reason
    capped, reason = limits(few, 20_000, 10**7)
    assert (capped["num_blocks"], capped["max_model_len"]) == (18, 320)
    assert "90%" in reason
    shorter, _ = limits(few, 6_000, 10**7)
    assert (shorter["num_blocks"], shorter["max_model_len"]) == (5, 160)
    with pytest.raises(DeviceMemoryError, match="one sequence of 320 tokens needs 10000"):
        limits(few, 900, 10**7)
    share, _ = limits({"kv_cache_memory": 0.5}, 10**6, 10**6)
    assert share["num_blocks"] == 500
    with pytest.raises(DeviceMemoryError, match="lower kv_cache_memory"):
        limits({"kv_cache_memory": 2 * 10**6}, 10**6, 10**7)


def test_a_pool_too_small_for_the_models_length_shortens_it(tiny: Path) -> None:
    with torch_llm(tiny, kv_cache_bytes=4 * BLOCK_BYTES) as llm:
        assert llm.info()["limits"]["max_model_len"] == 128
        assert llm.generate([1, 2], SamplingParams(max_tokens=5, ignore_eos=True))[0].outputs[0].token_ids
