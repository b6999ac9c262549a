"""Label the texts of a file with a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from embedtune.classifier import load_bundle
from embedtune.data.columns import TEXT_NAMES, find_column, read_texts
from embedtune.data.tables import read_table
from embedtune.errors import DataError
from embedtune.files import replace_file

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

    Rows without a text keep their place and get empty predictions. The output is written whole or not at all.

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
    frame = read_table(Path(input_path), encoding=encoding)
    name = Path(input_path).name
    column = find_column(frame, text_column, TEXT_NAMES, kind="text", name=name)
    texts = read_texts(frame[column].tolist(), name=name, column=column)
    classifier = load_bundle(bundle, device=device)

    rows = np.flatnonzero([bool(text) for text in texts])
    probabilities = np.full((len(frame), len(classifier.classes_)), np.nan)
    probabilities[rows] = classifier.predict_proba([texts[i] for i in rows])
    predictions = np.full(len(frame), None, dtype=object)
    predictions[rows] = np.asarray(classifier.classes_)[probabilities[rows].argmax(axis=1)]
    added = {"prediction": pd.Series(predictions, dtype="string")}
    added |= {f"p:{label}": pd.Series(probabilities[:, k]) for k, label in enumerate(classifier.classes_)}
    if taken := [name for name in added if name in frame.columns]:
        raise DataError(
            f"{input_path} already has the column '{taken[0]}': rename it, since the output adds one."
        )
    _write(frame.reset_index(drop=True).assign(**added), output)
    return len(rows)


def _write(frame: object, output: Path) -> None:
    import pandas as pd

    assert isinstance(frame, pd.DataFrame)
    with replace_file(output) as scratch:
        if output.suffix == ".parquet":
            frame.to_parquet(scratch, index=False)
        elif output.suffix == ".jsonl":
            frame.to_json(scratch, orient="records", lines=True, force_ascii=False)
        else:
            frame.to_csv(scratch, index=False, sep="\t" if output.suffix == ".tsv" else ",")
