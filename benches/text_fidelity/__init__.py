"""Fidelity over every position of real text."""
