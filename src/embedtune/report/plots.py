"""Plots as inline SVG: no script, sharp in print, coloured by the page's own style sheet (light or dark)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

_WIDTH = 440
_ROW_HEIGHT = 30
_CHARACTER_WIDTH = 7.4  # of the 13-pixel label font, a little generous


class Whisker(NamedTuple):
    """A value with its interval, on a row of its own.

    Attributes
    ----------
    label, text : str
        Written left of the row and right of it.
    value, low, high : float
    tone : str
        CSS class of the mark: ``"blue"``, ``"orange"`` or ``"grey"``.
    """

    label: str
    text: str
    value: float
    low: float
    high: float
    tone: str = "blue"


class Curve(NamedTuple):
    """Points joined by a line; `tone` as in `Whisker`, orange lines are dashed and have square marks."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    tone: str = "blue"


def draw_whiskers(
    rows: Sequence[Whisker], *, title: str, description: str, reference: float | None = None
) -> Markup:
    """Draw each row's value and interval on one shared axis.

    Parameters
    ----------
    rows : sequence of Whisker
        At least one.
    title, description : str
        What a screen reader says.
    reference : float, optional
        A value marked by a vertical line, such as 0 for differences.
    """
    left = 12 + _CHARACTER_WIDTH * min(26, max(len(row.label) for row in rows))
    right = 18 + 1.15 * _CHARACTER_WIDTH * max(len(row.text) for row in rows)
    ends = [end for row in rows for end in (row.low, row.high, row.value)]
    ticks = choose_ticks(
        min(ends + [reference] if reference is not None else ends),
        max(ends + [reference] if reference is not None else ends),
    )
    bottom = 8 + _ROW_HEIGHT * len(rows)

    def x(value: float) -> float:
        return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (_WIDTH - left - right)

    parts = []
    for tick in ticks:
        parts.append(_line(x(tick), 4, x(tick), bottom, "grid"))
        parts.append(_text(x(tick), bottom + 18, _format_tick(tick, ticks), "tick middle"))
    if reference is not None:
        parts.append(_line(x(reference), 0, x(reference), bottom, "reference"))
    for i, row in enumerate(rows):
        y = 8 + _ROW_HEIGHT * (i + 0.5)
        parts.append(_text(left - 10, y + 4.5, _cut(row.label, 26), "end"))
        parts.append(_line(x(row.low), y, x(row.high), y, f"bar {row.tone}"))
        for end in (row.low, row.high):
            parts.append(_line(x(end), y - 5, x(end), y + 5, f"bar {row.tone}"))
        parts.append(_mark(x(row.value), y, row.tone))
        parts.append(_text(_WIDTH - right + 12, y + 4.5, row.text, "figure"))
    return _frame(parts, height=bottom + 26, title=title, description=description)


def draw_curves(
    curves: Sequence[Curve],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float] = (),
    diagonal: bool = False,
) -> Markup:
    """Draw lines in one frame, with a legend.

    Parameters
    ----------
    curves : sequence of Curve
        At least one, each with at least one point.
    title, description : str
        What a screen reader says.
    x_label, y_label : str
        Name and unit.
    x_ticks : sequence of float
        By default about fourteen of the points' own places.
    diagonal : bool
        Mark where x and y are equal.
    """
    places = sorted({place for curve in curves for place in curve.xs})
    marks = list(x_ticks) or places[:: math.ceil(len(places) / 14)]
    heights = [height for curve in curves for height in curve.ys]
    low, high = min(places[0], marks[0]), max(places[-1], marks[-1])
    ticks = choose_ticks(
        min([*heights, low] if diagonal else heights), max([*heights, high] if diagonal else heights)
    )
    left, top, bottom, right = 52, 40, 230, _WIDTH - 24

    def x(place: float) -> float:
        span = high - low
        return left + 14 + ((place - low) / span if span else 0.5) * (right - left - 28)

    def y(height: float) -> float:
        return bottom - (height - ticks[0]) / (ticks[-1] - ticks[0]) * (bottom - top)

    parts = [_text(left - 40, 16, y_label, "tick")]
    for tick in ticks:
        parts.append(_line(left, y(tick), right, y(tick), "grid"))
        parts.append(_text(left - 8, y(tick) + 4, _format_tick(tick, ticks), "tick end"))
    for mark in marks:
        parts.append(_text(x(mark), bottom + 20, f"{mark:g}", "tick middle"))
    parts.append(_text((left + right) / 2, bottom + 42, x_label, "tick middle"))
    if diagonal:
        parts.append(_line(x(low), y(low), x(high), y(high), "reference"))
    at = float(right)
    for curve in reversed(curves):
        at -= _CHARACTER_WIDTH * len(curve.label) + 30
        parts.append(_mark(at, 12, curve.tone))
        parts.append(_text(at + 10, 16, curve.label, ""))
    for curve in curves:
        points = [(x(place), y(height)) for place, height in zip(curve.xs, curve.ys, strict=True)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(Markup('<polyline class="curve {}" points="{}"/>').format(curve.tone, path))
        parts.extend(_mark(px, py, curve.tone) for px, py in points)
    return _frame(parts, height=bottom + 52, title=title, description=description)


def choose_ticks(low: float, high: float, *, n_target: int = 5) -> list[float]:
    """Return round, evenly spaced values that enclose [low, high]: at least two, even for a single value."""
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / n_target
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _format_tick(tick: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0]
    n_decimals = next((n for n in range(6) if abs(round(step, n) - step) < 1e-9), 6)
    return f"{tick:.{n_decimals}f}".replace("-", "\N{MINUS SIGN}")


def _frame(parts: Sequence[Markup], *, height: float, title: str, description: str) -> Markup:
    return Markup(
        '<svg class="plot" role="img" viewBox="0 0 {} {:.0f}"><title>{}</title><desc>{}</desc>{}</svg>'
    ).format(_WIDTH, height, title, description, Markup("").join(parts))


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        css, x1, y1, x2, y2
    )


def _text(x: float, y: float, text: str, css: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(css, x, y, text)


def _mark(x: float, y: float, tone: str) -> Markup:
    if tone == "orange":
        return Markup('<rect class="mark {}" x="{:.1f}" y="{:.1f}" width="9" height="9"/>').format(
            tone, x - 4.5, y - 4.5
        )
    return Markup('<circle class="mark {}" cx="{:.1f}" cy="{:.1f}" r="5"/>').format(tone, x, y)


def _cut(text: str, n: int) -> str:
    return text if len(text) <= n else text[: n - 1] + "…"
