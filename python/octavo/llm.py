"""`LLM`: a model, its KV cache and its engine, behind one object."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Unpack

from octavo import _core
from octavo.adapters import Adapter, AdapterMethods
from octavo.batch import run_batch, single_error
from octavo.calls import names_arguments
from octavo.config import EngineArguments, EngineConfig, takes_config
from octavo.deprecated import accept_params
from octavo.dispatcher import Dispatcher
from octavo.each_params import checked_params, one_for_each
from octavo.embedding import EmbeddingMethods
from octavo.errors import InvalidRequestError
from octavo.gpu.device import choose
from octavo.hub import resolve_model
from octavo.inputs import Prompt, many_prompts, one_prompt
from octavo.outputs import RequestOutput
from octavo.packs import PackMethods
from octavo.params import SamplingParams
from octavo.request_handle import Output, RequestHandle
from octavo.text_methods import SAMPLING_FIELDS, Message
from octavo.with_plugins import plugin_chat, with_plugins

if TYPE_CHECKING:
    from octavo.plugins.host.host import PluginHost
    from octavo.plugins.host.outcome import Outcome

__all__ = ["LLM", "Message", "Prompt"]


@takes_config
@names_arguments(SAMPLING_FIELDS)
class LLM(AdapterMethods, EmbeddingMethods, PackMethods):
    """A language model, ready to generate. Safe to use from many threads and event loops at once.

    Args:
        model: a local folder or a hub id; None: the small model that ships with octavo.
        {options}

    Raises:
        ModelNotFoundError, UnsupportedModelError, CorruptModelError: the model.
        InvalidRequestError: an argument, named with its value.
        MissingDependencyError: an extra is needed; the message names it.
        UnsupportedDeviceError, DeviceMemoryError: the GPU.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, **options: Unpack[EngineArguments]) -> None:
        config = EngineConfig.from_arguments(options)
        values = config.for_engine()
        device = choose(config.device, embedded=model is None)
        self.model = resolve_model(model, config.revision)
        self.config = config
        if device == "cuda":
            from octavo.gpu import load

            self._use(load.start(self.model, values, load.gpu()))
        else:
            self._use(_core.Engine(os.fspath(self.model), values))

    def _use(self, engine: _core.Engine) -> None:
        self._engine = engine
        self._dispatcher = Dispatcher(self._engine)
        # The text of the token that begins every prompt; None: not looked up yet.
        self._beginning: str | None = None
        for text in self._engine.info().get("warnings", []):
            warnings.warn(f"{self.model}: {text}", RuntimeWarning, stacklevel=3)

    @classmethod
    def _over(cls, engine: _core.Engine, model: Path) -> LLM:
        """Around an engine that was made elsewhere."""
        llm = cls.__new__(cls)
        llm.model = model
        llm.config = EngineConfig()
        llm._use(engine)
        return llm

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str] | None = None, **options: Unpack[EngineArguments]) -> LLM:
        """`LLM(model, **options)`, under the name that users of transformers know."""
        return cls(model, **options)

    # --- generating -----------------------------------------------------------------------------------------------

    @accept_params
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Adapter | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Completes one prompt or many, batched continuously. The outputs keep the order of the prompts.

        Args:
            prompts: a text, a list of token ids, or a list of these. vLLM's {"prompt": text} and
                {"prompt_token_ids": ids} are accepted, too.
            sampling_params: for all prompts, or one for each.
            adapter: a loaded adapter, for all prompts: `SamplingParams.lora` in short.
            use_tqdm: show a progress bar (for more than one prompt).

        Raises:
            InvalidRequestError, ContextLengthError: a prompt or parameter; raised before anything runs.
            OctavoError: the only prompt failed. With several prompts the failed one's output carries `error`, and
                `finish_reason` is "error".
        """
        items = [one_prompt(p) for p in many_prompts(prompts)]
        each = one_for_each(sampling_params, len(items), adapter)
        items = self._composed(items, each)
        self._warn_of_two_beginnings(items)
        return single_error(run_batch(self._engine, items, each, add_special_tokens=True, progress=use_tqdm))

    @accept_params
    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Adapter | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        use_tqdm: bool = True,
        plugins: PluginHost | None = None,
        max_rounds: int = 8,
        approve: Callable[[Outcome], bool] | None = None,
        **template_variables: Any,
    ) -> list[RequestOutput]:
        """Answers one conversation, or several, through the model's own chat template.

        Args:
            messages: [{"role": "user", "content": "..."}, ...], or a list of such lists.
            adapter: a loaded adapter, for all conversations: `SamplingParams.lora` in short.
            tools: tool descriptions for the template.
            plugins: plugins whose operations the model may call. The calls run here, and `tool_trace` of an output has
                their outcomes.
            max_rounds: rounds with calls of plugins. After them the model answers without plugins.
            approve: decides about a call that waits for an approval; only True approves it. None: the answer ends with
                the call. `achat` and `astream_chat` also await what it returns.
            template_variables: further variables of the template, such as `enable_thinking`.
        """
        if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
            raise InvalidRequestError("messages: a list of {'role': ..., 'content': ...} is expected")
        conversations = [messages] if not messages or isinstance(messages[0], Mapping) else messages
        each = one_for_each(sampling_params, len(conversations), adapter)
        given = {**template_variables, "tools": tools, "add_generation_prompt": add_generation_prompt}
        if (asked := with_plugins(plugins, max_rounds, approve, given)) is not None:
            run = plugin_chat()
            chats = [run.PluginChat(self, c, p, asked) for c, p in zip(conversations, each, strict=True)]
            outputs: list[RequestOutput] = run.run_chats(chats, progress=use_tqdm)
            return outputs
        with_packs = [self.with_packs_chat(c, p.pack) for c, p in zip(conversations, each, strict=True)]  # type: ignore[arg-type]
        texts = [
            self.render_chat(c, tools=tools, add_generation_prompt=add_generation_prompt, **template_variables)
            for c in with_packs
        ]
        # The template writes the special tokens itself.
        return single_error(run_batch(self._engine, texts, each, add_special_tokens=False, progress=use_tqdm))

    def submit(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        adapter: str | Adapter | None = None,
        add_special_tokens: bool = True,
    ) -> RequestHandle[RequestOutput]:
        """Submits one request and returns at once. The handle gives its outputs, and cancels it.

        Args:
            prompt: as it is sent. The texts of packs are in it already: see `with_packs` and `with_packs_chat`.
            adapter: a loaded adapter: `SamplingParams.lora` in short.
            add_special_tokens: False for the text of a rendered chat template, which contains them.

        Raises:
            InvalidRequestError, ContextLengthError: the prompt or a parameter.
            QueueFullError: `max_queue` requests wait.
        """
        params, item = checked_params(sampling_params, adapter).for_engine(), one_prompt(prompt)
        stream = self._engine.submit(item, params, add_special_tokens=add_special_tokens)
        return self._handle(stream, RequestOutput, item)

    @accept_params
    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        adapter: str | Adapter | None = None,
    ) -> Iterator[RequestOutput]:
        """Yields what is new, as it comes. Closing the iterator ends the request."""
        return iter(self._submit_text(prompt, sampling_params, adapter))

    @accept_params
    def stream_chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        adapter: str | Adapter | None = None,
        plugins: PluginHost | None = None,
        max_rounds: int = 8,
        approve: Callable[[Outcome], bool] | None = None,
        **template: Any,
    ) -> Iterator[RequestOutput]:
        """`stream` for one conversation; all other arguments as in `chat`."""
        if (asked := with_plugins(plugins, max_rounds, approve, template)) is not None:
            chat = plugin_chat().PluginChat(self, messages, checked_params(sampling_params, adapter), asked)
            outputs: Iterator[RequestOutput] = chat.outputs()
            return outputs
        return iter(self._submit_chat(messages, sampling_params, adapter, template))

    @accept_params
    async def agenerate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        adapter: str | Adapter | None = None,
    ) -> RequestOutput:
        """Completes one prompt without blocking the event loop. Cancelling the task ends the request.

        Raises:
            OctavoError: as `generate` with one prompt.
        """
        return await self._submit_text(prompt, sampling_params, adapter).aresult()

    @accept_params
    async def achat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        adapter: str | Adapter | None = None,
        plugins: PluginHost | None = None,
        max_rounds: int = 8,
        approve: Callable[[Outcome], bool | Awaitable[bool]] | None = None,
        **template: Any,
    ) -> RequestOutput:
        """`agenerate` for one conversation; all other arguments as in `chat`."""
        if (asked := with_plugins(plugins, max_rounds, approve, template)) is not None:
            params = checked_params(sampling_params, adapter)
            # Making it asks the plugins for their operations.
            chat = await asyncio.to_thread(plugin_chat().PluginChat, self, messages, params, asked)
            output: RequestOutput = await chat.aresult()
            return output
        return await self._submit_chat(messages, sampling_params, adapter, template).aresult()

    @accept_params
    async def astream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        adapter: str | Adapter | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """Yields what is new without blocking the event loop. Closing the iterator, or cancelling the task, ends the
        request."""
        async with aclosing(aiter(self._submit_text(prompt, sampling_params, adapter))) as outputs:
            async for output in outputs:
                yield output

    @accept_params
    async def astream_chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        adapter: str | Adapter | None = None,
        plugins: PluginHost | None = None,
        max_rounds: int = 8,
        approve: Callable[[Outcome], bool | Awaitable[bool]] | None = None,
        **template: Any,
    ) -> AsyncIterator[RequestOutput]:
        """`astream` for one conversation; all other arguments as in `chat`."""
        if (asked := with_plugins(plugins, max_rounds, approve, template)) is not None:
            params = checked_params(sampling_params, adapter)
            chat = await asyncio.to_thread(plugin_chat().PluginChat, self, messages, params, asked)
            async with aclosing(chat.aoutputs()) as news:
                async for output in news:
                    yield output
            return
        async with aclosing(aiter(self._submit_chat(messages, sampling_params, adapter, template))) as outputs:
            async for output in outputs:
                yield output

    # --- the engine ---------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Counters since the start: requests, KV blocks, steps, tokens, preemptions, prefix hits."""
        return self._engine.stats()

    def histograms(self) -> dict[str, Any]:
        """Distributions of times (seconds) and token counts since the start: cumulative counts by upper bound."""
        return self._engine.histograms()

    def health(self, stall_seconds: float = 60.0) -> tuple[Literal["ready", "stalled", "dead"], str]:
        """State of the engine, and the cause if it is not ready. "stalled": one step runs longer than
        `stall_seconds`."""
        return self._engine.health(stall_seconds)

    def info(self) -> dict[str, Any]:
        """Model, memory plan with reasons, machine, kernels in use, limits, resolved defaults."""
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

    def __copy__(self) -> LLM:
        raise TypeError("an LLM cannot be copied: it owns its engine. Share the object, or make another LLM")

    def __deepcopy__(self, memo: dict[int, Any]) -> LLM:
        return self.__copy__()

    def __reduce__(self) -> str:
        raise TypeError("an LLM cannot be pickled: it has a running engine. Make an LLM in the other process")

    def __repr__(self) -> str:
        model = self._engine.info()["model"]
        return f"LLM({os.fspath(self.model)!r}, {model['architecture']}, {model['quantization']}, {model['dtype']})"

    # --- inside -------------------------------------------------------------------------------------------------------

    def _handle(self, stream: _core.Stream, output: type[Output], prompt: str | list[int]) -> RequestHandle[Output]:
        return RequestHandle(stream, self._dispatcher, output, prompt if isinstance(prompt, str) else None, self)

    def _warn_of_two_beginnings(self, prompts: Sequence[str | list[int]]) -> None:
        """Warns once of a text that begins with the token that the tokenizer adds: `render_chat` writes it."""
        if self._beginning is None:
            with_it, without = (self._engine.tokenize("a", add_special_tokens=s)[:1] for s in (True, False))
            ids = with_it if with_it != without else []
            self._beginning = self._engine.detokenize(ids, skip_special_tokens=False)
        if self._beginning and any(isinstance(p, str) and p.startswith(self._beginning) for p in prompts):
            warnings.warn(
                f"a prompt begins with {self._beginning!r}, and the tokenizer adds it again. "
                "Use chat, or submit(..., add_special_tokens=False)",
                RuntimeWarning,
                stacklevel=4,
            )
            self._beginning = ""

    def _submit_text(
        self, prompt: Prompt, sampling_params: SamplingParams | None, adapter: str | Adapter | None
    ) -> RequestHandle[RequestOutput]:
        params = checked_params(sampling_params, adapter)
        [item] = self._composed([prompt], [params])
        self._warn_of_two_beginnings([item])
        return self.submit(item, params)

    def _submit_chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None,
        adapter: str | Adapter | None,
        template: dict[str, Any],
    ) -> RequestHandle[RequestOutput]:
        params = checked_params(sampling_params, adapter)
        text = self.render_chat(self.with_packs_chat(messages, params.pack), **template)
        return self.submit(text, params, add_special_tokens=False)
