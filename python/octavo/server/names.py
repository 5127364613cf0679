"""Names of adapters and packs that a request can use."""

from __future__ import annotations

from collections.abc import Iterable

from octavo.errors import InvalidRequestError

LONGEST_NAME = 256
# Characters with a meaning in names: `sql@3`, `sql+law`, and lists of names in metrics.
_RESERVED = "@+,"


def check_name(name: str, taken: Iterable[str], what: str) -> None:
    """Refuses a name that a request could not use.

    Args:
        taken: names with another meaning.
        what: the option or field that has the name.

    Raises:
        InvalidRequestError: names the fault.
    """
    if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable() or any(c.isspace() for c in name):
        raise InvalidRequestError(
            f"{what} is {name[:80]!r}: 1 to {LONGEST_NAME} printable characters without spaces are expected"
        )
    mark = next((c for c in name if c in _RESERVED), None)
    if mark is not None:
        raise InvalidRequestError(f"{what} is {name[:80]!r}: {mark!r} has a meaning of its own in names: leave it out")
    if name in taken:
        raise InvalidRequestError(f"{what} is {name[:80]!r}, which is a name of the model: choose another")
