"""Clock, locale, paths: the figures of a run don't depend on them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from run_cases import read_figures
from torture import child
from torture.rot import TEXTS
from torture.runner import Case, Outcome
from torture.workshop import SETTINGS, Workshop

TITLE = "clock, locale, paths"
NAMES = (
    "with space", "it's", 'say "so"', "\U0001f40d", "n" * 200, "a;b", "$HOME", "#", "100%", "-dash", "=eq",
    "\xe9\u0130\xdf", "[x]", "back\\slash", "q?", "tab\there", "new\nline",
)  # fmt: skip
LOCALES = ("C", "POSIX", "tr_TR.UTF-8", "de_DE.UTF-8", "C.UTF-8")


def run_elsewhere(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """A short run in a folder of such a name, under such a locale, with the clock's zone and hash seed changed."""
    expected = read_figures(_run(workshop, workshop.fresh("plain"), workshop.rows, {})[0])
    names = list(NAMES)
    random.shuffle(names)
    for name in names:
        folder = workshop.fresh("at") / name
        folder.mkdir(parents=True)
        rows = Path(shutil.copy(workshop.rows, folder / "moves.csv"))
        if random.random() < 0.3:
            link = workshop.fresh("link")
            link.symlink_to(folder)
            rows, folder = link / "moves.csv", link
        environment = {
            "LC_ALL": random.choice(LOCALES),
            "TZ": random.choice(("UTC", "Pacific/Kiritimati", "America/St_Johns")),
        }
        said = f"{name!r} {environment}"
        out, log = _run(workshop, folder / "run", rows, environment)
        if not (out / "results.json").exists():
            text = log.read_text(encoding="utf-8", errors="replace")
            is_line = text.startswith("error: ") and "Traceback" not in text
            yield Outcome("refused" if is_line else "traceback", "" if is_line else f"{said}: {text[-500:]}")
        else:
            same = read_figures(out) == expected
            yield Outcome("the same figures", "" if same else f"{said}: other figures")


def _run(workshop: Workshop, out: Path, rows: Path, environment: dict[str, str]) -> tuple[Path, Path]:
    log = workshop.fresh("log")
    words = [
        "run",
        workshop.recipe,
        "--out",
        out,
        "-q",
        f"tasks.moves.source={_quote(rows)}",
        "compare.arms=[floor,frozen]",
    ]
    process = child.start([*words, "compare.arms=[floor,frozen]", *SETTINGS], log, **environment)
    process.join()
    return out, log


def _quote(path: Path) -> str:
    import json

    return json.dumps(str(path))


def set_clock_back(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Files that seem to be from 1970 or the future: what is finished isn't done again, and answers are the same."""
    from embedtune import TransformerEncoder

    store = workshop.fresh("store")
    encoder = TransformerEncoder(workshop.backbone, store=store, max_length=32)
    expected = encoder.transform(TEXTS)
    while True:
        moment = random.choice((0.0, 4e9, 1e9))
        for path in store.rglob("*"):
            os.utime(path, (moment, moment))
        again = TransformerEncoder(workshop.backbone, store=store, max_length=32)
        found = again.transform(TEXTS)
        same: Any = (found == expected).all() and again.last_n_computed_ == 0
        yield Outcome(
            "the same vectors", "" if same else f"{moment}: {again.last_n_computed_} computed again"
        )


CASES = (
    Case("a run in folders of hostile names, under other locales", run_elsewhere, len(NAMES)),
    Case("a store with the clock set back", set_clock_back, 50),
)
