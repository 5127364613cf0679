"""`octavo bench`: measurements. A file is a command, a line of the list below registers it."""

from __future__ import annotations

from collections.abc import Callable

import typer

from octavo.bench.commands.attention import attention
from octavo.bench.commands.kernels import kernels
from octavo.bench.commands.latency import latency
from octavo.bench.commands.serve import serve
from octavo.bench.commands.throughput import throughput
from octavo.cli.command import command

__all__ = ["bench"]

COMMANDS: list[Callable[..., None]] = [
    serve,
    latency,
    throughput,
    kernels,
    attention,
]

bench = typer.Typer(
    name="bench", help="Measure: a server under load, the engine in this process, or its kernels.", no_args_is_help=True
)
for _function in COMMANDS:
    bench.command(_function.__name__)(command(_function))
