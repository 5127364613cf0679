"""Smaller models: less width."""
