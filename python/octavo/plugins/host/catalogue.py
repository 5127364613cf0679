"""What the host has read of one plugin: its level, its versions and its operations. Never changed: replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from octavo.plugins.host.endpoint import Endpoint
from octavo.plugins.host.openapi_import import Imported
from octavo.plugins.manifest import Manifest, OperationEntry
from octavo.plugins.schema import SchemaError, dereference
from octavo.plugins.validation import check_schema


@dataclass(frozen=True)
class Catalogue:
    """A plugin's operations.

    Attributes:
        level: 0: an OpenAPI document alone; 1: with a manifest and typed problems; 2: with digests.
        endpoints: (id, API major) -> operation; the major is None for a plain operation.
        version: the plugin's version, "" if it has none.
        protocol: the protocol major in use; None at level 0.
        majors: the API majors that the plugin serves.
        limits: the largest body that the plugin takes; None if it is not stated.
        expires: when the manifest must be asked again, on the host's clock.
        notes: what could not be taken over.
    """

    level: int
    endpoints: Mapping[tuple[str, int | None], Endpoint]
    version: str = ""
    protocol: int | None = None
    offered: Mapping[int, int] = field(default_factory=dict)
    majors: tuple[int, ...] = ()
    body_bytes: int | None = None
    mcp: str | None = None
    health: str | None = None
    expires: float = 0.0
    notes: tuple[str, ...] = ()

    def major(self, pinned: int | None) -> int | None:
        """The API major in use: the pinned one, else the highest."""
        return pinned if pinned is not None else max(self.majors, default=None)

    def current(self, pinned: int | None) -> dict[str, Endpoint]:
        """The operations that the model sees: those of the API major in use, and the plain ones."""
        major = self.major(pinned)
        return {key[0]: e for key, e in self.endpoints.items() if key[1] is None or key[1] == major}

    def find(self, operation: str, major: int | None) -> Endpoint | None:
        return self.endpoints.get((operation, major))

    def with_endpoint(self, endpoint: Endpoint) -> Catalogue:
        """The catalogue with one operation replaced, by what the plugin itself answered."""
        return replace(self, endpoints={**self.endpoints, (endpoint.id, endpoint.major): endpoint})


def from_manifest(manifest: Manifest, found: Imported, protocol: int, expires: float, consistent: bool) -> Catalogue:
    """The catalogue of a plugin with a manifest.

    Args:
        consistent: whether the document is the one whose sha256 the manifest has.
    """
    notes = [*manifest.notes, *found.notes]
    endpoints: dict[tuple[str, int | None], Endpoint] = {}
    for entry in manifest.operations:
        endpoint = found.invoke.get((entry.id, entry.major))
        if endpoint is None:
            notes.append(f"{entry.id} in major {entry.major} is left out: the document has no path of it")
            continue
        # The digest goes with the schemas that the host has. Another implementation may compute it in another way.
        trusted = consistent and bool(entry.digest)
        endpoints[entry.id, entry.major] = annotated(endpoint, entry, entry.digest if trusted else endpoint.digest)
    # One operation without a digest is enough to ask for the document before each call.
    level = 2 if endpoints and all(entry.digest for entry in manifest.operations) else 1
    if not manifest.operations:
        endpoints.update({(name, major): e for (name, major), e in found.invoke.items()})
        endpoints.update({(name, None): e for name, e in found.plain.items()})
    majors = manifest.majors or tuple(sorted({m for _, m in endpoints if m is not None}))
    return Catalogue(
        level=level,
        endpoints=endpoints,
        version=manifest.version,
        protocol=protocol,
        offered=manifest.protocol,
        majors=tuple(m for m in majors if any(key[1] == m for key in endpoints)),
        body_bytes=manifest.limits.body_bytes,
        mcp=manifest.mcp,
        health=manifest.health,
        expires=expires,
        notes=tuple(notes),
    )


def from_document(found: Imported, version: str, expires: float) -> Catalogue:
    """The catalogue of a service without a manifest."""
    endpoints: dict[tuple[str, int | None], Endpoint] = {(name, None): e for name, e in found.plain.items()}
    endpoints.update({(name, major): e for (name, major), e in found.invoke.items()})
    majors = tuple(sorted({major for _, major in found.invoke}))
    return Catalogue(0, endpoints, version, majors=majors, expires=expires, notes=tuple(found.notes))


def annotated(endpoint: Endpoint, entry: OperationEntry, digest: str) -> Endpoint:
    """The operation with what the manifest's entry states of it."""
    return replace(
        endpoint,
        digest=digest,
        description=endpoint.description or entry.description,
        consequential=entry.consequential,
        idempotent=entry.idempotent,
        aliases=entry.aliases,
        deprecated=entry.deprecated,
    )


def from_entry(entry: OperationEntry) -> Endpoint | None:
    """The operation that a `schema-changed` problem carries; None if it lacks its schemas."""
    if not isinstance(entry.arguments, dict):
        return None
    try:
        # It may have references to its own parts.
        parameters = dereference(entry.arguments)
        check_schema(parameters)
    except SchemaError:
        return None
    made = Endpoint(entry.id, entry.major, entry.digest, parameters, entry.result, entry.description)
    return annotated(made, entry, entry.digest)


def describe(catalogue: Catalogue) -> dict[str, Any]:
    """The state of a plugin as JSON, for `PluginHost.health`."""
    return {
        "level": catalogue.level,
        "version": catalogue.version,
        "protocol": catalogue.protocol,
        "majors": list(catalogue.majors),
        "operations": len({key[0] for key in catalogue.endpoints}),
        "notes": list(catalogue.notes),
    }
