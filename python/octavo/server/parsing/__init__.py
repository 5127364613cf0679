"""Streaming parsers of a model's text: reasoning, tool calls and content."""

from __future__ import annotations

from octavo.server.parsing.calls import Bare, Marked
from octavo.server.parsing.held import Calls, Either
from octavo.server.parsing.named import FirstLine, Named
from octavo.server.parsing.pieces import Arguments, Call, Content, Parser, Piece, Plain, Reasoning
from octavo.server.parsing.pythonic import Pythonic
from octavo.server.parsing.reasoning import Thinking, Without
from octavo.server.parsing.xml import Xml

__all__ = [
    "Arguments",
    "Bare",
    "Call",
    "Calls",
    "Content",
    "Either",
    "FirstLine",
    "Marked",
    "Named",
    "Parser",
    "Piece",
    "Plain",
    "Pythonic",
    "Reasoning",
    "Thinking",
    "Without",
    "Xml",
]
