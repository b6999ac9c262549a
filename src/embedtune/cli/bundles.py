"""What is done with a bundle: predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedtune.cli.options import Debug, Encoding, Quiet, TextColumn
from embedtune.cli.terminal import report_errors, show_progress


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

    with report_errors(debug), show_progress(quiet):
        n = predict_file(
            bundle, input_path, output_path, text_column=text_column, encoding=encoding, device=device
        )
        if not quiet:
            typer.echo(f"{n} texts labelled: {output_path}")
