"""A trunk of more texts than one training has serves all trainings on some of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedtune.errors import DataError
from embedtune.finetune import trunk
from embedtune.finetune.saved import FineTuned
from embedtune.finetune.train import fine_tune
from finetune_child import WORDS, make_rows
from run_cases import write_recipe, write_rows
from test_run import call

TEXTS, LABELS = make_rows(48)


@pytest.fixture(autouse=True)
def no_trunks() -> None:
    trunk.release_trunks()


def tune(model: Path, folder: Path, rows: range, **changes: Any) -> FineTuned:
    settings: dict[str, Any] = {
        "method": "upper",
        "epochs": 2,
        "batch_size": 8,
        "max_length": 32,
        "learning_rate": 1e-3,
        "device": "cpu",
        "precision": "float32",
    }
    return fine_tune(
        model,
        [TEXTS[row] for row in rows],
        labels=[LABELS[row] for row in rows],
        label_names=list(WORDS),
        output_dir=folder,
        **{**settings, **changes},
    )


def test_folds_share_a_trunk_and_end_as_they_would_alone(tiny_bert: Path, tmp_path: Path) -> None:
    folds = [range(40), range(8, 48), range(40, 4, -1)]
    shared = [tune(tiny_bert, tmp_path / f"a{i}", rows, trunk_texts=TEXTS) for i, rows in enumerate(folds)]
    assert [found.trunk_seconds > 0.001 for found in shared] == [True, False, False]
    for number, (rows, found) in enumerate(zip(folds, shared, strict=True)):
        trunk.release_trunks()
        alone = tune(tiny_bert, tmp_path / f"b{number}", rows)
        np.testing.assert_allclose(found.head_weight, alone.head_weight, rtol=0, atol=2e-5)
    assert np.abs(shared[0].head_weight - shared[1].head_weight).max() > 1e-3


def test_a_trunk_of_other_texts_is_another_fine_tuning(tiny_bert: Path, tmp_path: Path) -> None:
    tune(tiny_bert, tmp_path / "a", range(40), trunk_texts=TEXTS)
    found = tune(tiny_bert, tmp_path / "a", range(40), trunk_texts=TEXTS[:44], replace=True)
    assert found.trunk_seconds > 0.001


def test_trunk_texts_play_no_part_where_no_layer_is_frozen(tiny_bert: Path, tmp_path: Path) -> None:
    first = tune(tiny_bert, tmp_path / "a", range(40), method="full", trunk_texts=TEXTS)
    again = tune(tiny_bert, tmp_path / "a", range(40), method="full")
    assert np.array_equal(first.head_weight, again.head_weight)


def test_texts_must_be_among_those_of_the_trunk(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^2 of the texts aren't among trunk_texts: give all texts of all trainings there\.$"
    ):
        tune(tiny_bert, tmp_path / "a", range(40), trunk_texts=TEXTS[:38])


def test_run_reads_the_frozen_layers_once_for_all_folds_and_arms(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_read: list[int] = []
    read = trunk._read

    def record(backbone: Any, stack: Any, tokens: Any, **settings: Any) -> trunk.Trunk:
        n_read.append(len(tokens.ids))
        return read(backbone, stack, tokens, **settings)

    monkeypatch.setattr(trunk, "_read", record)
    rows = write_rows(tmp_path / "moves.csv")
    recipe = write_recipe(tmp_path / "tiny.yaml", model=tiny_bert, data=rows, store=tmp_path / "store")
    settings = ["compare.arms=[tuned+,end-to-end]", "finetune.method=upper", "finetune.n_upper_layers=1"]
    result = call("run", recipe, "--until", "finetune", "--out", tmp_path / "run", *settings)
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "run" / "adapters").glob("*/*"))) > 2
    assert len(n_read) == 1
