"""What route handlers use: the model, the configuration, and the steps from a request body to a generation."""

from __future__ import annotations

import heapq
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, TypeVar

from octavo.errors import OctavoError
from octavo.llm import LLM
from octavo.params import SamplingParams
from octavo.server.approved import Approved
from octavo.server.calls.formats import (
    FORMATS,
    Format,
    default_format,
    detect,
    template_supports_system,
    template_supports_tools,
)
from octavo.server.calls.ids import new_call_id
from octavo.server.changes import Changes
from octavo.server.config import ServerConfig
from octavo.server.errors import ApiError, from_octavo
from octavo.server.fields import requests
from octavo.server.fields.adapters import FIELDS as ADAPTER_FIELDS
from octavo.server.fields.dialects import inside
from octavo.server.generation import Generation, StreamThrottle
from octavo.server.http import Call
from octavo.server.lazy_llm import LazyLLM, model_name
from octavo.server.response_store import ResponseStore
from octavo.server.targets import Target, Targets
from octavo.server.template_traits import CallForm, call_form, needs_alternation, needs_short_ids, shows_results
from octavo.server.truncation import truncated

log = logging.getLogger("octavo.server")

# Maximum number of unknown field names to remember. Each is logged once.
_MAX_WARNED = 256

# Formats of calls whose models want ids of nine letters and digits.
SHORT_IDS = frozenset({"mistral", "mistral_args"})

R = TypeVar("R", bound=requests.Strict)


