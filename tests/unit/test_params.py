"""SamplingParams: defaults, checks at construction, what the engine gets."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from octavo import SamplingParams, _core
from octavo.errors import InvalidRequestError


def test_defaults_are_accepted() -> None:
    params = SamplingParams()
    assert params.max_tokens == 256
    assert params.n == 1
    # None: the model's generation_config.json decides.
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
    assert all(getattr(params, n) is None for n in names)


def test_fields_are_those_of_the_engine() -> None:
    fields = SamplingParams().as_dict()
    assert list(fields) == [f.name for f in dataclasses.fields(SamplingParams)]
    _core.SamplingParams(fields)
    with pytest.raises(InvalidRequestError, match="tempreature"):
        _core.SamplingParams({**fields, "tempreature": 1.0})


def test_frozen_and_by_name_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().n = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        SamplingParams(2)  # type: ignore[misc]
    with pytest.raises(TypeError):
        SamplingParams(max_token=2)  # type: ignore[call-arg]


def test_replace_checks_again() -> None:
    params = SamplingParams(max_tokens=5)
    assert dataclasses.replace(params, n=2).max_tokens == 5
    with pytest.raises(InvalidRequestError, match="top_p"):
        dataclasses.replace(params, top_p=2.0)


BAD: list[tuple[str, Any]] = [
    ("n", 0),
    ("n", -1),
    ("n", 10_000),
    ("n", 1.5),
    ("n", "2"),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", "many"),
    ("min_tokens", -1),
    ("min_tokens", 257),
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", "hot"),
    ("top_p", 0.0),
    ("top_p", 1.01),
    ("top_p", math.nan),
    ("top_k", -2),
    ("top_k", 0.5),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", -1.0),
    ("presence_penalty", 2.1),
    ("presence_penalty", math.nan),
    ("frequency_penalty", -2.1),
    ("seed", "x"),
    ("seed", 2**70),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", ["a"] * 1000),
    ("stop", "a" * 5000),
    ("stop", 5),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", ["a"]),
    ("bad_words", [""]),
    ("bad_words", "a word"),
    ("logit_bias", {1: 101.0}),
    ("logit_bias", {1: math.nan}),
    ("logit_bias", {"x": 1.0}),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {1: "much"}),
    ("logit_bias", [1, 2]),
    ("logprobs", -2),
    ("logprobs", 1.5),
    ("prompt_logprobs", -2),
    ("timeout", 0.0),
    ("timeout", -1.0),
    ("timeout", math.nan),
    ("timeout", math.inf),
    ("priority", "first"),
    ("cache_salt", 5),
    ("attention_error_bound", 0.0),
    ("attention_error_bound", 1.0),
    ("attention_error_bound", math.nan),
    ("attention_error_bound", "little"),
    ("skip_special_tokens", "no"),
    ("ignore_eos", 3),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{n}={str(v)[:12]}" for n, v in BAD])
def test_bad_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=name) as caught:
        SamplingParams(**{name: value})
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 300


GOOD: list[dict[str, Any]] = [
    {"max_tokens": None},
    {"temperature": 0},
    {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0},
    {"top_k": 0},
    {"seed": -1},
    {"seed": 2**64 - 1},
    {"seed": 0},
    {"stop": "one"},
    {"stop": ["one", "two"]},
    {"stop": ("one",)},
    {"stop": []},
    {"logit_bias": {5: -100, 6: 100}},
    {"logit_bias": {"5": 1.5}},
    {"logprobs": 0},
    {"logprobs": -1, "prompt_logprobs": -1},
    {"min_tokens": 256},
    {"priority": -5},
    {"cache_salt": ""},
    {"attention_error_bound": 0.5},
    {"timeout": 1},
]


@pytest.mark.parametrize("values", GOOD, ids=str)
def test_good_values(values: dict[str, Any]) -> None:
    params = SamplingParams(**values)
    assert all(getattr(params, name) == value for name, value in values.items())


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=3),
    st.lists(st.text(max_size=3), max_size=3),
    st.dictionaries(st.integers(), st.floats(), max_size=3),
)


@settings(deadline=None)
@given(st.sampled_from([f.name for f in dataclasses.fields(SamplingParams)]), anything)
def test_any_value_is_taken_or_refused_with_the_typed_error(name: str, value: Any) -> None:
    try:
        params = SamplingParams(**{name: value})
    except InvalidRequestError as error:
        assert name in str(error)  # noqa: PT017
    else:
        assert params.as_dict()[name] is value
