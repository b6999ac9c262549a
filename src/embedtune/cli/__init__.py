"""The command line. Heavy imports wait inside the commands, so that --help answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

import embedtune
from embedtune.cli.ablate import ablate
from embedtune.cli.bench import bench
from embedtune.cli.bundles import export, predict, push
from embedtune.cli.doctor import check_machine
from embedtune.cli.recipe import recipes
from embedtune.cli.runs import STAGE_HELP, make_stage, report, run
from embedtune.cli.serve import serve
from embedtune.cli.store import app as store_app

app = typer.Typer(
    name="embedtune",
    help="Is fine-tuning worth it? Classify texts with frozen and fine-tuned language models, and compare honestly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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


app.command()(run)
for _stage in STAGE_HELP:
    if _stage == "report":
        app.command()(report)
        continue
    app.command(_stage, help=f"{STAGE_HELP[_stage]} On the run folder of an earlier run or prepare.")(
        make_stage(_stage)
    )
app.command()(ablate)
app.command()(predict)
app.command()(export)
app.command()(push)
app.command()(serve)
app.command()(recipes)
app.command("doctor")(check_machine)
app.command()(bench)
app.add_typer(store_app, name="store")


def main() -> None:
    """Run the command line."""
    app()
