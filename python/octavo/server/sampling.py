"""Converts the sampling fields of a request to SamplingParams, within the server's limits."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.params import SamplingParams
from octavo.server.config import Limits
from octavo.server.errors import bad_request, from_octavo
from octavo.server.fields.requests import Sampling

# Fields that `sampling_params` converts, and fields with the same name and meaning in both.
_OWN_RULES = {"n", "max_tokens", "top_p", "stop", "logit_bias", "logprobs", "prompt_logprobs", "cache_salt", "pack"}
_SAME = [f.name for f in fields(SamplingParams) if f.name in Sampling.model_fields and f.name not in _OWN_RULES]


def sampling_params(request: Sampling, limits: Limits, salt: str | None, **more: Any) -> SamplingParams:
    """The parameters of `request`. Fields in `more` take precedence.

    Raises:
        ApiError: 400 with the parameter's name.
    """
    values: dict[str, Any] = {name: value for name in _SAME if (value := getattr(request, name)) is not None}
    values["n"] = request.n or 1
    values["max_tokens"] = request.max_tokens
    if request.top_p is not None:
        # OpenAI allows 0, which means the best token only.
        values["top_p"] = request.top_p or 1e-9
    if request.stop:
        stop = [request.stop] if isinstance(request.stop, str) else request.stop
        if len(stop) > limits.stop:
            raise bad_request(f"stop has {len(stop)} strings: at most {limits.stop} are taken", "stop")
        if any(len(s.encode()) > limits.stop_bytes for s in stop):
            raise bad_request(f"stop has a string of more than {limits.stop_bytes} bytes", "stop")
        values["stop"] = stop
    if request.logit_bias:
        values["logit_bias"] = _bias(request.logit_bias, limits)
    if request.prompt_logprobs is not None:
        values["prompt_logprobs"] = candidates("prompt_logprobs", request.prompt_logprobs, limits)
    values["cache_salt"] = cache_salt(salt, request.cache_salt)
    values.update(more)
    if values["n"] > limits.n:
        raise bad_request(f"n is {values['n']}: at most {limits.n} is taken", "n")
    try:
        return SamplingParams(**values)
    except InvalidRequestError as error:
        raise from_octavo(error) from error


def candidates(name: str, value: int, limits: Limits) -> int:
    if value > limits.logprobs:
        raise bad_request(f"{name} is {value}: at most {limits.logprobs} is taken", name)
    return limits.logprobs if value == -1 else value


def _bias(given: dict[str, float], limits: Limits) -> dict[int, float]:
    if len(given) > limits.logit_bias:
        raise bad_request(f"logit_bias has {len(given)} entries: at most {limits.logit_bias} are taken", "logit_bias")
    bad = next((key for key in given if not (key.isascii() and key.isdecimal() and len(key) <= 10)), None)
    if bad is not None:
        raise bad_request(f"logit_bias has the key {bad[:80]!r}: token ids are expected", "logit_bias")
    return {int(key): value for key, value in given.items()}


def cache_salt(key: str | None, own: str | None) -> str | None:
    """Salt of the prefix cache: entries are never shared between API keys. `own`: the salt of the request."""
    if key is None and own is None:
        return None
    return f"{key or ''}\n{own or ''}"
