"""A byte-pair tokenizer as data: how each token is made of others, and the same tokenizer with fewer tokens.

A text whose tokens are all kept has the same tokens as before. No merge crossed the ends of a token, so the merges
inside it are those that make the token alone. Each of them makes a token that is kept here, so each stays. Of the
merges that stay, the first that applies is the first that applied before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from octavo.errors import UnsupportedModelError

__all__ = ["BytePairs", "processor_ids", "pruned_tokenizer"]

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


class BytePairs:
    """The model of a parsed tokenizer.json.

    Attributes:
        ids: id of each token, added tokens aside.
        tokens: the token of each id.
        byte_tokens: ids of the tokens that stand for a byte, and of SentencePiece's space: with them any text can be
            written.
        order: rank of the merge that makes a token; early ones are frequent in what the tokenizer learnt from.
    """

    def __init__(self, parsed: Mapping[str, Any]) -> None:
        """Raises UnsupportedModelError for another kind of tokenizer, by name."""
        model = parsed.get("model")
        kind = model.get("type", "BPE") if isinstance(model, dict) else None
        if not isinstance(model, dict) or kind != "BPE":
            raise UnsupportedModelError(f"the tokenizer is {kind}: only byte-pair tokenizers (BPE) can be pruned")
        for field in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
            if model.get(field):
                raise UnsupportedModelError(f"the tokenizer has {field} {model[field]!r}, which pruning does not know")
        self.ids: dict[str, int] = model["vocab"]
        self.tokens = {number: token for token, number in self.ids.items()}
        self.unknown: str | None = model.get("unk_token")
        self._ranks: dict[tuple[str, str], int] = {}
        self.order: dict[int, int] = {}
        for rank, merge in enumerate(model.get("merges", [])):
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            self._ranks.setdefault((left, right), rank)
            if left + right in self.ids:
                self.order.setdefault(self.ids[left + right], rank)
        # The decoder turns this character into a space before it joins bytes.
        needed = [*_BYTES, "▁"] if model.get("byte_fallback") else []
        self.byte_tokens = {self.ids[token] for token in needed if token in self.ids}
        if _is_byte_level(parsed):
            from tokenizers.pre_tokenizers import ByteLevel

            self.byte_tokens |= {self.ids[char] for char in ByteLevel.alphabet() if char in self.ids}

    def parts(self, token: str) -> tuple[str, str] | None:
        """The two tokens that the last merge of `token` joins; None if its characters do not merge into it."""
        symbols = list(token)
        last = None
        while len(symbols) > 1:
            pairs = [
                (rank, place)
                for place in range(len(symbols) - 1)
                if (rank := self._ranks.get((symbols[place], symbols[place + 1]))) is not None
            ]
            if not pairs:
                return None
            _, place = min(pairs)
            last = symbols[place], symbols[place + 1]
            symbols[place : place + 2] = ["".join(last)]
        return last

    def closure(self, ids: Iterable[int], known: Collection[int] = ()) -> set[int]:
        """`ids` and the ids of all tokens that merges need on the way to them, without those that are `known`."""
        found: set[int] = set()
        waiting = list(ids)
        while waiting:
            number = waiting.pop()
            if number in found or number in known:
                continue
            found.add(number)
            token = self.tokens.get(number, "")
            if len(token) > 1 and (parts := self.parts(token)) is not None:
                waiting += [self.ids[part] for part in parts]
        return found


def pruned_tokenizer(parsed: Mapping[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """The parsed tokenizer.json with the tokens of `new_ids` (old id to new id) alone.

    Merges stay in their order if both parts and the result are kept.
    """
    model = dict(parsed["model"])
    model["vocab"] = {token: new_ids[number] for token, number in model["vocab"].items() if number in new_ids}
    vocab = model["vocab"]
    kept = []
    for merge in model.get("merges", []):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if left in vocab and right in vocab and left + right in vocab:
            kept.append(merge)
    model["merges"] = kept
    added = [{**t, "id": new_ids[t["id"]]} for t in parsed.get("added_tokens") or [] if t["id"] in new_ids]
    processor = _with_ids(parsed.get("post_processor"), new_ids)
    return {**parsed, "model": model, "added_tokens": added, "post_processor": processor}


def processor_ids(value: Any) -> set[int]:
    """Ids that the post-processor of a tokenizer.json writes."""
    found: set[int] = set()
    if isinstance(value, dict):
        if value.get("type") == "TemplateProcessing":
            for token in value.get("special_tokens", {}).values():
                found.update(token["ids"])
        for name in ("sep", "cls"):
            if isinstance(value.get(name), list):
                found.add(value[name][1])
        for part in value.get("processors", []):
            found |= processor_ids(part)
    return found


def _with_ids(value: Any, new_ids: Mapping[int, int]) -> Any:
    if not isinstance(value, dict):
        return value
    changed = dict(value)
    if value.get("type") == "TemplateProcessing":
        changed["special_tokens"] = {
            name: {**token, "ids": [new_ids[number] for number in token["ids"]]}
            for name, token in value.get("special_tokens", {}).items()
        }
    for name in ("sep", "cls"):
        if isinstance(value.get(name), list):
            changed[name] = [value[name][0], new_ids[value[name][1]]]
    if "processors" in value:
        changed["processors"] = [_with_ids(part, new_ids) for part in value["processors"]]
    return changed


def _is_byte_level(parsed: Mapping[str, Any]) -> bool:
    """Whether characters of tokens stand for bytes."""

    def has(value: Any) -> bool:
        if isinstance(value, dict):
            return value.get("type") == "ByteLevel" or any(map(has, value.values()))
        return isinstance(value, list) and any(map(has, value))

    return has(parsed.get("pre_tokenizer")) or has(parsed.get("decoder"))
