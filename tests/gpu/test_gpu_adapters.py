"""Adapters on the torch executor: peft's numbers, and nothing of it for requests without one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import cpu_tensors, torch_llm
from compare import all_rows, assert_greedy, assert_same_logprobs, kl_rows, reference_logprobs
from octavo import LLM, SamplingParams
from octavo.errors import CorruptModelError, DeviceMemoryError, OctavoError
from octavo.gpu import device_adapters, load
from octavo.gpu.runner import Runner
from octavo.triton_kernels.lora_slots import FEW

pytest.importorskip("peft", reason="the reference of adapters is peft: pip install 'octavo[test]'")

from random_adapters import write_adapter
from random_models import CASES, write_model
from safetensors.torch import load_file, save_file

BY_NAME = {case.name: case for case in CASES}
ALL = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=-1, prompt_logprobs=-1)
PLAIN = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=3)
LINEAR = "all-linear"
LATENT = ["q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"]

FEATURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"r": 5, "lora_alpha": 7, "target_modules": LINEAR}),
    "rank 65": ("llama-wide", {"r": 65, "lora_alpha": 9, "target_modules": LINEAR, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "r": 4,
            "target_modules": ["q_proj", "v_proj", "up_proj"],
            "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.up_proj": 17},
            "alpha_pattern": {r".*\.0\.self_attn\.v_proj": 21},
        },
    ),
    "dora": ("llama-all-biases", {"r": 6, "target_modules": LINEAR, "use_dora": True}),
    "lora_bias": ("llama-all-biases", {"r": 3, "target_modules": ["q_proj", "down_proj"], "lora_bias": True}),
    "one module for q, k and v": ("phi3", {"r": 5, "target_modules": LINEAR, "use_dora": True}),
    "gemma2": ("gemma2", {"r": 2, "target_modules": LINEAR}),
    "parallel": ("cohere2", {"r": 5, "target_modules": LINEAR}),
    "mixture": ("qwen2-moe", {"r": 5, "target_modules": ["q_proj", "k_proj", "o_proj"]}),
    "latent": ("deepseek-v3", {"r": 5, "target_modules": LATENT}),
    "latent, whole queries": ("deepseek-v2", {"r": 5, "target_modules": LATENT, "use_dora": True}),
}


def small_llm(folder: Path, backend: load.Backend | None = None, **options: Any) -> LLM:
    """With a small pool, which is quick to make."""
    return torch_llm(folder, backend, **{"max_lora_memory": 16 << 20, **options})


def prompt_of(length: int, vocab: int = 199, seed: int = 1) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(vocab) for _ in range(length)]


@pytest.mark.parametrize("name", FEATURES)
def test_float32_matches_peft(name: str, backend: load.Backend, tmp_path: Path) -> None:
    case_name, options = FEATURES[name]
    case = BY_NAME[case_name]
    model = write_model(case, tmp_path / "model")
    live = write_adapter(model, tmp_path / "adapter", **options)
    vocab = model.config.vocab_size
    prompt = prompt_of(40, vocab)
    with small_llm(tmp_path / "model", backend, **case.limits) as llm:
        loaded = llm.load_adapter("a", tmp_path / "adapter")
        assert loaded.rank == max(options["r"], *options.get("rank_pattern", {"": 0}).values())
        output = llm.generate(prompt, ALL, adapter="a")[0]
        # Without log-probabilities the tokens are drawn on the device.
        drawn = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, lora="a")
        assert llm.generate(prompt, drawn)[0].outputs[0].token_ids == output.outputs[0].token_ids
    tokens = [*prompt, *output.outputs[0].token_ids]
    want = reference_logprobs(live, tokens)[:-1]
    assert float((want - reference_logprobs(model, tokens)[:-1]).abs().max()) > 0.5, "the adapter changes nothing"
    assert_same_logprobs(want, all_rows(output, vocab), tolerance=2e-4)
    assert_greedy(want[len(prompt) - 1 :], output.outputs[0].token_ids)


def test_int8_weights_stay_int8(backend: load.Backend, tmp_path: Path) -> None:
    """An adapter adds no more error than the weights have, and blocks of int8 keys and values go with it."""
    model = write_model(BY_NAME["llama-wide"], tmp_path / "model")
    live = write_adapter(model, tmp_path / "adapter", r=8, target_modules=LINEAR, use_dora=True)
    prompt = prompt_of(60)
    with small_llm(tmp_path / "model", backend, quantization="int8", kv_cache_dtype="int8") as llm:
        llm.load_adapter("a", tmp_path / "adapter")
        found = {}
        for name, reference in ((None, model), ("a", live)):
            output = llm.generate(prompt, ALL, adapter=name)[0]
            want = reference_logprobs(reference, [*prompt, *output.outputs[0].token_ids])[:-1]
            found[name] = float(kl_rows(want, all_rows(output, 199)).mean())
    assert 1e-6 < found["a"] < 3 * found[None] + 1e-3


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("deepseek-v3", ["shared_experts.gate_proj", "shared_experts.down_proj"]),
        ("qwen2-moe", ["shared_expert.up_proj", "shared_expert.down_proj", "shared_expert_gate"]),
    ],
)
def test_the_shared_expert(name: str, modules: list[str], backend: load.Backend, tmp_path: Path) -> None:
    """Against the same update added to the weights: peft cannot be kept from the experts behind the router."""
    model = write_model(BY_NAME[name], tmp_path / "model")
    draw = torch.Generator().manual_seed(5)
    tensors: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        if any(path.endswith(f"mlp.{m}") for m in modules):
            rows, columns = module.weight.shape
            a, b = torch.randn(3, columns, generator=draw) / columns**0.5, torch.randn(rows, 3, generator=draw) / 4
            tensors |= {f"base_model.model.{path}.lora_{x}.weight": t for x, t in (("A", a), ("B", b))}
            module.weight.data += 2.0 * b @ a
    assert len(tensors) >= 2 * len(modules)
    (tmp_path / "adapter").mkdir()
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": modules}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    prompt = prompt_of(40, model.config.vocab_size)
    with small_llm(tmp_path / "model", backend) as llm:
        llm.load_adapter("a", tmp_path / "adapter")
        output = llm.generate(prompt, ALL, adapter="a")[0]
    want = reference_logprobs(model, [*prompt, *output.outputs[0].token_ids])[:-1]
    assert_same_logprobs(want, all_rows(output, model.config.vocab_size), tolerance=2e-4)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A Llama, and adapters of ranks 4, 40 and 9 with DoRA."""
    folder = tmp_path_factory.mktemp("adapters")
    model = write_model(BY_NAME["llama"], folder / "model")
    options = {"a": {"r": 4, "target_modules": LINEAR}, "b": {"r": 40, "target_modules": ["v_proj", "up_proj"]}}
    options["c"] = {"r": 9, "target_modules": ["q_proj", "o_proj", "down_proj"], "use_dora": True}
    for seed, (name, kinds) in enumerate(options.items()):
        write_adapter(model, folder / name, seed, **kinds)
    return folder / "model", {name: folder / name for name in options}


