"""One log line and one count per request. Logs contain no prompts and no keys."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from octavo.server.errors import ApiError
from octavo.server.http import Reply

if TYPE_CHECKING:
    from starlette.types import Message, Send

    from octavo.server.service import Service

log = logging.getLogger("octavo.access")

# Headers with the id of a request: OpenAI's name and Anthropic's.
ID_HEADERS = ("x-request-id", "request-id")


class Access:
    """A request from its first byte to the end of its response."""

    def __init__(self, service: Service, method: str, path: str, request_id: str) -> None:
        self._service = service
        self._method = method
        self._path = path
        self.route = service.route_of(path)
        self.request_id = request_id
        self._begin = time.monotonic()
        self.status = 0
        self._first: float | None = None

    def error_reply(self, error: ApiError) -> Reply:
        """`error` in the form of the API that was called."""
        return self._service.error_reply(error, self._path, self.request_id)

    def start(self, status: int, headers: Mapping[str, str]) -> Message:
        """The first ASGI message of a response, with the request's id."""
        self.started(status)
        fields = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
        fields += self._ids()
        return {"type": "http.response.start", "status": status, "headers": fields}

    def wrap(self, send: Send) -> Send:
        """`send` for the inner application: notes the status and adds the request's id."""

        async def inner(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.started(message["status"])
                message["headers"] = [*message.get("headers", ()), *self._ids()]
            await send(message)

        return inner

    def _ids(self) -> list[tuple[bytes, bytes]]:
        value = self.request_id.encode("ascii")
        return [(name.encode(), value) for name in ID_HEADERS]

    def started(self, status: int) -> None:
        self.status = status
        self._first = time.monotonic()

    def end(self) -> None:
        """Counts and logs. Status 499: the client disconnected before the response began."""
        status = self.status or 499
        self._service.count_request(self._method, self.route, status)
        if not log.isEnabledFor(logging.INFO):
            return
        log.info(
            "%s %s %d",
            self._method,
            self.route,
            status,
            extra={
                "octavo": {
                    "request_id": self.request_id,
                    "method": self._method[:16],
                    "path": self._path[:200],
                    "status": status,
                    "ms": round((time.monotonic() - self._begin) * 1000, 1),
                    "ms_to_first_byte": None if self._first is None else round((self._first - self._begin) * 1000, 1),
                }
            },
        )


class JsonLines(logging.Formatter):
    """A JSON object per line: text from a client cannot start a new line."""

    def format(self, record: logging.LogRecord) -> str:
        row: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "octavo", {}),
        }
        if record.exc_info:
            row["traceback"] = self.formatException(record.exc_info)
        return json.dumps(row, ensure_ascii=True)
