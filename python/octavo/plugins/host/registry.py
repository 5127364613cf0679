"""Keeps what the host has read of one plugin, and asks again when it is old. Conditional requests keep this cheap."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from octavo.plugins.forks import after_fork
from octavo.plugins.host.catalogue import Catalogue, from_document, from_manifest
from octavo.plugins.host.client import Budget, Client, content_type, read_json
from octavo.plugins.host.endpoint import Endpoint
from octavo.plugins.host.openapi_import import Imported, read_document
from octavo.plugins.host.outcome import Failure
from octavo.plugins.host.source import DOCUMENT_BYTES
from octavo.plugins.host.transport import HttpAnswer
from octavo.plugins.manifest import Manifest, ManifestError
from octavo.plugins.problems import Problem
from octavo.plugins.protocol import (
    MANIFEST_MAX_AGE_S,
    MANIFEST_PATH,
    OPENAPI_PATH,
    SUPPORTED,
    common_major,
    parse_versions,
)
from octavo.plugins.values import DOCUMENT_LEVELS

# A plugin may not have its manifest kept for ever, nor asked for with every call.
_AGE_BOUNDS = (5.0, 3600.0)
# A failed refresh of a plugin whose digests guard each call is tried again after this time.
_STALE_S = 30.0
# Where digests do not guard the calls: how old the document may be when tools are shown, and when one is called. The
# second is of the order of a request: the document can change between the check and the call in any case.
SHOWN_WITHIN_S = 30.0
CALLED_WITHIN_S = 0.5


@dataclass(frozen=True)
class _Kept:
    """A document, as it was last read."""

    url: str
    etag: str
    sha256: str
    imported: Imported
    version: str


class Registry:
    """What is known of one plugin. Thread-safe: one thread reads, others wait within their own deadlines.

    Args:
        supported: the protocol majors of this host -> their minors.
        max_age: seconds for which a manifest is kept if it does not say; None: the protocol's.
    """

    def __init__(
        self,
        client: Client,
        clock: Callable[[], float],
        supported: Mapping[int, int] = SUPPORTED,
        max_age: float | None = None,
    ) -> None:
        self._client = client
        self._clock = clock
        self._supported = supported
        self._max_age = MANIFEST_MAX_AGE_S if max_age is None else max_age
        self._lock = threading.Lock()
        after_fork(self, lambda this: setattr(this, "_lock", threading.Lock()))
        self._catalogue: Catalogue | None = None
        self._manifest: Manifest | None = None
        self._manifest_etag = ""
        self._document: _Kept | None = None
        # When the document was last read, or confirmed.
        self._checked = float("-inf")
        # A server that echoes the protocol's headers, or a proxy that strips them, has no more than level 0.
        self._untrusted = False
        # The version that the plugin asked for; "": the major of the catalogue.
        self.version_header = ""

    @property
    def kept(self) -> Catalogue | None:
        """What is known now, old or not."""
        return self._catalogue

    def get(self, budget: Budget, *, any_age: bool = False) -> Catalogue:
        """What is known; it is read first if it is not, or is old.

        Args:
            any_age: an old catalogue will do if the plugin itself compares the digest of the call.

        Raises:
            Failure: it cannot be read.
        """
        kept = self._catalogue
        if kept is not None and (self._clock() < kept.expires or (any_age and self.guarded)):
            return kept
        with _locked(self._lock, budget, self._client.name):
            kept = self._catalogue
            if kept is not None and self._clock() < kept.expires:
                return kept
            return self._read(budget, kept)

    def refresh(self, budget: Budget, *, reload: bool = False) -> Catalogue:
        """Asks again, whatever the age.

        Args:
            reload: also asks past the caches between, and ignores the own ones.

        Raises:
            Failure: it cannot be read.
        """
        with _locked(self._lock, budget, self._client.name):
            if reload:
                self._manifest_etag = ""
                self._document = None
            return self._read(budget, None, reload=reload)

    def expire(self) -> None:
        """What is kept counts as old: the next `get` asks again."""
        with self._lock:
            self._checked = float("-inf")
            if self._catalogue is not None:
                self._catalogue = replace(self._catalogue, expires=float("-inf"))

    def revalidate(self, budget: Budget, within: float = 0.0) -> Catalogue:
        """Asks for the document alone, for a plugin that does not compare digests itself.

        A plain service ignores members that it does not have, so an old schema would lose arguments in silence.

        Args:
            within: seconds for which an earlier check still counts.

        Raises:
            Failure: it cannot be read.
        """
        with _locked(self._lock, budget, self._client.name):
            kept, before = self._catalogue, self._document
            if kept is None or before is None:
                return self._read(budget, None)
            if self._clock() - self._checked < within:
                return kept
            document = self._read_document(budget, before.url, False)
            if document.imported is not before.imported:
                manifest = self._manifest
                if manifest is None or kept.protocol is None:
                    kept = from_document(document.imported, document.version, kept.expires)
                else:
                    kept = from_manifest(manifest, document.imported, kept.protocol, kept.expires, False)
                self._catalogue = kept
            return kept

    def replaced(self, endpoint: Endpoint) -> Catalogue | None:
        """Takes over an operation that the plugin itself answered."""
        with self._lock:
            if self._catalogue is not None:
                self._catalogue = self._catalogue.with_endpoint(endpoint)
            return self._catalogue

    def take_version(self, supported: object) -> bool:
        """Sends one of the versions that a plugin lists in `unsupported-version`; False: none is a common one.

        A plugin that compares whole texts refuses the major alone.
        """
        listed = [str(item) for item in supported[:32]] if isinstance(supported, list) else []
        versions = [v for text in listed for v in parse_versions(text) if v.major in self._supported]
        if versions:
            self.version_header = str(max(versions, key=lambda v: (v.major, v.minor or 0)))
        return bool(versions)

    def distrust(self) -> None:
        """The protocol's headers of this plugin are not its own: from now on its document is asked before each call."""
        self._untrusted = True

    @property
    def guarded(self) -> bool:
        """Whether the plugin itself compares the digest of each call."""
        return self._catalogue is not None and self._catalogue.level == 2 and not self._untrusted

    @property
    def fresh(self) -> bool:
        """Whether the tools can be shown without a request."""
        kept, now = self._catalogue, self._clock()
        return kept is not None and now < kept.expires and (self.guarded or now - self._checked < SHOWN_WITHIN_S)

    def _read(self, budget: Budget, kept: Catalogue | None, *, reload: bool = False) -> Catalogue:
        try:
            found = self._fetch(budget, reload)
        except Failure as failure:
            # The plugin compares the digest, so an old manifest does no harm.
            if kept is None or not self.guarded or failure.status not in ("unavailable", "timeout"):
                raise
            budget.warn(f"the manifest of the plugin {self._client.name!r} could not be read again: {failure.detail}")
            found = replace(kept, expires=self._clock() + _STALE_S)
        self._catalogue = found
        return found

    def _fetch(self, budget: Budget, reload: bool) -> Catalogue:
        manifest, age = self._read_manifest(budget, reload)
        expires = self._clock() + age
        if manifest is None:
            document = self._read_document(budget, self._client.source.openapi or OPENAPI_PATH, reload)
            return from_document(document.imported, document.version, expires)
        protocol = common_major(manifest.protocol, self._supported)
        if protocol is None:
            offered = [f"{major}.{minor}" for major, minor in manifest.protocol.items()]
            raise Failure(
                "unsupported_version",
                f"the plugin {self._client.name!r} has the protocol versions {', '.join(offered)}: this host has"
                f" {', '.join(map(str, self._supported))}; update the older of the two",
                Problem("unsupported-version", extensions={"supported": offered}),
            )
        url = self._client.source.openapi or manifest.openapi_url
        document = self._wanted(manifest, url) or self._read_document(budget, url, reload)
        stated = _hex(manifest.openapi_sha256)
        if stated and stated != document.sha256 and not reload:
            # One of the two came from an old cache between.
            again, age = self._read_manifest(budget, True)
            manifest = again or manifest
            document = self._read_document(budget, url, True)
        consistent = _hex(manifest.openapi_sha256) == document.sha256
        return from_manifest(manifest, document.imported, protocol, expires, consistent)

    def _wanted(self, manifest: Manifest, url: str) -> _Kept | None:
        """The document that is kept, if the manifest says that it is the current one."""
        kept = self._document
        if kept is not None and kept.url == url and kept.sha256 == _hex(manifest.openapi_sha256):
            return kept
        return None

    def _read_manifest(self, budget: Budget, reload: bool) -> tuple[Manifest | None, float]:
        """(the manifest, None if the service has none; seconds for which it is fresh)."""
        etag = "" if reload else self._manifest_etag
        answer = self._get(budget, MANIFEST_PATH, etag if self._manifest else "", reload)
        age = _max_age(answer, self._max_age)
        if answer.status == 304 and self._manifest is not None:
            return self._manifest, age
        if answer.status == 429 or answer.status >= 500:
            raise _failed(self._client.name, "manifest", answer)
        manifest = None
        if answer.status == 200 and "json" in content_type(answer):
            try:
                manifest = Manifest.from_json(read_json(answer, "the manifest", DOCUMENT_LEVELS))
            except (ManifestError, Failure) as error:
                if b"octavo_plugin" in answer.body:
                    detail = f"the manifest of the plugin {self._client.name!r} cannot be used: {error}"
                    raise Failure("bad_response", detail) from None
        self._manifest, self._manifest_etag = manifest, answer.header("etag") or ""
        return manifest, age

    def _read_document(self, budget: Budget, path: str, reload: bool) -> _Kept:
        """The OpenAPI document; a kept one if it has not changed."""
        kept = self._document if self._document and self._document.url == path else None
        url = self._client.url(path)
        answer = self._get(budget, path, kept.etag if kept and not reload else "", reload)
        self._checked = self._clock()
        if answer.status == 304 and kept is not None:
            return kept
        if answer.status != 200:
            raise _failed(self._client.name, f"OpenAPI document at {url}", answer)
        sha256 = hashlib.sha256(answer.body).hexdigest()
        etag = answer.header("etag") or ""
        if kept is not None and kept.sha256 == sha256:
            self._document = replace(kept, etag=etag)
            return self._document
        document = read_json(answer, f"the document at {url}", DOCUMENT_LEVELS)
        source = self._client.source
        headers = frozenset(name.lower() for name in source.headers)
        imported = read_document(document, source.url, url, headers, source.operations)
        self._document = _Kept(path, etag, sha256, imported, _document_version(document))
        return self._document

    def _get(self, budget: Budget, path: str, etag: str, reload: bool) -> HttpAnswer:
        headers = {"If-None-Match": etag} if etag else {}
        if reload:
            headers["Cache-Control"] = "no-cache"
        return self._client.send(budget, "GET", self._client.url(path), headers, None, DOCUMENT_BYTES)


