"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo import __version__
from octavo.cli.chat import chat
from octavo.cli.doctor import doctor
from octavo.cli.generate import generate
from octavo.cli.info import info

app = typer.Typer(
    help="octavo: LLM inference that installs with one command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"octavo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command()(generate)
app.command()(chat)
app.command()(info)
app.command()(doctor)
