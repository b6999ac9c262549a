"""The torture suite's slice for every test run, from a fixed seed: each fault tried, nothing lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: What is tried for so many minutes, beyond one try of each case; together they are all faults.
PARTS = {
    0.0: ("kills", "together", "disk", "memory", "surroundings", "repeats", "load"),
    0.2: ("rot", "versions", "inputs", "values", "attackers"),
}


@pytest.mark.slow
@pytest.mark.parametrize("minutes", PARTS)
def test_nothing_is_lost(minutes: float) -> None:
    command = [sys.executable, "-m", "torture", *PARTS[minutes], "--seed", "0", "--minutes", str(minutes)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout.endswith("\n0 lost\n"), found.stdout + found.stderr[-2000:]
    assert found.returncode == 0


def test_parts_are_all_faults() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "torture", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listed = re.search(r"of ([a-z, \n]+); all\s+by default", said.stdout)
    assert listed is not None
    assert sorted(re.findall(r"\w+", listed[1])) == sorted(name for part in PARTS.values() for name in part)


def test_page_has_the_recorded_figures() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [
        (fault["title"], row)
        for path in sorted((ROOT / "torture" / "results").glob("*.json"))
        for fault in [json.loads(path.read_text(encoding="utf-8"))]
        for row in fault["rows"]
    ]
    assert rows
    for title, row in rows:
        line = re.search(
            rf"^\| {re.escape(title)} \| {re.escape(row['what'])} \| ([\d,]+) \|", page, re.MULTILINE
        )
        assert line is not None
        assert int(line[1].replace(",", "")) == row["tried"]
