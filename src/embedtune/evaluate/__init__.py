"""Scores, intervals, tests and verdicts from predictions alone."""
