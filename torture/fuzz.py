"""python -m torture.fuzz FOLDER SECONDS SEED: bytes that reach new lines of our readers, sought by atheris.

The first byte says which reader gets the rest. FOLDER/corpus holds whole files to begin with; what any reader raises
but an `EmbedtuneError` of one line goes into FOLDER/lost, and the fuzzing goes on.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

from embedtune.errors import EmbedtuneError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".txt", ".xlsx", ".parquet", ".arrow")
#: More than a cell of a spreadsheet's files takes, less than what a second is needed for.
MAX_BYTES = 8192


def list_readers(folder: Path) -> list[tuple[str, Callable[[Path], object]]]:
    """Return the readers, each with the name of the file that it is given."""
    from embedtune.bundle import read_manifest
    from embedtune.config import build_experiment
    from embedtune.data.places import find_place
    from embedtune.data.stream import open_table
    from embedtune.data.tables import read_table
    from embedtune.embed.store_key import StoreKey
    from embedtune.recipe import read_recipe
    from embedtune.runfolder import RunFolder

    def stream(path: Path) -> None:
        for piece in open_table(find_place(path), piece_rows=4).read():
            repr(piece)

    def read_settings(path: Path) -> None:
        build_experiment(read_recipe(str(path)).resolve([]), where="recipe")

    return [
        *((f"whole{suffix}", read_table) for suffix in SUFFIXES),
        *((f"pieces{suffix}", stream) for suffix in SUFFIXES),
        ("recipe.yaml", read_settings),
        ("bundle.json", lambda path: read_manifest(path.parent)),
        (".state/step.json", lambda path: RunFolder(folder, identity="x").read_record("step")),
        ("key.json", lambda path: StoreKey.from_json(path.read_text(encoding="utf-8", errors="replace"))),
    ]


def write_corpus(folder: Path, seed: int) -> None:
    """Write a whole file or two for every reader."""
    from embedtune.embed.store_key import StoreKey
    from embedtune.files import write_sealed
    from embedtune.recipe import RECIPES_DIR
    from torture.inputs import WRITERS, make_rows

    random, corpus = Random(seed), folder / "corpus"
    corpus.mkdir(parents=True)
    key = StoreKey("b", "w", None, "t", 8, "", "float32").to_json()
    write_sealed(folder / "manifest", {"schema": 1, "files": {}, "views": [], "labels": ["a"], "head": {}, "notes": {},
                                       "normalizes": False})  # fmt: skip
    write_sealed(folder / "record", {"key": "k", "result": {}, "files": {}})
    others = {"recipe.yaml": min(RECIPES_DIR.glob("*.yaml"), key=lambda path: path.stat().st_size).read_bytes(),
              "bundle.json": (folder / "manifest").read_bytes(), "key.json": key.encode(),
              ".state/step.json": (folder / "record").read_bytes()}  # fmt: skip
    for number, (name, _) in enumerate(list_readers(folder)):
        columns, rows = make_rows(random)
        suffix = Path(name).suffix
        data = (
            others[name]
            if name in others
            else WRITERS[suffix](columns[:2], [r[:2] for r in rows[:3]], random, "utf-8")
        )
        (corpus / name.replace("/", "-")).write_bytes(bytes([number]) + data[:MAX_BYTES])


def main() -> None:
    folder, seconds, seed = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    import atheris

    with atheris.instrument_imports(
        include=["embedtune.data", "embedtune.recipe", "embedtune.files", "embedtune.bundle"]
    ):
        readers = list_readers(folder)
    files = folder / "files"
    (files / ".state").mkdir(parents=True, exist_ok=True)

    def read(data: bytes) -> None:
        if not data:
            return
        name, reader = readers[data[0] % len(readers)]
        path = (folder if name.startswith(".") else files) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[1:])
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                reader(path)
        except EmbedtuneError as error:
            if "\n" in str(error).strip():
                keep(name, data, error)
        except Exception as error:
            keep(name, data, error)

    def keep(name: str, data: bytes, error: Exception) -> None:
        with (folder / "lost").open("a", encoding="utf-8") as file:
            file.write(f"{name}: {type(error).__name__}: {ascii(str(error))[:300]} <- {data[1:400]!r}\n")

    atheris.Setup(
        [sys.argv[0], f"-max_total_time={seconds}", f"-seed={seed}", "-timeout=20", "-rss_limit_mb=4096",
         f"-max_len={MAX_BYTES}", str(folder / "corpus")],
        read,
    )  # fmt: skip
    atheris.Fuzz()


if __name__ == "__main__":
    main()
