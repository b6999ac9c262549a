"""The torture suite's slice for every test run, from a fixed seed: a few seconds of each fault, nothing lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FAULTS = ("kills", "together", "disk", "rot", "surroundings", "inputs", "versions", "values", "repeats")
SECONDS = {"rot": 8}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost(fault: str) -> None:
    minutes = str(SECONDS.get(fault, 4) / 60)
    command = [sys.executable, "-m", "torture", fault, "--seed", "0", "--minutes", minutes]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout.endswith("\n0 lost\n"), found.stdout + found.stderr[-2000:]
    assert found.returncode == 0


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
