"""Documents, help texts and comments are in plain technical English: short sentences, no poetic verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import prose
import pytest
import tree
import typer
from octavo.cli import app

DOCUMENTS = sorted(
    [
        *tree.ROOT.glob("*.md"),
        *(tree.ROOT / "docs").glob("*.md"),
        *(tree.ROOT / "benches").rglob("*.md"),
        tree.ROOT / "training" / "README.md",
        tree.ROOT / "python" / "octavo" / "embedded" / "MODEL_CARD.md",
    ]
)


def faults(sentences: list[str]) -> list[str]:
    """What is wrong with these sentences, one line each."""
    long = [f"{prose.words(s)} words: {s}" for s in sentences if prose.words(s) > prose.MAX_WORDS]
    return long + [f"{m.group()!r}: {s}" for s in sentences if (m := prose.AVOIDED.search(s))]


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda f: str(f.relative_to(tree.ROOT)))
def test_documents(file: Path) -> None:
    found = faults(list(prose.markdown_sentences(file.read_text(encoding="utf-8"))))
    assert not found, "\n".join(found)


def _help_texts(command: Any, name: str) -> list[tuple[str, str]]:
    texts = [(name, command.help or "")]
    texts += [(f"{name} {p.name}", p.help) for p in command.params if getattr(p, "help", None)]
    for child, sub in getattr(command, "commands", {}).items():
        texts += _help_texts(sub, f"{name} {child}")
    return texts


def test_help_texts() -> None:
    texts = _help_texts(typer.main.get_command(app), "octavo")
    assert len(texts) > 100
    found = [f"{name}: {fault}" for name, text in texts for fault in faults(list(prose.sentences(text)))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("kind", ["rust", "python"])
def test_comments(kind: str) -> None:
    files = tree.rust_sources() if kind == "rust" else tree.python_sources()
    texts = prose.rust_comments if kind == "rust" else prose.python_comments
    found = [
        f"{file.relative_to(tree.ROOT)}: {fault}"
        for file in files
        for text in texts(file)
        for fault in faults(list(prose.sentences(text)))
    ]
    assert not found, "\n".join(found)


def test_the_check_finds_what_it_is_for() -> None:
    text = (
        "Short. `code` is one word. "
        + "Word " * 31
        + ".\n\n- Whoever looks at it knows.\n\n> so that a quotation may say it\n"
    )
    found = faults(list(prose.markdown_sentences(text)))
    assert [f.split(":")[0] for f in found] == ["31 words", "'Whoever'"]
