"""`python -m octavo.plugins.check URL`: `octavo plugin check`, for machines that have the package alone."""

from __future__ import annotations

import typer

from octavo.cli.command import command
from octavo.cli.plugin_check import check


def main() -> None:
    """Entry point of `python -m octavo.plugins.check`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command(check))
    app()


if __name__ == "__main__":
    main()