class Context:
    """The first argument of every route handler.

    Args:
        source: an LLM, or how to make one; see `octavo.server.create_app`.

    Attributes:
        config: the server's configuration.
        lazy_llm: the model and its loading state.
        created: start time in seconds since 1970.
        response_store: stored responses of /v1/responses.
        targets: finds what a request runs with.
        approved: approved calls of plugins, each of which runs once.
        adapter_changes: loads and unloads of adapters, one after the other.
        plugin_calls: number of calls of plugins by (plugin, operation, status).
        deprecated_calls: number of calls of deprecated operations by (plugin, operation).
        http_requests: number of answered requests by (method, route, status).
    """

    def __init__(self, source: LLM | str | Callable[[], LLM] | None, config: ServerConfig) -> None:
        self.config = config
        self.lazy_llm = LazyLLM(source)
        self.created = int(time.time())
        self.http_requests: Counter[tuple[str, str, int]] = Counter()
        self.plugin_calls: Counter[tuple[str, str, str]] = Counter()
        self.deprecated_calls: Counter[tuple[str, str]] = Counter()
        self._throttle = StreamThrottle(config.stream_interval_ms / 1000) if config.stream_interval_ms else None
        self.response_store = ResponseStore(config.limits)
        self.targets = Targets(lambda: self.llm, lambda: self.names)
        self.approved = Approved()
        self.adapter_changes = Changes(config.limits.adapter_changes)
        self._warned: set[str] = set()

    @property
    def llm(self) -> LLM:
        """The model; waits while it loads.

        Raises:
            ApiError: 503.
        """
        try:
            return self.lazy_llm.get()
        except OctavoError as error:
            raise from_octavo(error) from error

    @cached_property
    def max_model_len(self) -> int:
        """Maximum length of a sequence, in tokens."""
        return int(self.llm.info()["limits"]["max_model_len"])

    @cached_property
    def max_num_seqs(self) -> int:
        """Maximum number of sequences that run at once."""
        return int(self.llm.info()["limits"]["max_num_seqs"])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All names of the model."""
        return self.config.served_model_names or (model_name(self.llm),)

    @property
    def name(self) -> str:
        """The model's name in responses."""
        return self.names[0]

    def read(self, kind: type[R], call: Call) -> R:
        """The request of `read_with_target` alone."""
        return self.read_with_target(kind, call)[0]

    def read_with_target(self, kind: type[R], call: Call) -> tuple[R, Target]:
        """Validates the body of `call` as a `kind`, and finds what it runs with.

        Raises:
            ApiError: 400, 404, 415.
        """
        request = requests.read(kind, call.json(self.config.limits))
        self._warn(request)
        return request, self.targets.of(request)

    def _warn(self, request: requests.Strict) -> None:
        """Logs the unknown fields of `request`, each once for the server."""
        names = {*(request.model_extra or ())} - requests.silent(type(request)) - ADAPTER_FIELDS.keys()
        names.update(path for path, _, value in inside(request) if value is not None)
        names.update(request.unknown_keys())
        for name in heapq.nsmallest(8, names - self._warned):
            if len(self._warned) < _MAX_WARNED:
                self._warned.add(name)
                log.warning("a field that is not known is ignored: %.64r (said once)", name)

    def warn_once(self, key: str, message: str, *values: object) -> None:
        """Logs a warning, once for each `key` in the life of the server. Texts of clients are cut by `message`."""
        if key not in self._warned and len(self._warned) < _MAX_WARNED:
            self._warned.add(key)
            log.warning(message + " (said once)", *values)

    def check_texts(self, prompts: Iterable[str | list[int]], param: str) -> None:
        """Rejects texts that cannot fit into the context, before they are tokenised.

        Raises:
            ApiError: 400.
        """
        limit = self.config.limits.prompt_bytes_per_token * self.max_model_len
        for prompt in prompts:
            if isinstance(prompt, str) and len(prompt) > limit:
                limits = f"no more than {limit} are tokenised for this context"
                message = f"the prompt has {len(prompt)} characters: {limits}"
                raise ApiError(400, message, param=param, code="context_length_exceeded")

    def with_packs(self, prompt: str | list[int], packs: Sequence[str], *, special: bool) -> str | list[int]:
        """`prompt` behind the texts of `packs`.

        Raises:
            ApiError: 400 for a pack that is for chats.
        """
        try:
            return self.llm.with_packs(prompt, packs, add_special_tokens=special) if packs else prompt
        except OctavoError as error:
            raise from_octavo(error) from error

    def with_packs_chat(self, turns: list[dict[str, Any]], packs: Sequence[str]) -> list[dict[str, Any]]:
        """`turns` with the texts of `packs` at the beginning of the system message.

        Raises:
            ApiError: 400 for a pack that is for plain prompts.
        """
        try:
            return [dict(turn) for turn in self.llm.with_packs_chat(turns, packs)] if packs else turns
        except OctavoError as error:
            raise from_octavo(error) from error

    def truncate(
        self, prompt: str | list[int], count: int | None, *, special: bool, reserved: int = 0, param: str = "prompt"
    ) -> str | list[int]:
        """`prompt` cut by `truncate_prompt_tokens`, which is `count`; see `truncated`.

        Raises:
            ApiError: 400.
        """
        if count is None:
            return prompt
        self.check_texts([prompt], param)
        return truncated(self.llm, prompt, count, special=special, context=self.max_model_len, reserved=reserved)

    def generate(
        self,
        jobs: list[tuple[str | list[int], bool, SamplingParams]],
        *,
        stream: bool,
        names: dict[str, str] | None = None,
    ) -> Generation:
        """Submits requests: (prompt, add special tokens, sampling parameters) each.

        Args:
            names: from names of `LLM.submit`'s arguments to those in the API, for errors.

        Raises:
            ApiError: 400 for an invalid request, 429 when the queue is full.
        """
        llm = self.llm
        self.check_texts([prompt for prompt, _, _ in jobs], (names or {}).get("prompt", "prompt"))
        try:
            return Generation(
                [lambda job=job: llm.submit(job[0], job[2], add_special_tokens=job[1]) for job in jobs],  # type: ignore[misc]
                only_end=not stream,
                throttle=self._throttle if stream else None,
            )
        except OctavoError as error:
            raise from_octavo(error, {"prompt": "prompt", **(names or {})}) from error

    @cached_property
    def tool_format(self) -> Format:
        """The format in which the model writes tool calls."""
        if self.config.tool_parser != "auto":
            return FORMATS[self.config.tool_parser]
        return detect(self.llm) or default_format(self.llm)

    @cached_property
    def template_supports_tools(self) -> bool:
        """The chat template describes the tools to the model; else the server does."""
        return template_supports_tools(self.llm)

    def call_form(self, *, with_tools: bool) -> CallForm:
        """How the chat template shows earlier calls, in a conversation with or without tools."""
        return self._call_form_with_tools if with_tools else self._call_form

    @cached_property
    def _call_form_with_tools(self) -> CallForm:
        return call_form(self.llm, with_tools=True)

    @cached_property
    def _call_form(self) -> CallForm:
        return call_form(self.llm, with_tools=False)

    @cached_property
    def shows_results(self) -> bool:
        """The chat template describes tools and shows results of calls, in its own form."""
        return self.template_supports_tools and shows_results(self.llm)

    @cached_property
    def needs_short_ids(self) -> bool:
        """Ids of calls must have nine letters and digits, as in all models of Mistral."""
        return self.tool_format.name in SHORT_IDS or needs_short_ids(self.llm)

    @cached_property
    def needs_alternation(self) -> bool:
        """The chat template refuses two turns of the user in a row."""
        return needs_alternation(self.llm)

    def new_call_id(self, taken: Iterable[str] = ()) -> str:
        """An id for a call of the model, in a form that the chat template takes; not in `taken`."""
        return new_call_id(taken, short=self.needs_short_ids)

    @cached_property
    def template_supports_system(self) -> bool:
        """The chat template has a place for a system message."""
        return template_supports_system(self.llm)
