"""`octavo bench`: measurements. A file is a command, a line of the list below registers it."""

from __future__ import annotations

from collections.abc import Callable

import typer

from octavo.cli.bench.kernels import kernels
from octavo.cli.command import command

__all__ = ["bench"]

COMMANDS: list[Callable[..., None]] = [
    kernels,
]

bench = typer.Typer(name="bench", help="Measure: the kernels on this machine.", no_args_is_help=True)


# Without a callback typer makes a program of one command out of a list of one.
@bench.callback()
def _bench() -> None:
    pass


for _function in COMMANDS:
    bench.command(_function.__name__)(command(_function))
