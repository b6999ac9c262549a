"""Which words carried a label: leave each out, and see how its probability changes."""

from __future__ import annotations

import re
from typing import NamedTuple

#: More spans than this aren't tried; words of a longer text are left out several at a time.
MAX_SPANS = 100


class Span(NamedTuple):
    """Characters of a text, the last one excluded."""

    start: int
    end: int


def find_spans(text: str, *, max_spans: int = MAX_SPANS) -> list[Span]:
    """Return the words of a text, as whitespace parts them, or runs of words if there are more than `max_spans`."""
    words = [Span(*match.span()) for match in re.finditer(r"\S+", text)]
    size = -(-len(words) // max_spans) or 1
    runs = [words[first : first + size] for first in range(0, len(words), size)]
    return [Span(run[0].start, run[-1].end) for run in runs]


def leave_out(text: str, spans: list[Span]) -> list[str]:
    """Return the text without each span."""
    return [text[: span.start] + text[span.end :].lstrip() for span in spans]
