"""Configuration of the server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from octavo.calls import names_arguments
from octavo.errors import InvalidRequestError

if TYPE_CHECKING:
    from octavo.plugins.host.host import PluginHost

# Names in octavo.server.calls.formats; a test compares them.
TOOL_PARSERS = (
    "hermes",
    "qwen3_coder",
    "gemma",
    "mistral",
    "mistral_args",
    "llama3_json",
    "pythonic",
    "olmo3",
    "deepseek_v3",
    "deepseek_v31",
    "granite",
    "phi4_mini",
    "phi4_mini_json",
    "cohere",
    "glm4",
)
REASONING_PARSERS = ("think", "deepseek_r1", "mistral", "granite", "cohere")


@names_arguments()
@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one request. The response to a request beyond a limit is 400 (413 and 431 for HTTP sizes).

    Attributes:
        body_bytes, headers, header_bytes, json_depth, json_values: of an HTTP request.
        body_seconds: maximum time to receive the body.
        bodies_bytes: maximum size of all bodies that are being received.
        n: samples of one prompt. prompts: prompts of one call. embedding_inputs: inputs of one call of /v1/embeddings.
        prompt_bytes_per_token: a prompt longer than this times the context is rejected without tokenisation.
        logprobs: candidates per token.
        stop, stop_bytes: number and length of stop strings.
        logit_bias: entries.
        tools, tools_bytes: number of tools; all of them together as JSON.
        stored_responses, stored_responses_bytes: number and size of the stored responses of one API key; 0: none are
            stored. The longest unused ones are dropped first.
        stored_responses_seconds: a response is dropped this long after its last use.
        adapter_changes: loads and unloads of adapters that run or wait at once.
        stream_stall_seconds: a client that reads nothing for this time is disconnected.
    """

    body_bytes: int = 8 << 20
    headers: int = 100
    header_bytes: int = 32 << 10
    json_depth: int = 64
    json_values: int = 1_000_000
    body_seconds: float = 60.0
    bodies_bytes: int = 64 << 20
    n: int = 128
    prompts: int = 256
    embedding_inputs: int = 2048
    prompt_bytes_per_token: int = 16
    logprobs: int = 20
    stop: int = 16
    stop_bytes: int = 256
    logit_bias: int = 1024
    tools: int = 128
    tools_bytes: int = 256 << 10
    stored_responses: int = 1000
    stored_responses_bytes: int = 64 << 20
    stored_responses_seconds: float = 24 * 3600.0
    adapter_changes: int = 8
    stream_stall_seconds: float = 60.0


@names_arguments()
@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Names, keys and behaviour of a server.

    Attributes:
        api_keys: accepted bearer tokens. With keys, only /health, /version and the page are open. Each key has its own
            part of the prefix cache.
        served_model_names: names of the model in the API; responses use the first. Default: the folder or hub id.
        allowed_hosts: accepted Host headers, without port; None: all. `octavo serve` sets it for servers without a key,
            as protection against DNS rebinding.
        allowed_origins: web origins whose pages may call the server (CORS).
        limits: see Limits.
        stream_interval_ms: minimum time between two events of a stream; each has all new tokens.
        health_seconds: a step that takes longer is a stall.
        metrics_compat: "vllm" also exports the metrics under vLLM's names.
        tool_parser: format of tool calls in the model's text; "auto": from the chat template.
        reasoning_parser: format of reasoning in the model's text, or None.
        disable_additional_properties: objects in schemas that name their properties take no others, unless
            `additionalProperties` says so; False: they take any.
        admin_api_keys: bearer tokens that load and unload adapters, and open nothing else.
        lora_root: folder below which adapters are loaded at run time. It and `admin_api_keys` go together; without them
            a running server takes no other adapters.
        page: serve a small page at /. Its files need no key and contain no data.
        plugins: the plugins that requests may name; the caller closes the host. max_plugin_rounds: rounds with calls of
            plugins in one answer.
        plugin_approvals: by plugin, calls that wait for an approval whatever a client says: "always" all of them,
            "consequential" those with consequences. Plugins that are not named here: the client decides.
    """

    api_keys: tuple[str, ...] = ()
    served_model_names: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] | None = None
    allowed_origins: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    stream_interval_ms: float = 20.0
    health_seconds: float = 60.0
    metrics_compat: str | None = None
    tool_parser: str = "auto"
    reasoning_parser: str | None = None
    disable_additional_properties: bool = True
    admin_api_keys: tuple[str, ...] = ()
    lora_root: str | os.PathLike[str] | None = None
    page: bool = True
    plugins: PluginHost | None = None
    max_plugin_rounds: int = 8
    plugin_approvals: Mapping[str, Literal["always", "consequential"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("api_keys", "admin_api_keys"):
            if any(not key.strip() or not key.isascii() for key in getattr(self, name)):
                raise InvalidRequestError(f"{name}: a key is empty or not ASCII")
        self._check_runtime_adapters()
        if self.tool_parser not in ("auto", *TOOL_PARSERS):
            raise InvalidRequestError(f"tool_parser is {self.tool_parser!r}: auto, {', '.join(TOOL_PARSERS)}")
        if self.reasoning_parser not in (None, *REASONING_PARSERS):
            known = ", ".join(REASONING_PARSERS)
            raise InvalidRequestError(f"reasoning_parser is {self.reasoning_parser!r}: None, {known}")
        if self.metrics_compat not in (None, "vllm"):
            raise InvalidRequestError(f"metrics_compat is {self.metrics_compat!r}: 'vllm' or None is expected")
        if not 0 <= self.stream_interval_ms <= 10_000:
            raise InvalidRequestError(f"stream_interval_ms is {self.stream_interval_ms}: 0 to 10000 is expected")
        if not 1 <= self.max_plugin_rounds <= 64:
            raise InvalidRequestError(f"max_plugin_rounds is {self.max_plugin_rounds}: 1 to 64 is expected")
        for name, rule in self.plugin_approvals.items():
            hosted = [] if self.plugins is None else self.plugins.names
            if name not in hosted:
                raise InvalidRequestError(f"plugin_approvals names {name!r}: plugins has {', '.join(hosted) or 'none'}")
            if rule not in ("always", "consequential"):
                raise InvalidRequestError(f"plugin_approvals of {name!r} is {rule!r}: always or consequential")

    @property
    def takes_adapters(self) -> bool:
        """Adapters can be loaded and unloaded at run time."""
        return self.lora_root is not None

    def _check_runtime_adapters(self) -> None:
        if {*self.admin_api_keys} & {*self.api_keys}:
            raise InvalidRequestError("admin_api_keys: a key is also in api_keys: make another one for administrators")
        if self.lora_root is None:
            if self.admin_api_keys:
                raise InvalidRequestError(
                    "admin_api_keys without lora_root open nothing: set lora_root, or leave them out"
                )
            return
        if not self.admin_api_keys:
            raise InvalidRequestError("lora_root needs a key of administrators: set admin_api_keys")
        if not os.path.isdir(self.lora_root):
            raise InvalidRequestError(f"lora_root is {os.fspath(self.lora_root)!r}, which is no folder")
