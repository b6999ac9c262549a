"""fine_tune: what it writes equals what the encoder reads, and every bad argument is told in one line."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch

from embedtune.embed.backbone import describe_backbone
from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.tokens import pick_pad_id, tokenize
from embedtune.errors import BackboneError, BundleError, ConfigError, DataError, RunFolderError
from embedtune.files import read_sealed, write_sealed
from embedtune.finetune import loop, train
from embedtune.finetune.saved import FineTuned, read_finetuned
from embedtune.finetune.train import fine_tune, resolve_training_precision
from embedtune.progress import Bar, use_progress
from finetune_child import WORDS, make_rows

NAMES = list(WORDS)


def tune(model: Path, output_dir: Path, **changes: Any) -> FineTuned:
    texts, labels = make_rows(36)
    arguments: dict[str, Any] = {
        "labels": labels,
        "label_names": NAMES,
        "output_dir": output_dir,
        "epochs": 1,
        "batch_size": 8,
        "max_length": 32,
        "learning_rate": 1e-3,
        "validation_fraction": 0.1,
        "precision": "float32",
        "device": "cpu",
    }
    return fine_tune(model, changes.pop("texts", texts), **{**arguments, **changes})


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collects each model as it is when it is saved."""
    models: list[Any] = []
    original = train._save

    def save(model: Any, *args: Any, **kwargs: Any) -> None:
        models.append(model)
        original(model, *args, **kwargs)

    monkeypatch.setattr(train, "_save", save)
    return models


def compute_logits(model: Any, tokenizer: Any, texts: list[str], found: FineTuned) -> np.ndarray:
    """Run the trained module itself, one text at a time."""
    tokens = tokenize(tokenizer, texts, max_length=found.max_length, prefix=found.prefix)
    padded = found.max_length if found.pooling == "mean_padded" else None
    rows = loop.Rows(tokens, np.zeros(len(texts), dtype=np.int64), pick_pad_id(tokenizer), padded)
    model.eval()
    with torch.no_grad():
        return np.concatenate([model(**rows.pad([row]))["logits"].numpy() for row in range(len(texts))])


@pytest.mark.parametrize("method", ["full", "upper", "lora"])
@pytest.mark.parametrize(
    ("family", "pooling", "prefix"),
    [("bert", "mean", ""), ("bert", "pooler", ""), ("roberta", "cls", ""), ("llama", "last", "query: ")],
)
def test_encoder_and_head_give_the_trained_modules_logits(
    method: str,
    family: str,
    pooling: str,
    prefix: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    spied: list[Any],
) -> None:
    folder = request.getfixturevalue(f"tiny_{family}")
    found = tune(folder, tmp_path / "out", method=method, pooling=pooling, prefix=prefix)
    encoder = TransformerEncoder(
        folder,
        adapter=tmp_path / "out",
        pooling=pooling,
        prefix=prefix,
        max_length=32,
        precision="float32",
        device="cpu",
    )
    texts = make_rows(60)[0][30:]
    scores = encoder.transform(texts) @ found.head_weight.T + found.head_bias
    expected = compute_logits(spied[0], encoder._load().tokenizer, texts, found)
    assert np.abs(scores - expected).max() < 1e-4
    assert np.abs(expected - expected[0]).max() > 1e-3


@pytest.mark.parametrize("method", ["full", "upper", "lora"])
def test_fine_tune_changes_only_what_the_method_says(
    method: str, tiny_llama: Path, tmp_path: Path, spied: list[Any]
) -> None:
    from embedtune.embed.backbone import load_backbone

    tune(tiny_llama, tmp_path / "out", method=method, pooling="last", n_upper_layers=2)
    before = load_backbone(tiny_llama, precision="float32", device="cpu").model.state_dict()
    after = load_backbone(
        tiny_llama, adapter=tmp_path / "out", precision="float32", device="cpu"
    ).model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if method == "full":
        assert changed == set(before)
    elif method == "upper":
        expected = {name for name in before if name.startswith(("layers.2.", "layers.3.", "norm."))}
        assert changed == expected
    else:
        assert changed == {name for name in before if name.endswith("proj.weight")}


def test_lora_on_attention_leaves_the_mlp_alone(tiny_llama: Path, tmp_path: Path) -> None:
    tune(tiny_llama, tmp_path / "out", method="lora", lora_targets="attention")
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert {name.rpartition(".")[2] for name in settings["target_modules"]} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }
    assert settings["base_model_name_or_path"] == tiny_llama.name


