"""Vocabulary pruning: the rows of tokens that texts of one kind never use leave the embedding and the output head.

Nothing is trained. Two statements hold, and are tested:

- a text whose tokens are all kept has the same tokens as before (`bpe.py` gives the reason);
- the log-probability of a kept token does not fall: the logits are the same, and fewer of them share the softmax. So a
  greedy choice stays where the chosen token is kept.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from octavo.compress.bpe import BytePairs, processor_ids, pruned_tokenizer
from octavo.compress.needs import need
from octavo.compress.token_ids import ids_in_config, with_new_ids
from octavo.errors import CorruptModelError, InvalidRequestError, UnsupportedModelError
from octavo.hub import resolve_model
from octavo.merge.checkpoint import EMBEDDING, HEAD, Checkpoint, plain_name
from octavo.merge.tensor_file import Tensor, TensorFile, header_bytes, read_json
from octavo.model_files import copy_files, new_folder

__all__ = ["PrunedVocabulary", "corpus_texts", "prune_vocabulary"]

_MAX_JSON = 200_000_000
# Rows are a multiple of this where enough tokens are left: kernels work on blocks of rows.
_MULTIPLE = 64
# Files that hold the old ids, and that tokenizer.json stands for.
_LEFT_OUT = re.compile(r"tokenizer\.model|vocab\.json|merges\.txt|added_tokens\.json")
# Added tokens that wait for a use: they stay only where a text has them.
_RESERVED = re.compile(r"<\|?(unused|reserved)[^>]*\d+\|?>|\[(unused|control_)_?\d+\]", re.IGNORECASE)
_ROWS_AT_ONCE = 4096
_LINES_AT_ONCE = 256
# What chats and tool calls are written with, whatever the corpus has.
_CALL_WORDS = """system user assistant tool function name description arguments parameters properties required type
object string number integer boolean array null true false role content tool_calls tool_call tool_response
{"name": "get", "arguments": {"query": "text", "value": 0.5}}
[{"type": "function"}]
<tool_call> </tool_call> ```json ```
0 1 2 3 4 5 6 7 8 9 10 11 12"""


@dataclass(frozen=True)
class PrunedVocabulary:
    """Result of `prune_vocabulary`.

    Attributes:
        folder: the new folder.
        rows: rows of the embedding before and after.
        parameters: weights of the model before and after.
        weight_bytes: size of the weight files before and after.
        corpus_tokens: distinct tokens of the corpus.
        coverage: share of the corpus' tokens that are kept: below 1 only where `rows` is too small for all.
        new_ids: new id of each kept old id.
    """

    folder: Path
    rows: tuple[int, int]
    parameters: tuple[int, int]
    weight_bytes: tuple[int, int]
    corpus_tokens: int
    coverage: float
    new_ids: dict[int, int]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the ids."""
        found = {**vars(self), "folder": os.fspath(self.folder)}
        del found["new_ids"]
        return found


def corpus_texts(path: str | os.PathLike[str]) -> Iterator[str]:
    """Texts of many lines each of a text file in UTF-8. Tokens may hold several ends of lines.

    Raises:
        InvalidRequestError: it cannot be read, or a line is no UTF-8; the message has its number.
    """
    number, lines = 0, []
    try:
        with Path(path).expanduser().open("rb") as file:
            for line in file:
                number += 1
                lines.append(line.decode("utf-8"))
                if len(lines) == _LINES_AT_ONCE:
                    yield "".join(lines)
                    lines = []
            yield "".join(lines)
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{os.fspath(path)}, line {number}: no UTF-8: {error.reason}") from error
    except OSError as error:
        raise InvalidRequestError(f"{os.fspath(path)}: {error.strerror or error}") from error


