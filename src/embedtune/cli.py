"""The command line. Heavy imports wait inside the commands, so that --help answers at once."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import embedtune
from embedtune.errors import ConfigError, EmbedtuneError, RunFolderError
from embedtune.files import is_disk_full, write_text

if TYPE_CHECKING:
    from embedtune.config import Experiment
    from embedtune.plan import TaskRun

app = typer.Typer(
    name="embedtune",
    help="Is fine-tuning worth it? Classify texts with frozen and fine-tuned language models, and compare honestly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
store_app = typer.Typer(help="The embedding store: list, verify, prune.", no_args_is_help=True)
app.add_typer(store_app, name="store")

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

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print the results only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print each stage's details.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; runs/NAME by default.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="A csv, tsv, jsonl, parquet, arrow, xlsx or sentence@label txt file, a Hub data set, or a built-in task.",
    ),
]
TextColumn = Annotated[str | None, typer.Option("--text-column", help="Column of the texts.")]
LabelColumn = Annotated[str | None, typer.Option("--label-column", help="Column of the labels.")]
GroupColumn = Annotated[
    str | None, typer.Option("--group-column", help="Rows with equal values stay on one side.")
]
Task = Annotated[str | None, typer.Option("--task", help="Built-in task whose file --data is.")]
TestData = Annotated[str | None, typer.Option("--test-data", help="File whose rows are the test rows.")]
HubConfig = Annotated[str | None, typer.Option("--hub-config", help="Configuration of a Hub data set.")]
HubSplit = Annotated[str | None, typer.Option("--hub-split", help="Split of a Hub data set to read.")]
HubTestSplit = Annotated[str | None, typer.Option("--hub-test-split", help="Its split with the test rows.")]
Encoding = Annotated[
    str | None, typer.Option("--encoding", help="Encoding of text files; detected by default.")
]


@app.command()
def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", help="A recipe (demo), and settings."),
    ] = None,
    data: Data = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    group_column: GroupColumn = None,
    task: Task = None,
    test_data: TestData = None,
    hub_config: HubConfig = None,
    hub_split: HubSplit = None,
    hub_test_split: HubTestSplit = None,
    encoding: Encoding = None,
    out: Out = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Do this stage and those after it again.")
    ] = None,
    last: Annotated[str, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")] = "bundle",
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Run an experiment, or go on with it, and report whether fine-tuning is worth it."""
    source = {
        "source": data, "text_column": text_column, "label_column": label_column, "group_column": group_column,
        "task": task, "test_source": test_data, "hub_config": hub_config, "hub_split": hub_split,
        "hub_test_split": hub_test_split, "encoding": encoding,
    }  # fmt: skip
    with _report_errors(debug):
        experiment = _read_experiment(
            words or [], {key: value for key, value in source.items() if value is not None}
        )
        _run(
            experiment,
            out or Path("runs") / experiment.name,
            first=first,
            last=last,
            quiet=quiet,
            verbose=verbose,
        )


def _add_stage(stage: str) -> None:
    @app.command(stage, help=f"{STAGE_HELP[stage]} On the run folder of an earlier run or prepare.")
    def run_stage(
        run_dir: Annotated[Path, typer.Argument(help="Run folder.")],
        settings: Annotated[
            list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")
        ] = None,
        quiet: Quiet = False,
        verbose: Verbose = False,
        debug: Debug = False,
    ) -> None:
        with _report_errors(debug):
            experiment = _read_run_folder(run_dir, settings or [])
            _run(experiment, run_dir, first=stage, last=stage, quiet=quiet, verbose=verbose, redo=False)


for _stage in STAGE_HELP:
    _add_stage(_stage)


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder of a run.")],
    input_path: Annotated[Path, typer.Argument(metavar="INPUT", help="Table with a column of texts.")],
    output_path: Annotated[
        Path, typer.Option("-o", "--output", help="csv, tsv, jsonl or parquet; must not exist.")
    ],
    text_column: TextColumn = None,
    encoding: Encoding = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Label the texts of a file: its columns, and prediction and probabilities beside them."""
    from embedtune.predict import predict_file

    with _report_errors(debug), _show_progress(quiet):
        n = predict_file(
            bundle, input_path, output_path, text_column=text_column, encoding=encoding, device=device
        )
        if not quiet:
            typer.echo(f"{n} texts labelled: {output_path}")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe, every setting resolved.")] = None,
    debug: Debug = False,
) -> None:
    """List the shipped recipes, or print one with all its settings."""
    from embedtune.config import build_experiment, dump_experiment, list_recipes, read_settings

    with _report_errors(debug):
        if name is None:
            typer.echo("\n".join(list_recipes()))
        else:
            typer.echo(
                dump_experiment(build_experiment(read_settings(name), where=f"recipe {name}")), nl=False
            )


@store_app.command("list")
def store_list(debug: Debug = False) -> None:
    """List the store's tables."""
    from rich.table import Table

    from embedtune.console import make_console
    from embedtune.embed.store import EmbeddingStore

    with _report_errors(debug):
        store = EmbeddingStore()
        table = Table("table", "backbone", "adapter", "precision", "texts", "columns", "MB", title=store.uri)
        for row in store.list():
            key = row.key
            described = (
                (key.backbone, (key.adapter or "-")[:8], key.precision) if key else ("unreadable", "-", "-")
            )
            n_texts = "-" if row.n_texts is None else str(row.n_texts)
            table.add_row(
                row.digest[:12], *described, n_texts, str(len(row.columns)), f"{row.n_bytes / 1e6:.1f}"
            )
        make_console().print(table)


