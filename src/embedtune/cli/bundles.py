"""What is done with a bundle: predict, export, push."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from embedtune.cli.options import Debug, Encoding, Quiet, TextColumn
from embedtune.cli.terminal import report_errors, show_progress


class ExportForm(StrEnum):
    """What `export` writes."""

    standalone = "standalone"
    onnx = "onnx"


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


def export(
    bundle: Annotated[str, typer.Argument(help="Bundle folder of a run, or a Hub name.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; must not exist.")],
    form: Annotated[
        ExportForm, typer.Option("--as", help="standalone: the backbones packed in; onnx: them as graphs.")
    ] = ExportForm.standalone,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let backbones run Python code of their own.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write a bundle that needs no other files, or its backbones as ONNX graphs."""
    from embedtune.export import export_onnx, export_standalone

    write = export_onnx if form is ExportForm.onnx else export_standalone
    with report_errors(debug):
        typer.echo(write(bundle, out, trust_remote_code=trust_remote_code))


def push(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder of a run.")],
    repo_id: Annotated[str, typer.Argument(metavar="NAME", help="organisation/name on the Hub.")],
    public: Annotated[bool, typer.Option("--public", help="Where it is made: for everyone to see.")] = False,
    debug: Debug = False,
) -> None:
    """Upload a bundle to the Hugging Face Hub; HF_TOKEN says who writes."""
    from embedtune.bundle import push_bundle

    with report_errors(debug):
        typer.echo(push_bundle(bundle, repo_id, private=not public))
