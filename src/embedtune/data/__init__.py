"""Labelled texts: reading them, cleaning them, splitting them without leaks."""
