"""Models of request bodies: OpenAI's fields, and vLLM's additional fields.

The models are strict (no conversion between strings, numbers and booleans). The OpenAPI document is made from them.
Unknown fields are accepted; each is logged once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from octavo._core import sampling_schema
from octavo.server.errors import ApiError, bad_request

TokenId = Annotated[int, Field(ge=0, le=2**32 - 1)]
_RANGES: dict[str, dict[str, float]] = sampling_schema()["properties"]
# Maximum length of a rejected value in an error message.
_SHOWN = 80


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
    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class StreamOptions(Strict):
    """`include_usage`: one more chunk with the usage at the end. `include_obfuscation` has no effect."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class StructuredOutputs(Strict):
    """vLLM's way to constrain an output: exactly one of the fields."""

    json_: dict[str, Any] | str | bool | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Sampling(Strict):
    """What every request that generates may say about sampling."""

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
    skip_special_tokens: bool | None = None
    prompt_logprobs: Annotated[int, Field(ge=-1)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    # octavo's own: at most the engine's bound
    attention_error_bound: Annotated[float, _in_range("attention_error_bound")] | None = None
    return_token_ids: bool | None = None
    timeout: Annotated[float, _in_range("timeout")] | None = None
    structured_outputs: StructuredOutputs | None = None


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
    name: str
    arguments: str


class ToolCall(Strict):
    id: str
    type: str
    function: FunctionCall | None = None


class Message(Strict):
    """A turn of a conversation."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None


class Function(Strict):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class ChosenFunction(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: ChosenFunction


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


class ChatRequest(Sampling):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    # vLLM's further fields
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    echo: Literal[False] | None = None
    add_special_tokens: Literal[False] | None = None


class EmbeddingRequest(Strict):
    """POST /v1/embeddings"""

    model: str | None = None
    input: str | list[str] | list[TokenId] | list[list[TokenId]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    user: str | None = None
    # vLLM's further fields
    add_special_tokens: bool | None = None
    normalize: bool | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    # octavo's
    pooling: Literal["mean", "last"] | None = None
    timeout: Annotated[float, _in_range("timeout")] | None = None


class TokenizeRequest(Strict):
    """POST /tokenize: `prompt`, or `messages` through the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Strict):
    """POST /detokenize"""

    model: str | None = None
    tokens: list[TokenId]


R = TypeVar("R", bound=Strict)


def read(kind: type[R], body: dict[str, Any]) -> R:
    """Validates `body` as a `kind`.

    Raises:
        ApiError: 400 that names the invalid field.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise _refusal(body, error) from None


def _refusal(body: dict[str, Any], error: ValidationError) -> ApiError:
    # Each branch of a union reports errors: the deepest error belongs to the branch that fits best.
    first = error.errors(include_url=False, include_context=False)
    worst = max(first, key=lambda e: len(_path(body, e["loc"])))
    path = _path(body, worst["loc"])
    name = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
    if worst["type"] == "missing":
        return bad_request(f"{name} is missing", name)
    shown = repr(worst["input"])
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
    message = worst["msg"].removeprefix("Input ")
    return bad_request(f"{name} is {shown}: it {message[0].lower()}{message[1:]}", name)


def _path(body: Any, loc: tuple[int | str, ...]) -> list[int | str]:
    """`loc` without the names of union branches, which are not part of the document."""
    path: list[int | str] = []
    here = body
    for i, step in enumerate(loc):
        last = i == len(loc) - 1
        if isinstance(here, dict) and isinstance(step, str) and (step in here or (last and not path)):
            here = here.get(step)
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            here = here[step]
        elif not (last and isinstance(here, dict) and isinstance(step, str) and _is_field(step)):
            continue
        path.append(step)
    return path


def _is_field(step: str) -> bool:
    """Whether `step` is a field. Names of union branches are types, such as "list[int]" or "str"."""
    return step.isidentifier() and step.islower() and step not in ("str", "int", "float", "bool")


# Fields of OpenAI's API that are accepted and have no effect.
SILENT = frozenset({
    "audio", "functions", "function_call", "metadata", "modalities", "moderation", "prediction", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention", "reasoning_effort", "safety_identifier", "service_tier", "store",
    "verbosity", "web_search_options", "include", "reasoning", "truncation", "max_tool_calls", "top_logprobs",
})  # fmt: skip


def refuse_unsupported(request: Sampling) -> None:
    """Rejects fields that would change the response and are not supported.

    Raises:
        ApiError: 400.
    """
    extra = request.model_extra or {}
    for name, remedy in (
        ("functions", "use tools"),
        ("function_call", "use tool_choice"),
        ("audio", "this model writes text"),
        ("web_search_options", "there is no web search here"),
        ("chat_template", "a template is never taken from a request: start the server with --chat-template"),
    ):
        if extra.get(name) not in (None, [], "none"):
            raise bad_request(f"{name} is not supported: {remedy}", name)
    modalities = extra.get("modalities")
    if modalities not in (None, ["text"]):
        raise bad_request("modalities: this model writes text only", "modalities")
