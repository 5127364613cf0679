"""Plugins: operations that a model calls over REST, and whose calls survive a change of version."""
