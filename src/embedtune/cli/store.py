"""embedtune store: list, verify, repair, prune."""

from __future__ import annotations

from typing import Annotated

import typer

from embedtune.cli.options import Debug
from embedtune.cli.terminal import report_errors, show_progress

app = typer.Typer(help="The embedding store: list, verify, repair, prune.", no_args_is_help=True)


@app.command("list")
def store_list(debug: Debug = False) -> None:
    """List the store's tables."""
    from rich.table import Table

    from embedtune.console import make_console
    from embedtune.embed.store import EmbeddingStore

    with report_errors(debug):
        store = EmbeddingStore()
        table = Table("table", "backbone", "adapter", "precision", "texts", "columns", "MB", title=store.uri)
        for row in store.list():
            key = row.key
            described = (
                (key.backbone, (key.adapter or "-")[:8], key.precision) if key else (row.note, "-", "-")
            )
            n_texts = "-" if row.n_texts is None else str(row.n_texts)
            table.add_row(
                row.digest[:12], *described, n_texts, str(len(row.columns)), f"{row.n_bytes / 1e6:.1f}"
            )
        make_console().print(table)


@app.command("verify")
def store_verify(debug: Debug = False) -> None:
    """Read everything and say what is damaged; exit code 1 if anything is."""
    from embedtune.embed.store import EmbeddingStore

    with report_errors(debug), show_progress(False):
        problems = EmbeddingStore().verify()
        for problem in problems:
            typer.echo(f"{problem.digest[:12]}: {problem.message}")
        typer.echo(f"{len(problems)} problems")
        if problems:
            raise typer.Exit(1)


@app.command("repair")
def store_repair(debug: Debug = False) -> None:
    """Drop what is damaged, and nothing else; it is computed again when it is asked for."""
    from embedtune.embed.store import EmbeddingStore

    with report_errors(debug), show_progress(False):
        dropped = EmbeddingStore().repair()
        for one in dropped:
            typer.echo(f"{one.digest[:12]}: dropped {one.message}")
        typer.echo("dropped what was damaged" if dropped else "nothing to drop")


@app.command("prune")
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

    with report_errors(debug):
        freed = EmbeddingStore().prune(older_than_days, keys=keys, everything=everything)
        typer.echo(f"{freed / 1e6:.1f} MB freed")
