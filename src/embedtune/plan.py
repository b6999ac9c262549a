"""What a task's run consists of: which reads, adapters and arms, where each is kept, and what each depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedtune.config import Experiment, FinetuneSettings, SourceConfig, TransformerView, View
from embedtune.data.splits import Splits, read_splits
from embedtune.embed.checkpoints import name_model
from embedtune.engine import Engine, LocalEngine
from embedtune.errors import DataError, RunFolderError
from embedtune.evaluate.arms import ARMS
from embedtune.runfolder import RunFolder, check_outputs, digest
from embedtune.trackers import Link, open_links

#: Which parts' labels an arm's head is trained on.
ARM_ROWS: Mapping[str, tuple[str, ...]] = {
    "majority": ("tune", "train"),
    "floor": ("tune", "train"),
    "frozen": ("train",),
    "frozen+": ("tune", "train"),
    "tuned": ("train",),
    "tuned+": ("tune", "train"),
    "end-to-end": ("tune", "train"),
    "prompt": ("tune", "train"),
}

#: Arms that leave no classifier to keep: the best one, which becomes the bundle, is chosen among the others.
UNKEPT = ("majority", "prompt")

#: Settings of the arm `prompt` that say how it asks, and not what comes of it.
_MANNERS = {"batch_tokens", "n_parallel", "timeout"}

#: Which parts' labels an arm's backbones are fine-tuned on.
TUNED_ON: Mapping[str, tuple[str, ...]] = {
    "tuned": ("tune",),
    "tuned+": ("tune", "train"),
    "end-to-end": ("tune", "train"),
}

#: Automatic layers are this many neighbouring ones, and automatic pooling is one of these.
N_AUTOMATIC = 5
SCANNED_POOLINGS = ("mean", "cls", "last", "max")


class Training(NamedTuple):
    """One fine-tuning of a backbone: on the rows of `parts`, without those of `fold` where there is one."""

    parts: tuple[str, ...]
    fold: int | None = None

    @property
    def name(self) -> str:
        """Its name in steps and folders."""
        return "+".join(self.parts) if self.fold is None else f"{'+'.join(self.parts)}-fold{self.fold}"


#: Arms that classify with the head that fine-tuning left; instruction tuning leaves none.
_OWN_HEAD = frozenset({"end-to-end"})


@dataclass(frozen=True)
class TaskRun:
    """One task of an experiment and the folder its results go to."""

    experiment: Experiment
    task: str
    folder: RunFolder
    command: str
    engine: Engine = field(default_factory=LocalEngine)

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
        check_outputs(self.path, "data/splits.parquet")
        return read_splits(self.path / "data")

    @cached_property
    def trackers(self) -> tuple[Link, ...]:
        """Where the run is told of.

        Raises
        ------
        MissingExtraError
        """
        return open_links(self.experiment.track, self.path)

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


def list_head_parts(experiment: Experiment, arm: str) -> tuple[str, ...]:
    """Return the parts an arm's head is trained on."""
    reads_views = ARMS[arm].backbones != "none" and arm != "end-to-end"
    return ("test",) if reads_views and experiment.fit.train_rows == "test" else ARM_ROWS[arm]


def list_faults(experiment: Experiment) -> list[str]:
    """Say what the settings do on purpose that makes their scores no answer."""
    faults = {
        "copies and groups stand on both sides of the splits": not experiment.prepare.keep_together,
        "heads were trained on the test rows": experiment.fit.train_rows == "test",
        "their settings were chosen on the test rows": experiment.fit.choose_rows == "test",
    }
    return [fault for fault, there in faults.items() if there]


def list_reads(run: TaskRun) -> list[TransformerView]:
    """Return one view per distinct way a backbone is run, with every layer that anything asks of it."""
    return _list_reads(run, tuned=False)


def _list_reads(run: TaskRun, *, tuned: bool) -> list[TransformerView]:
    asked: dict[TransformerView, set[int] | None] = {}
    for view in run.experiment.embed.views.values():
        if isinstance(view, TransformerView):
            read = resolve_view(run, view, tuned=tuned)
            way = read.model_copy(update={"layers": "all"})
            before = asked.setdefault(way, set())
            probed = run.experiment.compare.probe_layers and view.layers != "auto"
            layers = None if probed else _layer_numbers(read.layers)
            asked[way] = None if layers is None or before is None else before | layers
    return [
        way if layers is None else way.model_copy(update={"layers": tuple(sorted(layers))})
        for way, layers in asked.items()
    ]


def list_scans(run: TaskRun) -> list[TransformerView]:
    """Return one view of all layers per distinct way a backbone is run whose layers are to be chosen."""
    views = run.experiment.embed.views.values()
    open_views = [view for view in views if isinstance(view, TransformerView) and view.layers == "auto"]
    return list(dict.fromkeys(view.model_copy(update={"layers": "all"}) for view in open_views))


def find_scan(run: TaskRun, view: TransformerView) -> TransformerView | None:
    """Return the scan that chose what a resolved view reads, None where its settings name it."""
    way = view.model_copy(update={"layers": "all"})
    for scan in list_scans(run):
        pooling = run.record(scan_step(scan))["result"]["pooling"]
        if scan.model_copy(update={"pooling": pooling}) == way:
            return scan
    return None


