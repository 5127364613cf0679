"""The service: requests of HTTP in, replies and answers out. The applications for ASGI and WSGI are coats over it."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import NamedTuple, TypeAlias, TypeVar

from octavo import __version__
from octavo.errors import OctavoError
from octavo.llm import LLM
from octavo.params import SamplingParams
from octavo.server import requests
from octavo.server.answer import Answer
from octavo.server.chat import chat
from octavo.server.completions import completions
from octavo.server.config import ServerConfig
from octavo.server.embeddings import embeddings
from octavo.server.engine import LazyEngine, model_name
from octavo.server.faults import ApiError, from_octavo
from octavo.server.formats import FORMATS, Format, customary, detect, knows_tools, takes_system
from octavo.server.gate import Gate
from octavo.server.generation import Generation, Pace
from octavo.server.http import Call, Reply, json_reply
from octavo.server.metrics import metrics
from octavo.server.models import list_models, one_model
from octavo.server.page import page
from octavo.server.responses import ResponsesRequest, responses
from octavo.server.text import detokenize, tokenize

log = logging.getLogger("octavo.server")

# A request whose body is shorter is answered on the event loop: a thread would cost more than reading it.
_QUICK_BYTES = 8 << 10
# Fields whose grammar may take its time. (A value that only looks like one costs a thread, and nothing else.)
_SLOW = re.compile(rb'"(?:tools|response_format|structured_outputs|text|\\u)')
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# The route of what belongs to none.
OTHER = "other"

R = TypeVar("R", bound=requests.Strict)
Handler: TypeAlias = "Callable[[Service, Call], Reply | Answer]"


class Route(NamedTuple):
    """An endpoint. `{name}` in the path takes the rest of it."""

    method: str
    path: str
    handler: Handler
    summary: str
    request: type[requests.Strict] | None = None


class Service:
    """Everything that a server does, but for sockets.

    Args:
        source: an LLM, or what one is made of; see `octavo.server.create_app`.
    """

    def __init__(self, source: LLM | str | Callable[[], LLM] | None, config: ServerConfig) -> None:
        self.config = config
        self.engine = LazyEngine(source)
        self.gate = Gate(config)
        self.created = int(time.time())
        self._pace = Pace(config.stream_interval_ms / 1000) if config.stream_interval_ms else None
        self._warned: set[str] = set()
        # (method, route, status) -> requests
        self.http_requests: Counter[tuple[str, str, int]] = Counter()
        self._count_lock = threading.Lock()

    # --- for handlers -------------------------------------------------------------------------------------------------

    @property
    def llm(self) -> LLM:
        """The model; waits while it loads.

        Raises:
            ApiError: 503.
        """
        try:
            return self.engine.get()
        except OctavoError as error:
            raise from_octavo(error) from error

    @cached_property
    def max_model_len(self) -> int:
        """Longest sequence, in tokens."""
        return int(self.llm.info()["limits"]["max_model_len"])

    @cached_property
    def max_num_seqs(self) -> int:
        """Sequences that run at once."""
        return int(self.llm.info()["limits"]["max_num_seqs"])

    @cached_property
    def names(self) -> tuple[str, ...]:
        return self.config.served_model_names or (model_name(self.llm),)

    @property
    def name(self) -> str:
        """The model's name in answers."""
        return self.names[0]

    def read(self, kind: type[R], call: Call) -> R:
        """The request in the body of `call`, for a model that is served.

        Raises:
            ApiError: 400, 404, 415.
        """
        request = requests.read(kind, call.json(self.config.limits))
        for name in sorted(set(request.model_extra or ()) - requests.SILENT - self._warned)[:8]:
            if len(self._warned) < 256:
                self._warned.add(name)
                log.warning("a field that is not known is ignored: %.64r (said once)", name)
        self.check_model(getattr(request, "model", None))
        return request

    def check_model(self, name: str | None) -> None:
        if name and name not in self.names:
            served = ", ".join(self.names)
            raise ApiError(
                404, f"there is no model {name[:80]!r} here: {served} is served", param="model", code="model_not_found"
            )

    def check_texts(self, prompts: Iterable[str | list[int]], param: str) -> None:
        """Refuses texts that are too long to be worth tokenising.

        Raises:
            ApiError: 400.
        """
        most = self.config.limits.prompt_bytes_per_token * self.max_model_len
        for prompt in prompts:
            if isinstance(prompt, str) and len(prompt) > most:
                message = f"the prompt has {len(prompt)} characters: no more than {most} are tokenised for this context"
                raise ApiError(400, message, param=param, code="context_length_exceeded")

    def generate(
        self,
        jobs: list[tuple[str | list[int], bool, SamplingParams]],
        *,
        stream: bool,
        names: dict[str, str] | None = None,
    ) -> Generation:
        """Starts engine requests. `names`: what their parameters are called in the API.

        Raises:
            ApiError: 400 for what cannot run, 429 when the queue is full.
        """
        llm = self.llm
        self.check_texts([prompt for prompt, _, _ in jobs], (names or {}).get("prompt", "prompt"))
        try:
            return Generation(llm, jobs, only_end=not stream, pace=self._pace if stream else None)
        except OctavoError as error:
            raise from_octavo(error, {"prompt": "prompt", **(names or {})}) from error

    @cached_property
    def tool_format(self) -> Format:
        """How the model writes tool calls."""
        if self.config.tool_parser != "auto":
            return FORMATS[self.config.tool_parser]
        return detect(self.llm) or customary(self.llm)

    @cached_property
    def template_tells_tools(self) -> bool:
        """The chat template tells the model of tools; else the server has to."""
        return knows_tools(self.llm)

    @cached_property
    def template_takes_system(self) -> bool:
        """The chat template has a place for a system message."""
        return takes_system(self.llm)

    # --- for applications ---------------------------------------------------------------------------------------------

    def is_quick(self, call: Call) -> bool:
        """Whether `respond` comes back within a millisecond or so: little to read, and no grammar to compile."""
        return len(call.body) < _QUICK_BYTES and self.engine.settled and not _SLOW.search(call.body)

    def respond(self, call: Call) -> Reply | Answer:
        """What to send.

        Raises:
            ApiError: what to send instead.
        """
        handler = self._route(call)
        try:
            return handler(self, call)
        except ApiError:
            raise
        except OctavoError as error:
            raise from_octavo(error) from error
        except Exception as error:
            log.exception("an internal fault in %s %s (%s)", call.method, call.path, call.request_id)
            raise from_octavo(error) from error

    def _route(self, call: Call) -> Handler:
        found = _find(call.path)
        if found is None:
            raise ApiError(404, f"there is nothing at {call.path[:200]!r}", code="not_found")
        if call.method != found.method and not (call.method == "HEAD" and found.method == "GET"):
            message = f"{call.method} is not possible here: use {found.method}"
            raise ApiError(405, message, headers={"allow": found.method})
        return found.handler

    def route_of(self, path: str) -> str:
        """The route that `path` belongs to, or `OTHER`: what strangers ask for makes no new series."""
        found = _find(path)
        return OTHER if found is None else found.path

    def counted(self, method: str, route: str, status: int) -> None:
        """A request has been answered."""
        with self._count_lock:
            self.http_requests[method if method in _METHODS else "other", route, status] += 1

    def close(self) -> None:
        self.engine.close()


