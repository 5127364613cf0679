"""The argument `sampling_params`: one for all prompts, or one for each."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.adapters import Adapter, with_adapter
from octavo.errors import InvalidRequestError
from octavo.params import SamplingParams

__all__ = ["checked_params", "one_for_each"]


def one_for_each(
    sampling_params: SamplingParams | Sequence[SamplingParams] | None,
    count: int,
    adapter: str | Adapter | None = None,
) -> list[SamplingParams]:
    if sampling_params is None or isinstance(sampling_params, SamplingParams):
        return [checked_params(sampling_params, adapter)] * count
    if not isinstance(sampling_params, Sequence):
        raise InvalidRequestError(_wrong_type(sampling_params))
    if len(sampling_params) != count:
        raise InvalidRequestError(
            f"sampling_params has {len(sampling_params)} entries for {count} prompts: give one for all, or one for each"
        )
    return [checked_params(p, adapter) for p in sampling_params]


def checked_params(sampling_params: SamplingParams | None, adapter: str | Adapter | None = None) -> SamplingParams:
    if sampling_params is None:
        return with_adapter(SamplingParams(), adapter)
    if not isinstance(sampling_params, SamplingParams):
        raise InvalidRequestError(_wrong_type(sampling_params))
    return with_adapter(sampling_params, adapter)


def _wrong_type(value: object) -> str:
    return f"sampling_params is a {type(value).__name__}: SamplingParams, or a list of them, is expected"