def list_window(layer: int) -> list[int]:
    """Return the layers that are read where `layer` is the highest of the automatic ones, from the top."""
    return list(range(layer, max(layer - N_AUTOMATIC, -1), -1))


def resolve_view(run: TaskRun, view: TransformerView, *, tuned: bool) -> TransformerView:
    """Return a view with the layers and the pooling that were chosen in the place of automatic ones.

    A fine-tuned backbone is read at its last layers: fine-tuning trained the last one to be read, and the folds'
    adapters must be read alike.

    Raises
    ------
    RunFolderError
        If the embed stage, which chooses, hasn't been done with the present settings.
    """
    if view.layers != "auto":
        return view
    chosen = {"pooling": view.pooling}
    if not tuned or view.pooling == "auto":
        chosen = run.record(scan_step(view), scan_key(run, view))["result"]
    layers = list_window(_describe(view).n_layers) if tuned else chosen["layers"]
    return view.model_copy(update={"layers": tuple(layers), "pooling": chosen["pooling"]})


def _layer_numbers(layers: str | tuple[int, ...]) -> set[int] | None:
    """Return layers as numbers, None for all of them."""
    if layers == "all":
        return None
    if isinstance(layers, str):
        return set(range(-int(layers.removeprefix("last")), 0))
    return set(layers)


def list_tuned_reads(run: TaskRun, arm: str | None = None) -> list[TransformerView]:
    """Return the reads whose backbone is fine-tuned (and of use to the arm), one per backbone."""
    models = list_tuned_models(run, arm)
    reads = {view.model: view for view in reversed(_list_reads(run, tuned=True)) if view.model in models}
    return [reads[model] for model in reversed(reads)]


def list_tuned_models(run: TaskRun, arm: str | None = None) -> list[str]:
    """Return the backbones that are fine-tuned for one arm, or for any."""
    experiment = run.experiment
    views = [view for view in experiment.embed.views.values() if isinstance(view, TransformerView)]
    chosen = experiment.finetune.backbones
    models = dict.fromkeys(view.model for view in views if chosen == "all" or view.model in chosen)
    return [model for model in models if list_trainings(run, arm, model=model)]


def list_trainings(run: TaskRun, arm: str | None = None, *, model: str | None = None) -> list[Training]:
    """Return how often backbones are (or `model` is) fine-tuned, and on what: for one arm, or for all of the run."""
    found: list[Training] = []
    for name in run.experiment.compare.arms if arm is None else (arm,):
        if name not in TUNED_ON or (model is not None and not _serves(run, model, name)):
            continue
        folds: Any = range(run.experiment.finetune.n_folds) if name == "tuned+" else [None]
        found += [Training(TUNED_ON[name], fold) for fold in folds]
    return found


def _serves(run: TaskRun, model: str, arm: str) -> bool:
    """Tell whether a fine-tuned backbone brings what the arm needs of it."""
    return arm not in _OWN_HEAD or run.experiment.finetune.of(model).leaves_head