@pytest.fixture
def runners(monkeypatch: pytest.MonkeyPatch) -> list[Runner]:
    made: list[Runner] = []
    monkeypatch.setattr(load, "Runner", lambda *a: made.append(Runner(*a)) or made[-1])
    return made


def load_all(llm: LLM, folders: dict[str, Path]) -> LLM:
    for name, folder in folders.items():
        llm.load_adapter(name, folder)
    return llm


CHOICES: list[str | None] = ["a", None, "b", "c", "a", None, "b"]


def asked_of(seed: int = 3) -> tuple[list[list[int]], list[SamplingParams]]:
    asked = [prompt_of(n, seed=seed + n) for n in (3, 40, 31, 64, 5, 9, 33)]
    params = [SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=3, lora=c) for c in CHOICES]
    return asked, params


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_mixed_batch_has_the_bits_of_single_runs(
    dtype: str, backend: load.Backend, adapters: tuple[Path, dict[str, Path]]
) -> None:
    """Chunks of prefills beside decodes, several adapters and none. Without one: as in an engine without adapters."""
    folder, folders = adapters
    options: dict[str, Any] = {"dtype": dtype, "deterministic": True, "max_num_batched_tokens": 32}
    asked, params = asked_of()
    with load_all(small_llm(folder, backend, **options, enable_prefix_caching=False), folders) as llm:
        together = [o.outputs[0] for o in llm.generate(asked, params, use_tqdm=False)]
        alone = [llm.generate(p, q)[0].outputs[0] for p, q in zip(asked, params, strict=True)]
        assert llm.stats()["mixed_steps"] > 0
        assert llm.stats()["blocks"]["live"] == 0
    assert together == alone
    with torch_llm(folder, backend, **options, enable_prefix_caching=False) as llm:
        for i, choice in enumerate(CHOICES):
            bare = llm.generate(asked[i], PLAIN)[0].outputs[0]
            assert (bare == together[i]) is (choice is None)


