"""Models of request bodies: OpenAI's fields, and vLLM's additional fields.

The models are strict (no conversion between strings, numbers and booleans). The OpenAPI document is made from them.
Unknown fields are accepted if they cannot change the answer; each is logged once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from octavo._core import sampling_schema
from octavo.server.fields.dialects import refuse, translate
from octavo.server.fields.foreign import ALIASES, CONSTRAINTS, REFUSED, REFUSED_BY_EMBEDDINGS, Refusal
from octavo.server.fields.invalid import invalid

PackNames = Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(max_length=64)]
TokenId = Annotated[int, Field(ge=0, le=2**32 - 1)]
_RANGES: dict[str, dict[str, float]] = sampling_schema()["properties"]


def _in_range(name: str) -> Any:
    """The engine's range of a sampling field."""
    limits = _RANGES[name]
    return Field(
        ge=limits.get("minimum"),
        gt=limits.get("exclusiveMinimum"),
        le=limits.get("maximum"),
        lt=limits.get("exclusiveMaximum"),
    )


class Strict(BaseModel):
    """Attributes:
    refused: fields that this request does not have and refuses; other unknown fields are logged.
    """

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())
    refused: ClassVar[Mapping[str, Refusal]] = REFUSED

    def unknown_keys(self) -> Iterator[str]:
        """Paths of unknown keys in the objects that this request holds as plain dicts."""
        return iter(())


class StreamOptions(Strict):
    """`include_usage`: one more chunk with the usage at the end. `continuous_usage_stats`: each chunk has it so far.
    `include_obfuscation` has no effect.
    """

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class StructuredOutputs(Strict):
    """vLLM's way to constrain an output: exactly one of the fields, and how to read a schema."""

    json_: dict[str, Any] | str | bool | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_additional_properties: bool | None = None


class JsonSchemaFormat(Strict):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: JsonSchemaFormat | None = None
    pattern: str | None = None
    grammar: str | None = None


