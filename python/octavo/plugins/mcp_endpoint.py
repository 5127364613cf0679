"""MCP over the same table."""

from __future__ import annotations

from octavo.plugins.convert import Table
from octavo.plugins.exchange import Request, Response
from octavo.plugins.problems import ProblemError
from octavo.plugins.running import Job


def begin(request: Request, name: str, version: str, table: Table) -> Response | Job:
    raise ProblemError("not-found", "MCP is not served")
