"""`octavo plugin check` and `python -m octavo.plugins.check URL`: tests a running plugin. It needs no engine."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import Annotated, Any

import typer
from typer import Argument, Option

from octavo.errors import InvalidRequestError, OctavoError


def check(
    url: Annotated[str, Argument(help="The plugin's base URL.", show_default=False)],
    header_env: Annotated[
        list[str] | None,
        Option(
            help="Header of each request, as NAME=VARIABLE of the environment. May be repeated.", show_default=False
        ),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        Option(help="Arguments that an operation accepts, as OPERATION=JSON. May be repeated.", show_default=False),
    ] = None,
    call: Annotated[
        bool,
        Option(
            help="Call operations that are idempotent and without consequences. "
            "Others only get requests that a plugin must refuse."
        ),
    ] = True,
    generate: Annotated[bool, Option(help="Also send generated requests, with schemathesis.")] = False,
    as_json: Annotated[bool, Option("--json", help="Write a JSON object.")] = False,
    timeout: Annotated[float, Option(min=0.1, help="Seconds for each request.")] = 10.0,
) -> None:
    """Test a running plugin against the protocol. Exit code 1 if it breaks a rule."""
    from octavo.plugins.conformance import UrlTarget
    from octavo.plugins.conformance import check as run

    headers = _headers(header_env or [])
    report = run(UrlTarget(url, headers, timeout), arguments=_arguments(arguments or []), call=call)
    if generate and report.level:
        report = replace(report, results=[*report.results, *_generated(url, headers, timeout)])
    print(json.dumps(report.to_json(), ensure_ascii=False, indent=2) if as_json else _printable(report.text()))
    if not report.ok:
        raise typer.Exit(1)


def _generated(url: str, headers: dict[str, str], timeout: float) -> list[Any]:
    from octavo.plugins.conformance import UrlTarget
    from octavo.plugins.conformance.context import Context
    from octavo.plugins.conformance.generated import generated
    from octavo.plugins.conformance.runner import hidden

    target = UrlTarget(url, headers, timeout)
    context = Context(target)
    return [hidden(target, each) for each in generated(url, context.manifest, context.document, headers)]


def _printable(text: str) -> str:
    # Control characters of a plugin must not reach a terminal.
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def _headers(values: list[str]) -> dict[str, str]:
    found = {}
    for value in values:
        name, equals, variable = value.partition("=")
        if not equals or not name or not variable:
            raise InvalidRequestError(f"--header-env {name[:80]!r}: NAME=VARIABLE is expected")
        if variable not in os.environ:
            # The value may be a secret that was given in place of its variable.
            raise InvalidRequestError(f"--header-env {name[:80]}=...: no environment variable has the name after the =")
        found[name] = os.environ[variable]
    return found


def _arguments(values: list[str]) -> dict[str, Any]:
    found = {}
    for value in values:
        operation, equals, text = value.partition("=")
        try:
            found[operation] = json.loads(text) if equals else None
        except ValueError as error:
            raise InvalidRequestError(f"--arguments {operation[:80]}: not JSON: {error}") from None
        if not isinstance(found[operation], dict):
            raise InvalidRequestError(f"--arguments {value[:80]!r}: OPERATION=JSON with an object is expected")
    return found


def main() -> None:
    """Entry point of `python -m octavo.plugins.check`. Exit code 1; 2 for invalid input."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(check)
    try:
        app()
    except OctavoError as error:
        print(f"octavo: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, InvalidRequestError) else 1) from None


if __name__ == "__main__":
    main()
