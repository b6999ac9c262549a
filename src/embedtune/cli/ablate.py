"""embedtune ablate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedtune.cli.options import Data, Debug, LabelColumn, Out, Quiet, Task, TestData, TextColumn
from embedtune.cli.runs import name_recipe, read_experiment, run_experiment
from embedtune.cli.terminal import report_errors
from embedtune.errors import ConfigError

if TYPE_CHECKING:
    from embedtune.config import Experiment


def ablate(
    words: Annotated[
        list[str], typer.Argument(metavar="RECIPE [KEY=VALUE]...", help="A recipe with quirks, and settings.")
    ],
    data: Data = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    task: Task = None,
    test_data: TestData = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(metavar="'NAME: KEY=VALUE …'", help="Another variant to run, by its settings."),
    ] = None,
    arm: Annotated[str, typer.Option(help="The arm whose predictions are compared.")] = "frozen+",
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a recipe without its quirks, with each alone, with all, and with settings of yours; draw the table."""
    from embedtune.ablation import CORRECTED, compare_variants, list_variants
    from embedtune.console import make_console
    from embedtune.recipe import read_recipe

    source: dict[str, Any] = {
        "source": data, "text_column": text_column, "label_column": label_column, "task": task,
        "test_source": test_data,
    }  # fmt: skip
    source = {key: value for key, value in source.items() if value is not None}
    with report_errors(debug):
        recipe = read_recipe(name_recipe(words) or "llmembed")
        variants = list_variants(list(recipe.quirks), variant or ())
        if len(variants) == 1:
            raise ConfigError(
                f"recipe {recipe.name} has no quirks to switch on: give variants of yours with --variant."
            )
        if any(word.startswith("compat=") for word in words):
            raise ConfigError("compat is what ablate varies: leave it out.")
        folders = _run_variants(words, variants, source, arm=arm, out=out, quiet=quiet)
        root = folders[CORRECTED].parent
        result = compare_variants(folders, arm=arm, output=root / "ablation.json")
        descriptions = {name: " ".join(settings) for name, settings in variants.items()}
        descriptions |= {name: quirk.description for name, quirk in recipe.quirks.items()}
        _print(result, descriptions | {CORRECTED: "", "published": "all of these"}, make_console())
        typer.echo(f"Figures: {root / 'ablation.json'}")


def _run_variants(
    words: list[str],
    variants: dict[str, list[str]],
    source: dict[str, Any],
    *,
    arm: str,
    out: Path | None,
    quiet: bool,
) -> dict[str, Path]:
    """Run every variant that makes a difference; return their run folders."""
    folders: dict[str, Path] = {}
    experiments: list[Experiment] = []
    for name, settings in variants.items():
        experiment = read_experiment([*words, *settings], dict(source))
        if len(experiment.tasks) > 1:
            raise ConfigError(f"{experiment.name} has several tasks: choose one with --task.")
        if arm not in experiment.compare.arms:
            arms = " or ".join(experiment.compare.arms)
            raise ConfigError(f"arm '{arm}' isn't run by {experiment.name}: give --arm {arms}.")
        if experiment in experiments:
            typer.echo(f"{name}: makes no difference here", err=True)
            continue
        experiments.append(experiment)
        folders[name] = (out or Path("runs") / f"{experiment.name}-ablation") / name
        run_experiment(experiment, folders[name], first=None, last="compare", quiet=True, verbose=False)
        if not quiet:
            typer.echo(f"{name}: done", err=True)
    return folders


def _print(result: dict[str, Any], descriptions: dict[str, str], console: Any) -> None:
    from rich.table import Table

    rows = {row["a"]: row for row in result["comparisons"] if row["metric"] == "macro_f1"}
    table = Table("variant", title=f"{result['arm']}, macro-F1 on the test rows", title_justify="left")
    for column in ("macro-F1 (95 % interval)", "points against corrected", "p (Holm)"):
        table.add_column(column, justify="right")
    for name, scores in result["variants"].items():
        figure, row = scores["macro_f1"], rows.get(name)
        against = ("", "")
        if row is not None:
            low, high = 100 * row["low"], 100 * row["high"]
            against = (f"{100 * row['difference']:+.1f} ({low:+.1f}, {high:+.1f})", f"{row['p_holm']:.3f}")
        interval = f"{figure['value']:.3f} ({figure['low']:.3f}, {figure['high']:.3f})"
        table.add_row(name, interval, *against)
    console.print(table)
    for name in result["variants"]:
        if descriptions.get(name):
            console.print(f"{name}: {descriptions[name]}", highlight=False, markup=False)