def test_graphs_stay_valid_when_adapters_come_and_go(
    runners: list[Runner], backend: load.Backend, adapters: tuple[Path, dict[str, Path]]
) -> None:
    """One graph serves every adapter of its size; its tables change, its memory does not."""
    folder, folders = adapters
    prompt = prompt_of(20)
    with small_llm(folder, load.Backend(backend.device, backend.ops, graphs=False)) as llm:
        load_all(llm, folders)
        want = {n: llm.generate(prompt, PLAIN, adapter=n)[0].outputs[0].token_ids for n in folders}
        base = llm.generate(prompt, PLAIN)[0].outputs[0].token_ids
    assert len({tuple(t) for t in [*want.values(), base]}) == 4
    with small_llm(folder, backend) as llm:
        load_all(llm, folders)
        graphs = runners[-1].graphs
        assert graphs is not None
        assert not graphs.with_adapters
        for name in ("a", "c", "a"):
            assert llm.generate(prompt, PLAIN, adapter=name)[0].outputs[0].token_ids == want[name]
            assert llm.generate(prompt, PLAIN)[0].outputs[0].token_ids == base
        assert list(graphs.with_adapters) == [(1, 1)], "ranks 4 and 9 take one page each"
        graph = graphs.with_adapters[1, 1]
        llm.unload_adapter("a")
        llm.load_adapter("a", folders["b"])
        assert llm.generate(prompt, PLAIN, adapter="a")[0].outputs[0].token_ids == want["b"]
        assert llm.generate(prompt, PLAIN, adapter="c")[0].outputs[0].token_ids == want["c"]
        assert list(graphs.with_adapters) == [(1, 1), (1, 4)], "rank 40 takes three pages"
        assert graphs.with_adapters[1, 1] is graph
        assert graph.batch.adapters is not None
        assert graph.batch.adapters.tiles.rows.shape == (1, FEW)
        three = [llm.generate(prompt, PLAIN)[0].outputs[0].token_ids, want["c"], want["b"]]
        params = [SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, lora=n) for n in (None, "c", "a")]
        got = llm.generate([prompt] * 3, params, use_tqdm=False)
        assert [o.outputs[0].token_ids for o in got] == three
        assert (4, 4) in graphs.with_adapters


