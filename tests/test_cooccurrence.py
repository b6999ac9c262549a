"""CooccurrenceHead: parity with the published head, and a scikit-learn classifier."""

import functools
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.metrics import f1_score, log_loss
from sklearn.utils.estimator_checks import parametrize_with_checks
from skops.io import dumps, get_untrusted_types, loads

from embedtune.errors import ConfigError, DataError
from embedtune.heads.cooccurrence import CooccurrenceNet
from embedtune.heads.cooccurrence_head import SIGMA_GRID, CooccurrenceHead
from embedtune.heads.together import Plan, Rows, compute_loss, train_together

SMALL: dict[str, Any] = {
    "hidden": (32, 16),
    "epochs": 60,
    "learning_rate": 0.01,
    "dropout": 0.1,
    "batch_size": 64,
    "device": "cpu",
}
WIDTHS = (8, 8, 4)


def make_rows(n: int = 120, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    return rng.normal(size=(n, 20)) + 2 * np.eye(3, 20)[y], np.array(["down", "flat", "up"])[y]


def _make_published(n_classes: int = 3) -> dict[str, np.ndarray]:
    """Random weights for two branches 8 → 4 and one further block of 4."""
    rng = np.random.default_rng(0)
    shapes = {
        "compress_layers.0.0": (4, 8),
        "compress_layers.1.0": (4, 8),
        "fc1": (6, 3 * 3 + 8),
        "fc2": (5, 6),
        "fc3": (n_classes, 5),
    }
    weights = {f"{name}.weight": rng.normal(size=shape) for name, shape in shapes.items()}
    return weights | {f"{name}.bias": rng.normal(size=shape[0]) for name, shape in shapes.items()}


@parametrize_with_checks([CooccurrenceHead(**SMALL)])
def test_head_meets_scikit_learns_contract(estimator: Any, check: Any) -> None:
    check(estimator)


def test_head_equals_its_definition_written_out() -> None:
    """One row at a time, in plain numpy."""
    w = _make_published()
    head = CooccurrenceHead(sigma=0.2).load_published(w)
    X = np.random.default_rng(1).normal(size=(4, 20))
    for row, got in zip(X, head.predict_proba(X), strict=True):
        layers = [row[:8], row[8:16]]
        branches = [
            np.maximum(w[f"compress_layers.{i}.0.weight"] @ x + w[f"compress_layers.{i}.0.bias"], 0)
            for i, x in enumerate(layers)
        ]
        stacked = np.stack([*branches, row[16:]])
        powered = 2 / (1 + np.exp(-0.2 * stacked @ stacked.T)) - 1
        x = np.concatenate([powered.ravel(), np.mean(layers, axis=0)])
        for name in ("fc1", "fc2"):
            x = np.maximum(w[f"{name}.weight"] @ x + w[f"{name}.bias"], 0)
        exponents = np.exp(w["fc3.weight"] @ x + w["fc3.bias"])
        np.testing.assert_allclose(got, exponents / exponents.sum(), atol=1e-5)


@pytest.mark.realdata
def test_head_gives_the_published_probabilities_and_gradients() -> None:
    root = Path(__file__).parent.parent
    data_dir = Path(os.environ.get("EMBEDTUNE_DATA", root / ".." / "shared" / "data"))
    golden_dir = data_dir.parent / "golden" / "paper"
    if not golden_dir.is_dir():
        pytest.skip("the published head's vectors aren't there: set EMBEDTUNE_DATA to the folder beside them")
    load_file = pytest.importorskip("safetensors.numpy").load_file
    expected, head_file = (
        load_file(golden_dir / "expected.safetensors"),
        load_file(golden_dir / "head.safetensors"),
    )
    cases = json.loads((golden_dir / "cases.json").read_text(encoding="utf-8"))
    weights = {name[7:]: value for name, value in head_file.items() if name.startswith("weight/")}
    head = CooccurrenceHead(sigma=cases["sigma"], softmax_output=True, device="cpu").load_published(weights)
    X = np.hstack([expected["llama_maxlen128"].reshape(10, -1), expected["bert"], expected["roberta"]])
    np.testing.assert_allclose(head.predict_proba(X), expected["head_probabilities"], atol=1e-4)
    net = head.build_module()
    layers, others = (
        torch.tensor(expected["llama_maxlen128"]),
        torch.stack([torch.tensor(expected[name]) for name in ("bert", "roberta")], dim=1),
    )
    loss = compute_loss(net(layers, others), torch.tensor(cases["labels"]), torch.ones(10))
    torch.autograd.backward(loss)
    assert float(loss.detach()) == pytest.approx(cases["head_loss"], abs=1e-5)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        np.testing.assert_allclose(parameter.grad.numpy(), head_file[f"grad/{name}"], atol=1e-4)


def test_state_dict_has_the_published_names() -> None:
    X, y = make_rows()
    head = CooccurrenceHead(WIDTHS, **SMALL | {"epochs": 1}).fit(X, y)
    assert set(head.weights_) == set(_make_published())
    assert all(type(value) is np.ndarray for value in head.weights_.values())


def test_load_published_takes_back_fitted_weights() -> None:
    X, y = make_rows()
    head = CooccurrenceHead(WIDTHS, **SMALL).fit(X, y)
    again = CooccurrenceHead(device="cpu").load_published(head.weights_, classes=["down", "flat", "up"])
    assert np.array_equal(again.predict_proba(X), head.predict_proba(X))
    assert again.n_features_in_ == 20


def test_head_with_others_concatenated_reads_them_and_loads_back() -> None:
    X, y = make_rows()
    options = SMALL | {"concatenate_others": True}
    head = CooccurrenceHead(WIDTHS, **options).fit(X, y)
    assert head.weights_["fc1.weight"].shape == (32, 3 * 3 + 8 + 4)
    again = CooccurrenceHead(device="cpu", concatenate_others=True)
    again.load_published(head.weights_, classes=["down", "flat", "up"])
    assert np.array_equal(again.predict_proba(X), head.predict_proba(X))


def test_load_published_foreign_weights_are_refused() -> None:
    weights = _make_published()
    del weights["fc2.weight"]
    with pytest.raises(ConfigError) as caught:
        CooccurrenceHead().load_published(weights)
    assert str(caught.value) == (
        "the state dict has no 'fc2.weight': a co-occurrence head has compress_layers.i.0, fc1, fc2, fc3."
    )
    weights = _make_published() | {"fc2.weight": np.ones((5, 7))}
    weights["fc4.bias"] = np.ones(2)
    with pytest.raises(ConfigError) as caught:
        CooccurrenceHead().load_published(weights)
    assert str(caught.value) == (
        "the state dict doesn't fit a co-occurrence head: fc2.weight has shape (5, 7), must be (5, 6); "
        "fc4.bias has shape (2,), must be None."
    )


def test_load_published_unsorted_classes_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        CooccurrenceHead().load_published(_make_published(), classes=["b", "a", "c"])
    assert str(caught.value) == "classes ['b', 'a', 'c'] must be 3 different labels, sorted."


def test_head_learns_and_its_loss_falls() -> None:
    X, y = make_rows(400)
    head = CooccurrenceHead(WIDTHS, **SMALL).fit(X[:200], y[:200])
    assert head.shape_ == (2, 8, 1, 4)
    assert head.score(X[200:], y[200:]) > 0.75
    assert head.loss_curve_[-1] < 0.6 * head.loss_curve_[0]


def test_head_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    X, y = make_rows()
    options = SMALL | {"epochs": 3}
    head = CooccurrenceHead(WIDTHS, **options).fit(X, y)
    torch.rand(7)
    again, other = clone(head).fit(X, y), clone(head).set_params(random_state=1).fit(X, y)
    assert all(np.array_equal(head.weights_[name], again.weights_[name]) for name in head.weights_)
    assert not np.array_equal(head.weights_["fc3.weight"], other.weights_["fc3.weight"])


def test_head_leaves_torchs_random_state_alone() -> None:
    X, y = make_rows()
    before = torch.get_rng_state()
    CooccurrenceHead(WIDTHS, **SMALL | {"epochs": 2}).fit(X, y).predict(X)
    assert torch.equal(before, torch.get_rng_state())


def test_head_softmax_output_trains_differently() -> None:
    X, y = make_rows()
    plain = CooccurrenceHead(WIDTHS, **SMALL).fit(X, y)
    published = CooccurrenceHead(WIDTHS, softmax_output=True, **SMALL).fit(X, y)
    # cross-entropy on probabilities can't fall below log(e + 2) − 1
    assert published.loss_curve_[-1] > np.log(np.e + 2) - 1 > plain.loss_curve_[-1]


def test_head_chooses_epochs_and_sigma_on_whole_groups_held_out() -> None:
    X, y = make_rows(240)
    options = SMALL | {"epochs": 30, "sigma": "auto", "validation_fraction": 0.2}
    head = CooccurrenceHead(WIDTHS, **options).fit(X, y, groups=np.arange(240) // 2)
    assert head.sigma_ in SIGMA_GRID
    assert 1 <= head.epochs_ <= 30
    assert len(head.loss_curve_) == head.epochs_
    fixed = CooccurrenceHead(WIDTHS, **SMALL | {"epochs": head.epochs_, "sigma": head.sigma_}).fit(X, y)
    assert np.array_equal(fixed.predict_proba(X), head.predict_proba(X))


def test_head_grid_cells_are_what_single_trainings_score() -> None:
    X, y = make_rows(240)
    held_out = (X[:60], y[:60])
    grid = {"epochs": (4, 9), "learning_rate": (1e-2, 1e-3), "sigma": (0.1, 0.5)}
    head = CooccurrenceHead(WIDTHS, **SMALL | grid).fit(X[60:], y[60:], validation=held_out)
    cells = {(c["epochs"], c["learning_rate"], c["sigma"]): c for c in head.cells_}
    assert set(cells) == set(itertools.product(*grid.values()))
    for epochs, learning_rate, sigma in cells:
        own = {"epochs": epochs, "learning_rate": learning_rate, "sigma": sigma}
        alone = CooccurrenceHead(WIDTHS, **SMALL | own).fit(X[60:], y[60:])
        p = alone.predict_proba(X[:60])
        cell = cells[epochs, learning_rate, sigma]
        assert cell["log_loss"] == pytest.approx(log_loss(y[:60], p), abs=1e-4)
        assert cell["accuracy"] == pytest.approx(np.mean(alone.classes_[p.argmax(axis=1)] == y[:60]))
        assert cell["macro_f1"] == pytest.approx(f1_score(y[:60], alone.predict(X[:60]), average="macro"))
    chosen = (head.epochs_, head.learning_rate_, head.sigma_)
    assert cells[chosen]["log_loss"] == min(cell["log_loss"] for cell in cells.values())
    assert get_untrusted_types(data=dumps(head)) == ["embedtune.heads.cooccurrence_head.CooccurrenceHead"]


@pytest.mark.parametrize("state_bytes", [1, 2**30])
def test_networks_trained_together_in_several_threads_are_what_they_are_alone(
    state_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedtune.heads.together._STATE_BYTES", state_bytes)
    rows = Rows((torch.rand(50, 2, 8), torch.rand(50, 1, 4)), torch.arange(50) % 3, torch.ones(50))
    plans = [
        Plan(functools.partial(CooccurrenceNet, 2, 8, 1, 3, sigma=sigma, branch_width=4, hidden=(6, 5)), 0.01)
        for sigma in (0.1, 0.3, 0.5)
    ]
    options: dict[str, Any] = {"epochs": 3, "batch_size": 16, "seed": 0, "held_out": rows, "judged": (2, 3)}
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = train_together(plans, rows, **options)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        for plan, found in zip(plans, together, strict=True):
            (alone,) = train_together([plan], rows, **options)
            assert found.losses == pytest.approx(alone.losses, abs=1e-6)
            for epoch in (2, 3):
                torch.testing.assert_close(found.held_out[epoch], alone.held_out[epoch], atol=1e-5, rtol=0)
    finally:
        torch.set_num_threads(n_threads)


def test_network_that_fails_in_a_thread_is_told() -> None:
    rows = Rows((torch.rand(9, 2, 8), torch.rand(9, 1, 4)), torch.full((9,), 7), torch.ones(9))
    build = functools.partial(CooccurrenceNet, 2, 8, 1, 3, sigma=0.1, branch_width=4)
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(IndexError, match="Target 7 is out of bounds"):
            train_together([Plan(build, 0.01)] * 3, rows, epochs=2, batch_size=4, seed=0)
    finally:
        torch.set_num_threads(n_threads)


def test_head_validation_rows_with_a_new_label_are_refused() -> None:
    X, y = make_rows()
    with pytest.raises(DataError) as caught:
        CooccurrenceHead(WIDTHS, **SMALL).fit(X[y != "up"], y[y != "up"], validation=(X, y))
    assert str(caught.value) == (
        "validation has labels that the training rows lack (['up']): leave them out."
    )


def test_head_stops_before_it_overfits_noise() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(200, 20)), rng.integers(2, size=200)
    head = CooccurrenceHead(WIDTHS, **SMALL | {"epochs": 60, "validation_fraction": 0.25}).fit(X, y)
    assert head.epochs_ < 30


def test_head_csr_gives_what_dense_gives() -> None:
    X, y = make_rows()
    options = SMALL | {"epochs": 5}
    dense = CooccurrenceHead(WIDTHS, **options).fit(X, y).predict_proba(X)
    csr = sparse.csr_matrix(X)
    np.testing.assert_array_equal(CooccurrenceHead(WIDTHS, **options).fit(csr, y).predict_proba(csr), dense)


def test_head_saved_by_skops_needs_only_its_own_type() -> None:
    X, y = make_rows()
    head = CooccurrenceHead(WIDTHS, **SMALL | {"epochs": 2}).fit(X, y)
    data = dumps(head)
    types = get_untrusted_types(data=data)
    assert types == ["embedtune.heads.cooccurrence_head.CooccurrenceHead"]
    np.testing.assert_array_equal(loads(data, trusted=types).predict_proba(X), head.predict_proba(X))


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"widths": (8, 8, 4)}, (2, 8, 1, 4)),
        ({"widths": (10, 10)}, (2, 10, 0, 4)),
        ({"widths": (20,)}, (1, 20, 0, 5)),
        ({"widths": (4, 4, 4, 4, 4), "n_branch_blocks": 3}, (3, 4, 2, 4)),
        ({"widths": (10, 10), "branch_width": 7}, (2, 10, 0, 7)),
    ],
)
def test_head_resolves_its_shape(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    X, y = make_rows(30)
    assert CooccurrenceHead(**SMALL | {"epochs": 1} | options).fit(X, y).shape_ == shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"widths": (8, 8, 4), "n_branch_blocks": 3},
            "n_branch_blocks is 3: widths [8, 8, 4] start with 2 blocks of equal width, so give 1 to 2, or "
            "'auto'.",
        ),
        (
            {"widths": (8, 7, 5)},
            "blocks [7, 5] follow the 1 that pass a branch, and the branches put out 7: all must be equal. "
            "Leave those views out, or use the head 'stack'.",
        ),
        (
            {"sigma": "auto"},
            "CooccurrenceHead can't be trained: sigma is 'auto', a choice that needs a validation_fraction above 0.",
        ),
        (
            {"epochs": 0, "dropout": 1.0, "hidden": (8,)},
            "CooccurrenceHead can't be trained: epochs is 0, must be positive; dropout is 1.0, must be from 0 "
            "and below 1; hidden is (8,), must be two positive sizes.",
        ),
    ],
)
def test_head_unusable_parameters_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CooccurrenceHead(**options).fit(*make_rows(30))
    assert str(caught.value) == message


def test_head_balanced_favours_the_rare_class() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.1).astype(int)
    X = rng.normal(size=(400, 5)) + y[:, None] * 0.8
    options = SMALL | {"epochs": 15}
    plain = CooccurrenceHead(**options).fit(X, y).predict(X)
    balanced = CooccurrenceHead(class_weight="balanced", **options).fit(X, y).predict(X)
    assert balanced.sum() > 1.5 * plain.sum()
