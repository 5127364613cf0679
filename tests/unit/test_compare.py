"""The arithmetic of benches/compare: limits, and what is made of samples. No engine runs here."""

from __future__ import annotations

import pytest

from benches.compare.expected import expected, seconds, step_seconds
from benches.compare.limits import Machine
from benches.compare.measures import CASES, FIGURES
from benches.compare.places import HERE, all_engines
from benches.compare.shapes import SHAPES
from benches.compare.summary import summarise

MACHINE = Machine(read=45e9, int8=1.95e12, bf16=0.97e12)
RATES = {"read": {"median": 45e9}, "int8": {"median": 1.95e12}, "bf16": {"median": 0.97e12}}


def test_shapes_have_the_sizes_of_the_models_they_are_named_after() -> None:
    sizes = {name: shape.layer_weights + shape.output_weights for name, shape in SHAPES.items()}
    # The models' published numbers of weights; biases and norms are not counted here.
    assert sizes["qwen2.5-0.5b"] == pytest.approx(494.0e6, rel=1e-3)
    assert sizes["llama-3.2-1b"] == pytest.approx(1235.8e6, rel=1e-3)


def test_decode_is_bound_by_reading_alone_and_by_products_in_a_batch() -> None:
    shape = SHAPES["qwen2.5-0.5b"]
    weights = shape.layer_weights + shape.output_weights
    assert MACHINE.decode(shape, 0, 1) == pytest.approx(45e9 / weights)
    assert MACHINE.decode(shape, 0, 4) == pytest.approx(4 * 45e9 / weights)
    assert MACHINE.decode(shape, 0, 1000) == pytest.approx(1.95e12 / (2 * weights))
    assert MACHINE.decode(shape, 2048, 1) < MACHINE.decode(shape, 128, 1)


def test_prefill_of_one_token_is_a_decode_step_and_long_prompts_pay_for_attention() -> None:
    shape = SHAPES["llama-3.2-1b"]
    assert MACHINE.prefill(shape, 1) == pytest.approx(MACHINE.decode(shape, 0, 1))
    layers_alone = 1.95e12 / (2 * shape.layer_weights)
    assert 0.8 * layers_alone < MACHINE.prefill(shape, 2048) < MACHINE.prefill(shape, 512) < layers_alone


def test_every_figure_of_a_case_has_a_title_and_a_limit() -> None:
    shape = SHAPES["qwen2.5-0.5b"]
    for case in CASES:
        read, limit = case.read(0.5, 2.0, 64), case.limit(MACHINE, shape)
        assert set(read) == set(limit) == case.figures
        assert case.figures <= set(FIGURES)


def test_the_best_setting_is_chosen_for_each_figure_by_its_median() -> None:
    def record(setting: str, decode: float, load: float) -> dict[str, object]:
        samples = {"decode_128": [decode, decode], "load": [load]}
        return {"round": 0, "shape": "qwen2.5-0.5b", "engine": "openvino", "setting": setting, "samples": samples}

    records = [{"round": 0, "shape": "qwen2.5-0.5b", "limits": RATES}]
    records += [record("a", 40, 1.0), record("a", 44, 1.2), record("a", 90, 1.1)]  # One lucky round changes nothing.
    records += [record("b", 50, 2.0), record("b", 52, 2.0), record("b", 51, 2.0)]
    summary = summarise(records)["qwen2.5-0.5b"]
    best = summary["engines"]["openvino"]["best"]
    assert (best["decode_128"]["setting"], best["decode_128"]["median"]) == ("b", 51)
    assert (best["load"]["setting"], best["load"]["median"]) == ("a", 1.1)
    assert best["decode_128"]["share_of_limit"] == pytest.approx(51 / summary["limits"]["decode_128"])


def test_an_engine_that_computes_something_else_is_seen() -> None:
    records = [{"round": 0, "shape": "llama-3.2-1b", "limits": RATES}]
    for engine, ids in [("octavo", [1, 2]), ("openvino", [1, 2]), ("ctranslate2", [3, 2])]:
        records.append({"round": 0, "shape": "llama-3.2-1b", "engine": engine, "setting": "x", "ids": ids})
    agree = summarise(records)["llama-3.2-1b"]["agree"]
    assert agree == {"octavo x": True, "openvino x": True, "ctranslate2 x": False}


def test_every_engine_of_the_table_has_its_runner_and_settings() -> None:
    for name, entry in all_engines().items():
        assert (HERE / "engines" / entry["runner"]).is_file(), name
        assert entry["settings"], name


def test_steps_lie_between_what_was_measured() -> None:
    rates = {1: 10.0, 9: 45.0}
    assert step_seconds(rates, 1) == pytest.approx(0.1)
    assert step_seconds(rates, 5) == pytest.approx(0.15)
    assert step_seconds(rates, 9) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="10 sequences"):
        step_seconds(rates, 10)


def test_static_batching_loses_most_where_a_step_costs_the_same_for_any_number() -> None:
    assert seconds({1: 10.0, 32: 320.0}, [[3, 1, 2], [1]]) == pytest.approx(0.4)
    # 33 of the same length: 32 at once, then the last one.
    assert seconds({1: 10.0, 32: 320.0}, [[2] * 33]) == pytest.approx(0.4)
    flat, by_sequence = {1: 10.0, 32: 320.0}, {1: 10.0, 32: 10.0}
    gains = [continuous / static for continuous, static in (expected(flat, 1e9), expected(by_sequence, 1e9))]
    assert gains[0] > 1.4
    assert gains[1] == pytest.approx(1.0)
