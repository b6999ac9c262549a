"""embedtune run, and its stages one at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedtune.cli.options import (
    Address,
    Data,
    Debug,
    Encoding,
    EngineName,
    GroupColumn,
    HubConfig,
    HubSplit,
    HubTestSplit,
    LabelColumn,
    LabelNames,
    Labels,
    Out,
    Quiet,
    Repeat,
    SourceColumn,
    Task,
    TestData,
    TextColumn,
    TimeColumn,
    TrainTogether,
    Verbose,
    Workers,
)
from embedtune.cli.terminal import command, report_errors, show_progress
from embedtune.errors import ConfigError, RunFolderError
from embedtune.files import write_text

if TYPE_CHECKING:
    from embedtune.config import Experiment
    from embedtune.plan import TaskRun

STAGE_HELP = {
    "prepare": "Read, clean and split the texts.",
    "embed": "Read the texts with the frozen backbones.",
    "finetune": "Fine-tune the backbones.",
    "embed-tuned": "Read the texts with the fine-tuned backbones.",
    "fit": "Train every arm's head.",
    "compare": "Score the arms and set them against each other.",
    "report": "Write report.html.",
    "bundle": "Copy the best arm's classifier to bundle/.",
}


def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", help="A recipe (demo), and settings."),
    ] = None,
    data: Data = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    label_names: LabelNames = None,
    group_column: GroupColumn = None,
    time_column: TimeColumn = None,
    source_column: SourceColumn = None,
    task: Task = None,
    test_data: TestData = None,
    labels: Labels = None,
    hub_config: HubConfig = None,
    hub_split: HubSplit = None,
    hub_test_split: HubTestSplit = None,
    encoding: Encoding = None,
    out: Out = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Do this stage and those after it again.")
    ] = None,
    last: Annotated[str, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")] = "bundle",
    repeat: Repeat = None,
    engine: EngineName = "local",
    workers: Workers = None,
    together: TrainTogether = 1,
    address: Address = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Run an experiment, or go on with it, and report whether fine-tuning is worth it."""
    source: dict[str, Any] = {
        "source": data, "text_column": text_column, "label_column": label_column, "group_column": group_column,
        "time_column": time_column, "source_column": source_column, "task": task, "test_source": test_data,
        "hub_config": hub_config, "hub_split": hub_split, "hub_test_split": hub_test_split, "encoding": encoding,
    }  # fmt: skip
    with report_errors(debug):
        source["label_names"] = None if label_names is None else _read_label_names(label_names)
        experiment = read_experiment(
            words or [], {key: value for key, value in source.items() if value is not None}, labels=labels
        )
        manner: dict[str, Any] = {
            "first": first,
            "last": last,
            "quiet": quiet,
            "verbose": verbose,
            "engine": {"name": engine, "n_workers": workers, "n_together": together, "address": address},
        }
        if repeat is not None:
            _repeat_experiment(
                experiment, out or Path("runs") / f"{experiment.name}-repeated", repeat, **manner
            )
        else:
            run_experiment(experiment, out or Path("runs") / experiment.name, **manner)


def make_stage(stage: str) -> Callable[..., None]:
    """Return the command of one stage."""

    def run_stage(
        run_dir: Annotated[Path, typer.Argument(help="Run folder.")],
        settings: Annotated[
            list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")
        ] = None,
        engine: EngineName = "local",
        workers: Workers = None,
        together: TrainTogether = 1,
        address: Address = None,
        quiet: Quiet = False,
        verbose: Verbose = False,
        debug: Debug = False,
    ) -> None:
        with report_errors(debug):
            experiment = _read_run_folder(run_dir, settings or [])
            chosen = {"name": engine, "n_workers": workers, "n_together": together, "address": address}
            run_experiment(
                experiment,
                run_dir,
                first=stage,
                last=stage,
                quiet=quiet,
                verbose=verbose,
                redo=False,
                engine=chosen,
            )

    return run_stage


