"""What to do next, from what a run found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from embedtune.evaluate.arms import ARMS

#: A difference in macro-F1 that a reader would act on.
_POINT = 0.01


def advise(results: Mapping[str, Any]) -> list[str]:
    """Return a few sentences, the most important first; none where the scores are no answer.

    Parameters
    ----------
    results : mapping
        As results.json has it.
    """
    if str(results["verdict"]).startswith("Not an answer"):
        return []
    arms, rows = results["arms"], [row for row in results["comparisons"] if row["metric"] == "macro_f1"]
    tuned = [row for row in rows if ARMS[row["a"]].backbones == "tuned" and row["b"] == "frozen+"]
    said = []
    if tuned:
        row = max(tuned, key=lambda row: float(arms[row["a"]]["macro_f1"]["value"]))
        said.append(_advise_on_tuning(row, int(results["n"]["test"])))
    if (words := _find(rows, "frozen+", "floor")) is not None and words["verdict"] != "better":
        said.append(
            "These rows can't tell the frozen backbones from words alone: the arm floor needs no language model, "
            "and its classifier is in arms/floor."
        )
    if (results.get("sources") or {}).get("confounded"):
        said.append(
            "Test on a source that no training row is from: here the text gives its source away, and the source the "
            "label, so these scores may not carry over."
        )
    n_wrong = ((results.get("suspects") or {}).get("n") or {}).get("label", 0)
    if n_wrong:
        said.append(
            f"Look through suspects.csv: {n_wrong:,} labels contradict a classifier that hadn't seen them, and no "
            "setting makes up for those that are wrong."
        )
    if tuned and len(arms[tuned[0]["a"]].get("seeds") or ()) == 1:
        said.append(
            "One seed was run: with seeds=[0,1,2] the scores show how far fine-tuning differs from seed to seed."
        )
    return said


def _advise_on_tuning(row: Mapping[str, Any], n_test: int) -> str:
    if row["verdict"] == "better":
        return f"Use {row['a']}: fine-tuning pays on this task."
    keep = "Keep the frozen backbones, which cost less and serve several tasks at once."
    detectable = row.get("detectable")
    if row["verdict"] == "worse" or detectable is None or detectable <= _POINT:
        return keep
    needed = math.ceil(n_test * (detectable / _POINT) ** 2)
    return f"{keep} To see a difference of one point, about {_round(needed):,} test rows would be needed."


def _round(n: int) -> int:
    """Return a number to two digits."""
    step = int(10 ** max(len(str(n)) - 2, 0))
    return round(n / step) * step


def _find(rows: Sequence[Mapping[str, Any]], a: str, b: str) -> Mapping[str, Any] | None:
    return next((row for row in rows if (row["a"], row["b"]) == (a, b)), None)
