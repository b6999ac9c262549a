"""What a run tells its trackers: its settings, its fine-tunings while they go on, and what came out in the end.

A tracked run is of one folder, place and choice of settings: its id is remembered in the run folder, so the same
command goes on in it. What a tracker missed is sent at the end, or by the next call. No text is sent, and no key.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from embedtune import __version__
from embedtune.assemble import list_tuning_arguments
from embedtune.config import TransformerView, dump_experiment
from embedtune.files import hash_file
from embedtune.finetune.folder import LOGS
from embedtune.plan import (
    TaskRun,
    Training,
    adapter_dir,
    adapter_key,
    adapter_step,
    list_trainings,
    list_tuned_reads,
    resolve_settings,
)
from embedtune.report.build import build_report
from embedtune.runfolder import digest
from embedtune.trackers import About, Found, Link
from embedtune.trackers.secrets import hide_secrets

if TYPE_CHECKING:
    from embedtune.trackers.guard import Guard

#: What an arm cost, of results.json.
_COSTS = ("seconds", "joules", "joules_per_1000", "rows_per_second", "trained_parameters", "total_parameters")


class _Tracked(NamedTuple):
    """A tracked run and the step that remembers it."""

    step: str
    run_id: str
    about: About


@contextmanager
def watch_training(
    run: TaskRun, view: TransformerView, training: Training, seed: int
) -> Iterator[list[Guard]]:
    """Give the Trainer's callbacks that follow one fine-tuning; a stopped one goes on in the same tracked run."""
    watched: list[tuple[Guard, _Tracked]] = []
    for link in run.trackers:

        def begin(link: Link = link) -> tuple[Guard, _Tracked] | None:
            from embedtune.trackers.guard import Guard  # and with it the Trainer, which takes seconds

            tracked = _open_training(run, link, view, training, seed)
            callback = link.tracker.watch(tracked.run_id, tracked.about)
            return None if callback is None else (Guard(link, callback), tracked)

        if not link.failed and (one := link.attempt(begin)) is not None:
            watched.append(one)
    ended = False
    try:
        yield [guard for guard, _ in watched]
        ended = True
    finally:
        for guard, tracked in watched:
            guard.close(failed=not ended)
            if ended and guard.is_whole:
                run.folder.run_step(f"{tracked.step}.sent", tracked.run_id, dict)


def send_results(run: TaskRun) -> None:
    """Send the results, and what trackers haven't got of the fine-tunings, unless they have been sent."""
    for link in run.trackers:
        link.attempt(lambda link=link: _send(run, link))  # type: ignore[misc]


