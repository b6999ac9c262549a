"""Engines: the same work in other processes is the same work."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import engine_cases
from embedtune.classifier import EmbedClassifier
from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.spread import spread_texts
from embedtune.engine import open_engine
from embedtune.engine.processes import ProcessEngine
from embedtune.errors import ConfigError, DataError, ResourceError
from embedtune.finetune.train import fine_tune
from embedtune.predict import job as predict_job
from embedtune.predict import predict_file
from finetune_child import WORDS, make_rows


def test_processes_do_all_the_work_each_with_its_own_worker(tmp_path: Path) -> None:
    make = partial(engine_cases.make_adder, 10, tmp_path, 2)
    done = list(ProcessEngine(2).map(make, [8, 12], engine_cases.count))
    assert sorted(number for number, _ in done) == sorted([*range(10, 18), *range(10, 22)])
    assert len({process for _, process in done} - {os.getpid()}) == len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
def test_what_a_process_raises_arrives_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 2 has no text"):
        list(ProcessEngine(2).map(engine_cases.make_refuser, [5], engine_cases.count))
    with pytest.raises(DataError, match=r"row 2 has no text"):
        list(ProcessEngine(2, n_together=2).launch(engine_cases.refuse, [1, 2], folder=tmp_path))


def test_killed_process_is_told_in_one_line() -> None:
    with pytest.raises(
        ResourceError, match=r"died, killed or out of memory: give the same command again"
    ) as told:
        list(ProcessEngine(1).map(engine_cases.make_suicide, [3], engine_cases.count))
    assert "\n" not in str(told.value)


@pytest.mark.slow
def test_group_of_processes_knows_itself(tmp_path: Path) -> None:
    found = list(ProcessEngine(2, n_together=2).launch(engine_cases.describe_group, [7, 8], folder=tmp_path))
    assert found == [(0, (7, 0, 2)), (1, (8, 0, 2))]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_spread_texts_have_the_vectors_of_one_process(
    tiny_bert: Path, tmp_path: Path, precision: str
) -> None:
    texts = [f"profit rose {'again and ' * (i % 9)}in week {i % 90}" for i in range(120)]
    alone, together = (
        TransformerEncoder(
            str(tiny_bert), layers=(-1, 1), precision=precision, batch_tokens=64, store=tmp_path / name
        )
        for name in ("alone", "together")
    )
    expected = alone.transform(texts)
    stored = spread_texts(together, texts, ProcessEngine(2))
    assert (stored.n_texts, stored.n_computed, stored.n_parameters) == (120, 90, alone.n_parameters_)
    found = together.transform(texts)
    assert together.last_n_computed_ == 0
    assert (found == expected).all()
    assert spread_texts(together, texts, ProcessEngine(2)).n_computed == 0


def test_parts_of_a_window_are_all_of_it(tiny_bert: Path, tmp_path: Path) -> None:
    texts = [f"costs fell in week {i}" for i in range(40)]
    encoder = TransformerEncoder(str(tiny_bert), batch_tokens=64, store=tmp_path / "store")
    n_computed = [encoder.store_texts(texts, part=(number, 3)).n_computed for number in range(3)]
    assert sum(n_computed) == 40 and min(n_computed) > 8
    assert encoder.count_missing([*texts, "another one"]) == 1


def list_arguments(model: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    texts, labels = make_rows(25)
    arguments: dict[str, Any] = {
        "model": model,
        "texts": texts,
        "labels": labels,
        "label_names": list(WORDS),
        "output_dir": folder,
        "epochs": 2,
        "batch_size": 8,  # the last step has one row, and one process none
        "max_length": 32,
        "learning_rate": 1e-3,
        "dropout": 0.0,
        "precision": "float32",
        "device": "cpu",
    }
    return {**arguments, **changes}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("bert", {"method": "full", "class_weight": "balanced", "validation_fraction": 0.2}),
        ("bert", {"method": "upper", "n_upper_layers": 1}),
        ("llama", {"method": "lora", "objective": "instruction"}),
    ],
)
def test_two_processes_train_to_the_weights_of_one(
    kind: str, changes: dict[str, Any], tmp_path: Path, tiny_bert: Path, tiny_llama: Path
) -> None:
    model = {"bert": make_steady(tiny_bert, tmp_path / "model"), "llama": tiny_llama}[kind]
    fine_tune(**list_arguments(model, tmp_path / "one", **changes))
    sizes = ProcessEngine(2, n_together=2).launch(
        engine_cases.tune, [list_arguments(model, tmp_path / "two", **changes)], folder=tmp_path / "scratch"
    )
    assert list(sizes) == [(0, 2)]
    files = [path.name for path in (tmp_path / "one").glob("*.safetensors")]
    assert files == [path.name for path in (tmp_path / "two").glob("*.safetensors")]
    for name in files:
        one, two = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
        for key, expected in one.items():
            if key.endswith("key.bias"):
                continue  # attention doesn't depend on it: its gradient is rounding, which AdamW blows up
            torch.testing.assert_close(two[key], expected, rtol=0, atol=1e-4, msg=f"{name} {key}")


def make_steady(model: Path, folder: Path) -> Path:
    """Copy a model without dropout, of which each process draws its own."""
    import transformers

    loaded = transformers.AutoModel.from_pretrained(model)
    loaded.config.hidden_dropout_prob = loaded.config.attention_probs_dropout_prob = 0.0
    loaded.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def test_contrast_is_left_to_one_process(tiny_bert: Path, tmp_path: Path) -> None:
    arguments = list_arguments(tiny_bert, tmp_path / "out", objective="contrastive")
    with pytest.raises(ConfigError, match=r"compares all rows of a step, so one process does it"):
        list(
            ProcessEngine(2, n_together=2).launch(engine_cases.tune, [arguments], folder=tmp_path / "scratch")
        )


def test_predict_by_processes_writes_the_same_file(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_job, "WINDOW_TEXTS", 8)
    bundle = make_bundle(tiny_bert, tmp_path / "bundle")
    rows = write_rows(tmp_path / "rows.csv", n=50)
    one = predict_file(bundle, rows, tmp_path / "one.csv")
    with open_engine("processes", n_workers=2) as engine:
        two = predict_file(bundle, rows, tmp_path / "two.csv", engine=engine)
    assert (one.n_labelled, one.n_rejected) == (two.n_labelled, two.n_rejected) == (49, 1)
    assert one.first_rejected == two.first_rejected
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert (tmp_path / "one.csv.rejected.jsonl").read_bytes() == (
        tmp_path / "two.csv.rejected.jsonl"
    ).read_bytes()


def make_bundle(model: Path, folder: Path) -> Path:
    texts, labels = make_rows(30)
    encoder = TransformerEncoder(str(model), max_length=32)
    return EmbedClassifier([encoder], "logistic").fit(texts, labels).save(folder)


def write_rows(path: Path, *, n: int) -> Path:
    texts, _ = make_rows(n)
    lines = [f"{i},{text} no {i}" if i != 20 else f"{i}," for i, text in enumerate(texts)]
    path.write_text("\n".join(["id,text", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "rays"},
            r"no engine 'rays' \(did you mean 'ray'\?\): choose one of local, processes, ray\.",
        ),
        ({"name": "local", "n_workers": 2}, r"the engine local is one process"),
        ({"name": "processes", "n_workers": 0}, r"--workers 0 is out of range"),
        (
            {"name": "processes", "n_workers": 1, "n_together": 2},
            r"--train-together 2 is more than the 1 workers",
        ),
        ({"name": "processes", "address": "auto"}, r"--address is of a Ray cluster"),
    ],
)
def test_open_engine_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message), open_engine(**options):
        pass
