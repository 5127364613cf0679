"""One call: the schema under which its arguments were made, repair, the requests, and the typed end."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.plugins.host.answers import Answered, plain_answer, protocol_answer
from octavo.plugins.host.catalogue import Catalogue, from_entry
from octavo.plugins.host.client import Budget
from octavo.plugins.host.endpoint import Endpoint, build_plain
from octavo.plugins.host.names import nearest
from octavo.plugins.host.outcome import Failure, Repair
from octavo.plugins.host.registry import CALLED_WITHIN_S
from octavo.plugins.host.repair import check, repair
from octavo.plugins.host.retry import may_retry, pause
from octavo.plugins.host.state import PluginState
from octavo.plugins.host.transport import HttpAnswer
from octavo.plugins.manifest import ManifestError, OperationEntry
from octavo.plugins.problems import Problem
from octavo.plugins.protocol import DIGEST_HEADER, IDEMPOTENCY_HEADER, PROTOCOL_HEADER, invoke_path
from octavo.plugins.schema import SchemaError
from octavo.plugins.validation import Fault

# Failures of the plugin as a whole, not of one operation.
_BREAKING = frozenset(("unavailable", "timeout", "bad_response"))


@dataclass
class Call:
    """One call under way.

    Attributes:
        arguments: as given, then as sent.
        shown: the operation as it was when the arguments were made.
        target: the operation as it is called.
    """

    state: PluginState
    budget: Budget
    operation: str
    arguments: Any
    digest: str | None
    approved: bool
    sleep: Callable[[float], None]
    random: Callable[[], float]
    repairs: list[Repair] = field(default_factory=list)
    shown: Endpoint | None = None
    target: Endpoint | None = None
    version: str = ""
    deprecated: bool = False

    def run(self) -> Answered:
        """The result.

        Raises:
            Failure: there is none.
        """
        state, given = self.state, self.arguments
        wait = state.breaker.blocked_for()
        if wait is not None:
            raise state.blocked(wait)
        try:
            result = self._run(given)
        except Failure as failure:
            self._report(failure)
            raise
        except BaseException:
            state.breaker.failed()
            raise
        state.breaker.succeeded()
        return result

    def _report(self, failure: Failure) -> None:
        if not self.budget.requests:
            self.state.breaker.unknown()
            return
        # A plugin that answers with a problem of its own is alive.
        if failure.status in _BREAKING and failure.problem is None:
            self.state.breaker.failed()
        else:
            self.state.breaker.succeeded()

    def _run(self, given: Any) -> Answered:
        registry = self.state.registry
        catalogue = registry.get(self.budget, any_age=True)
        if not registry.guarded:
            catalogue = registry.revalidate(self.budget, CALLED_WITHIN_S)
        renegotiated = reread = changed = False
        while True:
            self.version = catalogue.version
            target = self._target(catalogue)
            self._fit(given, target)
            self._permit(target)
            try:
                return self._verified(self._send(catalogue, target), target, catalogue)
            except Failure as failure:
                if failure.status == "schema_changed" and not changed and not failure.sent:
                    changed = True
                    catalogue = self._changed(failure, catalogue)
                elif failure.status == "unsupported_version" and failure.problem is not None and not renegotiated:
                    renegotiated = True
                    if not registry.take_version(failure.problem.extensions.get("supported")):
                        raise
                    catalogue = registry.refresh(self.budget, reload=True)
                elif self._moved(failure, target) and not reread:
                    reread = True
                    catalogue = registry.refresh(self.budget, reload=True)
                    if self._same_target(catalogue, target):
                        raise
                else:
                    raise

    def _moved(self, failure: Failure, target: Endpoint) -> bool:
        """Whether the plugin may have other paths now: it did not find the operation, so nothing ran."""
        if failure.sent:
            return False
        untyped = failure.problem is None and target.plain is None and failure.status == "invalid_arguments"
        return failure.status == "unknown_operation" or untyped

    def _same_target(self, catalogue: Catalogue, target: Endpoint) -> bool:
        again = catalogue.find(target.id, target.major)
        return again is not None and again.plain == target.plain and again.digest == target.digest

    def _target(self, catalogue: Catalogue) -> Endpoint:
        """The operation to call: in the API major under which the arguments were made."""
        source, current = self.state.source, catalogue.current(self.state.source.api)
        if self.shown is None:
            self.shown = self.state.shown(self.operation, self.digest)
        now = current.get(self.operation)
        if now is None or (source.operations is not None and self.operation not in source.operations):
            raise self._unknown(current)
        if self.shown is None:
            if self.digest is not None and self.digest != now.digest:
                detail = f"the arguments were made under the schema {self.digest[:24]}, which this host has not shown"
                raise Failure("schema_changed", detail, schema=now.parameters)
            self.shown = now
        target = catalogue.find(self.operation, self.shown.major)
        if target is None:
            # A repair across API majors could change the meaning.
            detail = f"the operation {self.operation!r} is now in API major {now.major}: generate the arguments again"
            self.state.show(now)
            raise Failure("schema_changed", detail, schema=now.parameters)
        self.target = target
        return target

    def _unknown(self, current: Mapping[str, Endpoint]) -> Failure:
        names = [n for n in current if self.state.source.operations is None or n in self.state.source.operations]
        found = nearest(self.operation, names)
        detail = f"the plugin {self.state.client.name!r} has no operation {self.operation!r}"
        detail += f": did you mean {', '.join(found)}?" if found else ""
        return Failure("unknown_operation", detail, Problem("unknown-operation", detail, extensions={"nearest": found}))

    def _fit(self, given: Any, target: Endpoint) -> None:
        """Fits the arguments as given to the operation as it is now."""
        assert self.shown is not None
        if not isinstance(given, dict):
            fault = Fault("", f"the arguments must be an object, not {type(given).__name__}")
            raise self._invalid([fault], target, "invalid_arguments")
        try:
            json.dumps(given, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            fault = Fault("", f"the arguments are no JSON: {type(error).__name__}")
            raise self._invalid([fault], target, "invalid_arguments") from None
        try:
            if target.digest == self.shown.digest:
                self.arguments, self.repairs, faults = given, [], check(target.parameters, given)
                status = "invalid_arguments"
            else:
                frozen = target.consequential or self.shown.consequential or self.approved
                coerce = target.plain is None
                fitted = repair(
                    self.shown.parameters, target.parameters, given, target.aliases, frozen=frozen, coerce=coerce
                )
                self.arguments, self.repairs, faults = fitted.arguments, fitted.repairs, fitted.faults
                status = "schema_changed"
        except SchemaError as error:
            detail = f"the schema of {self.operation!r} cannot be used: {error}"
            raise Failure("bad_response", detail) from None
        if faults:
            self.arguments, self.repairs = given, []
            raise self._invalid(faults, target, status)

    def _invalid(self, faults: list[Fault], target: Endpoint, status: Any) -> Failure:
        first = faults[0]
        detail = f"{first.pointer or 'the arguments'}: {first.detail}"
        if status == "schema_changed":
            detail = f"the schema of {self.operation!r} changed, and the arguments do not fit: {detail}"
            self.state.show(target)
        problem = Problem(
            str(status).replace("_", "-"), detail, extensions={"errors": [fault.to_json() for fault in faults]}
        )
        schema = target.parameters if status == "schema_changed" else None
        return Failure(status, detail, problem, schema=schema)

    def _permit(self, target: Endpoint) -> None:
        policy = self.state.source.approval
        if self.approved or policy == "never" or (policy == "consequential" and not target.consequential):
            return
        detail = f"a call of {self.operation!r} waits for an approval: call again with approved=True"
        raise Failure("approval_required", detail, Problem("approval-required", detail, status=403))

    def _send(self, catalogue: Catalogue, target: Endpoint) -> Answered:
        """Sends the request, again where that is safe."""
        # A plugin whose headers are not its own has shown no keys either.
        guarded = target.plain is None and self.state.registry.guarded
        key = f'"{uuid.uuid4().hex}"' if guarded else None
        repeatable = target.idempotent or guarded
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._once(catalogue, target, key)
            except Failure as failure:
                if not may_retry(failure, repeatable):
                    raise
                seconds = pause(attempt, failure, self.budget.left(), self.random)
                if seconds is None:
                    raise
                self.sleep(seconds)

    def _once(self, catalogue: Catalogue, target: Endpoint, key: str | None) -> Answered:
        client, limit = self.state.client, self.state.source.response_bytes
        name = client.name
        if self.state.bridge is not None and target.plain is not None:
            return self.state.bridge.call(self.budget, target.plain.path, self.arguments)
        if target.plain is not None:
            built = build_plain(target.plain, self.arguments)
            client.check_origin(built.url, "the operation's URL")
            self._check_size(built.body, catalogue)
            answer = client.send(self.budget, built.method, built.url, built.headers, built.body, limit)
            self._note(answer)
            return plain_answer(name, answer, target.plain.text)
        version = self.state.registry.version_header or str(catalogue.protocol or 1)
        headers = {PROTOCOL_HEADER: version, "Content-Type": "application/json"}
        if catalogue.level == 2:
            headers[DIGEST_HEADER] = target.digest
        if key is not None:
            headers[IDEMPOTENCY_HEADER] = key
        body = json.dumps({"arguments": self.arguments}).encode()
        self._check_size(body, catalogue)
        url = client.url(invoke_path(target.major or 0, target.id))
        answer = client.send(self.budget, "POST", url, headers, body, limit)
        self._note(answer)
        return protocol_answer(name, answer, catalogue.offered)

    def _check_size(self, body: bytes | None, catalogue: Catalogue) -> None:
        if body is not None and catalogue.body_bytes is not None and len(body) > catalogue.body_bytes:
            detail = f"the arguments have {len(body)} bytes: the plugin takes {catalogue.body_bytes}; send less"
            raise Failure("too_large", detail)

    def _note(self, answer: HttpAnswer) -> None:
        """Deprecation (RFC 9745) and Sunset (RFC 8594) become warnings."""
        deprecated, sunset = answer.header("deprecation"), answer.header("sunset")
        if deprecated is not None or sunset is not None:
            end = f", and ends at {sunset[:64]}" if sunset else ""
            self.deprecated = True
            self.budget.warn(f"the operation {self.operation!r} is deprecated{end}: use its successor")

    def _verified(self, answered: Answered, target: Endpoint, catalogue: Catalogue) -> Answered:
        """A result counts only if it was served under the schema of the call, or one with the same meaning."""
        if target.plain is not None or catalogue.level < 2 or (answered.genuine and answered.digest == target.digest):
            return answered
        registry = self.state.registry
        # The protocol's headers are missing or echoed, or the request's were stripped: the document decides.
        registry.distrust()
        again = registry.revalidate(self.budget).find(target.id, target.major)
        other = bool(answered.genuine and answered.digest and (again is None or again.digest != answered.digest))
        if again is None or other or not self._same_meaning(target, again):
            detail = (
                f"the operation {self.operation!r} ran under another schema than that of the arguments"
                f" ({target.digest[:24]}): its result is not used"
            )
            if again is None or not target.idempotent:
                # The model must not call again: what ran must not run twice.
                raise Failure("bad_response", f"{detail}, and it must not run twice", sent=True)
            self.target = again
            self.state.show(again)
            raise Failure("schema_changed", detail, schema=again.parameters, sent=True)
        self.budget.warn(f"the plugin {self.state.client.name!r} answers without the protocol's own headers")
        return answered

    def _same_meaning(self, target: Endpoint, now: Endpoint) -> bool:
        if now.digest == target.digest:
            return True
        fitted = repair(target.parameters, now.parameters, self.arguments, now.aliases, frozen=True)
        return not fitted.faults

    def _changed(self, failure: Failure, catalogue: Catalogue) -> Catalogue:
        """The catalogue with the schema that the plugin's 409 carries; else read again."""
        assert self.target is not None
        carried = failure.problem.extensions.get("operation") if failure.problem else None
        try:
            endpoint = from_entry(OperationEntry.from_json(carried))
        except ManifestError:
            endpoint = None
        key = (self.target.id, self.target.major)
        if endpoint is None or (endpoint.id, endpoint.major) != key:
            return self.state.registry.refresh(self.budget, reload=True)
        return self.state.registry.replaced(endpoint) or catalogue.with_endpoint(endpoint)
