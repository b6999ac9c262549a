"""embedtune doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from embedtune.cli.options import Debug
from embedtune.cli.terminal import report_errors


def check_machine(
    recipe: Annotated[
        str, typer.Argument(help="Recipe or config file whose models are looked for.")
    ] = "demo",
    debug: Debug = False,
) -> None:
    """Say what this machine has, and whether a recipe's models can be had; exit code 1 if anything is in the way."""
    from rich.markup import escape
    from rich.table import Table

    from embedtune.config import TransformerView, build_experiment
    from embedtune.console import make_console
    from embedtune.doctor import check_prompt, diagnose
    from embedtune.recipe import read_recipe

    with report_errors(debug):
        experiment = build_experiment(read_recipe(recipe).resolve(), where=f"recipe {recipe}")
        views = [view for view in experiment.embed.views.values() if isinstance(view, TransformerView)]
        findings = list(diagnose(dict.fromkeys((view.model, view.revision) for view in views)))
        if "prompt" in experiment.compare.arms:
            prompt = experiment.prompt
            findings.append(check_prompt(prompt.model, endpoint=prompt.endpoint, revision=prompt.revision))
    table = Table("", "", "found", "what to do")
    for finding in findings:
        table.add_row(finding.state, *map(escape, (finding.what, finding.found, finding.advice)))
    make_console().print(table)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)
