"""`LLM`: a model, its KV cache and its engine, behind one object."""

from __future__ import annotations

import difflib
import json
import os
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

from octavo import _core
from octavo.aio import Dispatcher
from octavo.attention import DynamicAttention
from octavo.attention import resolve as resolve_attention
from octavo.batch import embed_batch, run_batch
from octavo.errors import InvalidRequestError
from octavo.gpu.device import choose
from octavo.hub import resolve_model
from octavo.inputs import Prompt, as_token_ids, json_default, many_prompts, one_prompt
from octavo.memory import parse_memory
from octavo.outputs import EmbeddingRequestOutput, RequestOutput
from octavo.params import SamplingParams

__all__ = ["LLM", "Message", "Prompt"]

Message: TypeAlias = Mapping[str, Any]

_ARGUMENTS = [
    "model",
    "device",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "kv_cache_memory",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_queue",
    "enable_prefix_caching",
    "attention",
    "deterministic",
    "threads",
    "seed",
    "revision",
    "tokenizer",
    "chat_template",
]


class LLM:
    """A language model, ready to generate. Safe to use from many threads and event loops at once.

    Args:
        model: a local folder or a hub id; None: the small model that ships with octavo.
        device: "cpu", "cuda", or "auto": a GPU that can be used, else the CPU.
        dtype: "auto", "float32", "bfloat16", on a GPU also "float16": computation and storage where not quantised.
        quantization: "auto" (int8 on the CPU, but for projections that it would change too much; on a GPU none, unless
            the checkpoint is int8), "int8", or None.
        kv_cache_dtype: "auto" (the model's dtype), "float32", "bfloat16", or "int8": a little over half of the memory
            of bfloat16; on a GPU the model's dtype.
        kv_cache_memory: bytes, a text such as "4GiB", or a fraction of the device's memory; None: enough for
            `max_num_seqs`, at most half of what is free, on a GPU 90 % of what weights and the largest step leave.
        max_model_len: longest sequence, prompt and output together; None: what the model was made for, if it fits.
        max_num_seqs: sequences that run at once (default 64, on a GPU 256).
        max_num_batched_tokens: tokens of one step (default 512, on a GPU 8192).
        max_queue: requests that may wait (default 1024).
        enable_prefix_caching: share the KV blocks of equal prefixes.
        attention: "dense" (exact), "dynamic", or `DynamicAttention(...)`: each query reads only the values that matter,
            from an int8 cache, and outputs say in `metrics.attention` what was left out at most. On a GPU the queries
            of prompts read everything.
        deterministic: on a GPU, give a request the same bits whatever runs beside it, at some speed; on the CPU that
            always holds.
        threads: CPU threads; None: one per core.
        seed: of requests that bring none.
        revision: branch, tag or commit of a hub repository.
        tokenizer: folder or tokenizer.json, if not the model's.
        chat_template: text of a Jinja template, if not the model's.

    Raises:
        ModelNotFoundError, UnsupportedModelError, CorruptModelError: the model.
        InvalidRequestError: an argument, named with its value.
        MissingDependencyError: an extra is needed; the message names it.
        UnsupportedDeviceError, DeviceMemoryError: the GPU.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantization: str | None = "auto",
        kv_cache_dtype: str = "auto",
        kv_cache_memory: int | float | str | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        max_queue: int | None = None,
        enable_prefix_caching: bool = True,
        attention: str | DynamicAttention = "dense",
        deterministic: bool = False,
        threads: int | None = None,
        seed: int = 0,
        revision: str | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        chat_template: str | None = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise InvalidRequestError(_unknown_argument(next(iter(unknown))))
        dynamic = resolve_attention(attention)
        kv_bytes, kv_fraction = parse_memory(kv_cache_memory)
        on = choose(device, embedded=model is None)
        self.model = resolve_model(model, revision)
        counts = {
            "max_model_len": _count("max_model_len", max_model_len),
            "max_num_seqs": _count("max_num_seqs", max_num_seqs),
            "max_num_batched_tokens": _count("max_num_batched_tokens", max_num_batched_tokens),
            "max_queue": _count("max_queue", max_queue),
        }
        try:
            if on == "cuda":
                from octavo.gpu import engine as gpu

                options = gpu.Options(
                    dtype=dtype,
                    quantization=quantization,
                    kv_cache_dtype=kv_cache_dtype,
                    attention=dynamic,
                    wishes=gpu.Wishes(**counts, kv_cache_bytes=kv_bytes, kv_cache_fraction=kv_fraction),
                    enable_prefix_caching=enable_prefix_caching,
                    deterministic=deterministic,
                    seed=_seed(seed),
                    tokenizer=None if tokenizer is None else os.fspath(tokenizer),
                    chat_template=chat_template,
                )
                self._use(gpu.start(self.model, options, gpu.gpu()))
                return
            engine = _core.Engine(
                os.fspath(self.model),
                dtype=dtype,
                quantization="none" if quantization is None else quantization,
                kv_cache_dtype=kv_cache_dtype,
                attention=None if dynamic is None else dynamic.as_tuple(),
                kv_cache_bytes=kv_bytes,
                kv_cache_fraction=kv_fraction,
                **counts,
                enable_prefix_caching=enable_prefix_caching,
                threads=_count("threads", threads),
                seed=_seed(seed),
                tokenizer=None if tokenizer is None else os.fspath(tokenizer),
                chat_template=chat_template,
            )
        except (TypeError, OverflowError) as error:
            # The binding's own check of argument types: the message names the argument.
            raise InvalidRequestError(f"LLM: {error}") from error
        self._use(engine)

    def _use(self, engine: _core.Engine) -> None:
        self._engine = engine
        self._dispatcher = Dispatcher(self._engine)
        for text in self._engine.info().get("warnings", []):
            warnings.warn(f"{self.model}: {text}", RuntimeWarning, stacklevel=3)

    @classmethod
    def _over(cls, engine: _core.Engine, model: Path) -> LLM:
        """Around an engine that was made elsewhere."""
        llm = cls.__new__(cls)
        llm.model = model
        llm._use(engine)
        return llm

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str] | None = None, **options: Any) -> LLM:
        """`LLM(model, **options)`, under the name that users of transformers know."""
        return cls(model, **options)

    # --- generating -----------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Completes one prompt or many, batched continuously. The outputs keep the order of the prompts.

        Args:
            prompts: a text, a list of token ids, or a list of these.
            params: for all prompts, or one for each.
            use_tqdm: show a progress bar (for more than one prompt).

        Raises:
            InvalidRequestError, ContextLengthError: a prompt or parameter; raised before anything runs.
            OctavoError: the only prompt failed. With several prompts the failed one's output carries `error`, and
                `finish_reason` is "error".
        """
        items = many_prompts(prompts)
        return self._run([(p, True) for p in items], params, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        use_tqdm: bool = True,
        **template_variables: Any,
    ) -> list[RequestOutput]:
        """Answers one conversation, or several, through the model's own chat template.

        Args:
            messages: [{"role": "user", "content": "..."}, ...], or a list of such lists.
            tools: tool descriptions for the template.
            template_variables: further variables of the template, such as `enable_thinking`.
        """
        if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
            raise InvalidRequestError("messages: a list of {'role': ..., 'content': ...} is expected")
        conversations = [messages] if not messages or isinstance(messages[0], Mapping) else messages
        texts = [
            self.render_chat(c, tools=tools, add_generation_prompt=add_generation_prompt, **template_variables)  # type: ignore[arg-type]
            for c in conversations
        ]
        # The template writes the special tokens itself.
        return self._run([(t, False) for t in texts], params, use_tqdm)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Yields what is new, as it comes. Closing the iterator ends the request."""
        return self._stream(self._submit(prompt, params, True), prompt)

    def stream_chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None, **template: Any
    ) -> Iterator[RequestOutput]:
        """`stream` for one conversation; `template` as in `chat`."""
        text = self.render_chat(messages, **template)
        return self._stream(self._submit(text, params, False), text)

    async def agenerate(self, prompt: Prompt, params: SamplingParams | None = None) -> RequestOutput:
        """Completes one prompt without blocking the event loop. Cancelling the task ends the request.

        Raises:
            OctavoError: as `generate` with one prompt.
        """
        return await self._agather(self._submit(prompt, params, True), prompt)

    async def achat(
        self, messages: Sequence[Message], params: SamplingParams | None = None, **template: Any
    ) -> RequestOutput:
        """`agenerate` for one conversation; `template` as in `chat`."""
        text = self.render_chat(messages, **template)
        return await self._agather(self._submit(text, params, False), text)

    async def astream(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncIterator[RequestOutput]:
        """Yields what is new without blocking the event loop. Closing the iterator, or cancelling the task, ends the
        request."""
        async with aclosing(self._astream(self._submit(prompt, params, True), prompt)) as outputs:
            async for output in outputs:
                yield output

    async def astream_chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None, **template: Any
    ) -> AsyncIterator[RequestOutput]:
        """`astream` for one conversation; `template` as in `chat`."""
        text = self.render_chat(messages, **template)
        async with aclosing(self._astream(self._submit(text, params, False), text)) as outputs:
            async for output in outputs:
                yield output

    # --- embeddings ---------------------------------------------------------------------------------------------------

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: Literal["mean", "last"] = "mean",
        normalize: bool = True,
        dimensions: int | None = None,
        priority: int = 0,
        timeout: float | None = None,
        cache_salt: str | None = None,
        use_tqdm: bool = True,
    ) -> list[EmbeddingRequestOutput]:
        """Embeds one prompt or many: the hidden states of the last layer, behind the final norm, pooled to one vector.

        Args:
            prompts: a text, a list of token ids, or a list of these.
            pooling: "mean" of all tokens (which computes the prompt whole), or the "last" token (which takes prefix
                hits).
            normalize: scale to length 1, so that a dot product is the cosine.
            dimensions: keep the first values only, for models that were trained for that.
            priority, timeout, cache_salt: as in SamplingParams.
            use_tqdm: show a progress bar (for more than one prompt).

        Raises:
            InvalidRequestError, ContextLengthError: a prompt or argument; raised before anything runs.
            OctavoError: the only prompt failed. With several prompts the failed one's output carries `error`.
        """
        fields = _pooling(pooling, normalize, dimensions, priority, timeout, cache_salt)
        items = [one_prompt(p) for p in many_prompts(prompts)]
        outputs = embed_batch(self._engine, items, fields, use_tqdm and len(items) > 1)
        if len(outputs) == 1 and outputs[0].error is not None:
            raise outputs[0].error
        return outputs

    async def aembed(
        self,
        prompt: Prompt,
        *,
        pooling: Literal["mean", "last"] = "mean",
        normalize: bool = True,
        dimensions: int | None = None,
        priority: int = 0,
        timeout: float | None = None,
        cache_salt: str | None = None,
    ) -> EmbeddingRequestOutput:
        """`embed` for one prompt without blocking the event loop. Cancelling the task ends the request."""
        fields = _pooling(pooling, normalize, dimensions, priority, timeout, cache_salt)
        stream = self._engine.embed(one_prompt(prompt), fields)
        text = prompt if isinstance(prompt, str) else None
        output = EmbeddingRequestOutput(stream.request_id, text, stream.prompt_token_ids)
        async with aclosing(self._dispatcher.deltas(stream)) as deltas:
            async for delta in deltas:
                output.add(delta)
        if output.error is not None:
            raise output.error
        return output

    # --- text and tokens --------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`."""
        if not isinstance(text, str):
            raise InvalidRequestError(f"text is a {type(text).__name__}: a string is expected")
        return self._engine.tokenize(text, add_special_tokens=add_special_tokens)

    def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`."""
        return self._engine.detokenize(as_token_ids(token_ids), skip_special_tokens=skip_special_tokens)

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **template_variables: Any,
    ) -> str:
        """The prompt that the chat template makes of `messages`."""
        request = {
            **template_variables,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            text = json.dumps(request, ensure_ascii=False, allow_nan=False, default=json_default)
            return self._engine.render_chat(text)
        except InvalidRequestError:
            raise
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequestError(f"messages cannot be written as JSON: {error}") from error

    # --- the engine ---------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Counters since the start: requests, KV blocks, steps, tokens, preemptions, prefix hits."""
        return self._engine.stats()

    def info(self) -> dict[str, Any]:
        """Model, plan of memory with reasons, machine, kernels in use, limits, resolved defaults."""
        return {**self._engine.info(), "machine": _core.build_info()}

    @property
    def spec(self) -> dict[str, Any]:
        """The decoder as data: sizes, layers, rope, norms."""
        spec: dict[str, Any] = self._engine.info()["spec"]
        return spec

    def close(self) -> None:
        """Aborts what runs and frees the memory. Idempotent; later requests raise EngineDeadError."""
        self._engine.close()
        self._dispatcher.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Closing here releases the GIL while the engine thread ends; a failed construction left nothing to close.
        if hasattr(self, "_dispatcher"):
            self.close()

    def __repr__(self) -> str:
        model = self._engine.info()["model"]
        return f"LLM({os.fspath(self.model)!r}, {model['architecture']}, {model['quantization']}, {model['dtype']})"

    # --- inside -------------------------------------------------------------------------------------------------------

    def _submit(self, prompt: Prompt, params: SamplingParams | None, special: bool) -> _core.Stream:
        return self._engine.submit(one_prompt(prompt), _params(params).as_dict(), add_special_tokens=special)

    def _stream(self, stream: _core.Stream, prompt: Prompt) -> Iterator[RequestOutput]:
        try:
            while (delta := stream.next()) is not None:
                output = _empty(stream, prompt).add(delta)
                if output.error is None or output.text:
                    yield output
                if output.error is not None:
                    raise output.error
        finally:
            stream.cancel()

    async def _astream(self, stream: _core.Stream, prompt: Prompt) -> AsyncGenerator[RequestOutput, None]:
        async with aclosing(self._dispatcher.deltas(stream)) as deltas:
            async for delta in deltas:
                output = _empty(stream, prompt).add(delta)
                if output.error is None or output.text:
                    yield output
                if output.error is not None:
                    raise output.error

    async def _agather(self, stream: _core.Stream, prompt: Prompt) -> RequestOutput:
        output = _empty(stream, prompt)
        async with aclosing(self._dispatcher.deltas(stream)) as deltas:
            async for delta in deltas:
                output.add(delta)
        if output.error is not None:
            raise output.error
        return output

    def _run(
        self,
        prompts: list[tuple[Prompt, bool]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        if params is None or isinstance(params, SamplingParams):
            each = [_params(params)] * len(prompts)
        else:
            if not isinstance(params, Sequence):
                raise InvalidRequestError(_params_type(params))
            each = [_params(p) for p in params]
            if len(each) != len(prompts):
                raise InvalidRequestError(
                    f"params has {len(each)} entries for {len(prompts)} prompts: give one for all, or one for each"
                )
        jobs = [(one_prompt(p), special, q) for (p, special), q in zip(prompts, each, strict=True)]
        outputs = run_batch(self._engine, jobs, use_tqdm and len(jobs) > 1)
        if len(outputs) == 1 and outputs[0].error is not None:
            raise outputs[0].error
        return outputs


def _empty(stream: _core.Stream, prompt: Prompt) -> RequestOutput:
    return RequestOutput(stream.request_id, prompt if isinstance(prompt, str) else None, stream.prompt_token_ids)


def _pooling(
    pooling: str,
    normalize: bool,
    dimensions: int | None,
    priority: int,
    timeout: float | None,
    cache_salt: str | None,
) -> dict[str, Any]:
    """The arguments of `embed` as the engine takes them."""
    return {
        "pooling": pooling,
        "normalize": normalize,
        "dimensions": dimensions,
        "priority": priority,
        "timeout": timeout,
        "cache_salt": cache_salt,
    }


def _params(params: SamplingParams | None) -> SamplingParams:
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise InvalidRequestError(_params_type(params))
    return params


def _params_type(params: object) -> str:
    return f"params is a {type(params).__name__}: SamplingParams, or a list of them, is expected"


def _unknown_argument(name: str) -> str:
    near = difflib.get_close_matches(name, _ARGUMENTS, n=1)
    hint = f" Did you mean {near[0]}?" if near else f" Known are: {', '.join(_ARGUMENTS)}."
    return f"LLM has no argument {name!r}.{hint}"


def _count(name: str, value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31):
        return value
    raise InvalidRequestError(f"{name} is {value!r}: an integer from 1 on is expected")


def _seed(seed: object) -> int:
    if isinstance(seed, int) and -(2**63) <= seed < 2**63:
        return seed
    raise InvalidRequestError(f"seed is {seed!r}: an integer of 64 bits is expected")
