"""predict_file: from inputs to outputs, part by part."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import embedtune
from embedtune.bundle import find_bundle
from embedtune.classifier import EmbedClassifier, load_bundle
from embedtune.data.columns import TEXT_NAMES, find_column, is_number
from embedtune.data.pieces import Piece, is_text
from embedtune.data.places import PARTIAL, REJECTED, STANDARD, Found, Inputs, Place, find_inputs, find_place
from embedtune.data.records import Record
from embedtune.data.stream import TableStream, open_table
from embedtune.embed.encoder import WINDOW_TEXTS
from embedtune.engine import Engine, LocalEngine
from embedtune.errors import BundleError, ConfigError, DataError, EmbedtuneError
from embedtune.files import explain_full_disk, is_disk_full
from embedtune.predict.labels import Labeller, LabelSettings, check_settings
from embedtune.predict.output import SUFFIXES, Tables, write_tables
from embedtune.predict.parts import Part, Parts
from embedtune.predict.rows import sort_rows
from embedtune.progress import track, use_silence

#: In an output folder, what an input that can't be written as it was read gets behind its name.
_WRITTEN_AS = {".arrow": ".parquet", ".feather": ".parquet"}


class Predicted(NamedTuple):
    """What `predict_file` did.

    Attributes
    ----------
    n_labelled, n_rejected : int
        Rows.
    n_cut : int
        Texts labelled that are longer than a backbone reads.
    rejected : tuple of str
        The files with rejected rows.
    first_rejected : str
        Where the first one is and what is wrong with it.
    """

    n_labelled: int
    n_rejected: int
    n_cut: int
    rejected: tuple[str, ...]
    first_rejected: str


class _Input(NamedTuple):
    table: TableStream
    column: str


class _Target(NamedTuple):
    """An output and the numbers of its inputs; `place` is None for standard output, `rejected` for nowhere."""

    place: Place | None
    suffix: str
    rejected: Place | None
    inputs: Sequence[int]


def predict_file(
    bundle: str | Path,
    input_path: str | Path,
    output_path: str | Path,
    *,
    text_column: str | None = None,
    encoding: str | None = None,
    device: str = "auto",
    format: str | None = None,
    coverage: float | None = None,
    abstain_below: float | None = None,
    abstain_cost: float | None = None,
    strict: bool = False,
    raw_cells: bool = False,
    rejected_path: str | Path | None = None,
    engine: Engine | None = None,
) -> Predicted:
    """Write a copy of tables with columns ``prediction`` and ``p:LABEL`` (probabilities) added.

    csv, tsv, JSON lines, Parquet and Arrow are read, labelled and kept piece by piece, in memory that doesn't grow with
    their number of rows. Finished pieces lie in ``OUTPUT.partial`` until the output is whole and appears; a killed call
    that is repeated goes on from there.

    Rows that have no text or are broken are left out and listed in ``OUTPUT.rejected.jsonl``.

    Parameters
    ----------
    bundle : path
        A folder `EmbedClassifier.save` or a run wrote.
    input_path : path
        csv, tsv, jsonl, parquet, arrow, xlsx, or a .txt of one text a line; a folder of tables or a pattern; a URI that
        fsspec knows; ``"-"`` for standard input.
    output_path : path
        csv, tsv, jsonl or parquet, which must not exist; for a folder or pattern also a folder, which gets a
        file of the same name for each; ``"-"`` for standard output.
    text_column : str, optional
        Guessed from well-known names when not given.
    format : str, optional
        The extension that standard input and output would have.
    coverage : float, optional
        Adds ``set``: labels that can't be ruled out, of which a share `coverage` or more holds the true one.
    abstain_below, abstain_cost : float, optional
        Adds ``abstain``: whether the label's probability is lower, or lower than 1 - `abstain_cost`.
    strict : bool
        Whether a row that can't be labelled is an error, told before anything is labelled.
    raw_cells : bool
        Whether cells of csv and tsv that a spreadsheet would take for a formula are left as they are. Otherwise
        they get an apostrophe in front.
    rejected_path : path, optional
        Where rejected rows are listed, if there is one output.
    engine : Engine, optional
        Whose workers label pieces; by default this process does. Each worker remembers its own texts, so a text that
        occurs in several pieces may be run more than once, beside other texts.

    Returns
    -------
    Predicted

    Raises
    ------
    ConfigError
        If options contradict each other or are out of range, or there is no calibrator to take sets from.
    DataError
        If an input can't be read or has no such column, or an output exists, can't be written or has an unknown
        extension; under `strict` also at the first row that can't be labelled.
    BundleError
        If the bundle can't be trusted.
    ResourceError
        If the disk is full.
    """
    settings = check_settings(coverage, abstain_below, abstain_cost)
    suffix = _check_format(format, input_path, output_path)
    engine = engine or LocalEngine()
    if engine.is_remote and STANDARD in (str(input_path), str(output_path)):
        raise ConfigError(
            "a cluster's nodes don't see standard input and output: name files in a folder that all of them mount."
        )
    with contextlib.ExitStack() as stack:
        found, are_many = _find_inputs(input_path, suffix, stack)
        targets = _plan_targets(found, output_path, suffix, rejected_path, are_many=are_many)
        inputs = [_open_input(entry.place, text_column, encoding) for entry in found]
        load = partial(_load_same, str(bundle), device, _hash_bundle(bundle))
        classifier = load()
        added = settings.list_columns(classifier)
        for table, _ in inputs:
            if taken := [name for name in added if name in table.schema.names]:
                raise DataError(
                    f"{table.name} already has the column '{taken[0]}': rename it, since the output adds one."
                )
        identity = {
            "inputs": [[entry.relative, entry.place.stamp()] for entry in found],
            "bundle": _hash_bundle(bundle),
            "settings": {
                **dataclasses.asdict(settings),
                "columns": [column for _, column in inputs],
                "encoding": encoding,
                "device": device,
                "rows": WINDOW_TEXTS,
                "embedtune": embedtune.__version__,
            },
        }
        folder = _find_folder(output_path, stack)
        parts = Parts(folder, identity)
        if not parts.holds_same():
            _check_free(targets)
        if strict:
            _check_rows(inputs, added)
        with _explain_writing(folder), parts.hold():
            make = partial(_PieceLabeller, load, settings, parts, names_files=len(inputs) > 1)
            pieces, done = _label(inputs, make, engine)
            written = [_write_target(target, parts, pieces, added, raw_cells=raw_cells) for target in targets]
            parts.remove()
        return done._replace(rejected=tuple(address for address in written if address))


def _hash_bundle(bundle: str | Path) -> str:
    return hashlib.sha256((find_bundle(bundle)[0] / "bundle.json").read_bytes()).hexdigest()


def _load_same(bundle: str, device: str, digest: str) -> EmbedClassifier:
    """Load a bundle, on whatever machine, that has to be the one of this digest."""
    if _hash_bundle(bundle) != digest:
        raise BundleError(
            f"{bundle} is another bundle on a worker's machine: put it into a folder that all nodes mount."
        )
    return load_bundle(bundle, device=device)


def _check_format(format: str | None, input_path: str | Path, output_path: str | Path) -> str | None:
    standard = [
        name for name, path in (("input", input_path), ("output", output_path)) if str(path) == STANDARD
    ]
    if format is None:
        if standard:
            raise ConfigError(
                f"standard {standard[0]} has no extension: say what it is with --format csv, say."
            )
        return None
    suffix = f".{format.lower().removeprefix('.')}"
    if not standard:
        raise ConfigError(
            "--format is for standard input and output (-): files are what their extension says."
        )
    return suffix


def _find_inputs(address: str | Path, suffix: str | None, stack: contextlib.ExitStack) -> Inputs:
    if str(address) != STANDARD:
        return find_inputs(address)
    # Read more than once, and again by a call that goes on: kept on disk while it is.
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="embedtune-")))
    copy = folder / "input"
    digest = hashlib.blake2b()
    with copy.open("wb") as file:
        while piece := sys.stdin.buffer.read(1 << 20):
            digest.update(piece)
            file.write(piece)
    place = find_place(copy, suffix=suffix)
    spooled = _Spooled(STANDARD, place.fs, place.path, "standard input", place.suffix)
    return Inputs([Found(spooled, digest.hexdigest())], False)


class _Spooled(Place):
    """A copy of standard input, which is known by its content."""

    def stamp(self) -> list[Any]:
        return []


def _plan_targets(
    found: Sequence[Found],
    address: str | Path,
    suffix: str | None,
    rejected_path: str | Path | None,
    *,
    are_many: bool,
) -> list[_Target]:
    rejected = None if rejected_path is None else find_place(rejected_path)
    everything = range(len(found))
    if str(address) == STANDARD:
        _check_suffix(suffix or "", "standard output")
        return [_Target(None, suffix or "", rejected, everything)]
    place = find_place(address)
    if not are_many:
        _check_suffix(place.suffix, place.address)
    if not are_many or (place.suffix in SUFFIXES and not place.is_dir()):
        return [_Target(place, place.suffix, rejected or place.beside(REJECTED), everything)]
    if rejected is not None:
        raise ConfigError(
            "--rejected is one file, and the output a folder: leave it out; each file gets its own."
        )
    targets = []
    for number, entry in enumerate(found):
        written = entry.place.suffix if entry.place.suffix in SUFFIXES else None
        ending = "" if written else _WRITTEN_AS.get(entry.place.suffix, ".csv")
        inside = place.inside(entry.relative + ending)
        targets.append(_Target(inside, written or ending, inside.beside(REJECTED), [number]))
    return targets


def _check_suffix(suffix: str, address: str) -> None:
    if suffix not in SUFFIXES:
        raise DataError(f"can't write '{suffix}' files ({address}): use one of {', '.join(SUFFIXES)}.")


def _check_free(targets: Sequence[_Target]) -> None:
    for target in targets:
        for place in (target.place, target.rejected):
            if place is not None and place.exists():
                raise DataError(
                    f"{place.address} exists and is not written over: choose another -o, or delete it."
                )


def _open_input(place: Place, text_column: str | None, encoding: str | None) -> _Input:
    import pandas as pd

    table = open_table(place, piece_rows=WINDOW_TEXTS, encoding=encoding)
    names = pd.DataFrame(columns=table.schema.names)
    column = find_column(names, text_column, TEXT_NAMES, kind="text", name=table.name)
    field = table.schema.field(column)
    if not is_text(field):
        raise DataError(
            f"column '{column}' of {table.name} is of type {field.type}, not text. "
            "Name the column of texts with text_column."
        )
    return _Input(table, column)


def _find_folder(address: str | Path, stack: contextlib.ExitStack) -> Place:
    """Return where parts are kept: beside the output, or for standard output in a folder that goes."""
    if str(address) == STANDARD:
        return find_place(stack.enter_context(tempfile.TemporaryDirectory(prefix="embedtune-"))).inside(
            "parts"
        )
    place = find_place(address)
    if place.local is not None and not place.local.parent.is_dir():
        raise DataError(f"the folder {place.local.parent} doesn't exist: make it, or choose another -o.")
    return place.beside(PARTIAL)


def _check_rows(inputs: Sequence[_Input], added: Sequence[str]) -> None:
    for table, column in inputs:
        for piece in table.read():
            if rejected := sort_rows(piece, column, added=added).rejected:
                raise DataError(
                    f"{_describe(rejected[0], table.name)}. Mend it, or leave out --strict to put such rows aside."
                )


class _Task(NamedTuple):
    """Piece `piece` of input `number`, and what its table is called."""

    number: int
    piece: int
    rows: Piece
    name: str
    column: str


class _Done(NamedTuple):
    """What became of a piece."""

    number: int
    piece: int
    n_labelled: int
    n_rejected: int
    n_cut: int
    first_rejected: str


class _PieceLabeller:
    """Labels pieces and keeps them as parts: one worker's classifier."""

    def __init__(
        self, load: Callable[[], EmbedClassifier], settings: LabelSettings, parts: Parts, *, names_files: bool
    ) -> None:
        self._labeller = Labeller(load())
        self._settings, self._parts, self._names_files = settings, parts, names_files
        self._added = settings.list_columns(self._labeller.classifier)
        self._classes = [f"p:{label}" for label in self._labeller.classifier.classes_]

    def __call__(self, task: _Task) -> _Done:
        kept, texts, rejected = sort_rows(task.rows, task.column, added=self._added)
        if task.piece == 0:
            _check_texts(texts, task.name, task.column)
        if self._parts.has(task.number, task.piece):
            part = self._parts.read(task.number, task.piece)
            self._labeller.label(texts, part.list_answers(self._classes))
        else:
            answers = self._labeller.label(texts)
            for name, values in self._labeller.make_columns(answers, self._settings).items():
                kept = kept.append_column(name, values)
            part = Part(kept, answers.is_cut.nonzero()[0].tolist())
            facts = [_list_facts(record, task.name if self._names_files else None) for record in rejected]
            self._parts.write(task.number, task.piece, part, facts)
        first = _describe(rejected[0], task.name) if rejected else ""
        return _Done(task.number, task.piece, len(texts), len(rejected), len(part.cut), first)


