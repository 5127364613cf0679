"""Sentences of documents, help texts and comments, and the habits that make them hard to read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

MAX_WORDS = 30
# Verbs of persons said of code, and chains that hide the subject. A plain word says the same.
AVOIDED = re.compile(
    r"\b(whoever|whatever runs|nobody|somebody|foretells?|foretold|at hand|as it lies|where it lies|says? no|takes? in"
    r"|those of them|is told|are told|was told|tells|so that|habits?|heeds?|wishes|a look\b|looks at|weighs?|weighed"
    r"|knows)\b",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^ *(```|~~~).*?^ *\1`* *$", re.DOTALL | re.MULTILINE)
_END = re.compile(r"(?<=[.!?:;])[\"')\]*]*\s+(?=[\"'(\[*`]*[A-Z0-9`\[(\"'*-])")


def markdown_sentences(text: str) -> Iterator[str]:
    """The sentences of a document, without code and quotations. List items and table cells are texts of their own."""
    text = re.sub(r"^ *>.*$", "", _FENCE.sub("\n\n", text), flags=re.MULTILINE)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = _plain(text)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*+]|\d+\.)\s)|\n(?=\s*[|#])", text):
        block = block.strip()
        cells = block.split("|") if block.startswith("|") else [re.sub(r"^(?:[-*+]|\d+\.|#+|>)\s+", "", block)]
        for cell in cells:
            yield from sentences(cell)


def _plain(text: str) -> str:
    """Text with each piece of code, and each list of pieces, as one word."""
    return re.sub(r"`[^`]*`(?:(?:,|,? and|,? or|;|:)?\s+`[^`]*`)*", "CODE", text)


def sentences(text: str) -> Iterator[str]:
    """The sentences of plain text."""
    for sentence in _END.split(re.sub(r"\s+", " ", text).strip()):
        if re.search(r"[A-Za-z]", sentence):
            yield sentence


def words(sentence: str) -> int:
    return len(re.findall(r"[A-Za-z0-9][\w'./%-]*", sentence))


def rust_comments(file: Path) -> Iterator[str]:
    """The texts of the comments of a Rust file: lines that follow each other are one text."""
    block: list[str] = []
    drawing = False
    for line in [*file.read_text(encoding="utf-8").splitlines(), ""]:
        comment = re.match(r"\s*//[/!]?(?: (.*)|$)", line)
        if comment and (comment.group(1) or "").startswith("```"):
            drawing = not drawing
        elif comment and drawing:
            continue
        elif comment and (comment.group(1) or "").strip():
            block.append(comment.group(1))
        elif block:
            yield _plain(" ".join(block))
            block = []


def python_comments(file: Path) -> Iterator[str]:
    """The docstrings and comments of a Python file."""
    text = file.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
            doc := ast.get_docstring(node)
        ):
            for paragraph in re.split(r"\n\s*\n", doc):
                if not paragraph.startswith("    "):  # else a formula or the drawing of a layout
                    yield from map(_plain, re.split(r"\n(?=\s+\w+: )", paragraph))
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        comment = re.match(r"\s*# (.*)", line)
        if comment:
            block.append(comment.group(1))
        elif block:
            yield _plain(" ".join(block))
            block = []