def prune_vocabulary(
    model: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    corpus: Iterable[str],
    *,
    rows: int | None = None,
    revision: str | None = None,
) -> PrunedVocabulary:
    """Writes `model` with fewer tokens to the new folder `output`.

    Kept are the tokens of `corpus`, bytes, special tokens, those that configs and the chat template name, and words of
    tool calls. What merges need on the way to these is kept, too.

    Args:
        model: a folder or a hub id with a byte-pair tokenizer.json, not quantised.
        output: a folder that does not exist yet, or is empty.
        corpus: texts as the model will read and write them.
        rows: tokens to keep. Room that the corpus leaves is filled with the tokens that the tokenizer learnt first,
            written in the corpus' characters. If the corpus has more, its most frequent ones stay. None: as many as
            the corpus needs.
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelNotFoundError, UnsupportedModelError, CorruptModelError: the model.
        InvalidRequestError: the corpus is empty, `rows` is too small, or the output cannot be written.
    """
    need("tokenizers")
    source = Checkpoint(resolve_model(model, revision))
    if source.folder.joinpath("tokenizer.json").is_file() is False:
        raise UnsupportedModelError(f"{source.folder} has no tokenizer.json: save it with transformers' fast tokenizer")
    tokenizer = read_json(source.folder / "tokenizer.json", _MAX_JSON)
    kept = _Kept(source, tokenizer)
    kept.count(corpus)
    new_ids = {old: new for new, old in enumerate(sorted(kept.choose(rows)))}
    with new_folder(output) as (folder, target):
        copy_files(source.folder, folder)
        for path in folder.iterdir():
            if _LEFT_OUT.fullmatch(path.name):
                path.unlink()
        _dump(folder / "tokenizer.json", pruned_tokenizer(tokenizer, new_ids))
        _dump(folder / "config.json", with_new_ids(source.config, new_ids))
        _write_configs(source, folder, new_ids)
        sizes = [_write_tensors(file, folder, new_ids) for file in source.files]
        before, after = (sum(size[i] for size in sizes) for i in (0, 1))
        _write_index(source, folder, after)
    parameters = _parameters(source)
    dropped = kept.rows - len(new_ids)
    return PrunedVocabulary(
        folder=target,
        rows=(kept.rows, len(new_ids)),
        parameters=(parameters, parameters - dropped * _columns(source)),
        weight_bytes=(before, after),
        corpus_tokens=len(kept.counts),
        coverage=sum(n for token, n in kept.counts.items() if token in new_ids) / max(1, sum(kept.counts.values())),
        new_ids=new_ids,
    )


