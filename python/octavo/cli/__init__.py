"""The command line: `octavo generate`, `chat`, `serve`, `bench`, `finetune`, ... A file is a command."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo import __version__
from octavo.cli.attached import ServeCommand
from octavo.cli.bench import bench
from octavo.cli.chat import chat
from octavo.cli.command import command
from octavo.cli.compress import compress
from octavo.cli.doctor import doctor
from octavo.cli.eval import eval_
from octavo.cli.finetune import finetune
from octavo.cli.generate import generate
from octavo.cli.info import info
from octavo.cli.merge import merge
from octavo.cli.pack import pack
from octavo.cli.plugin import plugin
from octavo.cli.quantize import quantize
from octavo.cli.serve import serve

__all__ = ["app", "main"]

app = typer.Typer(
    name="octavo",
    help="LLM inference that installs with one command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _function in (generate, chat, eval_, finetune, quantize, merge, compress, pack, info, doctor):
    app.command(_function.__name__.removesuffix("_"))(command(_function))
app.command(cls=ServeCommand, context_settings={"auto_envvar_prefix": "OCTAVO"})(command(serve))
app.add_typer(bench)
app.add_typer(plugin)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"octavo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `octavo` script."""
    app()
