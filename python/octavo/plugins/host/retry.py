"""When a failed request may be sent again, and after how long."""

from __future__ import annotations

import datetime
import email.utils
import math
from collections.abc import Callable

from octavo.plugins.host.outcome import Failure

ATTEMPTS = 3
_FIRST_S = 0.1
_LONGEST_S = 2.0
_RETRYABLE = frozenset(("unavailable", "rate_limited", "timeout", "bad_response"))


def may_retry(failure: Failure, repeatable: bool) -> bool:
    """Whether the same request may be sent again.

    An operation that may have run is not run twice, unless that has no further effect.

    Args:
        repeatable: the operation is idempotent, or the plugin keeps idempotency keys.
    """
    if failure.status not in _RETRYABLE:
        return False
    if failure.status == "bad_response" and not failure.damaged:
        return False
    return repeatable or not failure.sent


def pause(attempt: int, failure: Failure, left: float, random: Callable[[], float]) -> float | None:
    """Seconds before the next attempt; None: there is none within the time.

    Args:
        attempt: how many were made.
        left: seconds until the deadline.
        random: a number from 0 to 1, which spreads the retries of many callers.
    """
    if attempt >= ATTEMPTS:
        return None
    seconds = min(_FIRST_S * 2.0 ** (attempt - 1), _LONGEST_S) * (0.5 + random() / 2)
    if failure.retry_after is not None:
        seconds = max(seconds, failure.retry_after)
    return seconds if seconds < left else None


def retry_after(text: str | None, now: Callable[[], datetime.datetime] | None = None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, section 10.2.3): a number, or a date; None if it is neither."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        at = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=datetime.UTC)
    moment = now() if now is not None else datetime.datetime.now(datetime.UTC)
    seconds = (at - moment).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None
