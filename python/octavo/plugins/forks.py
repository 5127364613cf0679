"""What a process may not share with its parent after a fork: connections, threads, locks that another thread held."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

_resets: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def after_fork(owner: Any, reset: Callable[[Any], None]) -> None:
    """Calls `reset(owner)` in each child process that is forked while `owner` is alive."""
    _resets[owner] = reset


def _in_child() -> None:
    for owner, reset in list(_resets.items()):
        reset(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
