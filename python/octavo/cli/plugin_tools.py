"""`octavo plugin list | schema | call`: what a plugin offers, and a call of it, through the host."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from typer import Argument, Option

from octavo.cli.plugin_options import plugin_host
from octavo.errors import InvalidRequestError, OctavoError

if TYPE_CHECKING:
    from octavo.plugins.host.host import PluginHost
    from octavo.plugins.host.outcome import Tool

_NAME = "plugin"

Url: TypeAlias = Annotated[
    str,
    Argument(
        metavar="URL",
        help="A plugin, or any service with an OpenAPI document; mcp+URL: an MCP server.",
        show_default=False,
    ),
]
Operation: TypeAlias = Annotated[str, Argument(metavar="OPERATION", help="The operation's id.", show_default=False)]
SecretEnv: TypeAlias = Annotated[
    str | None,
    Option(help="Environment variable with a bearer token, or HEADER:VARIABLE.", show_default=False),
]


def list_(
    url: Url,
    secret_env: SecretEnv = None,
    as_json: Annotated[bool, Option("--json", help="Write a JSON list of tools in OpenAI's shape.")] = False,
) -> None:
    """List the operations of a plugin."""
    with plugin_host([f"{_NAME}={url}"], _secrets(secret_env)) as host:
        tools = _tools(host)
    if as_json:
        print(json.dumps([tool.openai() for tool in tools], ensure_ascii=False, indent=2))
        return
    for tool in tools:
        names = ", ".join(tool.parameters.get("properties", {}))
        marks = " [consequential]" if tool.consequential else ""
        marks += " [deprecated]" if tool.deprecated else ""
        first = tool.description.strip().partition("\n")[0]
        print(_printable(f"{tool.operation}({names}){marks}  {first}".rstrip()))


def schema(url: Url, operation: Operation, secret_env: SecretEnv = None) -> None:
    """Show the schemas of an operation, as JSON."""
    with plugin_host([f"{_NAME}={url}"], _secrets(secret_env)) as host:
        tool = _tool(host, operation)
    value = {
        "operation": tool.operation,
        "description": tool.description,
        "consequential": tool.consequential,
        "digest": tool.digest,
        "arguments": tool.parameters,
        "result": tool.result,
    }
    print(json.dumps(value, ensure_ascii=False, indent=2))


def call(
    url: Url,
    operation: Operation,
    arguments: Annotated[str, Argument(metavar="[ARGUMENTS]", help="A JSON object.")] = "{}",
    secret_env: SecretEnv = None,
    approve: Annotated[bool, Option("--approve", help="Approve an operation with consequences.")] = False,
    timeout: Annotated[float, Option(min=0.1, help="Seconds for the whole call.")] = 10.0,
    as_json: Annotated[bool, Option("--json", help="Write the whole outcome, with repairs and requests.")] = False,
) -> None:
    """Call an operation once. Exit code 1 if the call fails."""
    try:
        given = json.loads(arguments)
    except ValueError as error:
        raise InvalidRequestError(f"ARGUMENTS is no JSON: {error}") from None
    with plugin_host([f"{_NAME}={url}"], _secrets(secret_env)) as host:
        tool = _tool(host, operation)
        assert host is not None
        outcome = host.call(tool.name, given, deadline=timeout, approved=approve, digest=tool.digest)
    if as_json:
        value: dict[str, Any] = {
            "status": outcome.status,
            "content": outcome.content,
            "error": outcome.error.to_json() if outcome.error else None,
            "arguments": outcome.arguments,
            "repairs": [{"kind": r.kind, "pointer": r.pointer, "detail": r.detail} for r in outcome.repairs],
            "version": outcome.version,
            "digest": outcome.digest,
            "requests": outcome.requests,
            "seconds": outcome.seconds,
            "warnings": list(outcome.warnings),
        }
        print(json.dumps(value, ensure_ascii=False, indent=2))
    elif outcome.ok:
        print(json.dumps(outcome.content, ensure_ascii=False, indent=2))
    else:
        print(_printable(outcome.text))
    if not outcome.ok:
        raise typer.Exit(1)


def _secrets(value: str | None) -> list[str] | None:
    return None if value is None else [f"{_NAME}={value}"]


def _tools(host: PluginHost | None) -> list[Tool]:
    assert host is not None
    tools = host.tools()
    for problem in tools.missing.values():
        raise OctavoError(problem.detail)
    return list(tools)


def _tool(host: PluginHost | None, operation: str) -> Tool:
    tools = _tools(host)
    found = next((tool for tool in tools if tool.operation == operation), None)
    if found is None:
        known = ", ".join(tool.operation for tool in tools) or "none"
        raise InvalidRequestError(f"the plugin has no operation {operation[:80]!r}: it has {known}")
    return found


def _printable(text: str) -> str:
    # Control characters of a plugin must not reach a terminal.
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)
