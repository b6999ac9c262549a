"""embedtune bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedtune.cli.options import Debug
from embedtune.cli.terminal import command, report_errors, show_progress


def bench(
    suite: Annotated[
        str,
        typer.Argument(
            help="cpu, finetune, heads, store, scale, run, startup, serve or gpu: see docs/performance.md."
        ),
    ],
    rounds: Annotated[int, typer.Option(min=1, help="Times that each contestant runs, in turns.")] = 5,
    only: Annotated[
        list[str] | None, typer.Option(help="A part of the suite; may be given several times.")
    ] = None,
    peers: Annotated[Path | None, typer.Option(help="Folder with the peers' scripts.")] = None,
    peers_python: Annotated[
        str | None, typer.Option(help="The Python that has the peers installed; this one by default.")
    ] = None,
    model: Annotated[str, typer.Option(help="The backbone, in store and scale.")] = "all-MiniLM-L6-v2",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write everything as JSON.")] = None,
    smoke: Annotated[bool, typer.Option(help="A small part, once: whether the suite works.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    debug: Debug = False,
) -> None:
    """Measure how fast embedtune is here, beside its peers and what the machine could do."""
    import sys

    from embedtune.console import make_console, print_benchmark
    from embedtune.files import write_json

    with report_errors(debug), show_progress(quiet):
        from embedtune.bench.suite import Options, load_suite

        run = load_suite(suite)
        options = Options(rounds, peers, peers_python or sys.executable, smoke, tuple(only or ()), model)
        report = run(options)
        if output is not None:
            write_json(output, {"suite": suite, "command": command(), "rounds": rounds, **report.as_dict()})
        print_benchmark(make_console(), report.as_dict())