def test_memory_for_one_adapter_serves_all_in_turn(
    runners: list[Runner], backend: load.Backend, adapters: tuple[Path, dict[str, Path]]
) -> None:
    folder, folders = adapters
    prompt = prompt_of(20)
    with load_all(small_llm(folder, backend), folders) as llm:
        want = {n: llm.generate(prompt, PLAIN, adapter=n)[0].outputs[0].token_ids for n in folders}
        largest = max(a.bytes for a in llm.adapters())
    with load_all(torch_llm(folder, backend, max_lora_memory=largest), folders) as llm:
        pool = runners[-1].adapters.pool
        assert pool is not None, "memory that is asked for is set aside at once"
        assert pool.free_pages == 3
        for name in ("a", "b", "c", "b", "a"):
            assert llm.generate(prompt, PLAIN, adapter=name)[0].outputs[0].token_ids == want[name]
        params = [SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, lora=n) for n in "bacb"]
        got = llm.generate([prompt] * 4, params, use_tqdm=False)
        assert [o.outputs[0].token_ids for o in got] == [want[n] for n in "bacb"]
        for name in folders:
            llm.unload_adapter(name)
        llm.generate(prompt, PLAIN)
        assert pool.free_pages == 3
    with torch_llm(folder, backend, max_lora_memory=largest - 1) as llm, pytest.raises(OctavoError, match="memory"):
        llm.load_adapter("b", folders["b"])


def test_cached_blocks_are_of_one_adapter(backend: load.Backend, adapters: tuple[Path, dict[str, Path]]) -> None:
    folder, folders = adapters
    prompt = prompt_of(70)
    with small_llm(folder, backend, enable_prefix_caching=False) as llm:
        load_all(llm, folders)
        want = {n: llm.generate(prompt, PLAIN, adapter=n)[0].outputs[0].token_ids for n in (None, *folders)}
    with small_llm(folder, backend) as llm:
        load_all(llm, folders)
        for cached in (0, 64):
            for name, tokens in want.items():
                output = llm.generate(prompt, PLAIN, adapter=name)[0]
                assert output.outputs[0].token_ids == tokens
                assert output.metrics is not None
                assert output.metrics.cached_prompt_tokens == cached
        # Other weights under the same name find nothing; the same bytes under another name find everything.
        llm.load_adapter("a", folders["b"])
        output = llm.generate(prompt, PLAIN, adapter="a")[0]
        assert output.outputs[0].token_ids == want["b"]
        assert output.metrics is not None
        assert output.metrics.cached_prompt_tokens == 64


def test_files_that_change_after_loading_are_refused(
    backend: load.Backend, adapters: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    folder, folders = adapters
    for file in folders["a"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with small_llm(folder, backend) as llm:
        llm.load_adapter("a", tmp_path)
        tensors = load_file(tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_model.safetensors").unlink()
        save_file({k: 2 * t for k, t in tensors.items()}, tmp_path / "adapter_model.safetensors")
        with pytest.raises(CorruptModelError, match=r"changed after they were loaded: load the adapter again"):
            llm.generate([1, 2], PLAIN, adapter="a")
        assert llm.generate([1, 2], PLAIN)[0].outputs[0].token_ids
        assert llm.load_adapter("a", tmp_path).generation == 2
        assert llm.generate([1, 2], PLAIN, adapter="a")[0].outputs[0].token_ids


def test_an_executor_without_adapters_refuses_them(
    monkeypatch: pytest.MonkeyPatch, adapters: tuple[Path, dict[str, Path]]
) -> None:
    folder, folders = adapters
    monkeypatch.delattr(Runner, "pack_adapter")
    with torch_llm(folder) as llm:
        with pytest.raises(OctavoError, match="adapter"):
            llm.load_adapter("a", folders["a"])
        assert llm.generate([1, 2], PLAIN)[0].outputs[0].token_ids


def test_a_device_without_room_says_what_to_lower(
    monkeypatch: pytest.MonkeyPatch, adapters: tuple[Path, dict[str, Path]]
) -> None:
    folder, folders = adapters
    full: Callable[..., Any] = lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room"))  # noqa: E731
    monkeypatch.setattr(device_adapters, "AdapterPool", full)
    with torch_llm(folder, cpu_tensors()) as llm:
        llm.load_adapter("a", folders["a"])
        with pytest.raises(DeviceMemoryError, match=r"lower max_lora_memory"):
            llm.generate([1, 2], PLAIN, adapter="a")
        assert llm.generate([1, 2], PLAIN)[0].outputs[0].token_ids
