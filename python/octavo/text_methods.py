"""The methods of `LLM` for text and tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

from octavo import _core
from octavo.calls import check_template_variables, names_arguments
from octavo.errors import InvalidRequestError
from octavo.inputs import as_token_ids, json_default
from octavo.params import SamplingParams

__all__ = ["SAMPLING_FIELDS", "Message", "TextMethods"]

Message: TypeAlias = Mapping[str, Any]

SAMPLING_FIELDS = [f.name for f in fields(SamplingParams)]
# Arguments of the methods for chats. As variables of a template they are misplaced, or misspelt.
_CHAT_ARGUMENTS = [
    "messages",
    "sampling_params",
    "adapter",
    "use_tqdm",
    "tools",
    "add_generation_prompt",
    "chat_template_kwargs",
    "plugins",
    "max_rounds",
    "approve",
]


@names_arguments(owner="LLM")
class TextMethods:
    """Text to tokens and back, and chats to text."""

    _engine: _core.Engine

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`."""
        if not isinstance(text, str):
            raise InvalidRequestError(f"text is a {type(text).__name__}: a string is expected")
        return self._engine.tokenize(text, add_special_tokens=add_special_tokens)

    def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`."""
        return self._engine.detokenize(as_token_ids(token_ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text. Unlike its text, they may be a part of a character."""
        return self._engine.token_bytes(token_id)

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **template_variables: Any,
    ) -> str:
        """The prompt that the chat template makes of `messages`.

        Args:
            tools: tool descriptions for the template.
            add_generation_prompt: end with the beginning of an answer.
            template_variables: further variables of the template; `chat_template_kwargs` may hold some of them.

        Raises:
            InvalidRequestError: the template does not take the messages, or a variable is a misplaced argument.
        """
        variables = {**_variables(template_variables.pop("chat_template_kwargs", None)), **template_variables}
        check_template_variables(variables, _CHAT_ARGUMENTS, SAMPLING_FIELDS)
        request = {
            **variables,
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


def _variables(given: Any) -> Mapping[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise InvalidRequestError(f"chat_template_kwargs is a {type(given).__name__}: a dict is expected")
    return given or {}
