"""Reading labelled texts: formats, columns, encodings, and one line for whatever is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from embedtune.data.delimited import find_delimiter
from embedtune.data.sources import load_dataset, read_table
from embedtune.data.tasks import TASKS
from embedtune.errors import DataError

TEXTS = ("Profit rose, again", 'He said "sell"', "Nothing new")
LABELS = ("up", "down", "flat")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_frame(path: Path, frame: pd.DataFrame) -> Path:
    if path.suffix == ".xlsx":
        frame.to_excel(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix in (".arrow", ".feather"):
        frame.to_feather(path)
    elif path.suffix == ".json":
        frame.to_json(path, orient="records")
    elif path.suffix in (".jsonl", ".ndjson"):
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def refuse(source: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "suffix",
    [".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".feather", ".xlsx"],
)
def test_load_dataset_reads_every_format_alike(tmp_path: Path, suffix: str) -> None:
    path = write_frame(tmp_path / f"news{suffix}", pd.DataFrame({"text": TEXTS, "label": LABELS}))
    rows = load_dataset(path)
    assert (rows.texts, rows.labels, rows.row_ids) == (TEXTS, LABELS, (0, 1, 2))
    assert (rows.name, rows.n_dropped, rows.split, rows.groups) == ("news", 0, None, None)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".feather", ".xlsx"])
def test_load_dataset_names_integer_labels_in_decimal(tmp_path: Path, suffix: str) -> None:
    path = write_frame(tmp_path / f"news{suffix}", pd.DataFrame({"text": TEXTS, "label": [2, 0, 1]}))
    assert load_dataset(path).labels == ("2", "0", "1")


def test_load_dataset_calls_labels_by_their_names(tmp_path: Path) -> None:
    path = write_frame(tmp_path / "news.csv", pd.DataFrame({"text": TEXTS, "label": [2, 0, 1]}))
    rows = load_dataset(path, label_names={"0": "down", "1": " up "})
    assert rows.labels == ("2", "down", "up")
    assert load_dataset(path, label_names={0: "down", 1: "up"}) == rows
    assert rows.texts == load_dataset(path).texts


@pytest.mark.parametrize(
    ("label_names", "message"),
    [
        ({"3": "up"}, "label_names names the label '3', which no row has: the labels are 0, 1, 2."),
        ({"0": " "}, "label_names leaves the label '0' without a name: give it one."),
        (
            {"0": "down", "1": "down"},
            "label_names calls both '0' and '1' 'down': give each label a name of its own.",
        ),
        ({"0": "1"}, "label_names calls both '0' and '1' '1': give each label a name of its own."),
    ],
)
def test_load_dataset_label_names_that_cannot_be(
    tmp_path: Path, label_names: dict[str, str], message: str
) -> None:
    path = write_frame(tmp_path / "news.csv", pd.DataFrame({"text": TEXTS, "label": [2, 0, 1]}))
    assert refuse(path, label_names=label_names) == message


def test_load_dataset_names_whole_floats_as_integers(tmp_path: Path) -> None:
    path = write_frame(tmp_path / "news.parquet", pd.DataFrame({"text": TEXTS, "label": [2.0, None, 0.5]}))
    rows = load_dataset(path)
    assert rows.labels == ("2", "0.5")
    assert rows.row_ids == (0, 2)


def test_load_dataset_names_booleans(tmp_path: Path) -> None:
    path = write_frame(tmp_path / "news.parquet", pd.DataFrame({"text": TEXTS, "label": [True, False, True]}))
    assert load_dataset(path).labels == ("true", "false", "true")


def test_load_dataset_phrasebank_splits_at_last_at(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bank.txt", "Mail a@b.c now@neutral\nUp 5 % @positive\n\nDown@negative".encode("latin-1")
    )
    rows = load_dataset(path)
    assert rows.texts == ("Mail a@b.c now", "Up 5 %", "Down")
    assert rows.labels == ("neutral", "positive", "negative")


def test_load_dataset_phrasebank_line_without_label(tmp_path: Path) -> None:
    path = write(tmp_path / "bank.txt", "Up@positive\nDown\n")
    assert refuse(path) == (
        "line 2 of bank.txt has no label: a .txt file is read as sentence@label, the label after the last @."
    )


def test_read_table_plain_text_gives_one_text_per_line(tmp_path: Path) -> None:
    frame = read_table(write(tmp_path / "new.txt", "First @home now\n\nSecond\n"))
    assert frame.to_dict("list") == {"text": ["First @home now", "Second"]}


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [("utf-8", b""), ("utf-8", b"\xef\xbb\xbf"), ("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff"),
     ("cp1252", b""), ("latin-1", b"")],
)  # fmt: skip
def test_load_dataset_detects_encoding(tmp_path: Path, encoding: str, mark: bytes) -> None:
    content = "text,label\r\nCafé Zürich £5,up\r\nBöhm,down\r\n".encode(encoding)
    assert load_dataset(write(tmp_path / "a.csv", mark + content)).texts == ("Café Zürich £5", "Böhm")


def test_load_dataset_takes_a_given_encoding(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nПрибыль,up\n".encode("cp1251"))
    assert load_dataset(path, encoding="cp1251").texts == ("Прибыль",)


def test_load_dataset_keeps_words_that_mean_null_elsewhere(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nNA,none\nnull,nan\n")
    rows = load_dataset(path)
    assert (rows.texts, rows.labels) == (("NA", "null"), ("none", "nan"))


def test_load_dataset_drops_empty_and_null_rows_and_counts_them(tmp_path: Path) -> None:
    lines = [{"text": "a b", "label": 1}, {"text": " ", "label": 1}, {"text": None, "label": 0},
             {"text": "c d", "label": None}, {"label": 0}, {"text": "e f", "label": 0}]  # fmt: skip
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(line) for line in lines))
    rows = load_dataset(path)
    assert (rows.texts, rows.n_dropped, rows.row_ids) == (("a b", "e f"), 4, (0, 5))


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_load_dataset_finds_the_delimiter_of_a_csv(tmp_path: Path, delimiter: str) -> None:
    lines = (("id", "headline", "sentiment"), ("1", "Up a lot", "pos"), ("2", "Down", "neg"))
    content = "\n".join(delimiter.join(line) for line in lines)
    rows = load_dataset(write(tmp_path / "a.csv", content))
    assert (rows.texts, rows.labels) == (("Up a lot", "Down"), ("pos", "neg"))


def test_find_delimiter_prefers_tabs_to_commas_inside_texts() -> None:
    assert find_delimiter("text, full\tlabel\nup, up, up\tpos\ndown\tneg\n") == "\t"


def test_load_dataset_csv_keeps_delimiters_newlines_and_doubled_quotes_in_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"Up, ""way"" up\nand on",pos\nDown,neg\n')
    assert load_dataset(path).texts == ('Up, "way" up\nand on', "Down")


def test_load_dataset_tsv_with_stray_quotes_reads_every_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'label\tsentence\n0\t" a fine mess\n1\tgood\n0\tthe end " of it\n')
    rows = load_dataset(path)
    assert rows.texts == ('" a fine mess', "good", 'the end " of it')
    assert rows.labels == ("0", "1", "0")


def test_load_dataset_tsv_with_a_quote_closed_lines_later_reads_every_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'label\tsentence\n0\t"a fine mess\n1\tgood\n0\tthe end"\n')
    assert load_dataset(path).texts == ('"a fine mess', "good", 'the end"')


def test_load_dataset_csv_with_backslashed_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"He said \\"sell\\", twice",neg\n"Up, up",pos\n')
    assert load_dataset(path).texts == ('He said "sell", twice', "Up, up")


def test_load_dataset_guesses_columns_in_any_case(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "Id,Headline,Sentiment\n1,Up,pos\n2,Down,neg\n")
    assert load_dataset(path).labels == ("pos", "neg")


def test_load_dataset_reads_groups(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label,story\na,x,7\nb,y,7\nc,x,\n")
    assert load_dataset(path, group_column="story").groups == ("7", "7", "row 2")


def test_load_dataset_test_source_gives_test_rows(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "text,label\na,x\n,y\nb,y\n")
    test = write(tmp_path / "test.csv", "text,label\nc,x\n")
    rows = load_dataset(train, test_source=test)
    assert rows.split == ("train", "train", "test")
    assert (rows.row_ids, rows.n_dropped) == ((0, 2, 3), 1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("train", "test", "validation"), ("train", "test", "train")),
        (("Train", "DEV", "train"), ("train", "test", "train")),
        (("train", "train", "train"), None),
        (("2-for-1", "none", "none"), None),
    ],
)
def test_load_dataset_respects_a_split_column(
    tmp_path: Path, values: tuple[str, ...], expected: tuple[str, ...] | None
) -> None:
    frame = pd.DataFrame({"text": TEXTS, "label": LABELS, "split": values})
    assert load_dataset(write_frame(tmp_path / "a.csv", frame)).split == expected


def test_load_dataset_names_class_labels_in_parquet(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bear", "bull"])}
    )
    data = datasets.Dataset.from_dict({"text": list(TEXTS), "label": [1, 0, 1]}, features=features)
    data.to_parquet(str(tmp_path / "a.parquet"))
    assert load_dataset(tmp_path / "a.parquet").labels == ("bull", "bear", "bull")


def make_folder(folder: Path) -> Path:
    folder.mkdir()
    write(folder / "train.csv", "text,label\na b,up\nc d,down\n")
    write(folder / "test.csv", "text,label\ne f,up\n")
    return folder


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("hub_cache")
def test_load_dataset_folder_reads_train_and_test_splits(tmp_path: Path) -> None:
    rows = load_dataset(make_folder(tmp_path / "set"), hub_test_split="test")
    assert rows.texts == ("a b", "c d", "e f")
    assert rows.split == ("train", "train", "test")


@pytest.mark.usefixtures("hub_cache")
def test_load_dataset_folder_with_a_script_runs_nothing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set")
    (folder / "set.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    assert refuse(folder) == (
        f"data set '{folder}' wants a script of its own run, which isn't done: name a data file of it."
    )
    assert not (tmp_path / "ran").exists()


def test_load_dataset_folder_whose_description_is_forged_is_one_line(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set")
    (folder / "state.json").write_text("{}")
    (folder / "dataset_info.json").write_text('{"features": {"text": {"_type": "Value"}}}')
    assert refuse(folder).startswith(f"data set '{folder}' can't be read so: ")


def test_load_dataset_folder_unknown_split(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set")
    assert refuse(folder, hub_split="dev") == (
        f"data set '{folder}' can't be read so: Unknown split \"dev\". Should be one of ['train', 'test']."
    )


@pytest.mark.usefixtures("hub_cache")
def test_load_dataset_folder_unknown_configuration(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set")
    assert refuse(folder, hub_config="large") == (
        f"data set '{folder}' can't be read so: BuilderConfig 'large' not found. Available: ['default']."
    )


def test_load_dataset_saved_to_disk_names_class_labels(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"tweet": datasets.Value("string"), "class": datasets.ClassLabel(names=["bear", "bull"])}
    )
    data = datasets.Dataset.from_dict({"tweet": list(TEXTS), "class": [1, -1, 0]}, features=features)
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "set"))
    rows = load_dataset(tmp_path / "set")
    assert (rows.labels, rows.n_dropped) == (("bull", "bear"), 1)


def refuse_hub(monkeypatch: pytest.MonkeyPatch, error: Exception) -> str:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", fail)
    return refuse("org/name")


def test_load_dataset_hub_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refuse_hub(monkeypatch, ConnectionError("Couldn't reach 'org/name' on the Hub\nmore")) == (
        "data set 'org/name' can't be fetched: the Hub can't be reached and it isn't in the local cache. "
        "Check the network, or give a file."
    )


def test_load_dataset_hub_id_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.exceptions import DatasetNotFoundError

    assert refuse_hub(monkeypatch, DatasetNotFoundError("Dataset 'org/name' doesn't exist on the Hub")) == (
        "data set 'org/name' isn't on the Hub, or is private: check its name, or set HF_TOKEN."
    )


def test_load_dataset_hub_gated(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.exceptions import DatasetNotFoundError

    assert refuse_hub(monkeypatch, DatasetNotFoundError("Dataset 'org/name' is a gated dataset")) == (
        "data set 'org/name' is gated: accept its terms on its Hub page and set HF_TOKEN."
    )


def test_load_dataset_hub_passes_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[Any, ...]] = []

    def answer(source: str, *, name: str | None, split: str) -> Any:
        asked.append((source, name, split))
        return datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})

    monkeypatch.setattr("datasets.load_dataset", answer)
    rows = load_dataset("org/name", hub_config="all", hub_split="train[:2]", hub_test_split="test")
    assert asked == [("org/name", "all", "train[:2]"), ("org/name", "all", "test")]
    assert (rows.name, rows.split) == ("org/name", ("train", "train", "test", "test"))


def test_load_dataset_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refuse("data/news.csv") == (
        f"data/news.csv doesn't exist: check the path (relative paths start at {tmp_path.name}/)."
    )


def test_load_dataset_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)
    path = write_frame(tmp_path / "a.csv", pd.DataFrame({"text": TEXTS, "label": LABELS}))
    assert refuse(path) == f"{path} can't be read: Permission denied. Check its permissions."


def test_load_dataset_neither_file_nor_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refuse("sentimant") == (
        "'sentimant' is no file and no built-in task (did you mean 'sentiment'?). "
        f"Tasks: {', '.join(TASKS)}; a Hub data set is written organisation/name."
    )


def test_load_dataset_folder_without_data_files(tmp_path: Path) -> None:
    assert refuse(tmp_path) == (
        f"{tmp_path} is a folder without data files: name a file in .csv, .tsv, .jsonl, .ndjson, .json, .parquet, "
        ".arrow, .feather, .xlsx, .txt."
    )


def test_read_table_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_table(tmp_path)
    assert str(caught.value) == f"{tmp_path} is a folder: name a file in it."


def test_load_dataset_unknown_extension(tmp_path: Path) -> None:
    assert refuse(write(tmp_path / "a.xls", "x")) == (
        "a.xls: extension '.xls' isn't one I can read (did you mean '.xlsx'?). Give a file in .csv, .tsv, .jsonl, "
        ".ndjson, .json, .parquet, .arrow, .feather, .xlsx, .txt."
    )


def test_load_dataset_column_not_there(tmp_path: Path) -> None:
    path = write_frame(tmp_path / "a.csv", pd.DataFrame({"text": TEXTS, "label": LABELS}))
    assert refuse(path, label_column="labell") == (
        "a.csv has no column 'labell' (did you mean 'label'?). Its columns: 'text', 'label'."
    )


def test_load_dataset_column_not_plain(tmp_path: Path) -> None:
    path = write_frame(tmp_path / "a.csv", pd.DataFrame({"words": TEXTS, "label": LABELS}))
    assert refuse(path) == (
        "a.csv has no column that is plainly the text. Its columns: 'words', 'label'. Name one with text_column."
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv has no rows: it is empty."),
        ("a.csv", "text,label\n", "a.csv has no rows: give a file with a header and at least one row."),
        ("a.csv", "text,label\n,x\n", "a.csv has no row with both a text and a label: check the two columns."),
        ("a.csv", "text,label,text\na,b,c\n", "a.csv has two columns called 'text': rename one."),
        (
            "a.csv",
            "text,label\na,b\nc,d,e\n",
            "a.csv: row 2 (line 3) has 3 cells where the header has 2. "
            "Put quotes around texts that hold the delimiter.",
        ),
        (
            "a.csv",
            'text,label\n"a,b\nc,d,e\n',
            "a.csv: the quote opened in row 1 is never closed. Close it, or double quotes inside texts.",
        ),
        (
            "a.csv",
            "text,label\n1.5,a\n2,b\n",
            "column 'text' of a.csv holds nothing but numbers. Name the column of texts with text_column.",
        ),
        (
            "a.csv",
            b"text,label\na\0b,x\n",
            "a.csv holds a NUL character (line 2), so it isn't a text file in the encoding read: save it as UTF-8 "
            "or name its encoding (encoding='utf-16', say).",
        ),
        (
            "a.csv",
            b"text,label\nab,x\n\x81\x8d,x\n",
            "a.csv is neither UTF-8 nor Windows-1252 (byte 0x81 in line 3): name its encoding "
            "(encoding='gb18030', say) or save it as UTF-8.",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": "x"}\n{"text": "a"\n',
            "line 2 of a.jsonl isn't JSON (Expecting ',' delimiter, column 13): give one object per line.",
        ),
        (
            "a.jsonl",
            "[1]\n",
            "line 1 of a.jsonl is a JSON list, not an object: give one object per line, "
            'such as {"text": "…", "label": "…"}.',
        ),
        (
            "a.jsonl",
            '{"text": ["a"], "label": "x"}\n',
            "column 'text' of a.jsonl holds a list in row 1, not a text. Name the column of texts with text_column.",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": "x"}\n{"text": 7, "label": "x"}\n',
            "column 'text' of a.jsonl holds a number in row 2, not a text. Name the column of texts with text_column.",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": ["x"]}\n',
            "column 'label' of a.jsonl holds a list in row 1: give one value per row.",
        ),
        (
            "a.jsonl",
            '{"text": "a\\u0000b", "label": "x"}\n',
            "row 1 of a.jsonl has a NUL character in its text. Remove it.",
        ),
        (
            "a.jsonl",
            '{"text": "a\\ud800b", "label": "x"}\n',
            "row 1 of a.jsonl has half a character (a lone surrogate) in its text. Remove it.",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": "\\udc00"}\n',
            "column 'label' of a.jsonl holds half a character (a lone surrogate) in row 1: remove it.",
        ),
        ("a.parquet", "text", "a.parquet isn't a Parquet file: "),
        ("a.feather", "text", "a.feather isn't an Arrow file: "),
        ("a.xlsx", "text", "a.xlsx isn't an Excel workbook: File is not a zip file."),
    ],
)  # fmt: skip
def test_load_dataset_bad_content(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    told = refuse(write(tmp_path / name, content))
    # What pyarrow says about a broken file is its own, and changes with its version.
    assert told.startswith(message) if message.endswith(": ") else told == message


def test_load_dataset_undecodable_in_the_given_encoding(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"text,label\nab\xe9,x\n")
    assert refuse(path, encoding="utf-8") == (
        "a.csv isn't in encoding 'utf-8' (byte 0xe9 in line 2): leave encoding out to have it detected."
    )


def test_load_dataset_unknown_encoding(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nab,x\n")
    assert refuse(path, encoding="utf8000") == (
        "encoding 'utf8000' is unknown: use a name Python knows, such as utf-8, utf-16 or latin-1."
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "a.csv",
            "a.csv: row 2 (line 3) has a cell of more than 1,000,000 characters. "
            "Close its quote, or shorten the text.",
        ),
        (
            "a.jsonl",
            "row 2 of a.jsonl has a text of 10,000,000 characters, more than 1,000,000. "
            "Cut it into passages or leave it out.",
        ),
    ],
)
def test_load_dataset_text_of_ten_megabytes(tmp_path: Path, name: str, message: str) -> None:
    huge = "word " * 2_000_000
    if name.endswith("csv"):
        path = write(tmp_path / name, f"text,label\na,x\n{huge},y\n")
    else:
        rows = [{"text": "a", "label": "x"}, {"text": huge, "label": "y"}]
        path = write(tmp_path / name, "\n".join(json.dumps(row) for row in rows))
    assert refuse(path) == message


def test_load_dataset_leaves_the_csv_limit_as_it_was(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    load_dataset(write(tmp_path / "a.csv", "text,label\n" + "a" * 200_000 + ",x\n"))
    assert csv.field_size_limit() == before


def test_load_dataset_too_many_labels(tmp_path: Path) -> None:
    content = "text,label\n" + "".join(f"t{i},l{i}\n" for i in range(501))
    assert refuse(write(tmp_path / "a.csv", content)) == (
        "column 'label' of a.csv has 501 distinct values, more than 500 classes: is this the text column? "
        "Name the label column with label_column."
    )


def test_load_dataset_hub_test_split_of_a_file(tmp_path: Path) -> None:
    path = write_frame(tmp_path / "a.csv", pd.DataFrame({"text": TEXTS, "label": LABELS}))
    assert refuse(path, hub_test_split="test") == (
        f"hub_test_split='test' is for Hub data sets, and {path} is a file: use test_source."
    )


def test_load_dataset_hundred_thousand_rows_take_seconds(tmp_path: Path) -> None:
    import time

    content = "text,label\n" + "".join(f'"Row {i}, of many words here",{i % 3}\n' for i in range(100_000))
    path = write(tmp_path / "a.csv", content)
    start = time.perf_counter()
    assert len(load_dataset(path)) == 100_000
    assert time.perf_counter() - start < 10


def test_read_table_damaged_workbook_is_one_line(tmp_path: Path) -> None:
    path = write_frame(tmp_path / "rows.xlsx", pd.DataFrame({"text": ["a\u0301"], "label": ["up"]}))
    data = path.read_bytes()
    told = set()
    for place in range(40, len(data), 97):
        path.write_bytes(data[:place] + bytes([data[place] ^ 85]) + data[place + 1 :])
        try:
            read_table(path)
        except DataError as error:
            told.add(str(error)[:38])
    assert told == {"rows.xlsx isn't an Excel workbook: Fil", *told}
    assert all(line.startswith("rows.xlsx ") for line in told)


def test_read_table_workbook_that_grows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedtune.data.tables.MAX_WORKBOOK_BYTES", 1000)
    path = write_frame(tmp_path / "rows.xlsx", pd.DataFrame({"text": ["a"], "label": ["up"]}))
    assert "rows.xlsx unpacks to " in refuse(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "deep.json",
            "[" * 100_000,
            "a number of more digits, or more nesting, than",
        ),
        ("deep.json", '[{"text": ' + "[" * 200 + "]" * 200 + "}]", "more nesting, than can be read)."),
        (
            "deep.jsonl",
            '{"text": ' + "[" * 200 + "]" * 200 + "}",
            "more nesting, than can be read): give one object",
        ),
        ("key.json", '[{"\\ud800": "a"}]', "has a column '\\ud800', which isn't valid Unicode: rename it."),
        ("key.jsonl", '{"\\ud800": "a"}', "line 1 of key.jsonl has a key that isn't valid Unicode"),
        ("digits.json", '[{"text": ' + "9" * 5000 + "}]", "a number of more digits"),
        (
            "wide.csv",
            ",".join(f"c{n}" for n in range(10_001)) + "\n" + "," * 10_000,
            "wide.csv has 10,001 columns, more than 10,000",
        ),
        (
            "wide.jsonl",
            "\n".join(f'{{"c{n}": 1}}' for n in range(10_001)),
            "has 10,001 columns, more than 10,000",
        ),
    ],
)
def test_read_table_deep_and_wide_files_are_one_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    assert message in refuse(write(tmp_path / name, content))


@pytest.mark.parametrize("told", ["{", "[]", '{"info": 3}', '{"info": {"features": []}}'])
def test_read_table_strange_metadata_is_passed_over(tmp_path: Path, told: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": ["a"], "label": ["up"]}).replace_schema_metadata({"huggingface": told})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert read_table(tmp_path / "rows.parquet")["label"].tolist() == ["up"]


@pytest.mark.parametrize("reads", ["table", "stream"])
def test_arrow_offsets_that_lead_out_of_the_file_are_refused(tmp_path: Path, reads: str) -> None:
    import pyarrow as pa

    from embedtune.data.places import find_place
    from embedtune.data.stream import open_table

    values = pa.py_buffer(b"abcdef")
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1 << 30, 6)))
    text = pa.StringArray.from_buffers(2, offsets, values)
    path = tmp_path / "rows.arrow"
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, pa.schema([("text", pa.string())])) as writer,
    ):
        writer.write_batch(pa.record_batch([text], names=["text"]))
    with pytest.raises(DataError, match=r"rows\.arrow isn.t an? Arrow file"):
        if reads == "table":
            read_table(path)
        else:
            list(open_table(find_place(path), piece_rows=4).read())


def test_error_shows_control_characters_by_their_escapes(tmp_path: Path) -> None:
    assert str(DataError("a\n  b \x1b[31m\u202e\ud800 \u00e9")) == "a b \\x1b[31m\\u202e\\ud800 \u00e9"
