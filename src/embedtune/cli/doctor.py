"""embedtune doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from embedtune.cli.options import Debug
from embedtune.cli.runs import read_experiment
from embedtune.cli.terminal import report_errors


def check_machine(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...", help="What is to be run: a recipe (demo), and settings."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Say what this machine has, and whether it can run a recipe; exit code 1 if anything is in the way."""
    from rich.markup import escape
    from rich.table import Table

    from embedtune.config import TransformerView
    from embedtune.console import make_console
    from embedtune.doctor import check_finetuning, check_prompt, diagnose
    from embedtune.evaluate.arms import ARMS

    with report_errors(debug):
        experiment = read_experiment(words or [], {})
        views = [view for view in experiment.embed.views.values() if isinstance(view, TransformerView)]
        findings = list(diagnose(dict.fromkeys((view.model, view.revision) for view in views)))
        if any(ARMS[arm].backbones == "tuned" for arm in experiment.compare.arms):
            chosen = experiment.finetune.backbones
            for model in dict.fromkeys(
                view.model for view in views if chosen == "all" or view.model in chosen
            ):
                asked = {"objective", "method", "quantization", "optimizer", "precision"}
                settings = experiment.finetune.of(model).model_dump(include=asked)
                findings.append(check_finetuning(model, **settings, device=experiment.embed.device))
        if "prompt" in experiment.compare.arms:
            prompt = experiment.prompt
            findings.append(check_prompt(prompt.model, endpoint=prompt.endpoint, revision=prompt.revision))
    table = Table("", "", "found", "what to do")
    for finding in findings:
        table.add_row(finding.state, *map(escape, (finding.what, finding.found, finding.advice)))
    make_console().print(table)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)
