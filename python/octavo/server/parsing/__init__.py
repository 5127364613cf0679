"""Reading a model's text as it comes: reasoning, tool calls, and what is left for the user."""

from __future__ import annotations

from octavo.server.parsing.pieces import Arguments, Call, Content, Parser, Piece, Plain, Reasoning

__all__ = ["Arguments", "Call", "Content", "Parser", "Piece", "Plain", "Reasoning"]
