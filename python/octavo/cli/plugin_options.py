"""Plugins on the command line: `--plugin NAME=URL`, their secrets, and a person's approval of a call."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, cast

from typer import Option

from octavo.cli.attached import named_path
from octavo.errors import InvalidRequestError, MissingDependencyError

if TYPE_CHECKING:
    from octavo.plugins.host.host import PluginHost
    from octavo.plugins.host.outcome import Outcome

log = logging.getLogger("octavo.server")

Rule: TypeAlias = Literal["always", "consequential", "never"]

# The URL of an MCP server: `mcp+https://...`.
_MCP = "mcp+"
# An environment variable, after the name of a header if it is not Authorization.
_SECRET = re.compile(r"(?:([!#$%&'*+.^_`|~0-9A-Za-z-]+):)?([A-Za-z_][A-Za-z0-9_]*)", re.ASCII)
# Longest arguments and results that a terminal shows.
_SHOWN = 300

PluginValues: TypeAlias = Annotated[
    list[str] | None,
    Option(
        "--plugin",
        help="Plugin as NAME=URL: a plugin, or any service with an OpenAPI document; mcp+URL: an MCP server. May be "
        "repeated.",
        show_default=False,
    ),
]
SecretValues: TypeAlias = Annotated[
    list[str] | None,
    Option(
        "--plugin-secret-env",
        help="Environment variable with a plugin's secret, as NAME=VARIABLE for a bearer token, or "
        "NAME=HEADER:VARIABLE. May be repeated.",
        show_default=False,
    ),
]
ApprovalValues: TypeAlias = Annotated[
    list[str] | None,
    Option(
        "--plugin-approval",
        help="Calls of a plugin that wait for an approval, as NAME=always, NAME=consequential or NAME=never. May be "
        "repeated.",
        show_default="consequential",
    ),
]


@dataclass(frozen=True)
class PluginOptions:
    """Plugins that the model of a chat may call."""

    plugin: PluginValues = None
    plugin_secret_env: SecretValues = None
    plugin_approval: ApprovalValues = None

    def host(self) -> contextlib.AbstractContextManager[PluginHost | None]:
        """A host of the plugins; see `plugin_host`."""
        return plugin_host(self.plugin, self.plugin_secret_env, self.plugin_approval)

    def refuse(self, why: str) -> None:
        """Refuses the options.

        Raises:
            InvalidRequestError: one of them is given.
        """
        for name in ("plugin", "plugin_secret_env", "plugin_approval"):
            if getattr(self, name):
                raise InvalidRequestError(f"--{name.replace('_', '-')} {why}")


@contextlib.contextmanager
def plugin_host(
    plugins: Sequence[str] | None, secrets: Sequence[str] | None, approvals: Sequence[str] | None = None
) -> Iterator[PluginHost | None]:
    """A host of the plugins; None without any.

    Raises:
        InvalidRequestError: a value of an option.
        MissingDependencyError: the extra is not installed.
    """
    if not plugins:
        for option, values in (("--plugin-secret-env", secrets), ("--plugin-approval", approvals)):
            if values:
                raise InvalidRequestError(f"{option} {_shown(values[0])}: --plugin names no plugin")
        yield None
        return
    urls: dict[str, str] = {}
    for value in plugins:
        name, url = _pair(value, "--plugin", "NAME=URL")
        if name in urls:
            raise InvalidRequestError(f"--plugin has the name {name!r} twice: give each plugin its own")
        urls[name] = url
    headers: dict[str, dict[str, Any]] = {name: {} for name in urls}
    try:
        from octavo.plugins.host.host import PluginHost
        from octavo.plugins.host.source import PluginSource, Secret
    except ModuleNotFoundError as error:
        if (error.name or "octavo").partition(".")[0] == "octavo":
            raise
        message = f"plugins need {error.name}; install the extra: pip install 'octavo[plugins]'"
        raise MissingDependencyError(message) from error
    for value in secrets or ():
        name, where = _pair(value, "--plugin-secret-env", "NAME=VARIABLE or NAME=HEADER:VARIABLE")
        if name not in urls:
            raise InvalidRequestError(f"--plugin-secret-env names {name[:80]!r}: --plugin has {', '.join(urls)}")
        found = _SECRET.fullmatch(where)
        if found is None:
            # The value may be a secret that was given in place of its variable.
            message = f"--plugin-secret-env {name}=...: the name of a variable is expected, not the secret itself"
            raise InvalidRequestError(message)
        header, variable = found[1], found[2]
        secret = Secret.env(variable) if header else Secret.env(variable, prefix="Bearer ")
        headers[name][header or "Authorization"] = secret
    rules = _rules(approvals)
    unknown = next((name for name in rules if name not in urls), None)
    if unknown is not None:
        raise InvalidRequestError(f"--plugin-approval names {unknown[:80]!r}: --plugin has {', '.join(urls)}")
    sources = {}
    for name, url in urls.items():
        options: dict[str, Any] = {"headers": headers[name], "approval": rules.get(name, "consequential")}
        is_mcp = url.startswith(_MCP)
        sources[name] = PluginSource.mcp(url.removeprefix(_MCP), **options) if is_mcp else PluginSource(url, **options)
    with PluginHost(sources) as host:
        yield host


def binding(approvals: Sequence[str] | None) -> dict[str, Literal["always", "consequential"]]:
    """The approvals that a server asks for whatever its clients say: all that were given but `never`."""
    return {name: rule for name, rule in _rules(approvals).items() if rule != "never"}


def _rules(approvals: Sequence[str] | None) -> dict[str, Rule]:
    """The values of --plugin-approval.

    Raises:
        InvalidRequestError: one has another form.
    """
    found: dict[str, Rule] = {}
    for value in approvals or ():
        name, rule = _pair(value, "--plugin-approval", "NAME=RULE")
        if rule not in ("always", "consequential", "never"):
            raise InvalidRequestError(f"--plugin-approval {name} is {rule[:80]!r}: always, consequential or never")
        found[name] = cast(Rule, rule)
    return found


def _pair(value: str, option: str, form: str) -> tuple[str, str]:
    try:
        return named_path(value, option)
    except InvalidRequestError:
        raise InvalidRequestError(f"{option} is {_shown(value)}: {form} is expected") from None


def _shown(value: str) -> str:
    """A value in a message: what stands after the equals sign may be a secret."""
    name, equals, _ = value.partition("=")
    return repr(f"{name[:80]}=..." if equals else name[:80])


def log_plugins(host: PluginHost) -> None:
    """Logs the operations of the plugins, and the plugins that do not answer."""
    tools = host.tools()
    for name in host.names:
        found = [tool.operation for tool in tools if tool.plugin == name]
        if name in tools.missing:
            log.warning("the plugin %s does not answer: %s", name, tools.missing[name].detail)
        else:
            log.info("the plugin %s has %s", name, ", ".join(found)[:_SHOWN] or "no operations")


def describe(outcome: Outcome) -> str:
    """An outcome as one line."""
    if not outcome.operation:
        return f"[{outcome.plugin}: {outcome.text[:_SHOWN]}]"
    given = _line(outcome.arguments)
    text = _line(outcome.content) if outcome.status == "ok" else f"{outcome.status}: {_line(outcome.text)}"
    repairs = f" ({len(outcome.repairs)} repaired)" if outcome.repairs else ""
    return f"[{outcome.plugin} {outcome.operation} {given}{repairs}: {text}]"


def ask(outcome: Outcome) -> bool:
    """Asks a person whether a call may run. Where the messages come from a pipe, no person is there: it may not."""
    if not sys.stdin.isatty():
        return False
    print(f"\n{outcome.plugin} {outcome.operation} {_line(outcome.arguments, 2000)}", file=sys.stderr)
    try:
        return input("May this call run? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _line(value: Any, longest: int = _SHOWN) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # Control characters of a plugin must not reach a terminal.
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= longest else text[:longest] + "..."