def _label(
    inputs: Sequence[_Input], make: Callable[[], _PieceLabeller], engine: Engine
) -> tuple[list[int], Predicted]:
    """Label what isn't labelled yet, and return how many pieces each input has, and what was done."""
    finished: list[_Done] = []
    with track("label", sum(table.n_rows for table, _ in inputs), unit="rows") as bar, use_silence():
        for done in engine.map(make, enumerate(inputs), _read_tasks):
            finished.append(done)
            bar.advance(done.n_labelled + done.n_rejected)
    pieces = [sum(done.number == number for done in finished) for number in range(len(inputs))]
    first = min((done for done in finished if done.first_rejected), default=None)
    return pieces, Predicted(
        sum(done.n_labelled for done in finished),
        sum(done.n_rejected for done in finished),
        sum(done.n_cut for done in finished),
        (),
        first.first_rejected if first else "",
    )


def _read_tasks(source: tuple[int, _Input]) -> Iterator[_Task]:
    number, (table, column) = source
    for piece, rows in enumerate(table.read()):
        yield _Task(number, piece, rows, table.name, column)


def _check_texts(texts: Sequence[str], name: str, column: str) -> None:
    if texts and all(is_number(text) for text in texts):
        raise DataError(
            f"column '{column}' of {name} holds nothing but numbers. Name the column of texts with text_column."
        )


