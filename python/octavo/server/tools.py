"""The tools of a request: what the template is told, what the output is held to, and how it is read back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.server.parsing import Parser, Plain
from octavo.server.requests import ChatRequest, Message

if TYPE_CHECKING:
    from octavo.server.service import Service


class Toolbox:
    """No tools yet."""

    needs_special_tokens = False

    @classmethod
    def of(cls, service: Service, request: ChatRequest) -> Toolbox:
        return cls()

    def instruct(self, messages: list[Message]) -> list[Message]:
        return messages

    def for_template(self) -> list[dict[str, Any]] | None:
        return None

    def parser(self) -> Parser:
        return Plain()
