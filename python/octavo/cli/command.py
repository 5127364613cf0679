"""Common parts of all commands: groups of options, and errors as one line without a traceback."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any, get_type_hints

import typer

from octavo.errors import InvalidRequestError, OctavoError

# Exit codes of a program that SIGINT or SIGPIPE ended.
INTERRUPTED = 130
BROKEN_PIPE = 141


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Makes `function` a command. A parameter whose type is a dataclass becomes one option per field."""
    plain: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        kind = parameter.annotation
        if not dataclasses.is_dataclass(kind):
            plain.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        assert isinstance(kind, type)
        groups[parameter.name] = kind
        hints = get_type_hints(kind, include_extras=True)
        plain += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
            for f in dataclasses.fields(kind)
        ]

    def run(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{f.name: given.pop(f.name) for f in dataclasses.fields(kind)})
        with quiet_errors():
            function(**given)
            sys.stdout.flush()

    functools.update_wrapper(run, function)
    # `update_wrapper` points typer at the original; the options are those of the new signature.
    del run.__wrapped__  # type: ignore[attr-defined]
    run.__annotations__ = {}
    run.__signature__ = inspect.Signature(plain)  # type: ignore[attr-defined]
    return run


@contextlib.contextmanager
def quiet_errors() -> Any:
    """Prints an error of octavo as one line on stderr. Exit code 1; 2 for invalid input."""
    try:
        yield
    except OctavoError as error:
        fail(str(error), 2 if isinstance(error, InvalidRequestError) else 1)
    except BrokenPipeError:
        # The reader has closed the pipe. Nothing may be written at exit either.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(BROKEN_PIPE) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def fail(message: str, status: int) -> None:
    """Prints `message` as one line on stderr and ends with `status`."""
    print(f"octavo: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(status)
