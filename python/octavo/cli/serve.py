"""`octavo serve`: the OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import signal
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from octavo.cli.attached import load_attached, lora_modules, named_path
from octavo.cli.options import ServeOptions, with_model
from octavo.cli.plugin_options import ApprovalValues, PluginValues, SecretValues, binding, log_plugins, plugin_host
from octavo.errors import InvalidRequestError
from octavo.llm import LLM
from octavo.server import Limits, ServerConfig, create_app, missing

if TYPE_CHECKING:
    from octavo.plugins.host.host import PluginHost

# Seconds until an idle connection is closed.
_KEEP_ALIVE = 75
# Seconds for the last events of requests that --shutdown-timeout ended.
_LAST_EVENTS = 5


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Makes the entries of a file the defaults of the options."""
    if path is None:
        return None
    try:
        if path.suffix == ".toml":
            import tomllib

            found: Any = tomllib.loads(path.read_text(encoding="utf-8"))
        else:
            import yaml

            found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except ModuleNotFoundError as error:
        raise typer.BadParameter("YAML needs the extra: pip install 'octavo[server]'; TOML needs nothing") from error
    except Exception as error:
        # The parsers raise their own errors, which describe the fault in the file.
        raise typer.BadParameter(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{path}: option names and values are expected")
    entries = {str(name).replace("-", "_"): _texts(value) for name, value in found.items()}
    known = {p.name for p in context.command.params}
    unknown = sorted(set(entries) - known)
    if unknown:
        raise typer.BadParameter(f"{path}: there is no option {unknown[0]!r}")
    context.default_map = {**(context.default_map or {}), **entries}
    return path


def _texts(value: Any) -> Any:
    """Objects in a list as their JSON, which is how the command line has them."""
    return [json.dumps(v) if isinstance(v, dict) else v for v in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class ServerOptions:
    """Options of the server; see `octavo.server.ServerConfig`."""

    host: Annotated[str, Option(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Option(help="Port to listen on; 0: any free port.", min=0, max=65535)] = 8000
    api_key: Annotated[
        list[str] | None, Option(help="Key that clients must send; may be repeated.", show_default=False)
    ] = None
    insecure: Annotated[
        bool, Option("--insecure", help="Allow a --host that other machines can reach, without a key.")
    ] = False
    served_model_name: Annotated[
        list[str] | None,
        Option(help="Name of the model in the API; may be repeated.", show_default="folder or hub id"),
    ] = None
    tool_call_parser: Annotated[str, Option(help="Format of the model's tool calls; auto: from the chat template.")] = (
        "auto"
    )
    reasoning_parser: Annotated[str | None, Option(help="Format of the model's reasoning.", show_default="none")] = None
    disable_additional_properties: Annotated[
        bool,
        Option(
            "--disable-additional-properties/--no-disable-additional-properties",
            help="Objects in JSON schemas that name their properties take no others by default.",
        ),
    ] = True
    allowed_host: Annotated[
        list[str] | None, Option(help="Further Host header that is accepted without a key; may be repeated.")
    ] = None
    allowed_origins: Annotated[
        list[str] | None, Option(help="Web origin whose pages may call the server (CORS); may be repeated.")
    ] = None
    root_path: Annotated[str, Option(help="Path prefix that a reverse proxy removes.")] = ""
    ssl_keyfile: Annotated[Path | None, Option(help="File with the private key for TLS.")] = None
    ssl_certfile: Annotated[Path | None, Option(help="File with the certificate for TLS.")] = None
    shutdown_timeout: Annotated[int, Option(help="Seconds that running requests get after SIGTERM.", min=0)] = 30
    stream_interval_ms: Annotated[
        float, Option(help="Minimum time between two events of a stream, in milliseconds.")
    ] = 20.0
    stored_responses: Annotated[
        int, Option(help="Number of responses of /v1/responses that are stored for each key; 0: none.", min=0)
    ] = Limits().stored_responses
    enable_lora: Annotated[
        bool, Option("--enable-lora", help="Accepted for vLLM's users: adapters are always enabled.")
    ] = False
    lora_modules: Annotated[
        list[str] | None,
        Option(
            help='Adapter as NAME=PATH or {"name": ..., "path": ..., "base_model_name": ...}; several may follow.',
            show_default=False,
        ),
    ] = None
    lora_root: Annotated[
        Path | None,
        Option(help="Folder below which administrators load adapters at run time.", show_default="none are loaded"),
    ] = None
    admin_api_key: Annotated[
        list[str] | None,
        Option(
            help="Key that loads and unloads adapters, and opens nothing else; may be repeated.", show_default=False
        ),
    ] = None
    pack: Annotated[
        list[str] | None, Option(help="Knowledge pack as NAME=PATH; several may follow.", show_default=False)
    ] = None
    plugin: PluginValues = None
    plugin_secret_env: SecretValues = None
    plugin_approval: ApprovalValues = None
    max_plugin_rounds: Annotated[int, Option(help="Rounds with calls of plugins in one answer.", min=1, max=64)] = (
        ServerConfig().max_plugin_rounds
    )
    page: Annotated[bool, Option("--page/--no-page", help="Serve a page at / to try prompts and see metrics.")] = True
    metrics_compat: Annotated[str | None, Option(help="vllm: also export the metrics under vLLM's names.")] = None
    log_level: Annotated[str, Option(help="debug, info, warning or error.")] = "info"
    config: Annotated[
        Path | None,
        Option(
            help="YAML or TOML file with values of these options. The command line takes precedence.",
            callback=_read_config,
            is_eager=True,
        ),
    ] = None

    def settings(self, plugins: PluginHost | None = None) -> ServerConfig:
        """The configuration of the application.

        Args:
            plugins: the host of the plugins.

        Raises:
            InvalidRequestError: other machines could use the server without a key.
        """
        keys, local = tuple(self.api_key or ()), _is_loopback(self.host)
        if not keys and not local and not self.insecure:
            raise InvalidRequestError(
                f"--host {self.host} lets other machines in: set --api-key, or --insecure if everyone there may use "
                "this server"
            )
        hosts = None
        if not keys and local:
            # Without a key only the Host header protects against web pages that rebind their name to this address.
            hosts = tuple({self.host, "localhost", "127.0.0.1", "[::1]", *(self.allowed_host or ())})
        return ServerConfig(
            api_keys=keys,
            admin_api_keys=tuple(self.admin_api_key or ()),
            lora_root=self.lora_root,
            served_model_names=tuple(self.served_model_name or ()),
            allowed_hosts=hosts,
            allowed_origins=tuple(self.allowed_origins or ()),
            stream_interval_ms=self.stream_interval_ms,
            limits=Limits(stored_responses=self.stored_responses),
            metrics_compat=self.metrics_compat,
            tool_parser=self.tool_call_parser,
            reasoning_parser=self.reasoning_parser,
            disable_additional_properties=self.disable_additional_properties,
            page=self.page,
            plugins=plugins,
            max_plugin_rounds=self.max_plugin_rounds,
            plugin_approvals=binding(self.plugin_approval),
        )

    def address(self, listener: socket.socket) -> str:
        """The URL of the server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "https" if self.ssl_certfile else "http"
        return f"{scheme}://{host}:{listener.getsockname()[1]}{self.root_path}"


def serve(
    engine: ServeOptions,
    server: ServerOptions,
    folder: Annotated[str | None, Argument(metavar="[MODEL]", help="Same as --model.", show_default=False)] = None,
) -> None:
    """Serve a model through an OpenAI-compatible API. Each option can also be set as OCTAVO_<OPTION> in the
    environment."""
    try:
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing(error) from error
    with plugin_host(server.plugin, server.plugin_secret_env, server.plugin_approval) as plugins:
        _serve(engine, server, folder, server.settings(plugins))


def _serve(engine: ServeOptions, server: ServerOptions, folder: str | None, settings: ServerConfig) -> None:
    modules = lora_modules(server.lora_modules or ())
    packs = [named_path(value, "--pack") for value in server.pack or ()]
    _log_as_json(server.log_level)
    with with_model(engine, folder).load() as llm, listen(server.host, server.port) as listener:
        load_attached(llm, settings.served_model_names, modules, packs)
        if settings.plugins is not None:
            # A plugin that is slow to answer delays nothing.
            threading.Thread(target=log_plugins, args=(settings.plugins,), daemon=True).start()
        # uvicorn shuts down on SIGTERM and then raises the signal again, which must not end the process with an error.
        signal.signal(signal.SIGTERM, lambda *_: None)
        _run(llm, server, settings, listener)


def _run(llm: LLM, options: ServerOptions, settings: ServerConfig, listener: socket.socket) -> None:
    """Serves until a signal ends it."""
    import uvicorn

    from octavo.server.protocol import http_protocol

    address = options.address(listener)

    class Server(uvicorn.Server):
        """Logs the address, and closes the engine when the shutdown takes too long."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            facts = {"octavo": {"address": address, "model": str(llm.model)}}
            logging.getLogger("octavo.server").info("ready at %s", address, extra=facts)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # Closing the engine ends the remaining requests; each stream reports that in its last event.
            closing = threading.Thread(target=llm.close, daemon=True)
            timer = asyncio.get_running_loop().call_later(options.shutdown_timeout, closing.start)
            try:
                await super().shutdown(sockets)
            finally:
                timer.cancel()

    config = uvicorn.Config(
        create_app(llm, settings),
        http=http_protocol(),
        ws="none",
        loop="auto",
        h11_max_incomplete_event_size=settings.limits.header_bytes + 4096,
        log_config=None,
        access_log=False,
        server_header=False,
        root_path=options.root_path,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=options.shutdown_timeout + _LAST_EVENTS,
        backlog=1024,
        ssl_keyfile=options.ssl_keyfile,
        ssl_certfile=options.ssl_certfile,
    )
    Server(config).run(sockets=[listener])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        # asyncio disables Nagle's algorithm only if the protocol is set. Else a small response waits 40 ms.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise InvalidRequestError(f"cannot listen at {host}:{port}: {error}") from error
    return listener


def _log_as_json(level: str) -> None:
    from octavo.server.access import JsonLines

    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise InvalidRequestError(f"--log-level is {level!r}: debug, info, warning or error is expected")
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    # Warnings of Python, such as those about the files of an adapter, are lines of the log, too.
    logging.captureWarnings(True)
    for name in ("octavo", "uvicorn", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(number if name == "octavo" else max(number, logging.WARNING))
        logger.propagate = False
