"""Cases of versions, digests and refusals: requests that no operation runs, thus safe for each of them."""

from __future__ import annotations

import json

from octavo.plugins.conformance.case import case
from octavo.plugins.conformance.context import (
    UNKNOWN_ARGUMENT,
    Context,
    Skip,
    Violation,
    check_faults,
    expect,
    problem,
    typed,
    version,
)
from octavo.plugins.manifest import OperationEntry
from octavo.plugins.protocol import DIGEST_HEADER, JSON, PROTOCOL_HEADER, invoke_path

_OTHER_DIGEST = "sha256:" + "0" * 64
_LARGEST_TESTED = 4 << 20
# For paths that no operation has: should one have it, it refuses this.
_UNKNOWN = json.dumps({"arguments": {UNKNOWN_ARGUMENT: 1}}).encode()


@case("P-VERSION-1", "P-VERSION-3")
def highest_common_major_wins(context: Context) -> None:
    """The highest common major is answered; minors and strange items of the list change nothing."""
    entry, majors = context.refusable[0], context.manifest.protocol
    highest = max(majors)
    for sent in (
        f"{highest}",
        f"999, {highest}",
        f"{highest}.999",
        f"{highest}, colour, 1.x, ,",
        f"{highest};q=1, {highest}",
    ):
        what = f"{PROTOCOL_HEADER}: {sent}"
        reply = context.refused(entry, {PROTOCOL_HEADER: sent})
        problem(reply, "invalid-arguments", 422, what)
        found = version(context, reply, what)
        expect(found == f"{highest}.{majors[highest]}", f"{what}: {highest}.{majors[highest]} expected, {found} came")


@case("P-VERSION-2")
def no_header_means_the_oldest_major(context: Context) -> None:
    """A request without a version is answered in the oldest major."""
    majors = context.manifest.protocol
    reply = context.refused(context.refusable[0], {PROTOCOL_HEADER: ""})
    found = version(context, reply, f"no {PROTOCOL_HEADER}")
    oldest = min(majors)
    expect(found == f"{oldest}.{majors[oldest]}", f"{oldest}.{majors[oldest]} expected without a header, {found} came")


@case("P-VERSION-4")
def no_common_major_is_typed(context: Context) -> None:
    """Without a common major the answer is unsupported-version, with the supported versions."""
    reply = context.refused(context.refusable[0], {PROTOCOL_HEADER: "999999"})
    found = problem(reply, "unsupported-version", 400, f"{PROTOCOL_HEADER}: 999999")
    supported = found.extensions.get("supported")
    listed = [f"{major}.{minor}" for major, minor in context.manifest.protocol.items()]
    expect(
        isinstance(supported, list) and sorted(map(str, supported)) == sorted(listed),
        f"supported is {str(supported)[:200]}, {listed} expected",
    )


@case("P-VERSION-5")
def version_is_never_echoed(context: Context) -> None:
    """Each answer to an invocation has a version, and it is the plugin's own."""
    entry = context.refusable[0]
    for sent in ("1", "1.777", "999999", "1.777, 999999"):
        version(context, context.refused(entry, {PROTOCOL_HEADER: sent}), f"{PROTOCOL_HEADER}: {sent}")
    path = invoke_path(entry.major, context.unknown_id(entry))
    reply = context.target.send("POST", path, {"Content-Type": JSON, PROTOCOL_HEADER: "1"}, _UNKNOWN)
    version(context, reply, "an unknown operation")


