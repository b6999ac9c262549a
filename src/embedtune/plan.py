"""What a task's run consists of: which reads, adapters and arms, where each is kept, and what each depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedtune.config import Experiment, SourceConfig, TransformerView
from embedtune.data.splits import Splits, read_splits
from embedtune.embed.checkpoints import name_model
from embedtune.errors import RunFolderError
from embedtune.evaluate.arms import ARMS
from embedtune.runfolder import RunFolder, digest

#: Which parts' labels an arm's head is trained on.
ARM_ROWS: Mapping[str, tuple[str, ...]] = {
    "majority": ("tune", "train"),
    "floor": ("tune", "train"),
    "frozen": ("train",),
    "frozen+": ("tune", "train"),
    "tuned": ("train",),
    "end-to-end": ("tune", "train"),
    "prompt": ("tune", "train"),
}

#: Arms that leave no classifier to keep: the best one, which becomes the bundle, is chosen among the others.
UNKEPT = ("majority", "prompt")

#: Settings of the arm `prompt` that say how it asks, and not what comes of it.
_MANNERS = {"batch_tokens", "n_parallel", "timeout"}

#: Which parts' labels an arm's backbones are fine-tuned on.
TUNED_ON: Mapping[str, tuple[str, ...]] = {"tuned": ("tune",), "end-to-end": ("tune", "train")}


@dataclass(frozen=True)
class TaskRun:
    """One task of an experiment and the folder its results go to."""

    experiment: Experiment
    task: str
    folder: RunFolder
    command: str

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @property
    def source(self) -> SourceConfig:
        """Where this task's texts come from."""
        return self.experiment.tasks[self.task]

    @property
    def splits(self) -> Splits:
        """The prepared rows."""
        return read_splits(self.path / "data")

    def record(self, step: str, key: str | None = None) -> dict[str, Any]:
        """Return what an earlier step recorded.

        Raises
        ------
        RunFolderError
            If it hasn't been done, or under another key than the one given.
        """
        record = self.folder.read_record(step)
        if record is None or key not in (None, record["key"]):
            stage = step.split(".")[0]
            raise RunFolderError(
                f"{self.path} has no finished '{stage}' stage for these settings: "
                f"run `embedtune {stage} {self.path}` first, or the whole run."
            )
        return record


def list_reads(run: TaskRun) -> list[TransformerView]:
    """Return one view per distinct way a backbone is run, with every layer that anything asks of it."""
    asked: dict[TransformerView, set[int] | None] = {}
    for view in run.experiment.embed.views.values():
        if isinstance(view, TransformerView):
            way = view.model_copy(update={"layers": "all"})
            before = asked.setdefault(way, set())
            layers = None if run.experiment.compare.probe_layers else _layer_numbers(view.layers)
            asked[way] = None if layers is None or before is None else before | layers
    return [
        way if layers is None else way.model_copy(update={"layers": tuple(sorted(layers))})
        for way, layers in asked.items()
    ]


def _layer_numbers(layers: str | tuple[int, ...]) -> set[int] | None:
    """Return layers as numbers, None for all of them."""
    if layers == "all":
        return None
    if isinstance(layers, str):
        return set(range(-int(layers.removeprefix("last")), 0))
    return set(layers)


def list_tuned_reads(run: TaskRun) -> list[TransformerView]:
    """Return the reads whose backbone is fine-tuned, one per backbone."""
    chosen = run.experiment.finetune.backbones
    reads = {
        view.model: view for view in reversed(list_reads(run)) if chosen == "all" or view.model in chosen
    }
    return [reads[model] for model in reversed(reads)] if list_tuned_parts(run) else []


def list_tuned_parts(run: TaskRun) -> list[tuple[str, ...]]:
    """Return the parts backbones are fine-tuned on, one entry per fine-tuned arm."""
    return [TUNED_ON[arm] for arm in run.experiment.compare.arms if arm in TUNED_ON]


def _slug(model: str) -> str:
    return name_model(model).replace("/", "--")


def embed_step(view: TransformerView) -> str:
    way = view.model_dump(exclude={"layers"})
    return f"embed.{_slug(view.model)}-{digest(way)[:6]}"


def adapter_dir(run: TaskRun, model: str, parts: tuple[str, ...], seed: int) -> Path:
    return run.path / "adapters" / _slug(model) / f"{'+'.join(parts)}-seed{seed}"


def adapter_step(model: str, parts: tuple[str, ...], seed: int) -> str:
    return f"finetune.{_slug(model)}.{'+'.join(parts)}-seed{seed}"


def adapter_key(run: TaskRun, view: TransformerView, parts: tuple[str, ...], seed: int) -> str:
    settings = run.experiment.finetune.of(view.model).model_dump()
    way = view.model_dump(exclude={"layers"})
    return digest(run.record("prepare")["key"], settings, way, parts, seed)


def arm_key(run: TaskRun, arm: str) -> str:
    """Digest all that an arm's predictions depend on."""
    experiment = run.experiment
    parts: list[Any] = [run.record("prepare")["key"], arm, experiment.seeds]
    if arm == "prompt":
        parts.append(experiment.prompt.model_dump(exclude=_MANNERS))
        parts.append([experiment.embed.precision, experiment.embed.device])
    elif arm not in ("majority", "end-to-end"):
        unused = set() if experiment.fit.head == "cooccurrence" else {"cooccurrence"}
        parts.append(experiment.fit.model_dump(exclude=unused))
    if arm in ("frozen", "frozen+", "tuned"):
        parts.append([[name, view.model_dump()] for name, view in experiment.embed.views.items()])
        parts.append([experiment.embed.precision, experiment.embed.device])
    if ARMS[arm].backbones == "tuned":
        rows = TUNED_ON[arm]
        parts.append(
            [
                adapter_key(run, view, rows, seed)
                for view in list_tuned_reads(run)
                for seed in experiment.seeds
            ]
        )
    return digest(*parts)


def predictions_path(run: TaskRun, arm: str) -> Path:
    return run.path / "predictions" / f"{arm}.parquet"


def arm_dir(run: TaskRun, arm: str) -> Path:
    return run.path / "arms" / arm