def _send(run: TaskRun, link: Link) -> None:
    tracked = _open_run(run, link)
    for view in list_tuned_reads(run):
        for seed in run.experiment.seeds:
            for training in list_trainings(run, model=view.model):
                _send_training(run, link, view, training, seed)
    found = {path.name: hash_file(path) for path in _list_files(run)}

    def write() -> dict[str, Any]:
        results = json.loads((run.path / "results.json").read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory(prefix="embedtune-") as scratch:
            files = _write_files(run, Path(scratch))
            link.tracker.write(
                tracked.run_id, tracked.about, Found(_list_figures(results), _list_words(results), files)
            )
        return {}

    run.folder.run_step(f"{tracked.step}.results", digest(tracked.run_id, found), write)


def _send_training(run: TaskRun, link: Link, view: TransformerView, training: Training, seed: int) -> None:
    record = run.folder.read_record(adapter_step(view.model, training, seed))
    if record is None or record["key"] != adapter_key(run, view, training, seed):
        return
    tracked = _open_training(run, link, view, training, seed)

    def write() -> dict[str, Any]:
        curves = _read_curves(adapter_dir(run, view.model, training, seed) / LOGS)
        link.tracker.write(tracked.run_id, tracked.about, Found(curves=curves))
        return {}

    run.folder.run_step(f"{tracked.step}.sent", tracked.run_id, write)


def _open_run(run: TaskRun, link: Link) -> _Tracked:
    """Return the tracked run of these settings, begun where there is none."""
    audit = json.loads((run.path / "data" / "audit.json").read_text(encoding="utf-8"))
    settings = flatten(run.experiment.model_dump(mode="json", exclude={"track", "by_task"}))
    about = About(run.experiment.name, run.task, {**settings, "data_fingerprint": str(audit["fingerprint"])})
    step = f"track.{link.name}.{digest(link.tracker.place, dict(about.settings))[:8]}"
    known = run.folder.read_record(step)
    if known is not None and not link.tracker.knows(known["result"]["run"]):
        run.folder.forget(step)
    begun = run.folder.run_step(step, "", lambda: {"run": link.tracker.start(about)})
    return _Tracked(step, begun["run"], about)


def _open_training(
    run: TaskRun, link: Link, view: TransformerView, training: Training, seed: int
) -> _Tracked:
    whole = _open_run(run, link)
    name = adapter_step(view.model, training, seed)
    settings = flatten(
        {
            "model": view.model,
            **list_tuning_arguments(run, view, resolve_settings(run, view)),
            "rows": training.name,
            "seed": seed,
        }
    )
    about = About(whole.about.experiment, name.removeprefix("finetune."), settings, whole.run_id)
    step = f"{whole.step}.{name}"
    key = digest(whole.run_id, adapter_key(run, view, training, seed))
    begun = run.folder.run_step(step, key, lambda: {"run": link.tracker.start(about)})
    return _Tracked(step, begun["run"], about)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings by dotted key, as text without secrets; lists are JSON."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = hide_secrets(value if isinstance(value, str) else json.dumps(value))
    return flat


def _list_figures(results: Mapping[str, Any]) -> dict[str, float]:
    """Return every score with its interval, and the costs that were measured, as ``arm/name``."""
    figures: dict[str, Any] = {}
    for arm, scores in results["arms"].items():
        place = arm.replace("+", "-plus")
        for name, score in scores.items():
            if isinstance(score, Mapping) and {"value", "low", "high"} <= set(score):
                ends = {f"{place}/{name}_{end}": score[end] for end in ("low", "high")}
                figures |= {f"{place}/{name}": score["value"], **ends}
        figures |= {
            f"{place}/{name}": scores["cost"][name] for name in _COSTS if scores["cost"].get(name) is not None
        }
    return {name: float(value) for name, value in figures.items() if value is not None}


def _list_words(results: Mapping[str, Any]) -> dict[str, str]:
    return {
        "verdict": results["verdict"],
        "best": results["best"],
        "task": results["task"],
        "embedtune": __version__,
    }


def _list_files(run: TaskRun) -> list[Path]:
    return [path for name in ("results.json", "report.html") if (path := run.path / name).exists()]


def _write_files(run: TaskRun, folder: Path) -> tuple[Path, ...]:
    """Write what is sent as files: without secrets, and the report without texts."""
    given = {path.name: path for path in _list_files(run)}
    if "report.html" in given:
        given["report.html"] = build_report([run.path], folder / "report.html", with_texts=False)
    pages = {name: path.read_text(encoding="utf-8") for name, path in given.items()}
    pages["config.yaml"] = dump_experiment(run.experiment)
    for name, page in pages.items():
        (folder / name).write_text(hide_secrets(page), encoding="utf-8")
    return tuple(folder / name for name in pages)


def _read_curves(logs: Path) -> tuple[tuple[int, str, float], ...]:
    """Return what a training logged, from TensorBoard's files, under the Trainer's own names."""
    if not logs.is_dir():
        return ()
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(logs), size_guidance={SCALARS: 0}).Reload()
    return tuple(
        (event.step, tag.removeprefix("train/").replace("eval/", "eval_"), event.value)
        for tag in events.Tags()[SCALARS]
        for event in events.Scalars(tag)
    )
