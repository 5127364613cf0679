"""Plugins that drift: how many calls stay right when a plugin changes, and how those that fail do."""
