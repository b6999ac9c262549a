"""Fine-tuning by contrast: the loss, the head that is fitted after it, and what comes of it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from embedtune import EmbedClassifier, TransformerEncoder
from embedtune.cli import app
from embedtune.errors import ConfigError
from embedtune.finetune.contrastive import contrast, fit_head, write_label_texts
from embedtune.finetune.train import fine_tune
from finetune_child import WORDS, make_rows
from run_cases import write_recipe, write_rows

NAMES = list(WORDS)


def test_contrast_is_the_mean_over_equal_and_over_unequal_pairs() -> None:
    random = np.random.default_rng(0)
    vectors, labels = random.normal(size=(7, 5)).astype(np.float32), np.array([0, 0, 1, 2, 1, 0, 1])
    equal, unequal = [], []
    for i, j in itertools.combinations(range(7), 2):
        cosine = vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j])
        if labels[i] == labels[j]:
            equal.append((cosine - 1) ** 2)
        else:
            unequal.append(cosine**2)
    found = contrast(torch.from_numpy(vectors), torch.from_numpy(labels))
    assert float(found) == pytest.approx((np.mean(equal) + np.mean(unequal)) / 2, rel=1e-5)


@pytest.mark.parametrize("labels", [[0], [0, 1], [0, 0]])
def test_contrast_of_few_rows_has_a_finite_gradient(labels: list[int]) -> None:
    vectors = torch.randn(len(labels), 4, requires_grad=True)
    loss = contrast(vectors, torch.tensor(labels))
    loss.backward()  # type: ignore[no-untyped-call]
    assert vectors.grad is not None and bool(torch.isfinite(vectors.grad).all())
    assert (float(loss.detach()) == 0) == (len(labels) == 1)


def test_head_gives_no_probability_to_a_label_without_rows() -> None:
    random = np.random.default_rng(0)
    y = np.repeat([0, 2], 20)
    pooled = random.normal(size=(40, 6)).astype(np.float32)
    pooled[:, 0] += 3 * (y - 1)
    weight, bias = fit_head(pooled, y, n_labels=3, class_weight=None)
    scores = pooled @ weight.T + bias
    assert (scores.argmax(axis=1) == y).mean() > 0.95
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    assert (shares[:, 1] / shares.sum(axis=1)).max() < 1e-6


def test_names_of_labels_make_texts_where_they_are_words() -> None:
    texts, codes = write_label_texts(["up", "1", "no news"], ["{label}", "This is {label}."])
    assert texts == ["up", "This is up.", "no news", "This is no news."]
    assert codes.tolist() == [0, 0, 2, 2]
    assert [len(found) for found in write_label_texts(["up", "down"], [])] == [0, 0]


def tune(model: Path, folder: Path, n_rows: int, **changes: Any) -> Any:
    texts, labels = make_rows(n_rows)
    settings: dict[str, Any] = {
        "labels": labels,
        "label_names": NAMES,
        "output_dir": folder,
        "objective": "contrastive",
        "epochs": 1,
        "min_steps": 60,
        "learning_rate": 3e-3,
        "max_length": 32,
        "precision": "float32",
        "device": "cpu",
    }
    return fine_tune(model, texts, **{**settings, **changes})


@pytest.mark.parametrize(("method", "family"), [("full", "bert"), ("upper", "llama"), ("lora", "bert")])
def test_rows_of_a_label_come_nearer_and_the_head_tells_them_apart(
    method: str, family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(f"tiny_{family}")
    found = tune(folder, tmp_path / "tuned", 24, method=method)
    texts, labels = make_rows(60)
    codes = np.array([NAMES.index(label) for label in labels])

    def encode(**options: Any) -> Any:
        encoder = TransformerEncoder(
            folder, pooling="mean", max_length=32, precision="float32", device="cpu", **options
        )
        return encoder, encoder.fit_transform(texts)

    def measure(vectors: np.ndarray) -> float:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines, equal = unit @ unit.T, codes[:, None] == codes[None, :]
        return float(cosines[equal].mean() - cosines[~equal].mean())

    _, before = encode()
    encoder, after = encode(adapter=tmp_path / "tuned")
    assert measure(after) > measure(before) + 0.1
    assert (found.best_epoch, found.n_validation, found.history) == (60, 0, ())
    classifier = EmbedClassifier.from_finetuned(
        encoder, weight=found.head_weight, bias=found.head_bias, labels=NAMES
    )
    assert (classifier.predict(texts[24:]) == np.array(labels[24:])).mean() > 0.8


def test_head_is_of_the_rows_and_names_have_a_part_in_the_weights(tiny_bert: Path, tmp_path: Path) -> None:
    with_names, without = (
        tune(tiny_bert, tmp_path / str(len(templates)), 24, label_templates=templates)
        for templates in (["{label}"], [])
    )
    assert with_names.n_training == without.n_training == 24
    texts, labels = make_rows(24)
    vectors = TransformerEncoder(
        tiny_bert, max_length=32, precision="float32", device="cpu", adapter=tmp_path / "1", layers=(-1,)
    ).fit_transform(texts)
    y = np.array([NAMES.index(label) for label in labels])
    weight, _ = fit_head(np.asarray(vectors), y, n_labels=len(NAMES), class_weight=None)
    np.testing.assert_allclose(with_names.head_weight, weight, atol=1e-3)
    assert np.abs(with_names.head_weight - without.head_weight).max() > 1e-3


def test_shared_trunk_reads_the_names_as_well(tiny_bert: Path, tmp_path: Path) -> None:
    texts, _ = make_rows(24)
    alone, shared = (
        tune(tiny_bert, tmp_path / str(more is None), 24, method="upper", trunk_texts=more)
        for more in (None, [*texts, "another"])
    )
    np.testing.assert_allclose(alone.head_weight, shared.head_weight, atol=1e-3)


def test_template_without_a_label_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"label_templates has 'good', .*: put \{label\} where"):
        tune(tiny_bert, tmp_path, 24, label_templates=["good"])


def test_recipe_with_such_a_template_is_refused_before_anything_runs(tiny_bert: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "moves.csv")
    recipe = write_recipe(tmp_path / "tiny.yaml", model=tiny_bert, data=rows, store=tmp_path / "store")
    words = ["run", str(recipe), "finetune.label_templates=[good]", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    told = "finetune.label_templates has 'good', which names no label: put {label}"
    assert told in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_min_steps_makes_epochs_of_few_rows_more(tiny_bert: Path, tmp_path: Path) -> None:
    few = tune(tiny_bert, tmp_path / "few", 24, objective="classification", batch_size=8, min_steps=7)
    assert few.best_epoch == 3
    many = tune(tiny_bert, tmp_path / "many", 60, objective="classification", batch_size=8, min_steps=7)
    assert many.best_epoch == 1


@pytest.mark.slow
def test_run_by_contrast_has_all_tuned_arms(tiny_bert: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "moves.csv")
    recipe = write_recipe(tmp_path / "tiny.yaml", model=tiny_bert, data=rows, store=tmp_path / "store")
    arms = "compare.arms=[frozen, frozen+, tuned, tuned+, end-to-end]"
    how = ["finetune.objective=contrastive", "finetune.min_steps=60", "finetune.learning_rate=0.003"]
    words = ["run", str(recipe), arms, *how, "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "run" / "results.json").read_text())["arms"]
    for arm in ("tuned", "tuned+", "end-to-end"):
        assert found[arm]["macro_f1"]["value"] > 0.65  # half of them by chance
    assert found["end-to-end"]["sets"] is not None


def test_budget_is_refused_by_contrast(tiny_bert: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "moves.csv")
    recipe = write_recipe(tmp_path / "tiny.yaml", model=tiny_bert, data=rows, store=tmp_path / "store")
    words = ["run", str(recipe), "finetune.objective=contrastive", "finetune.budget=1m"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "is tuned by contrast" in result.output