def _list_facts(record: Record, file: str | None) -> dict[str, Any]:
    facts: dict[str, Any] = {} if file is None else {"file": file}
    facts["row"] = record.row
    if record.line:
        facts["line"] = record.line
    return {**facts, "reason": record.reason, "content": record.content}


def _describe(record: Record, name: str) -> str:
    line = f" (line {record.line})" if record.line else ""
    return f"row {record.row}{line} of {name}: {record.reason.rstrip('.')}"


def _write_target(
    target: _Target, parts: Parts, pieces: Sequence[int], added: Sequence[str], *, raw_cells: bool
) -> str | None:
    """Put parts together; return where the rejected rows are, None if there are none."""
    keys = [(number, piece) for number in target.inputs for piece in range(pieces[number])]
    tables = Tables(
        lambda: (parts.read_schema(*key) for key in keys),
        lambda: (parts.read(*key).table for key in keys),
        added,
    )
    rejected = (parts.read_rejected(*key) for key in keys)
    head = next((lines for lines in rejected if lines), b"")
    if head and target.rejected is not None:
        with target.rejected.replace() as file:
            file.write(head)
            for lines in rejected:
                file.write(lines)
    with _open_target(target) as file:
        write_tables(file, tables, suffix=target.suffix, raw_cells=raw_cells)
    return target.rejected.address if head and target.rejected is not None else None


@contextlib.contextmanager
def _open_target(target: _Target) -> Iterator[BinaryIO]:
    if target.place is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with target.place.replace() as file:
        yield file


@contextlib.contextmanager
def _explain_writing(folder: Place) -> Iterator[None]:
    with explain_full_disk((folder.local or Path(tempfile.gettempdir())).parent):
        try:
            yield
        except (EmbedtuneError, BrokenPipeError):
            raise
        except OSError as error:
            if is_disk_full(error):
                raise
            where = f" ({error.filename})" if error.filename else ""
            raise DataError(
                f"{folder.address.removesuffix(PARTIAL)}: {error.strerror or error}{where}. Check that its folder "
                "may be written to, or choose another -o."
            ) from error
