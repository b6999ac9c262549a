"""Heads: classifiers on one 2-D matrix whose columns are blocks."""
