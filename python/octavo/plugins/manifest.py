"""The manifest: which operations a plugin has, in which API majors, with which digests."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard
from urllib.parse import urlsplit

from octavo.errors import InvalidRequestError
from octavo.plugins.protocol import (
    DEFAULT_BODY_BYTES,
    DEFAULT_TIMEOUT_S,
    OPENAPI_PATH,
    is_operation_id,
)

# A manifest with more operations is refused: no model can choose between them.
MAX_OPERATIONS = 2_000
_LONGEST = 512
# The last second of the year 9999, in seconds since 1970.
_LAST_SECOND = 253_402_300_799


class ManifestError(InvalidRequestError):
    """A document that is no manifest; the message names the member and what it must be."""


@dataclass(frozen=True)
class Deprecation:
    """When an operation was deprecated, and when it ends. Both in seconds since 1970 (UTC).

    Attributes:
        since: RFC 9745's date, in the Deprecation header.
        sunset: RFC 8594's date, in the Sunset header; never earlier than `since`. None: no end is planned.
        use: the id of the operation that replaces it.

    Raises:
        InvalidRequestError: a time that is no whole second from 1970 to 9999, or a sunset before the deprecation.
    """

    since: int
    sunset: int | None = None
    use: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("since", self.since), ("sunset", self.sunset)):
            if not _is_second(value) and not (name == "sunset" and value is None):
                raise InvalidRequestError(
                    f"{name} is {value!r}: seconds since 1970 are expected, not milliseconds;"
                    " Deprecation.on('2026-12-01') takes dates"
                )
        if self.sunset is not None and self.sunset < self.since:
            raise InvalidRequestError(
                f"sunset is {self.sunset}, before the deprecation at {self.since}: it must not be earlier"
            )

    @classmethod
    def on(cls, date: str, *, sunset: str | None = None, use: str | None = None) -> Deprecation:
        """A deprecation from dates in ISO 8601, such as `2026-12-01`; without a zone they are in UTC.

        Raises:
            InvalidRequestError: a text that is no date, or a sunset before the deprecation.
        """
        return cls(_seconds(date), None if sunset is None else _seconds(sunset), use)

    def to_json(self) -> dict[str, Any]:
        members = {"since": self.since, "sunset": self.sunset, "use": self.use}
        return {key: value for key, value in members.items() if value is not None}


@dataclass(frozen=True)
class Limits:
    """What a plugin accepts.

    Attributes:
        body_bytes: the largest request body, in bytes.
        timeout_s: the longest time of an operation, in seconds.
    """

    body_bytes: int = DEFAULT_BODY_BYTES
    timeout_s: float = DEFAULT_TIMEOUT_S

    def __post_init__(self) -> None:
        if isinstance(self.body_bytes, bool) or not isinstance(self.body_bytes, int) or self.body_bytes < 1:
            raise InvalidRequestError(f"body_bytes is {self.body_bytes!r}: it must be an integer of at least 1")
        number = isinstance(self.timeout_s, (int, float)) and not isinstance(self.timeout_s, bool)
        if not number or not 0 < self.timeout_s <= 86_400:
            raise InvalidRequestError(f"timeout_s is {self.timeout_s!r}: it must be a number from above 0 to 86400")

    def to_json(self) -> dict[str, Any]:
        return {"body_bytes": self.body_bytes, "timeout_s": self.timeout_s}


@dataclass(frozen=True)
class OperationEntry:
    """An operation in one API major.

    Attributes:
        id: the name, the last part of its path.
        major: the API major.
        digest: of the schemas; `octavo.plugins.schema.digest`. "" if a manifest states none.
        since: the plugin's version that brought it, `1.0`.
        consequential: it changes something outside; it is never repaired, and may need an approval.
        idempotent: a repeated call has no further effect.
        aliases: argument -> its former names.
        deprecated: None if it is not.
        arguments: the schema of the arguments; None in a manifest, where the OpenAPI document has it.
        result: the schema of the result; None as above.
    """

    id: str
    major: int
    digest: str
    since: str = ""
    consequential: bool = False
    idempotent: bool = False
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    deprecated: Deprecation | None = None
    description: str = ""
    arguments: Any = None
    result: Any = None

    def to_json(self) -> dict[str, Any]:
        members: dict[str, Any] = {
            "id": self.id,
            "major": self.major,
            "digest": self.digest,
            "since": self.since,
            "consequential": self.consequential,
            "idempotent": self.idempotent,
            "aliases": {name: list(former) for name, former in self.aliases.items()},
            "deprecated": self.deprecated.to_json() if self.deprecated else None,
        }
        if self.arguments is not None:
            members |= {"description": self.description, "arguments": self.arguments, "result": self.result}
        return members

    @classmethod
    def from_json(cls, value: object) -> OperationEntry:
        """Reads an entry; unknown members are ignored.

        Raises:
            ManifestError: `id` or `major` is missing, or one of these and `digest` has the wrong type.
        """
        if not isinstance(value, dict):
            raise ManifestError("an entry of operations is no object")
        # Level 1 has no digests.
        name, major, found = value.get("id"), value.get("major"), value.get("digest") or ""
        if not isinstance(name, str) or not is_operation_id(name):
            raise ManifestError(f"id is {str(name)[:80]!r}: a letter and at most 63 letters, digits and _ are expected")
        if not _is_major(major):
            raise ManifestError(f"major of {name} is {str(major)[:80]!r}: an integer is expected")
        if not isinstance(found, str) or (found and not found.startswith("sha256:")) or len(found) > 100:
            raise ManifestError(f"digest of {name} is {str(found)[:80]!r}: sha256:... is expected")
        # What cannot be read counts as dangerous.
        consequential = value.get("consequential", False)
        return cls(
            id=name,
            major=major,
            digest=found,
            since=_text(value.get("since")),
            consequential=consequential is not False,
            idempotent=value.get("idempotent") is True,
            aliases=_aliases(value.get("aliases")),
            deprecated=_deprecation(value.get("deprecated")),
            description=_text(value.get("description"), 8192),
            arguments=value.get("arguments"),
            result=value.get("result"),
        )


@dataclass(frozen=True)
class Manifest:
    """A plugin's manifest. URLs in it are relative to the plugin's base URL; others are not taken over.

    Attributes:
        protocol: protocol major -> its highest minor.
        majors: the API majors that are served, in order.
        openapi_sha256: of the bytes of the OpenAPI document; "" if not stated.
        mcp, health: None if the plugin has no such endpoint.
        notes: what `from_json` could not take over, one sentence each.
    """

    name: str
    version: str
    protocol: Mapping[int, int]
    majors: tuple[int, ...]
    operations: tuple[OperationEntry, ...] = ()
    openapi_url: str = OPENAPI_PATH
    openapi_sha256: str = ""
    mcp: str | None = None
    health: str | None = None
    limits: Limits = field(default_factory=Limits)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "octavo_plugin": {"protocol": {str(major): minor for major, minor in self.protocol.items()}},
            "name": self.name,
            "version": self.version,
            "majors": list(self.majors),
            "openapi": {"url": self.openapi_url, "sha256": self.openapi_sha256},
            "mcp": self.mcp,
            "health": self.health,
            "operations": [entry.to_json() for entry in self.operations],
            "limits": self.limits.to_json(),
        }

    def entry(self, operation: str, major: int) -> OperationEntry | None:
        """The operation's entry in an API major; None if it has none."""
        return next((e for e in self.operations if e.id == operation and e.major == major), None)

    @classmethod
    def from_json(cls, value: object) -> Manifest:
        """Reads a manifest. Unknown members are ignored; an unreadable operation is left out and noted.

        Raises:
            ManifestError: the document is no manifest: it lacks protocol majors, a name or a list of operations.
        """
        head = value.get("octavo_plugin") if isinstance(value, dict) else None
        if not isinstance(value, dict) or not isinstance(head, dict):
            raise ManifestError("octavo_plugin is missing: the document is no manifest of a plugin")
        versions = _protocols(head.get("protocol"))
        name = value.get("name")
        if not isinstance(name, str) or not 1 <= len(name) <= _LONGEST:
            raise ManifestError(f"name is {str(name)[:80]!r}: a text is expected")
        listed = value.get("operations")
        if not isinstance(listed, list) or len(listed) > MAX_OPERATIONS:
            raise ManifestError(f"operations must be a list of at most {MAX_OPERATIONS} entries")
        notes: list[str] = []
        entries: dict[tuple[str, int], OperationEntry] = {}
        for item in listed:
            try:
                entry = OperationEntry.from_json(item)
            except InvalidRequestError as error:
                notes.append(f"an operation is left out: {error}")
                continue
            if (entry.id, entry.major) in entries:
                notes.append(f"a second entry of {entry.id} in major {entry.major} is left out")
            entries.setdefault((entry.id, entry.major), entry)
        majors = value.get("majors")
        found = {int(m) for m in majors if _is_major(m)} if isinstance(majors, list) else {m for _, m in entries}
        openapi = value.get("openapi")
        openapi = openapi if isinstance(openapi, dict) else {}
        return cls(
            name=name,
            version=_text(value.get("version")),
            protocol=versions,
            majors=tuple(sorted(found)),
            operations=tuple(entries.values()),
            openapi_url=_relative(openapi.get("url"), "openapi.url", notes) or OPENAPI_PATH,
            openapi_sha256=_text(openapi.get("sha256")),
            mcp=_relative(value.get("mcp"), "mcp", notes),
            health=_relative(value.get("health"), "health", notes),
            limits=_limits(value.get("limits"), notes),
            notes=tuple(notes),
        )


