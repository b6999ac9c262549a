"""Draw docs/performance.md's table and chart from benchmarks/results/*.json.

    python benchmarks/draw.py [--check]

Everything between the file's two marks is replaced; the text around it is written by hand. --check writes nothing and
fails if the page does not say what the results say.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
CHART = ROOT / "docs" / "performance.svg"
BEGIN, END = "<!-- drawn by benchmarks/draw.py: begin -->", "<!-- drawn by benchmarks/draw.py: end -->"

#: Order of the suites on the page.
SUITES = ("cpu", "finetune", "heads", "run", "store", "scale", "startup", "serve", "gpu")


def read_results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the suites' results that are there, in the page's order; a suite's parts may have files of their own."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda suite: SUITES.index(suite["suite"]))


def draw_tables(suites: list[dict[str, Any]]) -> str:
    """Return a heading, the command, the machine and a table per suite, as Markdown."""
    parts = []
    for suite in suites:
        machine = suite["machine"]
        rates = ", ".join(f"{name} {rate:g} GFLOP/s" for name, rate in machine["gflops"].items())
        parts.append(
            f"### {suite['suite']}\n\n    {suite['command']}\n\n"
            f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB; {rates}, "
            f"{machine['bandwidth_gbs']:g} GB/s; {suite['rounds']} rounds.\n\n"
            "| what | against | median | least to most | aim | |\n|---|---|---|---|---|---|"
        )
        parts[-1] += "".join("\n" + draw_row(row) for row in suite["rows"])
        notes = [f"- {row['what']}, {row['against']}: {row['note']}" for row in suite["rows"] if row["note"]]
        if notes:
            parts.append("\n".join(notes))
    return "\n\n".join(parts)


def draw_row(row: dict[str, Any]) -> str:
    """Return a row of a table."""
    value = "not measured" if row["value"] is None else f"{show(row['value'])} {row['unit']}".strip()
    spread = "" if row["low"] is None else f"{show(row['low'])} to {show(row['high'])}"
    aim = "" if row["aim"] is None else f"{'≤' if row['at_most'] else '≥'} {row['aim'] + 0:g}"
    mark = {True: "reached", False: "**missed**", None: ""}[row["reached"]]
    return f"| {row['what']} | {row['against']} | {value} | {spread} | {aim} | {mark} |"


def show(value: float) -> str:
    """Return a number with three figures, and no exponent."""
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 4)}f}"


def draw_chart(suites: list[dict[str, Any]]) -> str:
    """Return an SVG of every ratio with an aim: a bar to its median, its spread and its aim, on a logarithmic axis."""
    rows = [
        row
        for suite in suites
        for row in suite["rows"]
        if row["unit"] == "×" and row["aim"] is not None and row["value"] and not row["at_most"]
    ]
    if not rows:
        return ""
    left, right, height, top = 430, 760, 26, 30
    highest = max(max(row["high"] or row["value"], row["aim"]) for row in rows) * 1.15

    def x(value: float) -> float:
        return left + math.log10(max(value, 1.0)) / math.log10(highest) * (right - left)

    bottom = top + height * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 840 {bottom + 34}" '
        'font-family="sans-serif" font-size="12">',
        "<title>How many times as fast as its peers</title>",
        f'<rect width="840" height="{bottom + 34}" fill="#ffffff"/>',
        '<text x="12" y="18" fill="#333">times as fast (bar: median; whisker: least to most; mark: aim)</text>',
    ]
    for tick in (t for t in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500) if t <= highest):
        parts.append(
            f'<line x1="{x(tick):.1f}" y1="{top}" x2="{x(tick):.1f}" y2="{bottom}" stroke="#ddd"/>'
            f'<text x="{x(tick):.1f}" y="{bottom + 16}" fill="#555" text-anchor="middle">{tick}×</text>'
        )
    for number, row in enumerate(rows):
        y = top + height * (number + 0.5)
        colour = "#2f6fb2" if row["reached"] else "#d9822b"
        label = f"{row['what']} / {row['against']}"
        label = label if len(label) <= 66 else label[:65] + "…"
        parts.append(
            f'<text x="{left - 8}" y="{y + 4:.1f}" fill="#222" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{left}" y="{y - 7:.1f}" width="{x(row["value"]) - left:.1f}" height="14" fill="{colour}"/>'
        )
        if row["low"] is not None:
            parts.append(
                f'<line x1="{x(row["low"]):.1f}" y1="{y:.1f}" x2="{x(row["high"]):.1f}" y2="{y:.1f}" stroke="#111"/>'
            )
        parts.append(
            f'<line x1="{x(row["aim"]):.1f}" y1="{y - 10:.1f}" x2="{x(row["aim"]):.1f}" y2="{y + 10:.1f}" '
            'stroke="#111" stroke-width="3"/>'
            f'<text x="{max(x(row["value"]), x(row["high"] or 1), x(row["aim"])) + 8:.1f}" y="{y + 4:.1f}" fill="#222">'
            f"{show(row['value'])}×</text>"
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def replace_drawn(page: str, drawn: str) -> str:
    """Return the page with what stands between its marks replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{drawn}\n\n{END}{after}"


def main() -> int:
    """Draw, or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    suites = read_results()
    page, chart = replace_drawn(PAGE.read_text(encoding="utf-8"), draw_tables(suites)), draw_chart(suites)
    if check:
        same = PAGE.read_text(encoding="utf-8") == page and CHART.read_text(encoding="utf-8") == chart
        sys.stdout.write(
            "as the results say\n" if same else "not drawn from these results: run it without --check\n"
        )
        return 0 if same else 1
    PAGE.write_text(page, encoding="utf-8")
    CHART.write_text(chart, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
