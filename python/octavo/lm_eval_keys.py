"""The generation keys of lm-evaluation-harness's tasks: each is done as its `hf` model does it, or refused.

A task file, `--gen_kwargs` and `generation_kwargs` of a request give them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from octavo.errors import InvalidRequestError

__all__ = ["GenerationKeys", "generation_keys"]

# Fields of SamplingParams that a task may set; on the right the names of transformers.
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "min_tokens": "min_tokens",
    "min_new_tokens": "min_tokens",
    "stop_token_ids": "stop_token_ids",
    "ignore_eos": "ignore_eos",
    "bad_words": "bad_words",
    "logit_bias": "logit_bias",
    "skip_special_tokens": "skip_special_tokens",
    "timeout": "timeout",
}
# Other names for the most tokens, which `normalize_gen_kwargs` reads.
_MOST = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# Keys of transformers that octavo cannot do, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "length_penalty": (1,),
    "diversity_penalty": (0,),
    "early_stopping": (False,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
    "use_cache": (True, False),
    "n": (1,),
}
_INSTEAD = {
    "max_length": "max_gen_toks",
    "min_length": "min_tokens",
    "stop": "until",
    "stop_strings": "until",
    "bad_words_ids": "bad_words",
    "suppress_tokens": "logit_bias with -100",
    "eos_token_id": "stop_token_ids",
}


@dataclass(frozen=True)
class GenerationKeys:
    """What a request of the harness asks for.

    Attributes:
        until: texts that end the output.
        max_tokens: most tokens of the output.
        sampling: further fields of SamplingParams.
    """

    until: list[str]
    max_tokens: int
    sampling: dict[str, Any]


def generation_keys(given: Mapping[str, Any], max_gen_toks: int) -> GenerationKeys:
    """Reads the keys of a request. Without `do_sample` and a temperature the output is greedy.

    Raises:
        InvalidRequestError: a key that octavo cannot do, named with the remedy.
    """
    present = {name: value for name, value in given.items() if value is not None}
    if not isinstance(present.get("do_sample", False), bool):
        raise InvalidRequestError(f"do_sample is {present['do_sample']!r}: true or false is expected")
    for name in ("temperature", *_MOST):
        if name in present:
            _number(name, present[name])
    fields = dict(normalize_gen_kwargs(present, max_gen_toks))
    temperature = fields.setdefault("temperature", 0.0)
    if fields.pop("do_sample") and not temperature:
        raise InvalidRequestError(
            "do_sample is true and the temperature is 0: give a temperature above 0, or do_sample=False"
        )
    until, most = fields.pop("until"), int(fields.pop("max_gen_toks"))
    return GenerationKeys(until, most, _sampling(fields))


def _sampling(fields: dict[str, Any]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for name, value in fields.items():
        if name in _SAMPLING:
            known[_SAMPLING[name]] = value
        elif value not in _NEUTRAL.get(name, ()):
            raise InvalidRequestError(f"generation key {name}={value!r}: {_remedy(name)}")
    return known


def _remedy(name: str) -> str:
    if name in _NEUTRAL:
        return f"octavo cannot do this; override it with --gen_kwargs {name}={_NEUTRAL[name][0]}"
    if name in _INSTEAD:
        return f"give {_INSTEAD[name]} instead"
    return f"not known; known are until, do_sample, {', '.join(_MOST)}, {', '.join(_SAMPLING)}"


def _number(name: str, value: object) -> None:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"{name} is {value!r}: a number is expected") from error
