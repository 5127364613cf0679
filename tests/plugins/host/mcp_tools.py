"""An MCP server of the official SDK, for the tests: `python mcp_tools.py` serves its standard streams."""

from __future__ import annotations

import os
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ImageContent, ToolAnnotations


def build() -> Any:
    server = MCPServer("tools")

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    def add(a: int, b: int = 1) -> int:
        """Adds two numbers."""
        return a + b

    @server.tool(name="send.mail")
    def send_mail(to: str) -> str:
        return f"sent to {to}"

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    def fail(why: str) -> str:
        raise ToolError(f"it failed: {why}")

    @server.tool(annotations=ToolAnnotations(read_only_hint=True), structured_output=False)
    def picture() -> Any:
        return [ImageContent(type="image", data="AAAA", mime_type="image/png"), "a picture"]

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    def environment(name: str) -> str:
        return os.environ.get(name, "")

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    def die() -> str:
        os._exit(3)

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    def deep(levels: int) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for _ in range(levels):
            value = {"a": value}
        return value

    return server


if __name__ == "__main__":
    build().run("stdio")
