"""Folders of adapters that a request names: only those below the root that the server was started with."""

from __future__ import annotations

import os
from pathlib import Path

from octavo.server.errors import ApiError, bad_request

_LONGEST = 1024
# Files that the engine reads. None of them may lead outside of the root.
_FILES = ("adapter_config.json", "adapter_model.safetensors")


def adapter_folder(root: str | os.PathLike[str], given: str, param: str) -> Path:
    """The folder below `root` that `given` names, relative to the root or absolute.

    Raises:
        ApiError: 400 for a path that leads outside of the root, 404 if there is no such folder.
    """
    if not given or len(given) > _LONGEST or not given.isprintable():
        raise bad_request(
            f"{param} is {given[:80]!r}: a path of 1 to {_LONGEST} printable characters is expected", param
        )
    if "://" in given or "\\" in given or given.startswith("~"):
        raise bad_request(f"{param} is {given[:80]!r}: a folder below --lora-root is expected, and / separates", param)
    try:
        return _inside(Path(root).resolve(strict=True), given, param)
    except (OSError, RuntimeError, ValueError) as error:
        raise bad_request(f"{param} is {given[:80]!r}, which cannot be read as a path", param) from error


def _inside(top: Path, given: str, param: str) -> Path:
    folder = (top / given).resolve()
    files = [(folder / name).resolve() for name in _FILES]
    # The same answer whether something is there or not: it must not show what the machine holds elsewhere.
    if not all(path.is_relative_to(top) for path in (folder, *files)):
        raise bad_request(f"{param} is {given[:80]!r}, which leads outside of --lora-root", param)
    if not folder.is_dir():
        message = f"there is no folder {given[:80]!r} below --lora-root, and nothing is fetched from a hub"
        raise ApiError(404, message, param=param, code="adapter_not_found")
    odd = next((path for path in files if path.exists() and not path.is_file()), None)
    if odd is not None:
        # A pipe would be read without end.
        raise bad_request(f"{param} is {given[:80]!r}, whose {odd.name} is no file", param)
    return folder
