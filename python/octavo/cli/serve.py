"""`octavo serve`: the OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from octavo.cli.options import EngineOptions, with_model
from octavo.errors import InvalidRequestError

# Seconds that an idle connection is kept for its next request.
_KEEP_ALIVE = 75
# Seconds for the last events of what --shutdown-timeout ended.
_LAST_WORDS = 5


def serve(
    engine: EngineOptions,
    folder: Annotated[str | None, Argument(metavar="[MODEL]", help="As --model.", show_default=False)] = None,
    host: Annotated[str, Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, Option(help="Port to listen at; 0: any free one.", min=0, max=65535)] = 8000,
    api_key: Annotated[
        list[str] | None, Option(help="Key that clients must send; may be repeated.", show_default=False)
    ] = None,
    insecure: Annotated[bool, Option("--insecure", help="Listen at other addresses without a key.")] = False,
    served_model_name: Annotated[
        list[str] | None,
        Option(help="Name of the model for clients; may be repeated.", show_default="folder or hub id"),
    ] = None,
    chat_template: Annotated[
        str | None, Option(help="File with a Jinja template, or its text.", show_default="the model's")
    ] = None,
    tokenizer: Annotated[str | None, Option(help="Folder or tokenizer.json.", show_default="the model's")] = None,
    enable_prefix_caching: Annotated[
        bool, Option("--enable-prefix-caching/--no-enable-prefix-caching", help="Share KV blocks of equal prefixes.")
    ] = True,
    seed: Annotated[int, Option(help="Of requests that bring none.")] = 0,
    max_queue: Annotated[int | None, Option(help="Requests that may wait.", show_default="1024")] = None,
    tool_call_parser: Annotated[str, Option(help="Format of tool calls in the model's text.")] = "auto",
    reasoning_parser: Annotated[
        str | None, Option(help="Format of reasoning in the model's text.", show_default="none")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, Option(help="Further name that clients without a key may use for this server.")
    ] = None,
    allowed_origins: Annotated[
        list[str] | None, Option(help="Web origin whose pages may call the server; may be repeated.")
    ] = None,
    root_path: Annotated[str, Option(help="Prefix that a proxy in front strips.")] = "",
    ssl_keyfile: Annotated[Path | None, Option(help="Key for TLS.")] = None,
    ssl_certfile: Annotated[Path | None, Option(help="Certificate for TLS.")] = None,
    shutdown_timeout: Annotated[int, Option(help="Seconds for running requests after SIGTERM.", min=0)] = 30,
    stream_interval_ms: Annotated[float, Option(help="Time between two pieces of a stream.")] = 20.0,
    page: Annotated[bool, Option("--page/--no-page", help="A page at / to try a prompt and see metrics.")] = True,
    metrics_compat: Annotated[str | None, Option(help="vllm: metrics under vLLM's names too.")] = None,
    log_level: Annotated[str, Option(help="debug, info, warning or error.")] = "info",
    config: Annotated[
        Path | None,
        Option(
            help="YAML or TOML file of these options, by their names; the command line wins.",
            callback=lambda context, value: _read_config(context, value),
            is_eager=True,
        ),
    ] = None,
) -> None:
    """Serve a model to OpenAI's clients. Every option may also come from OCTAVO_<OPTION> in the environment."""
    from octavo.server import ServerConfig, create_app, missing

    try:
        import uvicorn

        from octavo.server.protocol import http_protocol
    except ModuleNotFoundError as error:
        raise missing(error) from error
    keys = tuple(api_key or ())
    local = _is_loopback(host)
    if not keys and not local and not insecure:
        raise InvalidRequestError(
            f"--host {host} lets other machines in: set --api-key, or --insecure if everyone there may use this server"
        )
    engine = with_model(engine, folder)
    hosts = None
    if not keys and local:
        # Without a key only the name protects from web pages that rebind theirs to this address.
        hosts = tuple({host, "localhost", "127.0.0.1", "[::1]", *(allowed_host or ())})
    settings = ServerConfig(
        api_keys=keys,
        served_model_names=tuple(served_model_name or ()),
        allowed_hosts=hosts,
        allowed_origins=tuple(allowed_origins or ()),
        stream_interval_ms=stream_interval_ms,
        metrics_compat=metrics_compat,
        tool_parser=tool_call_parser,
        reasoning_parser=reasoning_parser,
        page=page,
    )
    _log_as_json(log_level)
    with (
        engine.load(
            max_queue=max_queue,
            chat_template=_template(chat_template),
            tokenizer=tokenizer,
            enable_prefix_caching=enable_prefix_caching,
            seed=seed,
        ) as llm,
        listen(host, port) as listener,
    ):
        app = create_app(llm, settings)
        shown = f"[{host}]" if ":" in host else host
        scheme = "https" if ssl_certfile else "http"
        address = f"{scheme}://{shown}:{listener.getsockname()[1]}{root_path}"

        class Server(uvicorn.Server):
            """Says when it listens."""

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                facts = {"octavo": {"address": address, "model": str(llm.model)}}
                logging.getLogger("octavo.server").info("ready at %s", address, extra=facts)

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                # Closing the engine ends what still runs when the time is up; each stream says so in its last event.
                closing = threading.Thread(target=llm.close, daemon=True)
                timer = asyncio.get_running_loop().call_later(shutdown_timeout, closing.start)
                try:
                    await super().shutdown(sockets)
                finally:
                    timer.cancel()

        # uvicorn drains on SIGTERM and then raises it once more: that was all, the end is a clean one.
        signal.signal(signal.SIGTERM, lambda *_: None)
        Server(
            uvicorn.Config(
                app,
                http=http_protocol(),
                ws="none",
                loop="auto",
                h11_max_incomplete_event_size=settings.limits.header_bytes + 4096,
                log_config=None,
                access_log=False,
                server_header=False,
                root_path=root_path,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=shutdown_timeout + _LAST_WORDS,
                backlog=1024,
                ssl_keyfile=ssl_keyfile,
                ssl_certfile=ssl_certfile,
            )
        ).run(sockets=[listener])


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
        # With the protocol named asyncio turns Nagle's algorithm off; else a small answer waits 40 ms for an ACK.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise InvalidRequestError(f"cannot listen at {host}:{port}: {error}") from error
    return listener


def _template(given: str | None) -> str | None:
    """The text of a template that is given as such, or as a file."""
    if given is None or "{" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"--chat-template {given}: {error}") from error


def _log_as_json(level: str) -> None:
    from octavo.server.access import JsonLines

    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise InvalidRequestError(f"--log-level is {level!r}: debug, info, warning or error is expected")
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("octavo", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(number if name == "octavo" else max(number, logging.WARNING))
        logger.propagate = False


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Makes the file's entries the defaults of the options."""
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
        # The parsers have errors of their own; each says what is wrong with the file.
        raise typer.BadParameter(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{path}: option names and values are expected")
    entries = {str(name).replace("-", "_"): value for name, value in found.items()}
    known = {p.name for p in context.command.params}
    unknown = sorted(set(entries) - known)
    if unknown:
        raise typer.BadParameter(f"{path}: there is no option {unknown[0]!r}")
    context.default_map = {**(context.default_map or {}), **entries}
    return path
