"""Cases of the manifest, the OpenAPI document, digests and aliases: nothing is invoked."""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit

from octavo.errors import InvalidRequestError
from octavo.plugins.conformance.case import case
from octavo.plugins.conformance.context import Context, Skip, expect
from octavo.plugins.manifest import Manifest
from octavo.plugins.protocol import JSON, MANIFEST_PATH, api_version
from octavo.plugins.schema import digest
from octavo.plugins.validation import check_schema


@case("P-MANIFEST-1")
def manifest_is_served(context: Context) -> None:
    """The manifest is a JSON object with its members."""
    reply = context.manifest_reply
    remedy = ": give credentials with --header-env" if reply.status in (401, 403) else ""
    expect(reply.status == 200, f"GET {MANIFEST_PATH}: 200 expected, {reply.status} came{remedy}")
    expect(reply.media_type == JSON, f"the manifest is {reply.media_type or 'untyped'}: {JSON} expected")
    value = reply.json()
    expect(isinstance(value, dict), "the manifest is no JSON object")
    for member in ("octavo_plugin", "name", "version", "majors", "operations"):
        expect(member in value, f"the manifest lacks {member}")
    majors, operations = value["majors"], value["operations"]
    numbers = isinstance(majors, list) and all(type(major) is int and major >= 0 for major in majors)
    expect(numbers and majors, f"majors is {str(majors)[:80]!r}: a list of integers expected")
    expect(isinstance(operations, list) and operations, "operations is no list with an entry")
    try:
        manifest = Manifest.from_json(value)
    except InvalidRequestError as error:
        expect(False, str(error))
    else:
        expect(not manifest.notes, "; ".join(manifest.notes))
        expect(api_version(manifest.version) is not None, f"version is {manifest.version!r}: 2.1.0 or alike expected")


@case("P-MANIFEST-2")
def manifest_has_an_etag(context: Context) -> None:
    """The manifest has an ETag, and is not sent again while it is unchanged."""
    tag = context.manifest_reply.headers.get("etag")
    expect(tag, "the manifest has no ETag")
    again = context.target.send("GET", MANIFEST_PATH, {"If-None-Match": tag or ""})
    expect(again.status == 304 and not again.body, f"If-None-Match with the tag: 304 expected, {again.status} came")


@case("P-MANIFEST-3")
def entries_are_complete(context: Context) -> None:
    """Each operation in each API major has one entry."""
    seen = [(entry.id, entry.major) for entry in context.entries]
    expect(len(seen) == len(set(seen)), f"operations are listed twice: {sorted(seen)}")
    strange = {major for _, major in seen} - set(context.manifest.majors)
    expect(not strange, f"operations have the majors {sorted(strange)}, which majors does not list")
    paths = context.document.get("paths", {})
    found = {path for path in paths if "/invoke/" in path}
    listed = {f"/v{major}/invoke/{name}" for name, major in seen}
    expect(found <= listed, f"the document has {sorted(found - listed)}, which the manifest does not list")


@case("P-MANIFEST-4")
def urls_are_relative(context: Context) -> None:
    """URLs of the manifest are relative and below the base URL."""
    context.manifest  # noqa: B018 - skips if it cannot be read
    value = context.manifest_reply.json()
    openapi = value.get("openapi")
    urls = {"openapi.url": openapi.get("url") if isinstance(openapi, dict) else None}
    urls |= {member: value.get(member) for member in ("mcp", "health")}
    for member, url in urls.items():
        if url is None:
            continue
        expect(isinstance(url, str), f"{member} is no text")
        parts = urlsplit(url)
        inside = not (parts.scheme or parts.netloc or url.startswith("/") or ".." in parts.path.split("/"))
        expect(inside, f"{member} is {url!r}: a path below the base URL expected")


@case("P-MANIFEST-5")
def document_describes_each_entry(context: Context) -> None:
    """The OpenAPI document is served, has the stated sha256 and describes each entry."""
    reply = context.document_reply
    expect(reply.status == 200, f"GET {context.manifest.openapi_url}: 200 expected, {reply.status} came")
    expect(str(context.document.get("openapi", "")).startswith("3."), "the document is no OpenAPI 3 document")
    stated, own = context.manifest.openapi_sha256, hashlib.sha256(reply.body).hexdigest()
    expect(not stated or stated == own, f"openapi.sha256 is {stated}, but the document's bytes have {own}")
    for entry in context.entries:
        for schema in context.schemas(entry):
            check_schema(schema)


@case("P-DIGEST-1", level=2)
def digests_are_those_of_the_schemas(context: Context) -> None:
    """Each digest is that of the schemas in the document."""
    for entry in context.entries:
        arguments, result = context.schemas(entry)
        own = digest(arguments, result)
        expect(entry.digest == own, f"{entry.id} in major {entry.major} has {entry.digest}, its schemas have {own}")


@case("P-ALIAS-1", level=2)
def aliases_are_distinct(context: Context) -> None:
    """An alias belongs to one argument, and is no name of another."""
    if not any(entry.aliases for entry in context.entries):
        raise Skip("no operation has aliases")
    for entry in context.entries:
        names = set(context.schemas(entry)[0].get("properties", {}))
        where = f"{entry.id} in major {entry.major}"
        former = [alias for aliases in entry.aliases.values() for alias in aliases]
        expect(
            set(entry.aliases) <= names, f"aliases of {where} name {sorted(set(entry.aliases) - names)}, no arguments"
        )
        expect(len(former) == len(set(former)), f"{where} has one alias for two arguments: {sorted(former)}")
        expect(not names & set(former), f"{where} has arguments that are aliases too: {sorted(names & set(former))}")


CASES = (
    manifest_is_served,
    manifest_has_an_etag,
    entries_are_complete,
    urls_are_relative,
    document_describes_each_entry,
    digests_are_those_of_the_schemas,
    aliases_are_distinct,
)