@case("P-VERSION-6")
def unknown_members_are_ignored(context: Context) -> None:
    """Unknown headers and members of the envelope change nothing."""
    entry = context.refusable[0]
    headers = {"Octavo-Colour": "blue", "X-Unknown": "1", "traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
    reply = context.refused(entry, headers, colour="blue", capabilities={"paint": 3})
    found = problem(reply, "invalid-arguments", 422, "unknown headers and members")
    check_faults(found, UNKNOWN_ARGUMENT)


@case("P-INVOKE-3", "P-INVOKE-4")
def wrong_arguments_are_named(context: Context) -> None:
    """Arguments that do not fit are refused, each with a pointer; unknown arguments too."""
    for entry in context.refusable:
        what = f"{entry.id} with an unknown argument"
        check_faults(problem(context.refused(entry), "invalid-arguments", 422, what), UNKNOWN_ARGUMENT)


@case("P-INVOKE-2")
def malformed_bodies_are_typed(context: Context) -> None:
    """Bodies that are no JSON object with arguments get a typed 4xx problem."""
    entry = context.refusable[0]
    headers = {"Content-Type": JSON, PROTOCOL_HEADER: "1", DIGEST_HEADER: entry.digest}
    deep = b'{"arguments": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    for body in (b"", b"{", b"[]", b"null", b'{"arguments": 3}', b'{"arguments": []}', b"\xff\xfe", deep):
        reply = context.target.send("POST", invoke_path(entry.major, entry.id), headers, body)
        typed(reply, f"the body {body[:40]!r}")


@case("P-INVOKE-5")
def large_bodies_are_refused(context: Context) -> None:
    """A body above the limit of the manifest is refused with 413."""
    limit, entry = context.manifest.limits.body_bytes, context.refusable[0]
    if limit > _LARGEST_TESTED:
        raise Skip(f"the limit of {limit} bytes is too large to test")
    reply = context.invoke(entry, {UNKNOWN_ARGUMENT: "a" * limit})
    problem(reply, "body-too-large", 413, f"a body of more than {limit} bytes")


@case("P-INVOKE-6", "P-PROBLEM-1")
def other_methods_are_refused(context: Context) -> None:
    """A method that the path does not have is refused with 405 and Allow."""
    entry = context.refusable[0]
    for method in ("GET", "PUT", "DELETE"):
        reply = context.target.send(method, invoke_path(entry.major, entry.id), {PROTOCOL_HEADER: "1"})
        expect(reply.status == 405, f"{method} of an operation: 405 expected, {reply.status} came")
        expect("POST" in reply.headers.get("allow", ""), f"{method} of an operation: Allow does not list POST")
        typed(reply, f"{method} of an operation")


@case("P-MAJOR-1")
def entries_are_served(context: Context) -> None:
    """Each entry of the manifest is served at its path."""
    for entry in context.refusable:
        reply = context.refused(entry)
        expect(reply.status == 422, f"{invoke_path(entry.major, entry.id)}: 422 expected, {reply.status} came")
    for entry in context.entries:
        # It never runs anything, thus it is safe where an invocation is not.
        path = invoke_path(entry.major, entry.id)
        reply = context.target.send("GET", path, {PROTOCOL_HEADER: "1"})
        expect(reply.status == 405, f"GET {path}: 405 expected, {reply.status} came")


@case("P-MAJOR-3")
def unknown_operations_are_typed(context: Context) -> None:
    """Another operation or major is unknown-operation, with the nearest ids."""
    entry = context.refusable[0]
    headers = {"Content-Type": JSON, PROTOCOL_HEADER: "1"}
    last = max(*context.manifest.majors, *(each.major for each in context.entries))
    unknown = context.unknown_id(entry)
    for path in (invoke_path(entry.major, unknown), invoke_path(last + 5, entry.id)):
        found = problem(context.target.send("POST", path, headers, _UNKNOWN), "unknown-operation", 404, path)
        nearest = found.extensions.get("nearest")
        expect(isinstance(nearest, list), f"{path}: nearest is {str(nearest)[:200]}, a list expected")
        # Where the major is unknown too, no id of it is similar.
        similar = path.endswith(f"/{entry.id}") or unknown != entry.id + "x" or entry.id in (nearest or ())
        expect(similar, f"{path}: nearest is {str(nearest)[:200]}, {entry.id} expected in it")


@case("P-PROBLEM-1", "P-PROBLEM-2")
def problems_are_complete(context: Context) -> None:
    """Problems have type, status and detail; the status is that of the answer."""
    entry = context.refusable[0]
    replies = {
        "an unknown argument": context.refused(entry),
        "no common version": context.refused(entry, {PROTOCOL_HEADER: "999999"}),
        "an unknown operation": context.target.send(
            "POST", invoke_path(entry.major, context.unknown_id(entry)), {"Content-Type": JSON}, _UNKNOWN
        ),
    }
    for what, reply in replies.items():
        typed(reply, what)
        value = json.loads(reply.body)
        expect(
            value.get("status") == reply.status, f"{what}: status is {value.get('status')!r}, {reply.status} expected"
        )
        expect(value.get("detail"), f"{what}: detail is missing")


@case("P-DIGEST-2", "P-DIGEST-3", level=2)
def another_digest_never_runs(context: Context) -> None:
    """A call under another digest is schema-changed, with the whole new entry."""
    for entry in context.refusable:
        reply = context.refused(entry, {DIGEST_HEADER: _OTHER_DIGEST})
        found = problem(reply, "schema-changed", 409, f"{entry.id} under another digest")
        expect(found.extensions.get("digest") == entry.digest, f"{entry.id}: digest is not that of the manifest")
        operation = found.extensions.get("operation")
        expect(isinstance(operation, dict), f"{entry.id}: operation is missing")
        assert isinstance(operation, dict)
        arguments, result = context.schemas(entry)
        expect(isinstance(operation.get("arguments"), dict), f"{entry.id}: operation.arguments is missing")
        sent = OperationEntry.from_json(operation)
        expect(sent.digest == entry.digest and sent.aliases == entry.aliases, f"{entry.id}: operation is another entry")
        same = set(operation["arguments"].get("properties", {})) == set(arguments.get("properties", {}))
        expect(same and "result" in operation, f"{entry.id}: operation has other schemas than the document")
        expect(result is not None, f"{entry.id} has no result")


@case("P-DIGEST-4", "P-DIGEST-5", level=2)
def digest_is_answered(context: Context) -> None:
    """Answers have the operation's digest; a call needs none."""
    for entry in context.refusable:
        for sent in (entry.digest, _OTHER_DIGEST, ""):
            reply = context.refused(entry, {DIGEST_HEADER: sent})
            shown = reply.headers.get(DIGEST_HEADER.lower())
            what = f"{entry.id} under {sent or 'no digest'}"
            expect(shown == entry.digest, f"{what}: {DIGEST_HEADER} is {shown!r}, {entry.digest} expected")
            expect(reply.status == (409 if sent == _OTHER_DIGEST else 422), f"{what}: {reply.status} came")


@case("P-DEPRECATION-1", "P-DEPRECATION-2")
def deprecations_are_announced(context: Context) -> None:
    """Deprecated operations have Deprecation and Sunset, in this order of time."""
    entries = [entry for entry in context.entries if entry.deprecated]
    if not entries:
        raise Skip("no operation is deprecated")
    allowed = {(entry.id, entry.major) for entry in context.refusable}
    for entry in entries:
        if (entry.id, entry.major) not in allowed:
            continue
        reply = context.refused(entry)
        header = reply.headers.get("deprecation", "")
        expect(header[:1] == "@" and header[1:].isdigit(), f"{entry.id}: Deprecation is {header!r}, @seconds expected")
        if "sunset" in reply.headers:
            expect(_seconds(reply.headers["sunset"]) >= int(header[1:]), f"{entry.id}: Sunset is before Deprecation")


def _seconds(http_date: str) -> float:
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(http_date).timestamp()
    except ValueError:
        raise Violation(f"Sunset is {http_date!r}: an HTTP date expected") from None


CASES = (
    highest_common_major_wins,
    no_header_means_the_oldest_major,
    no_common_major_is_typed,
    version_is_never_echoed,
    unknown_members_are_ignored,
    entries_are_served,
    unknown_operations_are_typed,
    malformed_bodies_are_typed,
    wrong_arguments_are_named,
    large_bodies_are_refused,
    other_methods_are_refused,
    problems_are_complete,
    another_digest_never_runs,
    digest_is_answered,
    deprecations_are_announced,
)