def report(
    words: Annotated[
        list[str], typer.Argument(metavar="RUN [RUN | KEY=VALUE]...", help="Run folders; settings, for one.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Of several runs: the file to write.")
    ] = Path("comparison.html"),
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Write report.html; of several runs, one report that compares them."""
    settings = [word for word in words if "=" in word and not Path(word).is_dir()]
    run_dirs = [Path(word) for word in words if word not in settings]
    if len(run_dirs) == 1:
        make_stage("report")(run_dirs[0], settings, quiet=quiet, verbose=verbose, debug=debug)
        return
    from embedtune.across import report_runs

    with report_errors(debug):
        if settings:
            raise ConfigError(
                f"'{settings[0]}' can't be set for several runs: leave it out, or name one run."
            )
        typer.echo(report_runs(run_dirs, output))


def read_experiment(words: list[str], source: dict[str, Any], *, labels: str | None = None) -> Experiment:
    """Return the experiment of a command's words (a recipe's name, settings) and its options about the source."""
    from embedtune.config import build_experiment
    from embedtune.recipe import read_recipe

    recipe = read_recipe(name_recipe(words) or ("default" if source else "demo"))
    tasks = recipe.settings.get("tasks")
    task = next(iter(tasks)) if isinstance(tasks, dict) and len(tasks) == 1 else None
    if set(source) == {"task"} and isinstance(tasks, dict) and source["task"] in tasks:
        task = source["task"]
        recipe = recipe._replace(
            settings={
                **recipe.settings,
                "name": f"{Path(recipe.name).stem}-{task}",
                "tasks": {task: tasks[task]},
            }
        )
    elif source:
        if "source" not in source and "task" in source:
            source["source"] = source.pop("task")
        if "source" not in source:
            given = ", ".join(f"--{key.replace('_', '-')}" for key in source)
            raise ConfigError(f"{given} needs texts to speak of: name them with --data.")
        task = _name_task(source)
        name = task if recipe.name == "default" else f"{Path(recipe.name).stem}-{task}"
        recipe = recipe._replace(settings={**recipe.settings, "name": name, "tasks": {task: source}})
    if labels is not None:
        tasks = recipe.settings["tasks"]
        if len(tasks) > 1:
            raise ConfigError(
                f"--labels corrects one task, and {recipe.name} has {', '.join(tasks)}: name one with --task."
            )
        corrected = {name: {**own, "labels": labels} for name, own in tasks.items()}
        recipe = recipe._replace(settings={**recipe.settings, "tasks": corrected})
    settings = recipe.resolve([word for word in words if "=" in word], task=task)
    where = f"recipe {recipe.name}"
    return build_experiment(settings, where=f"{where} with your settings" if words else where)


def name_recipe(words: list[str]) -> str | None:
    """Return the one word that is no setting."""
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise ConfigError(
            f"{len(names)} recipes named ({', '.join(names)}): name one, and write settings as key=value."
        )
    return names[0] if names else None


def _read_label_names(given: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for pair in given.split(","):
        label, equals, name = pair.partition("=")
        if not equals:
            raise ConfigError(
                f"--label-names has '{pair.strip()}', which isn't LABEL=NAME: write it as 0=negative,1=positive."
            )
        if label.strip() in names:
            raise ConfigError(f"--label-names names the label '{label.strip()}' twice: leave one out.")
        names[label.strip()] = name.strip()
    return names


def _name_task(source: dict[str, Any]) -> str:
    """Return a task's name: its built-in name, or its source's, made fit for a folder."""
    import re

    name = source.get("task") or Path(source["source"].rstrip("/")).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "data"


def _read_run_folder(run_dir: Path, overrides: list[str]) -> Experiment:
    from embedtune.config import build_experiment
    from embedtune.recipe import read_recipe

    path = run_dir / "config.yaml"
    if not path.is_file():
        raise RunFolderError(
            f"{run_dir} holds no run (no config.yaml): start one with `embedtune run … --out {run_dir}`."
        )
    try:
        return build_experiment(read_recipe(str(path)).resolve(overrides), where=str(path))
    except ConfigError as error:
        if overrides:
            raise
        raise ConfigError(
            f"{error} If a newer release wrote it, upgrade embedtune; if you did, mend it."
        ) from error


def run_experiment(
    experiment: Experiment,
    out: Path,
    *,
    first: str | None,
    last: str,
    quiet: bool,
    verbose: bool,
    redo: bool = True,
    engine: dict[str, Any] | None = None,
) -> None:
    """Run the stages of every task; `first` None means all of them, each only as far as it isn't done.

    `engine` are `open_engine`'s arguments.
    """
    from embedtune.config import dump_experiment
    from embedtune.console import make_console, print_results, write_log
    from embedtune.runfolder import RunFolder, lock_folder

    _check_stages(first or "prepare", last)
    console = make_console()
    with ExitStack() as stack:
        folders = _open_folders(RunFolder, experiment, out)
        stack.enter_context(lock_folder(out))
        _check_labels(experiment, folders)
        write_text(out / "config.yaml", dump_experiment(experiment))
        level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
        stack.enter_context(write_log(out / "log.txt", console, level=level))
        stack.enter_context(show_progress(quiet))
        logging.getLogger("embedtune").debug("%s", command())

        from embedtune.engine import open_engine
        from embedtune.pipeline import run_stages
        from embedtune.plan import TaskRun

        opened = stack.enter_context(open_engine(**(engine or {})))
        runs = [
            TaskRun(experiment.of(task), task, folder, command(), engine=opened)
            for task, folder in folders.items()
        ]
        for task_run in runs:
            run_stages(task_run, first=first or "prepare", last=last, redo=redo and first is not None)
        _finish(runs, out, console, print_results, last=last)


def _repeat_experiment(experiment: Experiment, out: Path, n_splits: int, **manner: Any) -> None:
    """Run the experiment on several splits, a folder each, and compare its arms over all of them."""
    from embedtune.console import make_console, print_repeats
    from embedtune.repeat import check_repeatable, compare_repeats, list_repeats

    folders = [out / f"split{k}" for k in range(n_splits)]
    repeats = list_repeats(experiment, n_splits)
    run_experiment(repeats[0], folders[0], **{**manner, "first": None, "last": "prepare"})
    check_repeatable(folders[0])
    for one, folder in zip(repeats, folders, strict=True):
        run_experiment(one, folder, **manner)
    stages = list(STAGE_HELP)
    if stages.index(manner["last"]) >= stages.index("compare"):
        output = out / "repeats.json"
        found = compare_repeats(folders, output=output, confidence=experiment.compare.confidence)
        console = make_console()
        print_repeats(console, found)
        console.print(f"Figures: {output}", highlight=False)


def _finish(runs: list[TaskRun], out: Path, console: Any, print_results: Any, *, last: str) -> None:
    """Print what was found and where it is; with several tasks, write the report of them all."""
    from embedtune.report.build import build_report
    from embedtune.runfolder import read_output

    if last in ("compare", "report", "bundle"):
        for task_run in runs:
            print_results(console, read_output(task_run.path / "results.json"))
    if last in ("report", "bundle"):
        report = out / "report.html"
        if len(runs) > 1:
            build_report([task_run.path for task_run in runs], report)
        console.print(f"Report: {report}", highlight=False)


def _open_folders(run_folder: Any, experiment: Experiment, out: Path) -> dict[str, Any]:
    """Return each task's run folder: `out` itself for a single task, folders inside it for several."""
    identity = {task: source.model_dump(exclude_none=True) for task, source in experiment.tasks.items()}
    names = ", ".join(f"{task} from {source['source']}" for task, source in identity.items())
    whole = run_folder(out, identity=f"{experiment.name}: {names}")
    if len(experiment.tasks) == 1:
        return dict.fromkeys(experiment.tasks, whole)
    return {
        task: run_folder(out / task, identity=f"{experiment.name}/{task}", inside=whole)
        for task in experiment.tasks
    }


def _check_labels(experiment: Experiment, folders: dict[str, Any]) -> None:
    """Refuse to read corrections from a file that the run itself will write anew."""
    for task, source in experiment.tasks.items():
        own = (folders[task].path / "suspects.csv").resolve()
        if source.labels is not None and Path(source.labels).resolve() == own:
            raise ConfigError(
                f"--labels is {source.labels}, which this run writes anew: save the corrected file under another name."
            )


def _check_stages(first: str, last: str) -> None:
    from embedtune.errors import suggest_nearest

    stages = list(STAGE_HELP)
    for name in (first, last):
        if name not in stages:
            raise ConfigError(
                f"no stage '{name}'{suggest_nearest(name, stages)}: the stages are {', '.join(stages)}."
            )
    if stages.index(first) > stages.index(last):
        raise ConfigError(f"--from {first} comes after --until {last}: the stages are {', '.join(stages)}.")
