"""Knowledge packs: documents whose keys and values are computed once, kept in files, and shared by requests."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from octavo import _core
from octavo.calls import names_arguments
from octavo.errors import InvalidRequestError
from octavo.inputs import Prompt, as_name, as_path, one_prompt
from octavo.params import SamplingParams
from octavo.text_methods import Message, TextMethods

__all__ = ["Pack", "PackFile", "PackMethods", "PackSource", "pack_names", "read_pack"]

# Between documents, between packs, and between a pack and what follows it.
SEPARATOR = "\n\n"
# What may follow a pack's text: the tokens that all of these leave as they are belong to the pack.
_FOLLOWING = ("a", "A b", "1", "\n", "(", "é")
Form = Literal["chat", "text"]


@dataclass(frozen=True)
class PackSource:
    """A document in the text of a pack.

    Attributes:
        title: such as its file's name.
        start: its first character in the text.
        end: the character behind its last one.
    """

    title: str
    start: int
    end: int


@dataclass(frozen=True)
class Pack:
    """A loaded pack. Made by `LLM.load_pack`.

    Attributes:
        name: what requests give as `SamplingParams.pack`.
        digest: names its content.
        form: "chat": its text begins the system message; "text": it begins a plain prompt.
        tokens: tokens whose keys and values it holds; up to 31 more are computed with each request.
        bytes: memory of the KV cache that it takes, once for all requests.
        adapter: digest of the adapter that it was made with; None: without one.
        sources: the documents.
    """

    name: str
    digest: str
    form: Form
    tokens: int
    bytes: int
    adapter: str | None
    sources: list[PackSource]

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Pack:
        """From the engine's form."""
        own = {name: fields[name] for name in ("name", "digest", "form", "tokens", "bytes", "adapter")}
        return cls(**own, sources=[PackSource(**s) for s in fields["sources"]])


@dataclass(frozen=True)
class PackFile:
    """A pack in files. Made by `LLM.make_pack` and `read_pack`.

    Attributes:
        path: its folder.
        digest, form, tokens, adapter, sources: as in Pack.
        bytes: size of kv.safetensors.
    """

    path: Path
    digest: str
    form: Form
    tokens: int
    bytes: int
    adapter: str | None
    sources: list[PackSource]


