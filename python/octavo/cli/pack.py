"""`octavo pack`: documents as keys and values in files, for requests to share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from octavo.cli.attached import LoraOptions
from octavo.cli.options import EngineOptions
from octavo.cli.sizes import size
from octavo.errors import InvalidRequestError
from octavo.packs import read_pack


def pack(
    engine: EngineOptions,
    attached: LoraOptions,
    documents: Annotated[
        list[Path] | None, Argument(metavar="DOCUMENTS", help="Text files.", show_default=False)
    ] = None,
    output: Annotated[Path | None, Option("--output", "-o", help="Folder to create, such as law.pack.")] = None,
    system: Annotated[str | None, Option(help="Text in front of the documents.")] = None,
    form: Annotated[
        str | None,
        Option(help="chat: begins the system message. text: begins a plain prompt.", show_default="chat if possible"),
    ] = None,
    refresh: Annotated[
        bool, Option("--refresh", help="Replace the pack. Without documents: made again from its own text.")
    ] = False,
    as_json: Annotated[bool, Option("--json", help="Write a JSON object.")] = False,
) -> None:
    """Compute keys and values of documents once and write them to a folder, for requests to share."""
    if output is None:
        raise InvalidRequestError("output is missing: give -o NAME.pack")
    if not documents and not refresh:
        raise InvalidRequestError("documents are missing: give text files, or --refresh to make a pack again")
    if not documents and (system is not None or form is not None):
        raise InvalidRequestError("--system and --form go with documents: without them the pack keeps its own")
    texts = {} if documents is None else _read(documents)
    with engine.load() as llm:
        adapter = attached.load_into(llm)
        if texts:
            made = llm.make_pack(texts, output, system=system, form=_form(form), adapter=adapter, replace=refresh)
        else:
            made = llm.refresh_pack(output, adapter=adapter)
    if as_json:
        print(json.dumps({**read_pack(made.path), "path": str(made.path)}, ensure_ascii=False, indent=2))
    else:
        held = f"{made.tokens:,} tokens of {len(made.sources)} documents, {size(made.bytes)}, form {made.form}"
        print(f"{made.path}: {held}")


def is_pack(path: str) -> bool:
    """Whether the folder is a pack."""
    return (Path(path).expanduser() / "pack.json").is_file()


def show_pack(path: str, as_json: bool) -> None:
    """Prints what pack.json of a folder says."""
    facts = read_pack(path)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    rows = [(name, facts[name]) for name in ("digest", "form", "made_by", "tokens", "blocks")]
    rows += [("bytes", size(facts["bytes"]))]
    rows += [(f"source {s['title']}", f"characters {s['start']:,} to {s['end']:,}") for s in facts["sources"]]
    rows += list(facts["fingerprint"].items())
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value:,}" if isinstance(value, int) else f"{name:<{width}}  {value}")


def _form(form: str | None) -> Literal["chat", "text"] | None:
    if form in (None, "chat", "text"):
        found: Any = form
        return found  # type: ignore[no-any-return]
    raise InvalidRequestError(f"--form is {form!r}: chat or text is expected")


def _read(documents: list[Path]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for path in documents:
        # Documents of one name keep their folders in the title.
        title = path.name if path.name not in texts else str(path)
        if title in texts:
            raise InvalidRequestError(f"document {path} is given twice")
        try:
            texts[title] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequestError(f"document {path}: {error}") from error
    return texts
