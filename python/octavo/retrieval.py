"""Passages, or names of packs, for a question: a protocol of one method, and BM25 for it (`octavo[rag]`).

from octavo.retrieval import Bm25, passage_message, split_passages

retriever = Bm25(split_passages(text))
found = retriever.search("Who is the mayor of Tarvik?", k=3)
llm.chat([passage_message(found), {"role": "user", "content": "Who is the mayor of Tarvik?"}])
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from octavo.errors import InvalidRequestError, MissingDependencyError

__all__ = ["Bm25", "Retriever", "passage_message", "split_passages", "split_words"]

_HEADING = re.compile(r"#{1,6}\s+(.+?)\s*#*\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@runtime_checkable
class Retriever(Protocol):
    """Finds what suits a question. An embedding index of your own fits as well."""

    def search(self, query: str, k: int) -> list[tuple[str, float]]:
        """At most `k` pairs of a text (or the name of a pack) and its score, the best first."""
        ...


def split_words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case. No stop words, no stems: the rule is the same for every language."""
    return re.findall(r"\w+", text.lower())


class Bm25:
    """BM25 over texts that are held in memory. A search changes nothing: threads may share one object.

    Args:
        texts: passages, of which `search` returns the best; or a dict from a name (such as a pack's) to its text, of
            which `search` returns the names.
        k1: how soon a repeated word stops to count.
        b: how much a long text is held against it, 0 to 1.
        words: splits texts and queries into words. Give your own for a language without spaces.

    Raises:
        MissingDependencyError: bm25s is not installed.
        InvalidRequestError: there is no text, or a value is out of its range.
    """

    def __init__(
        self,
        texts: Sequence[str] | Mapping[str, str],
        *,
        k1: float = 1.5,
        b: float = 0.75,
        words: Callable[[str], list[str]] = split_words,
    ) -> None:
        if isinstance(texts, str):
            raise InvalidRequestError("texts is one string: give a list of passages; split_passages makes one")
        named = isinstance(texts, Mapping)
        self._keys = list(texts)
        contents = list(texts.values()) if isinstance(texts, Mapping) else self._keys
        if not contents:
            raise InvalidRequestError("texts is empty: there is nothing to search")
        for position, text in enumerate(contents):
            if not isinstance(text, str):
                where = repr(self._keys[position]) if named else str(position)
                raise InvalidRequestError(f"texts[{where}] is a {type(text).__name__}: a string is expected")
        if not k1 >= 0:
            raise InvalidRequestError(f"k1 is {k1}: 0 or more is expected")
        if not 0 <= b <= 1:
            raise InvalidRequestError(f"b is {b}: 0 to 1 is expected")
        self._words = words
        split = [words(text) for text in contents]
        # bm25s cannot index texts without any word.
        self._index = _index(split, k1, b) if any(split) else None

    def search(self, query: str, k: int = 4) -> list[tuple[str, float]]:
        """The texts (or names) with the best scores, at most `k`. Those that share no word with the query are left out.

        Of equal scores the earlier text comes first.
        """
        if k < 1:
            raise InvalidRequestError(f"k is {k}: 1 or more is expected")
        asked = self._words(query)
        if not asked or self._index is None:
            return []
        scores = np.asarray(self._index.get_scores(asked), np.float64)
        best = np.argsort(-scores, kind="stable")[:k]
        return [(self._keys[i], float(scores[i])) for i in best if scores[i] > 0]


def _index(split: list[list[str]], k1: float, b: float) -> Any:
    try:
        import bm25s
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"Bm25 needs {error.name}; install the extra: pip install 'octavo[rag]'"
        ) from error
    index = bm25s.BM25(k1=k1, b=b, method="lucene")
    index.index(split, show_progress=False)
    return index


def split_passages(text: str, *, size: int = 600, overlap: int = 1, title: str | None = None) -> list[str]:
    """Splits a text into passages of at most `size` characters, at the ends of paragraphs and of sentences.

    Only a single sentence that is longer than `size` makes a longer passage. No passage reaches over a Markdown
    heading, and each begins with the heading that it stands under.

    Args:
        size: most characters of a passage, its title aside.
        overlap: so many sentences at the end of a passage also begin the next one, where they fit.
        title: stands before every passage, such as the name of the document.
    """
    if size < 1:
        raise InvalidRequestError(f"size is {size}: 1 or more is expected")
    if overlap < 0:
        raise InvalidRequestError(f"overlap is {overlap}: 0 or more is expected")
    passages: list[str] = []
    for heading, paragraphs in _sections(text):
        head = "\n".join(part for part in (title, heading) if part)
        passages += [f"{head}\n{body}" if head else body for body in _pack(paragraphs, size, overlap)]
    return passages


def _sections(text: str) -> list[tuple[str, list[str]]]:
    """Headings with the paragraphs below them; the first section has no heading."""
    sections: list[tuple[str, list[str]]] = [("", [])]
    open_paragraph = False
    for line in text.splitlines():
        if heading := _HEADING.fullmatch(line.strip()):
            sections.append((heading[1], []))
            open_paragraph = False
        elif not line.strip():
            open_paragraph = False
        elif open_paragraph:
            sections[-1][1][-1] += " " + line.strip()
        else:
            sections[-1][1].append(line.strip())
            open_paragraph = True
    return sections


def _pack(paragraphs: list[str], size: int, overlap: int) -> list[str]:
    """Fills passages with whole sentences. A paragraph that fits into a passage of its own is not split."""
    passages: list[str] = []
    # Pairs of a sentence and what separates it from the one before.
    current: list[tuple[str, str]] = []
    for paragraph in paragraphs:
        sentences = _SENTENCE_END.split(paragraph)
        if current and _length(current) + 1 + len(paragraph) > size >= len(paragraph):
            passages.append(_joined(current))
            current = _kept(current, overlap, size - len(paragraph) - 1)
        for index, sentence in enumerate(sentences):
            if current and _length(current) + 1 + len(sentence) > size:
                passages.append(_joined(current))
                current = _kept(current, overlap, size - len(sentence) - 1)
            current.append((sentence, " " if index else "\n"))
    if current:
        passages.append(_joined(current))
    return passages


def _kept(current: list[tuple[str, str]], overlap: int, room: int) -> list[tuple[str, str]]:
    """The last sentences, at most `overlap` of them and only as many as `room` characters hold."""
    kept = current[len(current) - min(overlap, len(current)) :]
    while kept and _length(kept) > room:
        kept = kept[1:]
    return kept


def _length(current: list[tuple[str, str]]) -> int:
    return sum(len(sentence) + 1 for sentence, _ in current) - 1


def _joined(current: list[tuple[str, str]]) -> str:
    return "".join(separator + sentence for sentence, separator in current)[1:]


def passage_message(found: Sequence[tuple[str, float]], instruction: str = "") -> dict[str, str]:
    """The system message of a chat: the instruction, then the passages of a search, the best first.

    A passage is data, but a model may follow what it says: retrieve only from texts that you trust.
    """
    parts = [instruction] if instruction else []
    return {"role": "system", "content": "\n\n".join([*parts, *(text for text, _ in found)])}
