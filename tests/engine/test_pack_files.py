"""The files of packs: how they are written, and what is refused, by file and field."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from octavo import LLM, errors
from octavo.cli import app
from octavo.packs import read_pack
from typer.testing import CliRunner

TEXT = {"a.md": "One two three four five six seven eight nine ten. " * 12, "b.md": "Ünïcödé and more words. " * 8}


@pytest.fixture(scope="module")
def pack(llm: LLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llm.make_pack(TEXT, tmp_path_factory.mktemp("files") / "x.pack", form="text").path


@pytest.fixture
def copy(pack: Path, tmp_path: Path) -> Path:
    shutil.copytree(pack, tmp_path / "x.pack")
    return tmp_path / "x.pack"


def edit(folder: Path, **fields: Any) -> None:
    """Changes fields of pack.json, whose digest is left as it is."""
    file = folder / "pack.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def flip(folder: Path, at: int) -> None:
    with (folder / "kv.safetensors").open("r+b") as file:
        file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def linked(folder: Path) -> None:
    (folder / "kv.safetensors").rename(folder / "elsewhere")
    (folder / "kv.safetensors").symlink_to(folder / "elsewhere")


def pipe(folder: Path) -> None:
    (folder / "pack.json").unlink()
    os.mkfifo(folder / "pack.json")


def data_start(folder: Path) -> int:
    with (folder / "kv.safetensors").open("rb") as file:
        return 8 + int(struct.unpack("<Q", file.read(8))[0])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "pack.json"),
    "no manifest": (lambda p: (p / "pack.json").unlink(), "pack.json"),
    "no blocks": (lambda p: (p / "kv.safetensors").unlink(), "kv.safetensors"),
    "a link": (linked, "kv.safetensors: a regular file is expected"),
    "a pipe": (pipe, "pack.json: a regular file is expected"),
    "not JSON": (lambda p: (p / "pack.json").write_text("{"), "pack.json: not the form of a pack"),
    "a list": (lambda p: (p / "pack.json").write_text("[1]"), "pack.json: not the form of a pack"),
    "another format": (lambda p: edit(p, format="zip"), "pack.json: format"),
    "another version": (lambda p: edit(p, version=2), "pack.json: version: 2, this octavo reads 1"),
    "an unknown field": (lambda p: edit(p, script="rm"), "unknown field `script`"),
    "no block": (lambda p: edit(p, blocks=0), "pack.json: blocks: 0"),
    "many blocks": (lambda p: edit(p, blocks=4_000_000_000), "pack.json: tokens"),
    "negative blocks": (lambda p: edit(p, blocks=-1), "pack.json: not the form of a pack"),
    "other text": (lambda p: edit(p, text="Other."), "pack.json: sources"),
    "a source outside": (
        lambda p: edit(p, sources=[{"title": "a", "start": 5, "end": 4}]),
        "pack.json: sources: 5..4 of a text of",
    ),
    "another title": (lambda p: edit(p, sources=[{"title": "z", "start": 0, "end": 4}]), "pack.json: digest"),
    "truncated": (lambda p: os.truncate(p / "kv.safetensors", 5000), "kv.safetensors: size: 5000 bytes"),
    "longer": (lambda p: os.truncate(p / "kv.safetensors", 1 << 24), "kv.safetensors: size: 16777216 bytes"),
    "another header": (lambda p: flip(p, 20), "kv.safetensors: header"),
    "a flipped bit": (lambda p: flip(p, data_start(p) + 100), "kv.safetensors: layers.0: digest"),
    "oversized": (lambda p: os.truncate(p / "pack.json", 65 << 20), "pack.json: 68157440 bytes"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused_by_name(llm: LLM, copy: Path, damage: str) -> None:
    harm, message = DAMAGE[damage]
    harm(copy)
    with pytest.raises((errors.ModelNotFoundError, errors.CorruptModelError)) as raised:
        llm.load_pack("x", copy)
    assert message in str(raised.value)
    assert llm.packs() == []
    assert llm.stats()["blocks"]["pinned"] == 0


def test_what_it_was_made_with_is_compared(pack: Path) -> None:
    with LLM(quantization=None) as llm, pytest.raises(errors.PackMismatchError, match=r"quantization is .*--refresh"):
        llm.load_pack("x", pack)
    fields = read_pack(pack)["fingerprint"]
    assert list(fields) == [
        "numerics",
        "kv_layout",
        "model",
        "dtype",
        "quantization",
        "kv_cache_dtype",
        "rope",
        "attention",
        "weights",
        "adapter",
        "tokenizer",
        "template",
        "text",
    ]


def test_names_and_targets_are_checked(llm: LLM, pack: Path, tmp_path: Path) -> None:
    for name in ("", "a b", "a+b", "x" * 300):
        with pytest.raises(errors.InvalidRequestError, match="name is"):
            llm.load_pack(name, pack)
    with pytest.raises(errors.InvalidRequestError, match="exists already"):
        llm.make_pack(TEXT, pack, form="text")
    (tmp_path / "mine").mkdir()
    with pytest.raises(errors.InvalidRequestError, match="is no pack"):
        llm.make_pack(TEXT, tmp_path / "mine", form="text", replace=True)
    with pytest.raises(errors.InvalidRequestError, match="fewer than 32 tokens"):
        llm.make_pack({"a": "Hello."}, tmp_path / "short.pack", form="text")
    with pytest.raises(errors.InvalidRequestError, match="document 'a' is empty"):
        llm.make_pack({"a": " \n"}, tmp_path / "empty.pack", form="text")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"], "nothing is left behind"


def test_a_pack_is_made_again_from_its_own_text(llm: LLM, copy: Path) -> None:
    before = read_pack(copy)
    flip(copy, data_start(copy) + 7)
    made = llm.refresh_pack(copy)
    assert read_pack(copy) == before
    assert made.digest == before["digest"]
    llm.load_pack("x", copy)
    llm.unload_pack("x")
    assert sorted(p.name for p in copy.parent.iterdir()) == ["x.pack"]


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for title, text in TEXT.items():
        Path(title).write_text(text, encoding="utf-8")

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, arguments)
        return result.exit_code, result.output

    code, out = run("pack", "a.md", "b.md", "--form", "text", "--system", "Read this.", "-o", "new.pack")
    assert (code, "2 documents" in out) == (0, True), out
    assert read_pack("new.pack")["text"].startswith("Read this.\n\nOne two")
    code, out = run("info", "new.pack", "--json")
    assert code == 0
    assert [s["title"] for s in json.loads(out)["sources"]] == ["a.md", "b.md"]
    assert run("info", "new.pack")[0] == 0
    assert run("pack", "--refresh", "-o", "new.pack")[0] == 0
    for wrong in ("-o y.pack", "a.md", "gone.md -o y.pack", "a.md --form x -o y.pack"):
        assert run("pack", *wrong.split())[0] == 2, wrong
