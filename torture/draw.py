"""Draws docs/reliability.md's table from torture/results/*.json: what stands between its marks is replaced."""

from __future__ import annotations

import json
from typing import Any

from torture import ROOT
from torture.runner import FAULTS

PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "torture" / "results"
BEGIN, END = "<!-- drawn by torture/draw.py: begin -->", "<!-- drawn by torture/draw.py: end -->"


def draw_page() -> None:
    """Write the table of all results that are there into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{draw_tables()}\n\n{END}{after}", encoding="utf-8")


def draw_tables() -> str:
    """Return a table of all faults, and the commands behind it, as Markdown."""
    paths = [RESULTS / f"{name}.json" for name in FAULTS]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    lines = ["| fault | what | tried | survived | lost |", "|---|---|---|---|---|"]
    for fault in found:
        lines += [draw_row(fault["title"], row) for row in fault["rows"]]
    commands = sorted({fault["command"] for fault in found})
    return "\n".join(lines) + "\n\nBy " + ", ".join(f"`{command}`" for command in commands) + "."


def draw_row(title: str, row: dict[str, Any]) -> str:
    """Return a row of the table."""
    n_lost = len(row["lost"])
    survived = ", ".join(f"{n:,} {how}" for how, n in row["outcomes"].items())
    return f"| {title} | {row['what']} | {row['tried']:,} | {survived} | {f'**{n_lost}**' if n_lost else 0} |"
