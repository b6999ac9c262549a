"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print the results only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print each stage's details.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; runs/NAME by default.")]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine", help="Where models run: local (here), processes (one for each GPU), ray (a cluster)."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", help="Of the engine; by default one for each GPU, without any for each node."),
]
TrainTogether = Annotated[
    int, typer.Option("--train-together", metavar="N", help="Workers that train one model together.")
]
Address = Annotated[
    str | None, typer.Option("--address", help="Of a Ray cluster; $RAY_ADDRESS or this machine's by default.")
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="A csv, tsv, jsonl, parquet, arrow, xlsx or sentence@label txt file, a Hub data set, or a built-in task.",
    ),
]
TextColumn = Annotated[str | None, typer.Option("--text-column", help="Column of the texts.")]
LabelColumn = Annotated[str | None, typer.Option("--label-column", help="Column of the labels.")]
LabelNames = Annotated[
    str | None, typer.Option("--label-names", help="What labels are called: 0=negative,1=positive.")
]
GroupColumn = Annotated[
    str | None, typer.Option("--group-column", help="Rows with equal values stay on one side.")
]
TimeColumn = Annotated[
    str | None, typer.Option("--time-column", help="Dates or numbers: the latest rows are the test rows.")
]
SourceColumn = Annotated[
    str | None,
    typer.Option("--source-column", help="Where rows are from: told whether it gives labels away."),
]
Task = Annotated[str | None, typer.Option("--task", help="Built-in task whose file --data is.")]
TestData = Annotated[str | None, typer.Option("--test-data", help="File whose rows are the test rows.")]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels", help="A run's suspects.csv, its column 'corrected' filled in: labels to correct."
    ),
]
Repeat = Annotated[
    int | None,
    typer.Option("--repeat", metavar="K", help="Split the rows anew K times and test over all splits."),
]
HubConfig = Annotated[str | None, typer.Option("--hub-config", help="Configuration of a Hub data set.")]
HubSplit = Annotated[str | None, typer.Option("--hub-split", help="Split of a Hub data set to read.")]
HubTestSplit = Annotated[str | None, typer.Option("--hub-test-split", help="Its split with the test rows.")]
Encoding = Annotated[
    str | None, typer.Option("--encoding", help="Encoding of text files; detected by default.")
]
