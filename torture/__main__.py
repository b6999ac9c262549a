"""python -m torture [FAULT ...]: try, print the table, exit with 1 if anything was lost."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import warnings
from typing import Any

from torture import ROOT
from torture.runner import FAULTS, open_workshop, run_fault

RESULTS = ROOT / "torture" / "results"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(FAULTS)}; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15.0, help="for all of them together")
    parser.add_argument(
        "--record", action="store_true", help="write torture/results/*.json and draw docs/reliability.md"
    )
    options = parser.parse_args()
    if unknown := sorted(set(options.faults) - set(FAULTS)):
        parser.error(f"no fault '{unknown[0]}': choose of {', '.join(FAULTS)}")
    chosen = options.faults or list(FAULTS)
    whole = sum(FAULTS[name] for name in chosen)
    n_lost = 0
    with open_workshop() as workshop:
        for name in chosen:
            seconds = 60 * options.minutes * FAULTS[name] / whole
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sys.stdout.write(f"\n{name}\n")
                found = run_fault(name, workshop, seed=options.seed, seconds=seconds, tell=show)
            found["command"] = shlex.join(["python", "-m", "torture", *sys.argv[1:]])
            n_lost += sum(len(row["lost"]) for row in found["rows"])
            if options.record:
                RESULTS.mkdir(exist_ok=True)
                text = json.dumps(found, indent=1, ensure_ascii=False)
                (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    if options.record:
        from torture.draw import draw_page

        draw_page()
    sys.stdout.write(f"{n_lost} lost\n")
    return 1 if n_lost else 0


def show(row: dict[str, Any]) -> None:
    """Print a case's row, and what was lost."""
    outcomes = ", ".join(f"{n} {how}" for how, n in row["outcomes"].items())
    sys.stdout.write(f"  {row['what']}: {row['tried']} tried, {len(row['lost'])} lost ({outcomes})\n")
    for lost in row["lost"][:10]:
        sys.stdout.write(f"    LOST {lost}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
