"""A conversation with a running server, for `octavo chat --url`."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from octavo.cli.options import SamplingOptions
from octavo.errors import ContextLengthError, EngineDeadError, InvalidRequestError, OctavoError, QueueFullError

_TIMEOUT_SECONDS = 600
# Defaults that are not sent: some servers reject unknown fields.
_NEUTRAL = {"min_tokens": 0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": False}


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Rejects redirects, which could send the key to another server."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Remote:
    """An OpenAI-compatible server.

    Args:
        url: with or without "/v1" at its end.
        model: name of the model; None: the first in the list of the server.
    """

    def __init__(self, url: str, sampling: SamplingOptions, *, model: str | None, api_key: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InvalidRequestError(f"--url is {url!r}: http://HOST:PORT is expected")
        self._base = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {"Content-Type": "application/json", "User-Agent": "octavo"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        handlers: list[Any] = [NoRedirects]
        if parts.hostname in ("localhost", "127.0.0.1", "::1"):
            # No proxy for local servers: a proxy would see the key.
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)
        wanted = vars(sampling)
        self._fields = {k: v for k, v in wanted.items() if v is not None and _NEUTRAL.get(k, ...) != v}
        self.model = model or self._first_model()
        # Finish reason and speed of the last answer.
        self.reason: str | None = None
        self.speed = ""

    def __repr__(self) -> str:
        return f"{self.model} at {self._base}"

    def _first_model(self) -> str:
        with self._open("/models", None) as answer:
            try:
                return str(json.load(answer)["data"][0]["id"])
            except (ValueError, LookupError, TypeError) as error:
                raise OctavoError(f"{self._base}/models is no list of models: name one with --model") from error

    def answer(self, history: list[dict[str, str]]) -> Iterator[str]:
        """Pieces of the answer, while it is received.

        Raises:
            OctavoError: the error of the server, as the engine's exception.
        """
        self.reason, self.speed = None, ""
        fields = {"model": self.model, "messages": history, "stream": True, **self._fields}
        begin = time.perf_counter()
        first: float | None = None
        ended = False
        with self._open("/chat/completions", fields) as answer:
            for line in _lines(answer):
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    ended = True
                    break
                text = self._read(data)
                if text:
                    first = first or time.perf_counter()
                    yield text
        if not ended and self.reason is None:
            raise OctavoError("the server broke off the answer")
        if first is not None:
            self.speed = f"[{time.perf_counter() - begin:.1f} s, first after {1000 * (first - begin):.1f} ms]"

    def _read(self, data: bytes) -> str:
        try:
            chunk = json.loads(data)
            if "error" in chunk:
                raise OctavoError(str(chunk["error"]["message"]))
            choice = (chunk.get("choices") or [{}])[0]
            self.reason = choice.get("finish_reason") or self.reason
            return str((choice.get("delta") or {}).get("content") or "")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise OctavoError(f"the server sent what is no chunk of an answer: {data[:80]!r}") from error

    def _open(self, path: str, fields: dict[str, Any] | None) -> Any:
        body = None if fields is None else json.dumps(fields).encode()
        request = urllib.request.Request(self._base + path, body, self._headers)
        try:
            return self._opener.open(request, timeout=_TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error.code, error.read(65536)) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise OctavoError(f"{self._base}: {reason}") from error


def _lines(answer: Any) -> Iterator[bytes]:
    try:
        yield from answer
    except OSError as error:
        raise OctavoError(f"the server broke off the answer: {error}") from error


def _refusal(status: int, body: bytes) -> OctavoError:
    """The error of a server as the exception that the engine would raise."""
    message, code = body.decode("utf-8", "replace").strip()[:300] or "no reason given", None
    try:
        fault = json.loads(body)["error"]
        message, code = str(fault["message"]), fault.get("code")
    except (ValueError, LookupError, TypeError, AttributeError):
        message = f"HTTP {status}: {message}"
    if status in (401, 403):
        return InvalidRequestError(f"{message} (here: --api-key, or OCTAVO_API_KEY)")
    if code == "context_length_exceeded":
        return ContextLengthError(message)
    if status == 429:
        return QueueFullError(message)
    if status == 503:
        return EngineDeadError(message)
    return InvalidRequestError(message) if 400 <= status < 500 else OctavoError(message)