def split_folds(run: TaskRun, splits: Splits, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return each fold of tune + train: the rows that its adapter is fine-tuned on, and those it is kept from.

    Raises
    ------
    DataError
        If there are too few rows for so many folds.
    """
    from embedtune.heads.crossfit import assign_folds

    n_folds = run.experiment.finetune.n_folds
    rows = splits.rows(*TUNED_ON["tuned+"])
    folds = assign_folds(
        splits.codes[rows], groups=np.array(splits.groups)[rows], n_folds=n_folds, random_state=seed
    )
    if len(folds) < n_folds:
        raise DataError(
            f"{len(rows)} rows of tune and train make {len(folds)} folds, not {n_folds}: set finetune.n_folds to "
            f"{len(folds)}, or leave tuned+ out of compare.arms."
        )
    return [(rows[seen], rows[unseen]) for seen, unseen in folds]


def search_step(model: str) -> str:
    return f"finetune.{_slug(model)}.search"


def search_dir(run: TaskRun, model: str) -> Path:
    return run.path / "adapters" / _slug(model) / "search"


def search_key(run: TaskRun, view: TransformerView) -> str:
    """Digest what a search of a backbone's settings depends on; `view` is one of `list_tuned_reads`."""
    settings = run.experiment.finetune.of(view.model).model_dump()
    way = view.model_dump(exclude={"layers", "precision"})
    budget, trunk = run.experiment.finetune.budget, list_trunk_parts(run, view.model)
    return digest(run.record("prepare")["key"], settings, way, budget, run.experiment.seeds[0], trunk)


def resolve_settings(run: TaskRun, view: TransformerView) -> FinetuneSettings:
    """Return how a backbone is fine-tuned, with the settings that a search found where there was one.

    Raises
    ------
    RunFolderError
        If the finetune stage, which searches, hasn't been done with the present settings.
    """
    settings = run.experiment.finetune.of(view.model)
    if run.experiment.finetune.budget is None:
        return settings
    found = run.record(search_step(view.model), search_key(run, view))["result"]
    return settings.model_copy(update=found["settings"])


def name_witness(run: TaskRun, model: str) -> str | None:
    """Return the arm whose fine-tunings of a backbone tell what the end-to-end arm's probabilities are worth.

    They left training rows unseen: `tuned+` all of them, fold by fold, `tuned` the train rows.
    """
    if run.experiment.fit.calibration == "none":
        return None
    arms = [arm for arm in ("tuned+", "tuned") if arm in run.experiment.compare.arms]
    serves = run.experiment.finetune.of(model).leaves_head
    return arms[0] if arms and serves else None


def list_witnesses(
    run: TaskRun, splits: Splits, view: TransformerView, seed: int
) -> list[tuple[Training, NDArray[np.int64]]]:
    """Return the fine-tunings that `name_witness` names, each with the training rows it hasn't seen."""
    arm = name_witness(run, view.model)
    if arm is None:
        return []
    if arm == "tuned":
        return [(Training(TUNED_ON[arm]), splits.rows("train"))]
    folds = split_folds(run, splits, seed)
    return [(Training(TUNED_ON[arm], fold), unseen) for fold, (_, unseen) in enumerate(folds)]


def _slug(model: str) -> str:
    return name_model(model).replace("/", "--")


def embed_step(view: TransformerView) -> str:
    way = view.model_dump(exclude={"layers"})
    return f"embed.{_slug(view.model)}-{digest(way)[:6]}"


def scan_step(view: TransformerView) -> str:
    return f"{embed_step(view)}-scan"


def _describe(view: TransformerView) -> Any:
    from embedtune.embed.backbone import describe_backbone

    return describe_backbone(view.model, revision=view.revision, trust_remote_code=view.trust_remote_code)


def scan_key(run: TaskRun, view: TransformerView) -> str:
    found = _describe(view)
    hashes = [found.weights_hash, found.config_hash, found.tokenizer_hash]
    settings = run.experiment.embed.model_dump(exclude={"views"})
    way = view.model_dump(exclude={"layers"})
    return digest(run.record("prepare")["key"], run.experiment.seeds[0], way, hashes, settings)


def adapter_dir(run: TaskRun, model: str, training: Training, seed: int) -> Path:
    return run.path / "adapters" / _slug(model) / f"{training.name}-seed{seed}"


def adapter_step(model: str, training: Training, seed: int) -> str:
    return f"finetune.{_slug(model)}.{training.name}-seed{seed}"


def list_trunk_parts(run: TaskRun, model: str) -> list[str]:
    """Return the parts whose rows frozen lower layers read once for all of a backbone's trainings; often none."""
    if run.experiment.finetune.of(model).method != "upper":
        return []
    parts = {part for training in list_trainings(run, model=model) for part in training.parts}
    return [part for part in ("tune", "train") if part in parts]


def adapter_key(run: TaskRun, view: TransformerView, training: Training, seed: int) -> str:
    settings = resolve_settings(run, view).model_dump()
    way = view.model_dump(exclude={"layers", "precision"})  # of reading; training's own is in the settings
    fold = [] if training.fold is None else [training.fold, run.experiment.finetune.n_folds]
    trunk = list_trunk_parts(run, view.model)
    return digest(run.record("prepare")["key"], settings, way, training.parts, seed, *fold, *trunk)


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
    if arm in ("frozen", "frozen+", "tuned", "tuned+"):
        parts.append([[name, view.model_dump()] for name, view in list_views(run, arm)])
        parts.append([experiment.embed.precision, experiment.embed.backend, experiment.embed.device])
    if ARMS[arm].backbones == "tuned":
        parts.append(_list_adapter_keys(run, arm))
    if arm == "end-to-end":
        witnesses = [name_witness(run, view.model) for view in list_tuned_reads(run, arm)]
        parts.append(
            [experiment.fit.calibration, experiment.fit.coverage, experiment.fit.decision, witnesses]
        )
        parts += [_list_adapter_keys(run, witness) for witness in dict.fromkeys(witnesses) if witness]
    return digest(*parts)


def _list_adapter_keys(run: TaskRun, arm: str) -> list[str]:
    return [
        adapter_key(run, view, training, seed)
        for view in list_tuned_reads(run, arm)
        for seed in run.experiment.seeds
        for training in list_trainings(run, arm)
    ]


def list_views(run: TaskRun, arm: str) -> list[tuple[str, View]]:
    """Return the views an arm reads, by name, with automatic layers resolved."""
    tuned = {view.model for view in list_tuned_reads(run)} if arm in TUNED_ON else set()
    return [
        (
            name,
            resolve_view(run, view, tuned=view.model in tuned) if isinstance(view, TransformerView) else view,
        )
        for name, view in run.experiment.embed.views.items()
    ]


def predictions_path(run: TaskRun, arm: str) -> Path:
    return run.path / "predictions" / f"{arm}.parquet"


def out_of_fold_path(run: TaskRun, arm: str) -> Path:
    return run.path / "predictions" / "out-of-fold" / f"{arm}.parquet"


def arm_dir(run: TaskRun, arm: str) -> Path:
    return run.path / "arms" / arm
