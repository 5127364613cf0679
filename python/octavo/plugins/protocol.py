"""The wire protocol's constants, and how both sides agree on a version. Pure: no I/O.

The *protocol version* is the version of the envelope: `Octavo-Protocol: 1.0`. The *API major* is the plugin's own,
and part of the path, `v2/invoke/get_forecast`. A higher major breaks, a higher minor only adds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# Protocol majors that this octavo supports -> the highest minor of each.
SUPPORTED: Mapping[int, int] = {1: 0}

PROTOCOL_HEADER = "Octavo-Protocol"
DIGEST_HEADER = "Octavo-Digest"
IDEMPOTENCY_HEADER = "Idempotency-Key"
# The answer to a repeated Idempotency-Key carries `Idempotent-Replay: true`.
REPLAY_HEADER = "Idempotent-Replay"

# Paths relative to the plugin's base URL, which ends with a slash.
MANIFEST_PATH = ".well-known/octavo-plugin.json"
OPENAPI_PATH = "openapi.json"
HEALTH_PATH = "health"
MCP_PATH = "mcp"

JSON = "application/json"
PROBLEM_JSON = "application/problem+json"
PROBLEM_PREFIX = "urn:octavo-plugin:"

DEFAULT_BODY_BYTES = 1 << 20
DEFAULT_TIMEOUT_S = 10.0
MANIFEST_MAX_AGE_S = 300
# The API majors that a plugin serves: N, N-1 and N-2.
MAJORS_KEPT = 3

# Longer headers are not read: no client of this protocol sends them.
_LONGEST_HEADER = 256
_VERSION = re.compile(r"(0|[1-9]\d{0,5})(?:\.(0|[1-9]\d{0,5}))?", re.ASCII)
_PLUGIN_VERSION = re.compile(r"(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,8})(?:\.[0-9A-Za-z.+-]{1,64})?", re.ASCII)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}", re.ASCII)
_OPERATION = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}", re.ASCII)


@dataclass(frozen=True, order=True)
class Version:
    """A protocol version. `minor` is None where only the major was named."""

    major: int
    minor: int | None = None

    def __str__(self) -> str:
        return str(self.major) if self.minor is None else f"{self.major}.{self.minor}"


def parse_versions(header: str) -> list[Version]:
    """The versions of an `Octavo-Protocol` header, `2, 1` or `1.0`. Items that are no version are ignored."""
    if len(header) > _LONGEST_HEADER:
        return []
    found = [_VERSION.fullmatch(item.strip()) for item in header.split(",")]
    return [Version(int(m[1]), None if m[2] is None else int(m[2])) for m in found if m]


def negotiate(header: str | None, supported: Mapping[int, int] = SUPPORTED) -> Version | None:
    """The version with which a plugin answers a request; None: there is no common major.

    The highest common major wins. The minor is the plugin's own, never the client's. A request without the header gets
    the oldest supported major.
    """
    if header is None or not header.strip():
        oldest = min(supported)
        return Version(oldest, supported[oldest])
    common = {version.major for version in parse_versions(header)} & set(supported)
    return Version(max(common), supported[max(common)]) if common else None


def common_major(offered: Iterable[int], supported: Mapping[int, int] = SUPPORTED) -> int | None:
    """The highest protocol major that both sides support; None: there is none."""
    return max(set(offered) & set(supported), default=None)


def answered_version(header: str | None, offered: Iterable[int]) -> Version | None:
    """The version of a response; None if the header is missing, or cannot be the plugin's own answer.

    A plugin answers with one version, `major.minor`, of a major that its manifest lists. A request names majors alone,
    thus a server that echoes headers is detected.
    """
    versions = parse_versions(header or "")
    if len(versions) != 1 or versions[0].minor is None or versions[0].major not in set(offered):
        return None
    return versions[0]


def supported_list(supported: Mapping[int, int] = SUPPORTED) -> list[str]:
    """The supported versions as text, the oldest first: `["1.0"]`."""
    return [f"{major}.{minor}" for major, minor in sorted(supported.items())]


def invoke_path(major: int, operation: str) -> str:
    """The path of an operation, relative to the plugin's base URL."""
    return f"v{major}/invoke/{operation}"


def api_version(text: str) -> tuple[int, int] | None:
    """(major, minor) of a plugin's version such as `2.1.0`; None if it is no version."""
    found = _PLUGIN_VERSION.fullmatch(text)
    return (int(found[1]), int(found[2])) if found else None


def is_plugin_name(name: str) -> bool:
    """Whether a plugin may have this name: a letter, then at most 63 letters, digits, `_` and `-`."""
    # `__` joins the names of a plugin and an operation to the name of a tool, which must be read back.
    return _NAME.fullmatch(name) is not None and "__" not in name and not name.endswith("_")


def is_operation_id(name: str) -> bool:
    """Whether an operation may have this id: a letter, then at most 63 letters, digits and `_`."""
    return _OPERATION.fullmatch(name) is not None
