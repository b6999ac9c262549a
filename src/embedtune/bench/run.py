"""A whole run from an empty store, beside a script that does the same arms with the usual libraries."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from embedtune.bench.contest import Contestant, Times, hold
from embedtune.bench.machine import describe_machine
from embedtune.bench.suite import Options, Report, Row
from embedtune.data.sources import load_dataset
from embedtune.data.tasks import load_task
from embedtune.embed.checkpoints import resolve_model

_SCRIPT = Path(__file__).parent / "contestants" / "run.py"
_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_PHRASEBANK = Path("financial_phrasebank") / "Sentences_AllAgree.txt"
_N_SMOKE_ROWS = 150
#: What we run: all weights fine-tuned, as the script does it, and the upper layers on a trunk.
_OURS: dict[str, list[str]] = {
    "embedtune run": [],
    "embedtune run, four upper layers tuned": ["finetune.method=upper", "finetune.n_upper_layers=4"],
}
_EPOCHS, _LEARNING_RATE, _BATCH_SIZE, _WARMUP = 5, 1e-4, 32, 0.1


def run(options: Options) -> Report:
    """Time both as a user waits for them, one seed; the script's imports are not counted, the command's are."""
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="embedtune-bench-") as place:
        contestants = _list_contestants(Path(place), options)
        found = hold(contestants, rounds=1 if options.smoke else options.rounds, warm_up=False)
    details = {name: times.describe() for name, times in found.items()}
    return Report([_judge(name, found) for name in found if name != "script"], machine, details)


def _judge(name: str, found: dict[str, Times]) -> Row:
    ours, against = found[name], "a straightforward script"
    if "script" not in found:
        return Row(name, against, None, aim=3, note=f"{ours.median:.0f} s; the script needs --peers")
    script = found["script"]
    our_scores, their_scores = (times.facts[-1]["macro_f1"] for times in (ours, script))
    scores = ", ".join(f"{arm} {our_scores[arm]:.3f} / {score:.3f}" for arm, score in their_scores.items())
    note = f"{ours.median:.0f} s / {script.median:.0f} s; macro-F1 of the command / the script: {scores}"
    return Row.of(name, against, script.over(ours), aim=3, note=note)


def _list_contestants(folder: Path, options: Options) -> list[Contestant]:
    epochs = 1 if options.smoke else _EPOCHS
    texts, labels = _read_rows(smoke=options.smoke)
    data = folder / "rows.jsonl"
    lines = (json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels, strict=True))
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    shared = [
        f"finetune.epochs={epochs}",
        f"finetune.learning_rate={_LEARNING_RATE}",
        f"finetune.batch_size={_BATCH_SIZE}",
        f"finetune.warmup_fraction={_WARMUP}",
        "compare.probe_layers=false",
    ]
    contestants = [
        Contestant(name, _SCRIPT, {"data": str(data), "settings": [*shared, *own]})
        for name, own in (list(_OURS.items())[:1] if options.smoke else _OURS.items())
    ]
    if options.peers is not None:
        pairs = folder / "rows.json"
        pairs.write_text(json.dumps(list(zip(texts, labels, strict=True))), encoding="utf-8")
        n_steps = epochs * len(texts) * 3 // 10 // _BATCH_SIZE
        theirs: dict[str, Any] = {
            "rows": str(pairs),
            "model": str(resolve_model(_MODEL)),
            "epochs": epochs,
            "learning_rate": _LEARNING_RATE,
            "batch_size": _BATCH_SIZE,
            "warmup_steps": int(_WARMUP * n_steps),
        }
        script = options.peers / "straightforward.py"
        contestants.append(Contestant("script", script, theirs, options.peers_python))
    return contestants


def _read_rows(*, smoke: bool) -> tuple[list[str], list[str]]:
    """Return PhraseBank AllAgree, or with `smoke` or where it isn't there rows of the bundled sample."""
    root = os.environ.get("EMBEDTUNE_DATA", "")
    path = Path(root) / _PHRASEBANK
    found = load_dataset(path) if root and path.exists() and not smoke else load_task("sentiment")
    n_rows = _N_SMOKE_ROWS if smoke else len(found.texts)
    return list(found.texts[:n_rows]), list(found.labels[:n_rows])