class Sampling(Strict):
    """What every request that generates may say about sampling."""

    _given: dict[str, str] = PrivateAttr(default_factory=dict)
    model: str | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, _in_range("frequency_penalty")] | None = None
    presence_penalty: Annotated[float, _in_range("presence_penalty")] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    # vLLM's further fields
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, _in_range("min_p")] | None = None
    repetition_penalty: Annotated[float, _in_range("repetition_penalty")] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[TokenId] | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: Annotated[int, Field(ge=-1)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    # octavo's own: at most the engine's bound
    attention_error_bound: Annotated[float, _in_range("attention_error_bound")] | None = None
    pack: PackNames | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    timeout: Annotated[float, _in_range("timeout")] | None = None
    structured_outputs: StructuredOutputs | None = None
    response_format: ResponseFormat | None = None

    def given_name(self, name: str) -> str:
        """The name that the client gave to the field `name`."""
        return self._given.get(name, name)

    def set_given_names(self, names: dict[str, str]) -> None:
        """Remembers the client's names of translated fields."""
        self._given = names


class CompletionRequest(Sampling):
    """POST /v1/completions"""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    best_of: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    suffix: str | None = None
    add_special_tokens: bool | None = None


class ContentPart(Strict):
    """A piece of a message: text, here."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(Strict):
    """An earlier call. Its arguments may be anything: models and clients write what is no JSON object."""

    name: str
    arguments: Any = None


class CustomCall(Strict):
    name: str
    input: str


class ToolCall(Strict):
    id: str | None = None
    type: str = "function"
    function: FunctionCall | None = None
    custom: CustomCall | None = None


class ApprovalFilter(Strict):
    """Operations of a plugin, in OpenAI's shape: those that are named, and only those that read if it says so."""

    tool_names: list[str] | None = None
    read_only: bool | None = None


class ApprovalFilters(Strict):
    """Operations whose calls wait for an approval, and operations whose calls never do."""

    always: ApprovalFilter | None = None
    never: ApprovalFilter | None = None


class ChosenPlugin(Strict):
    """A plugin of the server, and what of it the model may call."""

    name: Annotated[str, Field(min_length=1)]
    allowed_tools: list[str] | ApprovalFilter | None = None
    require_approval: Literal["always", "never"] | ApprovalFilters | None = None


class Message(Strict):
    """A turn of a conversation."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    # vLLM's name for it.
    reasoning: str | None = None
    # Other names of continue_final_message: Mistral's and DeepSeek's, then Moonshot's.
    prefix: bool | None = None
    partial: bool | None = None
    # octavo's own: calls that an earlier answer has run
    plugin_calls: list[dict[str, Any]] | None = None


class Function(Strict):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Custom(Strict):
    """A tool whose input is one text."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str | None = None
    format: dict[str, Any] | None = None


class Tool(Strict):
    """A function or a custom tool. Tools of other types, which servers run, are skipped."""

    type: str
    function: Function | None = None
    custom: Custom | None = None


class ChosenFunction(Strict):
    name: str


class AllowedTools(Strict):
    mode: Literal["auto", "required"] = "auto"
    tools: list[dict[str, Any]]


class ChosenTool(Strict):
    """A tool that must be called, or the tools that may be called."""

    type: str
    function: ChosenFunction | None = None
    custom: ChosenFunction | None = None
    allowed_tools: AllowedTools | None = None


class ChatRequest(Sampling):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    # vLLM's further fields
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking_token_budget: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    echo: Literal[False] | None = None
    add_special_tokens: Literal[False] | None = None
    # octavo's own
    plugins: Annotated[list[str | ChosenPlugin], Field(max_length=64)] | None = None
    plugin_approvals: dict[str, bool] | None = None
    max_plugin_rounds: Annotated[int, Field(ge=1, le=64)] | None = None


class EmbeddingRequest(Strict):
    """POST /v1/embeddings"""

    refused: ClassVar[Mapping[str, Refusal]] = REFUSED_BY_EMBEDDINGS
    model: str | None = None
    input: str | list[str] | list[TokenId] | list[list[TokenId]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    user: str | None = None
    # vLLM's further fields
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    normalize: bool | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    # octavo's
    pooling: Literal["mean", "last"] | None = None
    timeout: Annotated[float, _in_range("timeout")] | None = None


class TokenizeRequest(Strict):
    """POST /tokenize: `prompt`, or `messages` through the chat template."""

    refused: ClassVar[Mapping[str, Refusal]] = {"chat_template": REFUSED["chat_template"]}
    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    pack: PackNames | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Strict):
    """POST /detokenize"""

    refused: ClassVar[Mapping[str, Refusal]] = {}
    model: str | None = None
    tokens: list[TokenId]


R = TypeVar("R", bound=Strict)


def read(kind: type[R], body: dict[str, Any]) -> R:
    """Validates `body` as a `kind`. Fields in other servers' spelling are translated or refused.

    Raises:
        ApiError: 400 that names the invalid field.
    """
    names: dict[str, str] = {}
    if issubclass(kind, Sampling):
        body, names = translate(body)
    try:
        request = kind.model_validate(body)
    except ValidationError as error:
        raise invalid(body, error, names) from None
    if isinstance(request, Sampling):
        request.set_given_names(names)
    refuse(request, kind.refused, _ELSEWHERE - silent(kind) if kind.refused is REFUSED else ())
    return request


def silent(kind: type[Strict]) -> frozenset[str]:
    """Fields of OpenAI's API that a `kind` accepts without effect."""
    return _SILENT | (frozenset() if issubclass(kind, Sampling) else _SILENT_BY_RESPONSES)


_SILENT = frozenset({
    "metadata", "moderation", "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "reasoning_effort", "safety_identifier", "service_tier", "store", "verbosity",
})  # fmt: skip
_SILENT_BY_RESPONSES = frozenset({
    "context_management", "include", "reasoning", "stream_options", "top_logprobs", "truncation",
    "user",
})  # fmt: skip
# Fields of one endpoint that change its answer: another endpoint must not drop them.
_ELSEWHERE = (
    ChatRequest.model_fields.keys()
    | CompletionRequest.model_fields.keys()
    | ALIASES.keys()
    | CONSTRAINTS.keys()
    | {"input", "instructions", "max_output_tokens", "text"}
) - {"model", "user", "stream", "stream_options"}
