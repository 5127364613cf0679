"""Errors as HTTP responses: status, and a body in OpenAI's form."""

from __future__ import annotations

import re
from typing import Any

from octavo import errors

# "temperature is 3: a number from 0 to 2 is expected", "token ids: a list of integers is expected"
_NAMED = re.compile(r"([a-z_]+)(?: is |: )")
# "pack \"law\" was made ..."
_OF_PACK = re.compile(r"pack [\"']")
# Seconds after which a client may try again when the queue is full.
_RETRY_AFTER = "1"
_NO_RETRY = {"x-should-retry": "false"}


class ApiError(Exception):
    """An error response.

    Args:
        status: HTTP status.
        message: the cause and the remedy.
        param: the invalid parameter, if there is one.
        code: a short name for programs.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    @property
    def kind(self) -> str:
        """OpenAI's `type`."""
        names = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        return names.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def from_octavo(error: Exception, names: dict[str, str] | None = None) -> ApiError:
    """The response for an error of the engine. `names`: names of octavo's parameters -> names in the API.

    OpenAI's clients retry 429 and 5xx. Errors that would occur again carry x-should-retry: false.
    """
    text = str(error)
    names = names or {}
    if isinstance(error, errors.ContextLengthError):
        return bad_request(text, names.get("prompt", "prompt"), "context_length_exceeded")
    if isinstance(error, errors.AdapterNotFoundError):
        # It was unloaded, or loaded again, after the name was found.
        return ApiError(404, text, param="model", code="model_not_found")
    if isinstance(error, errors.PackNotFoundError):
        return ApiError(404, text, param="pack", code="pack_not_found")
    if isinstance(error, errors.PackMismatchError):
        return bad_request(text, "pack", "pack_mismatch")
    if isinstance(error, errors.InvalidRequestError):
        if _OF_PACK.match(text):
            return bad_request(text, "pack")
        found = _NAMED.match(text)
        param = found.group(1) if found else names.get("prompt")
        return bad_request(text, names.get(param, param) if param else None)
    if isinstance(error, errors.QueueFullError):
        return ApiError(429, text, code="queue_full", headers={"retry-after": _RETRY_AFTER})
    if isinstance(error, errors.RequestTimeoutError):
        return ApiError(504, text, param="timeout", code="timeout", headers=_NO_RETRY)
    if isinstance(error, errors.ExecutionError):
        return ApiError(500, text, code="execution_failed", headers=_NO_RETRY)
    if isinstance(error, errors.OctavoError):
        return ApiError(503, text, code="engine_unavailable", headers=_NO_RETRY)
    # The text of an unknown exception may contain secrets: it goes to the log, not to the client.
    return ApiError(500, "an internal fault; the server's log has it", code="internal", headers=_NO_RETRY)
