"""From a request to a response: paths, versions, limits and problems. No framework, no I/O."""

from __future__ import annotations

import difflib
import email.utils
import hashlib
import inspect
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.plugins import idempotency, protocol
from octavo.plugins.convert import Endpoint, Table
from octavo.plugins.exchange import Request, Response, json_response, problem_response, read_json
from octavo.plugins.manifest import Limits
from octavo.plugins.mcp_endpoint import McpServer
from octavo.plugins.operation import accept
from octavo.plugins.origins import Origins
from octavo.plugins.problems import Problem, ProblemError
from octavo.plugins.running import Done, Job, Runner
from octavo.plugins.schema import canonical_json

log = logging.getLogger("octavo.plugins")


@dataclass(frozen=True)
class Served:
    """What a plugin serves, built once. `documents`: path -> (body, quoted ETag)."""

    name: str
    version: str
    description: str
    table: Table
    documents: Mapping[str, tuple[bytes, str]]


class Handler:
    """Answers requests. `run` and `arun` of its runner run the jobs that `begin` returns.

    Args:
        authorize: True lets a request pass, all else answers 401. It may raise `ProblemError`.
        health: raises, or returns a false value other than None, while the plugin does not work.
        origins: origins of web pages that may call; pages of this machine always may.
    """

    def __init__(
        self,
        served: Served,
        limits: Limits,
        runner: Runner,
        store: idempotency.IdempotencyStore,
        authorize: Callable[[Request], bool] | None,
        health: Callable[[], object] | None,
        origins: Collection[str] = (),
    ) -> None:
        self._served = served
        self._mcp = McpServer(served.name, served.version, served.description, served.table)
        self._limits = limits
        self._runner = runner
        self._store = store
        self._authorize = authorize
        self._health = health
        self._origins = Origins(origins)

    def handle(self, request: Request) -> Response:
        """Answers a request, from a thread."""
        found = self._begin(request)
        response = self._runner.run(found) if isinstance(found, Job) else found
        return self._stamped(request, response)

    async def ahandle(self, request: Request) -> Response:
        """Answers a request, from an event loop."""
        found = self._begin(request)
        response = await self._runner.arun(found) if isinstance(found, Job) else found
        return self._stamped(request, response)

    def _begin(self, request: Request) -> Response | Job:
        try:
            return self._route(request)
        except ProblemError as error:
            return problem_response(error.problem)
        except Exception:
            log.exception("a request failed before its operation")
            return problem_response(Problem("internal", "the plugin failed: its log has the cause"))

    def _route(self, request: Request) -> Response | Job:
        path = request.path.lstrip("/")
        if path == protocol.HEALTH_PATH:
            _only(request, "GET", "HEAD")
            return self._healthy()
        self._origins.check(request)
        preflight = self._origins.preflight(request)
        if preflight is not None:
            # A browser sends no credentials with its question.
            return preflight
        self._check_credentials(request)
        if path in self._served.documents:
            _only(request, "GET", "HEAD")
            return self._document(request, path)
        if path == protocol.MCP_PATH:
            _only(request, "POST")
            self._check_body(request)
            return self._mcp.begin(request)
        parts = path.split("/")
        if len(parts) == 3 and parts[1] == "invoke" and parts[0][:1] == "v":
            _only(request, "POST")
            return self._invoke(request, parts[0][1:], parts[2])
        raise ProblemError(
            "not-found",
            f"nothing has the path {request.path[:200]!r}: the manifest is at {protocol.MANIFEST_PATH}, operations at"
            f" {protocol.invoke_path(self._newest(), '...')}",
        )

    def _invoke(self, request: Request, major: str, operation: str) -> Response | Job:
        header = request.header(protocol.PROTOCOL_HEADER)
        if protocol.negotiate(header) is None:
            supported = protocol.supported_list()
            raise ProblemError(
                "unsupported-version",
                f"{protocol.PROTOCOL_HEADER} is {str(header)[:80]!r}: use {', '.join(supported)}",
                supported=supported,
            )
        endpoint = self._find(major, operation)
        try:
            return self._call(request, endpoint)
        except ProblemError as error:
            return problem_response(error.problem, _operation_headers(endpoint))

    def _call(self, request: Request, endpoint: Endpoint) -> Response | Job:
        self._check_body(request)
        content_type = request.header("content-type") or protocol.JSON
        if content_type.partition(";")[0].strip().lower() != protocol.JSON:
            raise ProblemError("unsupported-media-type", f"content-type is {content_type[:80]!r}: send {protocol.JSON}")
        value = read_json(request.body)
        arguments = value.get("arguments") if isinstance(value, dict) else None
        if not isinstance(arguments, dict):
            raise ProblemError("malformed-request", 'the body must be an object with arguments: {"arguments": {...}}')
        self._check_digest(request.header(protocol.DIGEST_HEADER), endpoint)
        return self._job(request, endpoint, arguments)

    def _job(self, request: Request, endpoint: Endpoint, arguments: dict[str, Any]) -> Response | Job:
        entry = endpoint.entry
        arguments, notes = accept(arguments, entry)
        headers = _operation_headers(endpoint)

        def respond(outcome: Done | Problem) -> Response:
            if isinstance(outcome, Problem):
                return problem_response(outcome, headers)
            return json_response({"result": outcome.result, "warnings": list(outcome.warnings)}, 200, headers)

        bound = endpoint.bind(arguments)
        claim = self._claim(request, endpoint, arguments)
        detached = entry.consequential or claim is not None
        return Job(endpoint, bound, request, respond, tuple(notes), claim, detached)

    def _claim(self, request: Request, endpoint: Endpoint, arguments: dict[str, Any]) -> idempotency.Claim | None:
        header = request.header(protocol.IDEMPOTENCY_HEADER)
        if header is None:
            return None
        key = idempotency.scoped(idempotency.read_key(header), request.header("authorization") or "")
        text = canonical_json([endpoint.entry.id, endpoint.entry.major, arguments])
        return idempotency.Claim(self._store, key, hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest())

    def _find(self, major: str, operation: str) -> Endpoint:
        number = int(major) if re.fullmatch("0|[1-9][0-9]{0,5}", major) else -1
        endpoint = self._served.table.get((operation, number))
        if endpoint is not None:
            return endpoint
        majors = sorted({found for _, found in self._served.table})
        ids = [name for name, found in self._served.table if found == (number if number in majors else self._newest())]
        nearest = difflib.get_close_matches(operation[:100], ids, n=3, cutoff=0.5)
        elsewhere = [found for name, found in self._served.table if name == operation]
        if number not in majors:
            words = f"API major {major[:20]!r} is not served: use {', '.join(map(str, majors)) or 'none'}"
        elif elsewhere:
            words = f"{operation} is in API major {', '.join(map(str, sorted(elsewhere)))} alone"
        else:
            words = f"no operation is called {operation[:80]!r}" + (f": {nearest[0]} is close" if nearest else "")
        raise ProblemError("unknown-operation", words, nearest=nearest, majors=majors)

    def _check_body(self, request: Request) -> None:
        if not request.is_complete:
            # What came may be a call with another meaning, and its client is gone.
            raise ProblemError("malformed-request", "the body ended before its Content-Length: send all of it")
        limit = self._limits.body_bytes
        if len(request.body) > limit:
            raise ProblemError("body-too-large", f"the body is larger than {limit} bytes: send less", limit=limit)

    def _check_digest(self, header: str | None, endpoint: Endpoint) -> None:
        entry = endpoint.entry
        if header is not None and header.strip() != entry.digest:
            raise ProblemError(
                "schema-changed",
                f"the schema of {entry.id} is another one than that of {header.strip()[:80]!r}: use operation's",
                digest=entry.digest,
                operation=entry.to_json(),
            )

    def _check_credentials(self, request: Request) -> None:
        if self._authorize is None:
            return
        try:
            passed = self._authorize(request)
        except ProblemError:
            raise
        except Exception:
            # A check that fails lets no request pass.
            log.exception("the check of credentials failed")
            passed = False
        if passed is not True:
            raise ProblemError("unauthorized", "Authorization is missing or wrong: send the plugin's token")

    def _healthy(self) -> Response:
        try:
            if self._is_healthy():
                return json_response({"status": "ok", "name": self._served.name, "version": self._served.version})
        except Exception:
            log.exception("the health check failed")
        return problem_response(Problem("unavailable", "the plugin's health check failed", retry_after=5))

    def _is_healthy(self) -> bool:
        found = self._health() if self._health is not None else True
        if inspect.isawaitable(found):
            if inspect.iscoroutine(found):
                found.close()
            raise TypeError("health returned an awaitable: a plain function is expected")
        return found is None or bool(found)

    def _document(self, request: Request, path: str) -> Response:
        body, etag = self._served.documents[path]
        headers = {"etag": etag, "cache-control": f"max-age={protocol.MANIFEST_MAX_AGE_S}"}
        known = [item.strip().removeprefix("W/") for item in (request.header("if-none-match") or "").split(",")]
        if etag in known or "*" in known:
            return Response(304, headers)
        return Response(200, {"content-type": protocol.JSON, **headers}, body)

    def _stamped(self, request: Request, response: Response) -> Response:
        """With the headers that every response has. The version is the plugin's own, never the client's."""
        version = protocol.negotiate(request.header(protocol.PROTOCOL_HEADER))
        answered = str(version) if version else protocol.supported_list()[-1]
        headers = {
            "cache-control": "no-store",
            protocol.PROTOCOL_HEADER.lower(): answered,
            **response.headers,
            **self._origins.headers(request),
        }
        if response.status == 401:
            headers.setdefault("www-authenticate", "Bearer")
        if response.status == 405:
            headers.setdefault("allow", ", ".join(response.json().get("allow", [])))
        if request.method == "HEAD":
            headers["content-length"] = str(len(response.body))
            return Response(response.status, headers)
        return Response(response.status, headers, response.body)

    def _newest(self) -> int:
        return max((major for _, major in self._served.table), default=0)


def _only(request: Request, *methods: str) -> None:
    if request.method not in methods:
        raise ProblemError(
            "method-not-allowed", f"{request.path[:200]!r} has {' and '.join(methods)} alone", allow=list(methods)
        )


def _operation_headers(endpoint: Endpoint) -> dict[str, str]:
    """The operation's own digest, Deprecation (RFC 9745) and Sunset (RFC 8594)."""
    headers = {protocol.DIGEST_HEADER.lower(): endpoint.entry.digest}
    found = endpoint.entry.deprecated
    if found is not None:
        headers["deprecation"] = f"@{found.since}"
    if found is not None and found.sunset is not None:
        headers["sunset"] = email.utils.formatdate(found.sunset, usegmt=True)
    return headers
