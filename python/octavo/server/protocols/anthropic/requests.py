"""Models of request bodies: Anthropic's fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from octavo.server.fields.foreign import ALIASES, CONSTRAINTS, NEUTRAL, REFUSED, Refusal
from octavo.server.fields.known_keys import BLOCKS, unknown_keys
from octavo.server.fields.requests import ChatRequest, PackNames, Strict
from pydantic import Field

_REMEDIES = {
    "stop": "use stop_sequences",
    "response_format": "use output_config.format",
    "structured_outputs": "use output_config.format, or /v1/chat/completions",
    "max_completion_tokens": "use max_tokens",
    "max_output_tokens": "use max_tokens",
    "parallel_tool_calls": "use tool_choice.disable_parallel_tool_use",
    "input": "use messages",
    "prompt": "use messages",
    "instructions": "use system",
    "continue_final_message": "a last message of the assistant is continued",
}
_REMEDIES |= dict.fromkeys(CONSTRAINTS, _REMEDIES["response_format"])
_REMEDIES |= {name: f"use {own}" for name, own in ALIASES.items() if own == "max_tokens"}
_OTHERS = ALIASES.keys() | ChatRequest.model_fields.keys() - {"user", "stream_options"}

_REFUSED = {
    **REFUSED,
    **{name: Refusal("use /v1/chat/completions for it", NEUTRAL.get(name, ())) for name in _OTHERS},
    **{name: Refusal(remedy, NEUTRAL.get(name, ())) for name, remedy in _REMEDIES.items()},
}
# Fields that would change the prompt. Others change no count.
_OF_PROMPTS = ("chat_template", "chat_template_kwargs", "functions", "input", "instructions", "prompt")

# Content blocks have many types: `octavo.server.protocols.anthropic.blocks` reads them.
Block = dict[str, Any]


class AnthropicTurn(Strict):
    """A turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class AnthropicTool(Strict):
    """A tool that the client runs. Other types than "custom" are tools that Anthropic defines, which are skipped."""

    type: str | None = None
    name: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    # Without effect
    allowed_callers: Any = None
    cache_control: Any = None
    defer_loading: Any = None
    eager_input_streaming: Any = None
    input_examples: Any = None


class AnthropicToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(Strict):
    """`display`: "omitted" leaves the text of thinking blocks empty."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    display: Literal["summarized", "omitted", "full"] | None = None


class JsonOutputFormat(Strict):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    """`effort` and `task_budget` have no effect."""

    format: JsonOutputFormat | None = None
    effort: Any = None
    task_budget: Any = None


class CountTokensRequest(Strict):
    """POST /v1/messages/count_tokens: what makes the prompt."""

    refused: ClassVar[Mapping[str, Refusal]] = {name: _REFUSED[name] for name in _OF_PROMPTS}
    model: str | None = None
    messages: Annotated[list[AnthropicTurn], Field(min_length=1, max_length=100_000)]
    system: str | list[Block] | None = None
    # Far above any limit of the server: a longer list is not read.
    tools: Annotated[list[AnthropicTool], Field(max_length=4096)] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    # octavo's own
    pack: PackNames | None = None
    # The name of output_config.format in earlier versions of the API.
    output_format: JsonOutputFormat | None = None
    # Refused, since the answer would be another one
    container: Any = None
    mcp_servers: Any = None
    thread: Any = None
    # Without effect
    billing_policy: Any = None
    cache_control: Any = None
    compaction: Any = None
    context_management: Any = None
    diagnostics: Any = None
    fallback_credit_token: Any = None
    fallbacks: Any = None
    inference_geo: Any = None
    metadata: Any = None
    service_tier: Any = None
    speed: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None

    def unknown_keys(self) -> Iterator[str]:
        yield from unknown_keys(self.system, "system", BLOCKS)
        for turn in self.messages:
            yield from unknown_keys(turn.content, "messages[].content", BLOCKS)


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages"""

    refused: ClassVar[Mapping[str, Refusal]] = _REFUSED
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)]
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
