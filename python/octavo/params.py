"""What a caller asks of the sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

from octavo import _core
from octavo.calls import names_arguments
from octavo.errors import InvalidRequestError
from octavo.structured import Structured

__all__ = ["EmbeddingOptions", "SamplingParams"]


@names_arguments()
@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to generate. Names and meanings are those of vLLM's `SamplingParams`.

    `None` takes the model's own default from generation_config.json, or else the neutral value.

    Attributes:
        n: samples drawn for the prompt; the prompt is computed once.
        max_tokens: most tokens to generate; None: the model's `max_new_tokens`, else until the context is full.
        min_tokens: no stop condition ends the output before this many tokens.
        temperature: 0 is greedy (ties go to the lowest id).
        top_p: the smallest set of tokens whose probabilities reach this sum, in (0, 1].
        top_k: number of candidates; 0 or -1: all.
        min_p: candidates have at least this share of the best one's probability.
        repetition_penalty: divides logits (multiplies negative ones) of tokens in prompt or output.
        presence_penalty: subtracted once from logits of tokens in the output, in [-2, 2].
        frequency_penalty: subtracted per occurrence in the output, in [-2, 2].
        seed: equal seeds give equal outputs, whatever else is in the batch.
        stop: the output ends before the first of these strings.
        stop_token_ids: the output ends with the first of these tokens.
        include_stop_str_in_output: keep the stop string, or the text of the stop token.
        ignore_eos: end-of-sequence tokens do not end the output.
        bad_words: strings that may not be produced.
        logit_bias: token id to a number in [-100, 100] added to its logit.
        allowed_token_ids: the only tokens that may be produced. An output that may not contain the end of sequence goes
            on until `max_tokens`. With `structured`, both must allow a token.
        logprobs: candidates reported per output token besides the chosen one; -1: all.
        prompt_logprobs: candidates reported per prompt token besides the actual one; -1: all.
        skip_special_tokens: leave special tokens out of the text.
        priority: lower runs first.
        timeout: seconds from submission after which the request fails with RequestTimeoutError.
        pack: a loaded pack, or several: their texts begin the prompt, or the system message of a chat.
        cache_salt: prefix-cache entries are shared only between requests of equal salt.
        lora: a loaded adapter: its name, or its name and generation ("sql@3").
        attention_error_bound: with attention="dynamic", the most softmax mass that attention may leave out for this
            request, at most the engine's own `error_bound`. Dense attention leaves nothing out and meets every bound.
        structured: what the output must be: JsonSchema, Regex or Grammar.

    Raises:
        InvalidRequestError: at construction, naming the parameter, its value and what is allowed.
    """

    n: int = 1
    max_tokens: int | None = 256
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    bad_words: Sequence[str] | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    priority: int = 0
    timeout: float | None = None
    pack: str | Sequence[str] | None = None
    cache_salt: str | None = None
    lora: str | None = None
    attention_error_bound: float | None = None
    structured: Structured | None = None

    def __post_init__(self) -> None:
        vars(self)["_parsed"] = _core.SamplingParams(self.as_dict())

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.__post_init__()

    def for_engine(self) -> _core.SamplingParams:
        """The engine's form of the parameters, which is made once."""
        parsed: _core.SamplingParams = vars(self)["_parsed"]
        return parsed

    def as_dict(self) -> dict[str, Any]:
        """The fields by name; `structured` as the pair of its kind and its text."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.structured is not None:
            if not hasattr(self.structured, "as_pair"):
                raise InvalidRequestError(
                    f"structured is {self.structured!r}: JsonSchema, Regex or Grammar is expected"
                )
            values["structured"] = self.structured.as_pair()
        return values


class EmbeddingOptions(TypedDict, total=False):
    """Keyword arguments of `LLM.embed`.

    Attributes:
        pooling: "mean" of all tokens (default; computes the whole prompt), or the "last" token (uses prefix hits).
        normalize: scale the vector to length 1 (default), which makes a dot product the cosine.
        dimensions: keep the first values only, for models trained for that.
        priority, timeout, cache_salt, lora: as in SamplingParams.
    """

    pooling: Literal["mean", "last"]
    normalize: bool
    dimensions: int | None
    priority: int
    timeout: float | None
    cache_salt: str | None
    lora: str | None