def health(service: Service, _call: Call) -> Reply:
    """Alive: the process answers and the engine, if it is there, makes progress."""
    if service.engine.state in ("new", "loading"):
        return json_reply({"status": service.engine.state})
    state, cause = _state(service)
    return json_reply({"status": state, **({"cause": cause} if cause else {})}, 200 if state == "ready" else 503)


def ready(service: Service, _call: Call) -> Reply:
    """Ready: the model is loaded and makes progress. Asking begins to load it."""
    service.engine.start()
    if service.engine.state in ("new", "loading"):
        return json_reply({"status": "loading"}, 503, {"retry-after": "1"})
    return health(service, _call)


def _state(service: Service) -> tuple[str, str]:
    try:
        return service.llm._engine.health(service.config.health_seconds)
    except ApiError as error:
        return "dead", error.message


def version(_service: Service, _call: Call) -> Reply:
    return json_reply({"version": __version__})


ROUTES = [
    Route("POST", "/v1/chat/completions", chat, "Answer a conversation", requests.ChatRequest),
    Route("POST", "/v1/completions", completions, "Continue prompts", requests.CompletionRequest),
    Route("POST", "/v1/responses", responses, "Answer an input, without state", ResponsesRequest),
    Route("POST", "/v1/embeddings", embeddings, "Embed texts", requests.EmbeddingRequest),
    Route("GET", "/v1/models", list_models, "The models served"),
    Route("GET", "/v1/models/{model}", one_model, "One model"),
    Route("POST", "/tokenize", tokenize, "Text to token ids", requests.TokenizeRequest),
    Route("POST", "/detokenize", detokenize, "Token ids to text", requests.DetokenizeRequest),
    Route("GET", "/health", health, "Whether the server lives"),
    Route("GET", "/ready", ready, "Whether the server is ready for requests"),
    Route("GET", "/version", version, "The version of octavo"),
    Route("GET", "/metrics", metrics, "Metrics for Prometheus"),
    Route("GET", "/", page, "The built-in page"),
    Route("GET", "/page/{file}", page, "A file of the built-in page"),
]
_EXACT = {route.path: route for route in ROUTES}
_BELOW = [(route.path.partition("{")[0], route) for route in ROUTES if "{" in route.path]


def _find(path: str) -> Route | None:
    """The route that `path` belongs to."""
    found = _EXACT.get(path)
    if found is None:
        found = next((r for prefix, r in _BELOW if path.startswith(prefix) and len(path) > len(prefix)), None)
    return found