def read_pack(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What pack.json of a folder says, with `text` and `fingerprint`. Needs no model.

    Raises:
        ModelNotFoundError, CorruptModelError: the files; the message names file and field.
    """
    return _core.read_pack(as_path(path, "a pack"))


@names_arguments(owner="LLM")
class PackMethods(TextMethods):
    """The methods of `LLM` for packs."""

    _engine: _core.Engine

    def make_pack(
        self,
        documents: Mapping[str, str] | Sequence[str],
        path: str | os.PathLike[str],
        *,
        system: str | None = None,
        form: Form | None = None,
        adapter: str | None = None,
        replace: bool = False,
    ) -> PackFile:
        """Computes keys and values of documents, and writes them to a new folder.

        Args:
            documents: texts by title, or texts alone.
            path: the folder, such as "law.pack".
            system: a text in front of the documents, such as "Answer from these.".
            form: "chat" for the chat methods, "text" for plain prompts. None: "chat" if the model has a template.
            adapter: a loaded adapter. The pack is then for requests with it alone.
            replace: a pack at `path` is replaced.

        Raises:
            InvalidRequestError, ContextLengthError: the texts, or `path` cannot be written.
            UnsupportedModelError: the device keeps no packs.
        """
        text, sources = join_documents(documents, system)
        return self._write_pack(text, sources, path, form, adapter, replace)

    def refresh_pack(self, path: str | os.PathLike[str], *, adapter: str | None = None) -> PackFile:
        """Makes the pack at `path` again, from the text in its pack.json.

        Args:
            adapter: as in make_pack; the new pack is made with this one, whatever the old one had.
        """
        known = read_pack(path)
        sources = [PackSource(**s) for s in known["sources"]]
        return self._write_pack(known["text"], sources, path, known["form"], adapter, True)

    def load_pack(self, name: str, path: str | os.PathLike[str]) -> Pack:
        """Loads a pack under a name. Requests may use it at once, and share its memory.

        Its digests are checked. One block, chosen at random, is computed again and compared bit for bit. A pack that
        has the name is replaced; requests that run with it go on.

        Raises:
            ModelNotFoundError, CorruptModelError: the files; the message names file and field.
            PackMismatchError: it was made with another model, tokenizer, template or option; the message names it.
            InvalidRequestError: the name, or the cache has no room beside a request of full length.
        """
        return Pack.of(self._engine.pack({"operation": "load", "name": as_name(name), "path": as_path(path, "a pack")}))

    def unload_pack(self, name: str) -> None:
        """Removes a pack. Requests that run with it go on.

        Raises:
            PackNotFoundError: no pack has the name.
        """
        self._engine.pack({"operation": "unload", "name": as_name(name)})

    def packs(self) -> list[Pack]:
        """The loaded packs, sorted by name."""
        return [Pack.of(fields) for fields in self._engine.pack({"operation": "list"})]

    def with_packs(
        self, prompt: Prompt, names: str | Sequence[str] | None, *, add_special_tokens: bool = True
    ) -> str | list[int]:
        """The prompt behind the texts of packs, as `generate` sends it.

        Raises:
            PackNotFoundError: a pack is not loaded.
            InvalidRequestError: a pack was made for chats.
        """
        item = one_prompt(prompt)
        text = self._pack_text(pack_names(names), "text")
        if text is None:
            return item
        if isinstance(item, str):
            return text + SEPARATOR + item
        return self._engine.tokenize(text + SEPARATOR, add_special_tokens=add_special_tokens) + item

    def with_packs_chat(self, messages: Sequence[Message], names: str | Sequence[str] | None) -> Sequence[Message]:
        """The messages with the texts of packs at the beginning of the system message, as `chat` sends them.

        Raises:
            PackNotFoundError: a pack is not loaded.
            InvalidRequestError: a pack was made for plain prompts.
        """
        text = self._pack_text(pack_names(names), "chat")
        return messages if text is None else _with_system(messages, text)

    def _composed(self, prompts: Sequence[Prompt], each: Sequence[SamplingParams]) -> list[str | list[int]]:
        """The prompts with the packs of their parameters."""
        return [self.with_packs(p, params.pack) for p, params in zip(prompts, each, strict=True)]

    def _pack_text(self, names: Sequence[str], form: Form) -> str | None:
        """The texts of packs, one behind the other; None without packs."""
        texts = []
        for name in names:
            found, text = self._engine.pack({"operation": "text", "name": as_name(name)})
            if found != form:
                use = "chat" if found == "chat" else "generate"
                raise InvalidRequestError(
                    f"pack {name!r} has the form {found!r}: use {use}, or make it again with form={form!r}"
                )
            texts.append(text)
        return SEPARATOR.join(texts) if texts else None

    def _write_pack(
        self,
        text: str,
        sources: Sequence[PackSource],
        path: str | os.PathLike[str],
        form: Form | None,
        adapter: str | None,
        replace: bool,
    ) -> PackFile:
        if form is None:
            form = "chat" if self._engine.info()["model"]["chat_template"] else "text"
        tokens = self._pack_tokens(text, form)
        fields = {
            "path": as_path(path, "a pack"),
            "form": form,
            "text": text,
            "tokens": tokens,
            "lora": adapter,
            "replace": replace,
        }
        made = self._engine.pack({"operation": "make", "sources": [vars(s) for s in sources], **fields})
        own = {name: made[name] for name in ("digest", "form", "tokens", "bytes", "adapter")}
        return PackFile(path=Path(as_path(path, "a pack")), **own, sources=[PackSource(**s) for s in made["sources"]])

    def _pack_tokens(self, text: str, form: Form) -> list[int]:
        """The tokens that every prompt with this text in front begins with."""
        if form == "text":
            return _common(self._engine.tokenize(text + SEPARATOR + f) for f in _FOLLOWING)
        ends = [text, *(text + SEPARATOR + f for f in _FOLLOWING)]
        chats = [[{"role": "system", "content": e}, {"role": "user", "content": u}] for e in ends for u in ("a", "1")]
        return _common(self._engine.tokenize(self.render_chat(c), add_special_tokens=False) for c in chats)


def pack_names(names: str | Sequence[str] | None) -> list[str]:
    """One name, or several, or None, as a list."""
    if names is not None and not isinstance(names, Sequence):
        raise InvalidRequestError(f"names is a {type(names).__name__}: the name of a pack, or a list, is expected")
    return [names] if isinstance(names, str) else list(names or ())


def join_documents(
    documents: Mapping[str, str] | Sequence[str], system: str | None = None
) -> tuple[str, list[PackSource]]:
    """One text of a system text and documents, and where each document is in it."""
    if isinstance(documents, str) or not isinstance(documents, (Mapping, Sequence)):
        raise InvalidRequestError(f"documents is a {type(documents).__name__}: a dict from title to text is expected")
    named = list(
        documents.items() if isinstance(documents, Mapping) else ((f"{i}", d) for i, d in enumerate(documents, 1))
    )
    if system is not None and not isinstance(system, str):
        raise InvalidRequestError(f"system is a {type(system).__name__}: a text is expected")
    text = (system or "").strip()
    sources = []
    for title, document in named:
        if not isinstance(title, str) or not isinstance(document, str):
            raise InvalidRequestError("documents: titles and documents are texts")
        if not (content := document.strip()):
            raise InvalidRequestError(f"document {title!r} is empty: leave it out")
        text += SEPARATOR + content if text else content
        sources.append(PackSource(title, len(text) - len(content), len(text)))
    if not sources:
        raise InvalidRequestError("documents: at least one is expected")
    return text, sources


def _common(encodings: Iterable[list[int]]) -> list[int]:
    """The longest beginning that all lists share."""
    lists = list(encodings)
    return [ids[0] for ids in takewhile(lambda ids: len(set(ids)) == 1, zip(*lists, strict=False))]


def _with_system(messages: Sequence[Message], text: str) -> Sequence[Message]:
    first = messages[0] if messages and isinstance(messages[0], Mapping) else {}
    if first.get("role") not in ("system", "developer"):
        return [{"role": "system", "content": text}, *messages]
    content = first.get("content")
    if isinstance(content, str) or content is None:
        own = (content or "").strip()
        return [{**first, "content": text + SEPARATOR + own if own else text}, *messages[1:]]
    if isinstance(content, Sequence):
        return [{**first, "content": [{"type": "text", "text": text + SEPARATOR}, *content]}, *messages[1:]]
    raise InvalidRequestError(f"content of the system message is a {type(content).__name__}: a text is expected")
