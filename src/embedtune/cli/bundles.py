"""What is done with a bundle: predict, export, push."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedtune.cli.options import Address, Debug, Encoding, EngineName, Quiet, TextColumn, Workers
from embedtune.cli.terminal import report_errors, show_progress

if TYPE_CHECKING:
    from embedtune.predict import Predicted


class ExportForm(StrEnum):
    """What `export` writes."""

    standalone = "standalone"
    onnx = "onnx"


def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder of a run.")],
    input_path: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Table with a column of texts; a folder, pattern or URI; - for standard input.",
        ),
    ],
    output_path: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            help="csv, tsv, jsonl or parquet, must not exist; a folder for several inputs; - for standard output.",
        ),
    ],
    text_column: TextColumn = None,
    encoding: Encoding = None,
    format: Annotated[
        str | None, typer.Option("--format", help="What standard input and output are: csv, jsonl, …")
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(help="Add 'set': labels of which this share of sets, 0.9 say, holds the true one."),
    ] = None,
    abstain_below: Annotated[
        float | None, typer.Option(help="Add 'abstain': whether the label's probability is lower.")
    ] = None,
    abstain_cost: Annotated[
        float | None,
        typer.Option(help="The same, by what leaving a text undecided costs where an error costs 1."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at rows that can't be labelled, before labelling.")
    ] = False,
    raw_cells: Annotated[
        bool, typer.Option("--raw-cells", help="Leave spreadsheet formulas in csv and tsv as they are.")
    ] = False,
    rejected_path: Annotated[
        str | None,
        typer.Option(
            "--rejected", help="File for rows that can't be labelled; OUTPUT.rejected.jsonl by default."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    engine: EngineName = "local",
    workers: Workers = None,
    address: Address = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Label the texts of files: their columns, and prediction and probabilities beside them."""
    from embedtune.engine import open_engine
    from embedtune.predict import predict_file

    with (
        report_errors(debug),
        show_progress(quiet),
        open_engine(engine, n_workers=workers, address=address) as opened,
    ):
        done = predict_file(
            bundle,
            input_path,
            output_path,
            text_column=text_column,
            encoding=encoding,
            device=device,
            format=format,
            coverage=coverage,
            abstain_below=abstain_below,
            abstain_cost=abstain_cost,
            strict=strict,
            raw_cells=raw_cells,
            rejected_path=rejected_path,
            engine=opened,
        )
        if not quiet:
            typer.echo(_summarize(done, output_path), err=output_path == "-")


def _summarize(done: Predicted, output_path: str) -> str:
    said = [f"{done.n_labelled} texts labelled: {output_path}"]
    if done.n_rejected:
        kept = f": {', '.join(done.rejected[:3])}{', …' if len(done.rejected) > 3 else ''}"
        said.append(
            f"{done.n_rejected} rows rejected{kept if done.rejected else f', first {done.first_rejected}'}"
        )
    if done.n_cut:
        said.append(f"{done.n_cut} texts longer than a backbone reads: the rest of them was cut off")
    return "; ".join(said)


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