def test_fine_tune_learns_an_easy_task(tiny_bert: Path, tmp_path: Path) -> None:
    texts, labels = make_rows(120)
    found = tune(tiny_bert, tmp_path / "out", texts=texts, labels=labels, epochs=12)
    assert found.macro_f1 is not None
    assert found.macro_f1 > 0.9


def test_fine_tune_writes_its_facts(tiny_bert: Path, tmp_path: Path) -> None:
    found = tune(tiny_bert, tmp_path / "out", epochs=2, groups=[i // 2 for i in range(36)])
    files = {path.name for path in found.path.iterdir()} - {".lock"}
    assert files == {"config.json", "model.safetensors", "head.safetensors", "finetune.json", "logs"}
    assert (found.model_id, found.method, found.label_names) == (tiny_bert.name, "full", tuple(NAMES))
    assert found.n_training + found.n_validation == 36
    assert found.head_weight.shape == (3, 32)
    assert found.head_weight.dtype == np.float32
    # The pooler (32 * 32 + 32) is there but neither read nor trained.
    assert found.n_parameters - found.n_trained_parameters == 32 * 32 + 32
    assert [entry["epoch"] for entry in found.history] == [1, 2]
    assert found.macro_f1 == max(entry["macro_f1"] for entry in found.history)
    assert found.seconds > 0
    assert list((found.path / "logs").glob("events.out.tfevents.*"))


def test_fine_tune_leaves_random_generators_alone(tiny_bert: Path, tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(1))

    def seed_all() -> None:
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)

    seed_all()
    expected = draw()
    seed_all()
    tune(tiny_bert, tmp_path / "out")
    assert draw() == expected


def test_fine_tune_seed_decides_the_weights(tiny_bert: Path, tmp_path: Path) -> None:
    heads = [
        tune(tiny_bert, tmp_path / name, seed=seed, validation_fraction=0.0).head_weight
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert np.array_equal(heads[0], heads[1])
    assert not np.array_equal(heads[0], heads[2])


def test_fine_tune_says_nothing_and_reports_steps(
    tiny_bert: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    opened: list[tuple[str, int, str]] = []
    done: list[int] = []

    class Counter:
        def advance(self, n: int = 1) -> None:
            done.append(n)

    @contextmanager
    def watch(description: str, total: int, unit: str) -> Iterator[Bar]:
        opened.append((description, total, unit))
        yield Counter()

    with use_progress(watch):
        tune(tiny_bert, tmp_path / "out", validation_fraction=0.0, epochs=2)
    assert opened == [(f"fine-tune {tiny_bert.name}", 10, "steps")]
    assert sum(done) == 10
    assert capfd.readouterr() == ("", "")


def test_fine_tune_without_validation_keeps_the_last_epoch(tiny_bert: Path, tmp_path: Path) -> None:
    found = tune(tiny_bert, tmp_path / "out", validation_fraction=0.0, epochs=2)
    assert (found.best_epoch, found.macro_f1, found.history, found.n_validation) == (2, None, (), 0)


def test_fine_tune_with_fewer_rows_than_a_batch_works(tiny_bert: Path, tmp_path: Path) -> None:
    found = tune(tiny_bert, tmp_path / "out", texts=["profit rose", "loss"], labels=["up", "down"])
    assert found.n_training == 2


def test_fine_tune_with_a_label_absent_from_validation_works(tiny_bert: Path, tmp_path: Path) -> None:
    texts, labels = make_rows(30)
    labels = ["up" if label == "flat" and row > 1 else label for row, label in enumerate(labels)]
    found = tune(tiny_bert, tmp_path / "out", texts=texts, labels=labels, class_weight="balanced")
    assert found.n_validation > 0
    assert np.isfinite(found.head_weight).all()


def test_fine_tune_takes_label_positions(tiny_bert: Path, tmp_path: Path) -> None:
    labels = make_rows(36)[1]
    by_name = tune(tiny_bert, tmp_path / "a")
    by_position = tune(tiny_bert, tmp_path / "b", labels=np.array([NAMES.index(label) for label in labels]))
    assert np.array_equal(by_name.head_weight, by_position.head_weight)


def test_fine_tune_scheduler_and_gradient_norm_change_the_weights(tiny_bert: Path, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"scheduler": "cosine"},
        {"scheduler": "constant"},
        {"max_grad_norm": 0.01},
    ]
    heads = [tune(tiny_bert, tmp_path / str(i), **change).head_weight for i, change in enumerate(changes)]
    assert all(not np.array_equal(heads[0], head) for head in heads[1:])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_fine_tune_with_gradient_checkpointing_ends_with_the_same_weights(
    tiny_llama: Path, tmp_path: Path, method: str
) -> None:
    options: dict[str, Any] = {"pooling": "last", "method": method, "dropout": 0.0}
    plain = tune(tiny_llama, tmp_path / "a", **options)
    spared = tune(tiny_llama, tmp_path / "b", gradient_checkpointing=True, **options)
    np.testing.assert_allclose(spared.head_weight, plain.head_weight, atol=1e-6)


BAD = [
    (
        {"method": "lore"},
        ConfigError,
        "method 'lore' is unknown (did you mean 'lora'?): choose one of full, upper, lora.",
    ),
    (
        {"class_weight": "balance"},
        ConfigError,
        "class_weight 'balance' is unknown (did you mean 'balanced'?): set it to 'balanced' or None.",
    ),
    ({"patience": 0}, ConfigError, "patience 0 is out of range: set it to 1 or more."),
    ({"epochs": 0}, ConfigError, "epochs 0 is out of range: set it to 1 or more."),
    ({"learning_rate": 0.0}, ConfigError, "learning_rate 0.0 is out of range: set it above 0."),
    (
        {"validation_fraction": 0.9},
        ConfigError,
        "validation_fraction 0.9 is out of range: set it between 0 and 0.5.",
    ),
    (
        {"scheduler": "cosin"},
        ConfigError,
        "scheduler 'cosin' is unknown (did you mean 'cosine'?): choose one of linear, cosine, constant.",
    ),
    ({"weight_decay": -1}, ConfigError, "weight_decay -1 is out of range: set it to 0 or more."),
    (
        {"pooling": "maen"},
        ConfigError,
        "pooling 'maen' is unknown (did you mean 'mean'?): choose one of mean, weighted_mean, cls, last, max, pooler, "
        "mean_padded.",
    ),
    (
        {"method": "upper", "n_upper_layers": 4},
        ConfigError,
        "n_upper_layers 4 is out of range: this model has 3 layers.",
    ),
    (
        {"method": "lora", "lora_targets": "atention"},
        ConfigError,
        "lora_targets 'atention' is unknown (did you mean 'attention'?): choose one of all-linear, attention.",
    ),
    (
        {"precision": "float16"},
        ConfigError,
        "precision 'float16' can't train on a CPU: set it to auto, float32 or bfloat16.",
    ),
    (
        {"labels": ["up"] * 36},
        DataError,
        "the rows to fine-tune on have only the label 'up': give rows of at least two labels.",
    ),
    (
        {"labels": ["up"] * 35 + ["dwn"]},
        DataError,
        "row 35 has label 'dwn' (did you mean 'down'?): allowed are down, flat, up.",
    ),
    ({"labels": ["up"]}, DataError, "36 texts but 1 labels: give one per text."),
    ({"groups": [1, 2]}, DataError, "36 texts but 2 groups: give one per text."),
    (
        {"texts": [], "labels": []},
        DataError,
        "the rows to fine-tune on have no rows: give rows of at least two labels.",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_fine_tune_refuses_bad_arguments(
    changes: dict[str, Any], error: type[Exception], message: str, tiny_bert: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        tune(tiny_bert, tmp_path / "out", **changes)


@pytest.mark.parametrize("validation_fraction", [0.0, 0.25])
def test_fine_tune_that_diverged_says_so(tiny_bert: Path, tmp_path: Path, validation_fraction: float) -> None:
    with pytest.raises(ConfigError, match="diverged: learning_rate 1e\\+20 is too high"):
        tune(tiny_bert, tmp_path / "a", learning_rate=1e20, epochs=2, validation_fraction=validation_fraction)
    assert not (tmp_path / "a" / "finetune.json").exists()


def test_fine_tune_refuses_more_tokens_than_the_model_has(tiny_bert: Path, tmp_path: Path) -> None:
    message = f"max_length 129 is out of range for '{tiny_bert.name}': set it to 1 to 128."
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        tune(tiny_bert, tmp_path / "out", max_length=129)


def test_fine_tune_refuses_a_pooler_that_is_not_there(tiny_llama: Path, tmp_path: Path) -> None:
    message = f"'{tiny_llama.name}' has no trained pooler: set pooling to mean, cls or last."
    with pytest.raises(BackboneError, match=f"^{re.escape(message)}$"):
        tune(tiny_llama, tmp_path / "out", pooling="pooler")


def test_fine_tune_refuses_a_folder_of_something_else(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    message = f"output folder '{tmp_path}' holds 'thesis.txt', which fine-tuning didn't write: give an empty folder."
    with pytest.raises(RunFolderError, match=f"^{re.escape(message)}$"):
        tune(tiny_bert, tmp_path)


def test_fine_tune_refuses_a_folder_in_use(tiny_bert: Path, tmp_path: Path) -> None:
    message = f"output folder '{tmp_path}' is in use by another process: wait for it, or give another folder."
    with (
        filelock.FileLock(tmp_path / ".lock", is_singleton=False),
        pytest.raises(RunFolderError, match=f"^{re.escape(message)}$"),
    ):
        tune(tiny_bert, tmp_path)


def test_fine_tune_refuses_a_folder_finished_with_other_arguments(tiny_bert: Path, tmp_path: Path) -> None:
    tune(tiny_bert, tmp_path / "out")
    message = (
        f"output folder '{tmp_path / 'out'}' holds a finished fine-tuning with other settings: "
        "give another folder, or delete this one."
    )
    with pytest.raises(RunFolderError, match=f"^{re.escape(message)}$"):
        tune(tiny_bert, tmp_path / "out", seed=3)


def test_fine_tune_replaces_a_finished_one_when_told_to(tiny_bert: Path, tmp_path: Path) -> None:
    first = tune(tiny_bert, tmp_path / "a")
    other = tune(tiny_bert, tmp_path / "a", learning_rate=3e-3, replace=True)
    assert not np.array_equal(first.head_weight, other.head_weight)
    fresh = tune(tiny_bert, tmp_path / "b", learning_rate=3e-3)
    assert np.array_equal(fresh.head_weight, other.head_weight)


def spoil_head(folder: Path) -> None:
    path = folder / "head.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def spoil_schema(folder: Path) -> None:
    path = folder / "finetune.json"
    write_sealed(path, {**read_sealed(path, {}, again=""), "schema": 99})


def spoil_labels(folder: Path) -> None:
    path = folder / "finetune.json"
    path.write_text(path.read_text().replace('"up"', '"uq"'))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: (folder / "finetune.json").unlink(),
            "holds no finished fine-tuning: run the fine-tuning",
        ),
        (spoil_head, "it was changed; fine-tune again."),
        (lambda folder: (folder / "head.safetensors").unlink(), "has sha256 no file, finetune.json says"),
        (
            spoil_schema,
            "was written by a newer release of embedtune (schema 99, and this one reads 1): upgrade embedtune.",
        ),
        (lambda folder: (folder / "finetune.json").write_text("{"), "finetune.json' is damaged"),
        (spoil_labels, "is damaged (its contents don't agree with its sha256): fine-tune again."),
    ],
)
def test_read_finetuned_refuses_what_fine_tune_did_not_leave(
    spoil: Callable[[Path], object], message: str, tiny_bert: Path, tmp_path: Path
) -> None:
    tune(tiny_bert, tmp_path / "out")
    spoil(tmp_path / "out")
    with pytest.raises(BundleError, match=re.escape(message)):
        read_finetuned(tmp_path / "out")


def test_newer_release_s_adapter_is_not_replaced(tiny_bert: Path, tmp_path: Path) -> None:
    tune(tiny_bert, tmp_path / "out")
    spoil_schema(tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}
    with pytest.raises(BundleError, match="upgrade embedtune"):
        tune(tiny_bert, tmp_path / "out", replace=True)
    with pytest.raises(BackboneError, match="upgrade embedtune"):
        TransformerEncoder(tiny_bert, adapter=tmp_path / "out").transform(["a text"])
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*.*")} == before


@pytest.mark.parametrize(("has_bfloat16", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_resolve_training_precision_auto_follows_the_processor(
    has_bfloat16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedtune.embed.precision.multiplies_bfloat16", lambda: has_bfloat16)
    assert resolve_training_precision("auto", "cpu") == expected
    assert resolve_training_precision("float32", "cpu") == "float32"


def test_fine_tune_in_bfloat16_keeps_float32_weights(tiny_bert: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    found = tune(tiny_bert, tmp_path / "out", precision="bfloat16")
    weights = load_file(found.path / "model.safetensors")
    assert {array.dtype for array in weights.values() if array.dtype.kind == "f"} == {np.dtype(np.float32)}
    assert np.isfinite(found.head_weight).all()


def test_changed_weights_are_refused_by_readers_and_trained_again_where_they_may_be_replaced(
    tiny_bert: Path, tmp_path: Path
) -> None:
    found = tune(tiny_bert, tmp_path / "out")
    path = found.path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BackboneError) as caught:
        describe_backbone(tiny_bert, adapter=found.path)
    assert (
        str(caught.value) == f"the weights in '{found.path}' aren't those that were written: fine-tune again."
    )
    with pytest.raises(BundleError, match="delete it and fine-tune again"):
        tune(tiny_bert, tmp_path / "out")
    tune(tiny_bert, tmp_path / "out", replace=True)
    assert path.read_bytes() == whole
