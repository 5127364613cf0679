"""Writes a small plugin project: the plugin, an application that serves it, and tests."""

from octavo.plugins.scaffold.write import FRAMEWORKS, new_project

__all__ = ["FRAMEWORKS", "new_project"]