class _locked:  # noqa: N801
    """A lock, within the deadline of a call."""

    def __init__(self, lock: threading.Lock, budget: Budget, name: str) -> None:
        self._lock, self._budget, self._name = lock, budget, name

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=min(self._budget.left(), threading.TIMEOUT_MAX)):
            raise Failure("timeout", f"another call was still reading the plugin {self._name!r} when the time was over")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _failed(name: str, what: str, answer: HttpAnswer) -> Failure:
    detail = f"the plugin {name!r} answered with status {answer.status} for its {what}"
    if answer.status in (401, 403):
        return Failure("unauthorized", f"{detail}: check the headers of its PluginSource")
    if answer.status == 429:
        return Failure("rate_limited", detail)
    if answer.status >= 500:
        return Failure("unavailable", detail)
    return Failure("bad_response", f"{detail}: check its URL, or set openapi= to the path of its document")


def _max_age(answer: HttpAnswer, default: float) -> float:
    """Seconds for which a manifest is fresh, within bounds (RFC 9111)."""
    text = (answer.header("cache-control") or "").lower()
    if "no-cache" in text or "no-store" in text:
        return _AGE_BOUNDS[0]
    found = re.search(r"max-age=(\d{1,9})", text)
    age = float(found[1]) if found and answer.status in (200, 304) else default
    return min(max(age, _AGE_BOUNDS[0]), _AGE_BOUNDS[1])


def _hex(sha256: str) -> str:
    return sha256.strip().lower().removeprefix("sha256:")


def _document_version(document: Any) -> str:
    info = document.get("info")
    version = info.get("version") if isinstance(info, dict) else None
    return version[:100] if isinstance(version, str) else ""
