"""Finds the route that a client with a slightly wrong path wants."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

# Longer paths are compared with nothing.
_LONGEST = 120
# Share of equal characters from which a path counts as misspelled.
_ALIKE = 0.8
# Last parts of paths of other servers -> what serves the same purpose here.
_OTHER_SERVERS = {
    "completion": "/v1/completions",
    "embed": "/v1/embeddings",
    "embedding": "/v1/embeddings",
    "generate": "/v1/completions",
    "generate_stream": "/v1/completions",
    "tags": "/v1/models",
    "chat": "/v1/chat/completions",
    "healthz": "/health",
    "livez": "/health",
    "readyz": "/ready",
    "ping": "/health",
    "docs": "/openapi.json",
    "swagger.json": "/openapi.json",
    "count_tokens": "/v1/messages/count_tokens",
}


def nearest(path: str, routes: Sequence[str]) -> str | None:
    """The route of `routes` that `path` may mean; None if there is none.

    Slashes, case, and parts before the last ones do not count: `/openai/deployments/x/chat/completions`.
    """
    if len(path) > _LONGEST:
        return None
    parts = [part for part in re.split(r"[/\\]+", path.strip().lower()) if part]
    # Exact ends first, the longest one first.
    for start in range(len(parts)):
        end = "/" + "/".join(parts[start:])
        found = [route for route in routes if route == end or route == f"/v1{end}"]
        if found:
            return found[0]
    close = difflib.get_close_matches("/" + "/".join(parts), routes, n=1, cutoff=_ALIKE)
    return close[0] if close else _OTHER_SERVERS.get(parts[-1] if parts else "")
