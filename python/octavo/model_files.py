"""Writing a model folder: complete or absent, with the small files of another one."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from octavo.errors import InvalidRequestError

__all__ = ["TOKENIZER_FILES", "copy_files", "new_folder"]

TOKENIZER_FILES = re.compile(
    r"tokenizer.*\.json|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt|tokenizer\.model"
    r"|chat_template\.(json|jinja)",
    re.IGNORECASE,
)
"""Names of files that describe a tokenizer or a chat template."""
_OTHERS = re.compile(r"generation_config\.json|(LICENSE|NOTICE|COPYING)[\w.-]*", re.IGNORECASE)
_TEMPLATES = "additional_chat_templates"


@contextlib.contextmanager
def new_folder(output: str | os.PathLike[str]) -> Iterator[tuple[Path, Path]]:
    """A folder to fill, and the path that it gets at the end. After an error nothing of it is left.

    Raises:
        InvalidRequestError: the output exists already, or cannot be written.
    """
    target = Path(os.path.abspath(Path(output).expanduser()))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidRequestError(f"output {target} exists already: give a folder that does not")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Written next to the target and renamed: the target is complete or absent.
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise InvalidRequestError(f"cannot write to {target.parent}: {error.strerror or error}") from error
    try:
        yield partial, target
        partial.chmod(0o755)
        partial.replace(target)
    except OSError as error:
        raise InvalidRequestError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_files(source: Path, folder: Path, tokenizer: Path | None = None) -> list[str]:
    """Copies the small files of `source`, those of the tokenizer from `tokenizer`. No code, and no weights."""
    copied = []
    for origin, wanted in ((source, _OTHERS), (tokenizer or source, TOKENIZER_FILES)):
        names = [f.name for f in sorted(origin.iterdir()) if wanted.fullmatch(f.name) and f.is_file()]
        if wanted is TOKENIZER_FILES:
            names += [f"{_TEMPLATES}/{f.name}" for f in sorted(origin.glob(f"{_TEMPLATES}/*.jinja")) if f.is_file()]
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(origin / name, folder / name)
        copied += names
    return sorted(copied)