@store_app.command("verify")
def store_verify(debug: Debug = False) -> None:
    """Read everything and say what is damaged; exit code 1 if anything is."""
    from embedtune.embed.store import EmbeddingStore

    with _report_errors(debug), _show_progress(False):
        problems = EmbeddingStore().verify()
        for problem in problems:
            typer.echo(f"{problem.digest[:12]}: {problem.message}")
        typer.echo(f"{len(problems)} problems")
        if problems:
            raise typer.Exit(1)


@store_app.command("prune")
def store_prune(
    keys: Annotated[
        list[str] | None, typer.Argument(help="Tables to delete, as `store list` names them.")
    ] = None,
    older_than_days: Annotated[float | None, typer.Option(help="Delete tables not used for so long.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete every table.")] = False,
    debug: Debug = False,
) -> None:
    """Delete tables, and what the others no longer need."""
    from embedtune.embed.store import EmbeddingStore

    with _report_errors(debug):
        freed = EmbeddingStore().prune(older_than_days, keys=keys, everything=everything)
        typer.echo(f"{freed / 1e6:.1f} MB freed")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(embedtune.__version__)
        raise typer.Exit


@app.callback()
def set_up(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hold the options that stand before a command."""


def main() -> None:
    """Run the command line."""
    app()


def _read_experiment(words: list[str], source: dict[str, Any]) -> Experiment:
    from embedtune.config import apply_overrides, build_experiment, read_settings

    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise ConfigError(
            f"{len(names)} recipes named ({', '.join(names)}): name one, and write settings as key=value."
        )
    recipe = names[0] if names else "default" if source else "demo"
    settings = read_settings(recipe)
    if source:
        if "source" not in source and "task" in source:
            source["source"] = source.pop("task")
        if "source" not in source:
            given = ", ".join(f"--{key.replace('_', '-')}" for key in source)
            raise ConfigError(f"{given} needs texts to speak of: name them with --data.")
        name = _name_task(source)
        settings = {**settings, "name": name, "tasks": {name: source}}
    settings = apply_overrides(settings, [word for word in words if "=" in word])
    return build_experiment(
        settings, where=f"recipe {recipe} with your settings" if words else f"recipe {recipe}"
    )


def _name_task(source: dict[str, Any]) -> str:
    """Return a task's name: its built-in name, or its source's, made fit for a folder."""
    import re

    name = source.get("task") or Path(source["source"].rstrip("/")).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "data"


def _read_run_folder(run_dir: Path, overrides: list[str]) -> Experiment:
    from embedtune.config import apply_overrides, build_experiment, read_settings

    path = run_dir / "config.yaml"
    if not path.is_file():
        raise RunFolderError(
            f"{run_dir} holds no run (no config.yaml): start one with `embedtune run … --out {run_dir}`."
        )
    return build_experiment(apply_overrides(read_settings(str(path)), overrides), where=str(path))


def _run(
    experiment: Experiment,
    out: Path,
    *,
    first: str | None,
    last: str,
    quiet: bool,
    verbose: bool,
    redo: bool = True,
) -> None:
    """Run the stages of every task; `first` None means all of them, each only as far as it isn't done."""
    from embedtune.config import dump_experiment
    from embedtune.console import make_console, print_results, write_log
    from embedtune.runfolder import RunFolder, lock_folder

    _check_stages(first or "prepare", last)
    console = make_console()
    with ExitStack() as stack:
        folders = _open_folders(RunFolder, experiment, out)
        stack.enter_context(lock_folder(out))
        write_text(out / "config.yaml", dump_experiment(experiment))
        level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
        stack.enter_context(write_log(out / "log.txt", console, level=level))
        stack.enter_context(_show_progress(quiet))
        logging.getLogger("embedtune").debug("%s", _command())

        from embedtune.pipeline import run_stages
        from embedtune.plan import TaskRun

        runs = [TaskRun(experiment, task, folder, _command()) for task, folder in folders.items()]
        for task_run in runs:
            run_stages(task_run, first=first or "prepare", last=last, redo=redo and first is not None)
        _finish(runs, out, console, print_results, last=last)


def _finish(runs: list[TaskRun], out: Path, console: Any, print_results: Any, *, last: str) -> None:
    """Print what was found and where it is; with several tasks, write the report of them all."""
    import json

    from embedtune.report.build import build_report

    if last in ("compare", "report", "bundle"):
        for task_run in runs:
            print_results(console, json.loads((task_run.path / "results.json").read_text(encoding="utf-8")))
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


@contextmanager
def _show_progress(quiet: bool) -> Iterator[None]:
    from embedtune.console import choose_progress, make_console
    from embedtune.progress import use_progress

    progress = choose_progress(make_console(stderr=True), quiet=quiet)
    with use_progress(progress) if progress else nullcontext():
        yield


@contextmanager
def _report_errors(debug: bool) -> Iterator[None]:
    """Turn what a user can put right into one line and exit code 2; Ctrl-C into a line and 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\nStopped. The same command goes on from here.", err=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except (EmbedtuneError, OSError) as error:
        if debug:
            raise
        typer.echo(f"error: {_explain(error)}", err=True)
        raise typer.Exit(2) from None


def _explain(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, EmbedtuneError):
        where = f" ({error.filename})" if error.filename else ""
        if is_disk_full(error):
            return (
                f"the disk is full{where}: free some space and give the same command again; nothing was lost."
            )
        return f"{error.strerror or error}{where}: check that the path exists and that you may use it."
    return " ".join(str(error).split())


def _command() -> str:
    return shlex.join(["embedtune", *sys.argv[1:]])
