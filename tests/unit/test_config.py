"""EngineConfig: one list of options for Python, type checkers, the command line and the engine."""

from __future__ import annotations

import copy
import pickle
from dataclasses import fields
from typing import Any, get_type_hints

import pytest
from octavo import LLM, DynamicAttention, EngineConfig, SamplingParams, _core
from octavo.config import EngineArguments
from octavo.errors import InvalidRequestError
from octavo.hub import embedded_model


def test_type_checkers_see_the_same_options() -> None:
    assert get_type_hints(EngineArguments) == get_type_hints(EngineConfig)


def test_the_engine_takes_every_field() -> None:
    config = EngineConfig(attention=DynamicAttention(), kv_cache_memory="8MiB", quantization=None)
    names = {f.name for f in fields(EngineConfig)} - {"device", "revision"}
    assert config.for_engine().keys() == names
    resolved = _core.resolve(str(embedded_model()), config.for_engine())
    assert resolved["kv_cache_dtype"] == "int8"
    assert resolved["quantization"] == "none"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_num_seqs": "many"}, "max_num_seqs is 'many': an integer is expected"),
        ({"max_num_seqs": -1}, "max_num_seqs is -1: an integer from 0 on"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0: an integer from 1 on"),
        ({"max_queue": 1.5}, "max_queue is 1.5"),
        ({"threads": True}, "threads is True"),
        ({"threads": 0}, "threads is 0: a number from 1 to 1024"),
        ({"seed": 2**70}, "seed is 1180591620717411303424: an integer of 64 bits"),
        ({"enable_prefix_caching": "no"}, "enable_prefix_caching is 'no': True or False"),
        ({"dtype": 16}, "dtype is 16: a string"),
        ({"chat_template": b"x"}, "chat_template is b'x'"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)
def test_values_of_another_type_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        _core.resolve(str(embedded_model()), EngineConfig.from_arguments(options).for_engine())


def test_sampling_params_are_a_plain_dataclass() -> None:
    params = SamplingParams(temperature=0.5, stop=["x"], logit_bias={3: 1.0})
    for other in (copy.copy(params), copy.deepcopy(params), pickle.loads(pickle.dumps(params))):
        assert other == params
        assert isinstance(other.for_engine(), _core.SamplingParams)


def test_the_schema_has_the_ranges_that_are_checked() -> None:
    properties = _core.sampling_schema()["properties"]
    assert properties["temperature"] == {"type": "number", "minimum": 0.0, "maximum": 100.0}
    for name, found in properties.items():
        for limit in ("minimum", "maximum"):
            if limit in found:
                SamplingParams(**{"max_tokens": None, name: found[limit]})
        for limit, step in (("minimum", -1), ("maximum", 1), ("exclusiveMinimum", 0), ("exclusiveMaximum", 0)):
            if limit in found:
                with pytest.raises(InvalidRequestError, match=name):
                    SamplingParams(**{"max_tokens": None, name: found[limit] + step})


@pytest.mark.parametrize(
    "name", ["device", "dtype", "kv_cache_dtype", "attention", "seed", "deterministic", "enable_prefix_caching"]
)
def test_none_is_refused_where_it_is_no_value(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"{name} is None"):
        LLM(**{name: None})  # type: ignore[arg-type]