class _Kept:
    """Gathers the tokens that stay."""

    def __init__(self, source: Checkpoint, parsed: dict[str, Any]) -> None:
        from tokenizers import Tokenizer

        self.pairs = BytePairs(parsed)
        self.tokenizer = Tokenizer.from_str(json.dumps(parsed))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        embedding = source.find(EMBEDDING)
        if embedding is None or len(embedding.shape) != 2:
            raise UnsupportedModelError(f"{source.folder} has no {EMBEDDING}")
        self.rows = embedding.shape[0]
        self.counts: Counter[int] = Counter()
        self.needed = set(self.pairs.byte_tokens) | processor_ids(parsed.get("post_processor"))
        for token in parsed.get("added_tokens") or []:
            if token.get("special") and not _RESERVED.fullmatch(token["content"]):
                self.needed.add(token["id"])
        if self.pairs.unknown is not None and self.pairs.unknown in self.pairs.ids:
            self.needed.add(self.pairs.ids[self.pairs.unknown])
        for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
            if (source.folder / name).is_file():
                self.needed |= ids_in_config(read_json(source.folder / name, _MAX_JSON))
        for text in (*_templates(source.folder), _CALL_WORDS):
            self.needed |= set(self._ids([text]))
        if beyond := sorted(n for n in self.needed if n >= self.rows):
            raise CorruptModelError(f"{source.folder}: token {beyond[0]} is needed, and there are {self.rows} rows")

    def _ids(self, texts: list[str]) -> Iterator[int]:
        for encoding in self.tokenizer.encode_batch(texts, add_special_tokens=False):
            yield from encoding.ids

    def count(self, corpus: Iterable[str]) -> None:
        waiting: list[str] = []
        for text in corpus:
            waiting.append(text)
            if len(waiting) == _LINES_AT_ONCE:
                self._add(waiting)
                waiting = []
        self._add(waiting)
        if not self.counts:
            raise InvalidRequestError("the corpus is empty: give texts as the model will read and write them")

    def _add(self, texts: list[str]) -> None:
        self.counts.update(n for n in self._ids(texts) if n < self.rows)

    def choose(self, rows: int | None) -> set[int]:
        """The tokens to keep."""
        chosen = self.pairs.closure(self.needed)
        if rows is not None and not len(chosen) <= rows <= self.rows:
            raise InvalidRequestError(
                f"rows is {rows}: {len(chosen)} to {self.rows} are possible (bytes, special tokens and words of the "
                "chat template stay)"
            )
        for number, _ in self.counts.most_common():
            more = self.pairs.closure([number], chosen)
            if rows is None or len(chosen) + len(more) <= rows:
                chosen |= more
        wanted = rows if rows is not None else min(self.rows, -(-len(chosen) // _MULTIPLE) * _MULTIPLE)
        for number in self._fillers():
            if len(chosen) == wanted:
                break
            more = self.pairs.closure([number], chosen)
            if len(chosen) + len(more) <= wanted:
                chosen |= more
        return chosen

    def _fillers(self) -> Iterator[int]:
        """Tokens in the order of their merges; first those of characters that tokens of the corpus have."""
        token_of = self.pairs.tokens
        characters = {c for number in self.counts for c in token_of.get(number, "")}
        later = []
        for number in sorted(self.pairs.order, key=self.pairs.order.__getitem__):
            if characters.issuperset(token_of[number]):
                yield number
            else:
                later.append(number)
        yield from later


def _templates(folder: Path) -> Iterator[str]:
    """The chat templates of a folder, as text."""
    for path in sorted([*folder.glob("chat_template.*"), *folder.glob("additional_chat_templates/*.jinja")]):
        yield path.read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    found = read_json(path, _MAX_JSON).get("chat_template") if path.is_file() else None
    for template in found if isinstance(found, list) else [found]:
        text = template.get("template") if isinstance(template, dict) else template
        if isinstance(text, str):
            yield text


def _columns(source: Checkpoint) -> int:
    """Weights of a token."""
    return sum(tensor.columns for name in (EMBEDDING, HEAD) if (tensor := source.find(name)) is not None)


def _parameters(source: Checkpoint) -> int:
    return sum(int(np.prod(tensor.shape)) for file in source.files for tensor in file.tensors.values())


def _has_token_rows(tensor: Tensor) -> bool:
    return plain_name(tensor.name) in (EMBEDDING, HEAD, "lm_head.bias")


def _write_tensors(file: TensorFile, folder: Path, new_ids: dict[int, int]) -> tuple[int, int]:
    """Writes one file with the kept rows; returns the bytes of its tensors before and after."""
    tensors = list(file.tensors.values())
    shapes = [(t.name, t.dtype, (len(new_ids), *t.shape[1:]) if _has_token_rows(t) else t.shape) for t in tensors]
    header, after = header_bytes(shapes, file.metadata)
    old = np.array(sorted(new_ids, key=new_ids.__getitem__))
    with (folder / file.path.name).open("wb") as out:
        out.write(header)
        for tensor in tensors:
            if _has_token_rows(tensor):
                _write_rows(out, tensor, old)
            else:
                out.write(file.data[tensor.offset : tensor.offset + tensor.nbytes].data)
        out.flush()
        os.fsync(out.fileno())
    return sum(t.nbytes for t in tensors), after


def _write_rows(out: BinaryIO, tensor: Tensor, old: np.ndarray[Any, np.dtype[np.int64]]) -> None:
    """Rows as bytes: every type of values is copied as it is."""
    data = tensor.file.data[tensor.offset : tensor.offset + tensor.nbytes].reshape(tensor.shape[0], -1)
    for first in range(0, len(old), _ROWS_AT_ONCE):
        out.write(np.ascontiguousarray(data[old[first : first + _ROWS_AT_ONCE]]).data)


def _write_configs(source: Checkpoint, folder: Path, new_ids: dict[int, int]) -> None:
    for name in ("generation_config.json", "tokenizer_config.json"):
        if not (source.folder / name).is_file():
            continue
        config = with_new_ids(read_json(source.folder / name, _MAX_JSON), new_ids)
        if decoder := config.get("added_tokens_decoder"):
            config["added_tokens_decoder"] = {
                str(new_ids[int(number)]): token for number, token in decoder.items() if int(number) in new_ids
            }
        _dump(folder / name, config)


def _write_index(source: Checkpoint, folder: Path, total: int) -> None:
    if source.index is not None:
        metadata = source.index.get("metadata")
        index = {**source.index, "metadata": {**(metadata if isinstance(metadata, dict) else {}), "total_size": total}}
        _dump(folder / "model.safetensors.index.json", index)


def _dump(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
