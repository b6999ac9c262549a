"""Label the texts of a file with a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedtune.classifier import EmbedClassifier, load_bundle
from embedtune.data.columns import TEXT_NAMES, find_column, read_texts
from embedtune.data.stream import TableStream, open_table
from embedtune.embed.encoder import WINDOW_TEXTS
from embedtune.errors import DataError
from embedtune.files import replace_file
from embedtune.progress import track, use_silence

if TYPE_CHECKING:
    import pandas as pd

#: Extension of an output: how pandas writes it.
_WRITERS = (".csv", ".tsv", ".jsonl", ".parquet")


def predict_file(
    bundle: str | Path,
    input_path: str | Path,
    output_path: str | Path,
    *,
    text_column: str | None = None,
    encoding: str | None = None,
    device: str = "auto",
) -> int:
    """Write a copy of a table with columns ``prediction`` and ``p:LABEL`` (probabilities) added.

    JSON lines are read, labelled and written piece by piece, in memory that doesn't grow with their number. Rows
    without a text keep their place and get empty predictions. The output is written whole or not at all.

    Parameters
    ----------
    bundle : path
        A folder `EmbedClassifier.save` or a run wrote.
    input_path : path
        csv, tsv, jsonl, parquet, arrow, xlsx, or a .txt of one text a line.
    output_path : path
        csv, tsv, jsonl or parquet; must not exist.
    text_column : str, optional
        Guessed from well-known names when not given.

    Returns
    -------
    int
        Rows labelled.

    Raises
    ------
    DataError
        If the input can't be read, has no such column, or the output exists or has an unknown extension.
    BundleError
        If the bundle can't be trusted.
    """
    import pandas as pd

    output = Path(output_path)
    if output.suffix not in _WRITERS:
        raise DataError(f"can't write '{output.suffix}' files ({output}): use one of {', '.join(_WRITERS)}.")
    if output.exists():
        raise DataError(f"{output} exists and is not written over: choose another -o, or delete it.")
    if not output.parent.is_dir():
        raise DataError(f"the folder {output.parent} doesn't exist: make it, or choose another -o.")
    source = Path(input_path)
    table = open_table(source, encoding=encoding)
    column = find_column(
        pd.DataFrame(columns=list(table.columns)), text_column, TEXT_NAMES, kind="text", name=source.name
    )
    classifier = load_bundle(bundle, device=device)
    added = ["prediction", *(f"p:{label}" for label in classifier.classes_)]
    if taken := [name for name in added if name in table.columns]:
        raise DataError(
            f"{input_path} already has the column '{taken[0]}': rename it, since the output adds one."
        )
    n_labelled = n_read = 0
    with (
        replace_file(output) as scratch,
        _open_writer(scratch, output.suffix, table) as write,
        track("label", table.n_rows, unit="rows") as bar,
        use_silence(),
    ):
        for frame in table.read(WINDOW_TEXTS):
            texts = read_texts(frame[column].tolist(), name=source.name, column=column, first_row=n_read + 1)
            n_labelled += sum(map(bool, texts))
            n_read += len(frame)
            write(_label(classifier, frame, texts))
            bar.advance(len(frame))
    return n_labelled


def _label(classifier: EmbedClassifier, frame: pd.DataFrame, texts: list[str]) -> pd.DataFrame:
    import pandas as pd

    rows = np.flatnonzero([bool(text) for text in texts])
    probabilities = np.full((len(frame), len(classifier.classes_)), np.nan)
    probabilities[rows] = classifier.predict_proba([texts[i] for i in rows])
    predictions = np.full(len(frame), None, dtype=object)
    predictions[rows] = classifier.decide(probabilities[rows])
    added = {"prediction": pd.Series(predictions, dtype="string")}
    added |= {f"p:{label}": pd.Series(probabilities[:, k]) for k, label in enumerate(classifier.classes_)}
    return frame.assign(**added)


@contextmanager
def _open_writer(path: Path, suffix: str, table: TableStream) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Yield a function that adds a frame to the file."""
    if suffix == ".parquet":
        with _open_parquet(path, table) as write:
            yield write
        return
    with path.open("w", encoding="utf-8", newline="") as file:

        def add(frame: pd.DataFrame) -> None:
            if suffix == ".jsonl":
                frame.to_json(file, orient="records", lines=True, force_ascii=False)
            else:
                is_first = file.tell() == 0
                frame.to_csv(file, index=False, header=is_first, sep="\t" if suffix == ".tsv" else ",")

        yield add


@contextmanager
def _open_parquet(path: Path, table: TableStream) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Write pieces under one schema: the input is gone through for the types that suit all of its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = [pa.Schema.from_pandas(frame, preserve_index=False) for frame in table.read(WINDOW_TEXTS)]
    known = pa.unify_schemas([schema.remove_metadata() for schema in found], promote_options="permissive")
    writer: pq.ParquetWriter | None = None
    try:

        def add(frame: pd.DataFrame) -> None:
            nonlocal writer
            if writer is None:
                added = frame[[name for name in frame.columns if name not in table.columns]]
                types = pa.Schema.from_pandas(added, preserve_index=False)
                schema = pa.schema([*known, *types])
                writer = pq.ParquetWriter(path, schema)
            writer.write_table(pa.Table.from_pandas(frame, schema=writer.schema, preserve_index=False))

        yield add
    finally:
        if writer is not None:
            writer.close()
