"""A small HTTP/1.1 client for event loops. A full one would take more of the machine than the server it measures."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from octavo.errors import InvalidRequestError

# Longest piece of an answer that is held at once.
_LIMIT_BYTES = 1 << 24
_CONNECT_SECONDS = 10.0


class HttpError(Exception):
    """An invalid answer, or an answer with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}" if status else message)
        self.status = status


@dataclass
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used: bool = False


class Http:
    """Connections to one server, kept for later requests.

    Args:
        url: scheme, host, port and a prefix of paths.
        headers: of every request.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise InvalidRequestError(f"the URL is {url!r}: http://HOST:PORT is expected, with a path if need be")
        try:
            port = parts.port
        except ValueError as error:
            raise InvalidRequestError(f"the URL is {url!r}: {error}") from error
        self._host = parts.hostname
        self._port = port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        shown = f"[{self._host}]" if ":" in self._host else self._host
        fields = {"Host": shown if port is None else f"{shown}:{port}", **headers}
        if any(c in "\r\n" or ord(c) > 255 for text in (*fields, *fields.values()) for c in text):
            raise InvalidRequestError("a header or the API key holds characters that HTTP cannot carry")
        self._head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._idle: list[_Connection] = []

    async def get(self, path: str) -> bytes:
        """The whole body. Raises HttpError, OSError."""
        return b"".join([piece async for piece in self.request("GET", path)])

    async def post(self, path: str, body: bytes) -> bytes:
        """The whole body. Raises HttpError, OSError."""
        return b"".join([piece async for piece in self.request("POST", path, body)])

    async def request(self, method: str, path: str, body: bytes = b"") -> AsyncIterator[bytes]:
        """The pieces of the body, as they come. Closing the iterator drops the connection.

        Raises:
            HttpError: any status but 200, or no HTTP.
            OSError: no connection, or a broken one.
        """
        content = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if method == "POST" else ""
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._head}{content}\r\n".encode("latin-1")
        while True:
            connection = self._idle.pop() if self._idle else await self._connect()
            try:
                connection.writer.write(head + body)
                status, headers = await _head(connection.reader)
                break
            except (OSError, asyncio.IncompleteReadError, EOFError) as error:
                connection.writer.close()
                # The server may have closed a connection that was idle: then a new one is tried.
                if not connection.used:
                    raise ConnectionResetError("the server closed the connection without an answer") from error
            except BaseException:
                connection.writer.close()
                raise
        whole = False
        try:
            pieces = _body(connection.reader, headers)
            if status != 200:
                text = b"".join([piece async for piece in pieces])
                whole = True
                raise HttpError(status, text[:300].decode("utf-8", "replace"))
            async for piece in pieces:
                yield piece
            whole = True
        except (asyncio.IncompleteReadError, EOFError) as error:
            raise ConnectionResetError("the answer was cut off") from error
        finally:
            if whole and headers.get("connection", "").lower() != "close" and _has_end(headers):
                connection.used = True
                self._idle.append(connection)
            else:
                connection.writer.close()

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                made = await asyncio.open_connection(self._host, self._port, ssl=self._ssl, limit=_LIMIT_BYTES)
        except TimeoutError as error:
            raise ConnectionError(f"no connection to {self._host}:{self._port} in {_CONNECT_SECONDS:.0f} s") from error
        return _Connection(*made)

    async def close(self) -> None:
        for connection in self._idle:
            connection.writer.close()
        self._idle = []


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    try:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.LimitOverrunError as error:
        raise HttpError(0, "the head of the answer has no end") from error
    first, *lines = text.split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
        raise HttpError(0, f"this is no HTTP: {first[:80]!r}")
    fields = (line.partition(":") for line in lines if line)
    return int(words[1]), {name.strip().lower(): value.strip() for name, _, value in fields}


def _has_end(headers: Mapping[str, str]) -> bool:
    return "content-length" in headers or headers.get("transfer-encoding", "").lower() == "chunked"


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    try:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                yield (await reader.readexactly(size + 2))[:-2]
            while await reader.readuntil(b"\r\n") != b"\r\n":
                pass
        elif "content-length" in headers:
            left = int(headers["content-length"])
            while left:
                piece = await reader.read(min(left, 1 << 16))
                if not piece:
                    raise EOFError
                left -= len(piece)
                yield piece
        else:
            while piece := await reader.read(1 << 16):
                yield piece
    except (ValueError, asyncio.LimitOverrunError) as error:
        raise HttpError(0, "the body of the answer is not well formed") from error