def _seconds(date: str) -> int:
    try:
        found = datetime.datetime.fromisoformat(date)
    except (ValueError, TypeError):
        raise InvalidRequestError(f"the date is {date!r}: a date such as 2026-12-01 is expected") from None
    return int((found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp())


def _protocols(value: object) -> dict[int, int]:
    """Major -> minor. Members that are no versions are ignored."""
    found = {}
    if isinstance(value, dict):
        for major, minor in value.items():
            if isinstance(major, str) and major.isascii() and major.isdigit() and len(major) <= 6 and _is_major(minor):
                found[int(major)] = int(minor)
    if not found:
        raise ManifestError('octavo_plugin.protocol must be an object of majors and minors, such as {"1": 0}')
    return dict(sorted(found.items()))


def _is_major(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 999_999


def _is_second(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LAST_SECOND


def _text(value: object, longest: int = _LONGEST) -> str:
    return value[:longest] if isinstance(value, str) else ""


def _aliases(value: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        return {}
    lists = {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, list)}
    return {name: tuple(item for item in former if isinstance(item, str)) for name, former in lists.items()}


def _deprecation(value: object) -> Deprecation | None:
    """A deprecation whose date cannot be read still counts: its date is then 0."""
    if not value:
        return None
    members = value if isinstance(value, dict) else {}

    def seconds(key: str) -> int | None:
        found = members.get(key)
        if isinstance(found, float) and 0 <= found <= _LAST_SECOND:
            found = int(found)
        return found if _is_second(found) else None

    since = seconds("since") or 0
    sunset = seconds("sunset")
    return Deprecation(since, None if sunset is None else max(sunset, since), _text(members.get("use")) or None)


def _relative(value: object, member: str, notes: list[str]) -> str | None:
    """A URL below the plugin's base; a manifest may not name another origin, or a path above the base."""
    if value is None:
        return None
    if isinstance(value, str) and len(value) <= _LONGEST and value.isprintable() and "\\" not in value:
        try:
            url = urlsplit(value)
        except ValueError:
            url = None
        if url and not (url.scheme or url.netloc or value.startswith("/") or ".." in url.path.split("/")) and value:
            return value
    notes.append(f"{member} is {str(value)[:80]!r}: only a path below the plugin's base URL is used")
    return None


def _limits(value: object, notes: list[str]) -> Limits:
    members = value if isinstance(value, dict) else {}
    given = {key: members[key] for key in ("body_bytes", "timeout_s") if key in members}
    try:
        return Limits(**given)
    except InvalidRequestError as error:
        notes.append(f"limits are left out: {error}")
        return Limits()
