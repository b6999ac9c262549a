"""embedtune recipes."""

from __future__ import annotations

from typing import Annotated

import typer

from embedtune.cli.options import Debug
from embedtune.cli.terminal import report_errors


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe, every setting resolved.")] = None,
    debug: Debug = False,
) -> None:
    """List the shipped recipes, or print one with all its settings."""
    from embedtune.config import build_experiment, dump_experiment
    from embedtune.recipe import list_recipes, read_recipe

    with report_errors(debug):
        if name is None:
            typer.echo("\n".join(list_recipes()))
        else:
            found = read_recipe(name)
            typer.echo(dump_experiment(build_experiment(found.resolve(), where=f"recipe {name}")), nl=False)
            for quirk_name, quirk in found.quirks.items():
                typer.echo(f"# compat={quirk_name}: {quirk.description}")
