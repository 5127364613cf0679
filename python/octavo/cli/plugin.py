"""`octavo plugin`: write, check and call plugins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from octavo.cli.command import command
from octavo.cli.plugin_tools import call, list_, schema
from octavo.plugins.check import check
from octavo.plugins.scaffold import new_project

__all__ = ["plugin"]


def new(
    name: Annotated[str, Argument(help="The plugin's name, such as weather.", show_default=False)],
    framework: Annotated[str, Option(help="fastapi, flask or none.")] = "fastapi",
    folder: Annotated[Path | None, Option(help="A new or empty folder.", show_default="NAME")] = None,
) -> None:
    """Write a small plugin project with tests."""
    target = folder if folder is not None else Path(name)
    for file in new_project(name, target, framework):
        print(file)


COMMANDS: list[Callable[..., None]] = [new, check, list_, schema, call]

plugin = typer.Typer(name="plugin", help="Plugins: operations that a model calls over REST.", no_args_is_help=True)
for _function in COMMANDS:
    plugin.command(_function.__name__.rstrip("_"))(command(_function))
