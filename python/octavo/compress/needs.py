"""The modules of `octavo[train]`, which `import octavo` never loads."""

from __future__ import annotations

import importlib.util

from octavo.errors import MissingDependencyError

__all__ = ["need"]


def need(*modules: str) -> None:
    """Checks that the modules of `octavo[train]` are there.

    Raises:
        MissingDependencyError: one is not; the message has the command that installs it.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"compress needs {', '.join(missing)}: pip install 'octavo[train]'")
