from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import skops.io

from embedtune import (
    EmbedClassifier,
    LexicalEncoder,
    StaticEncoder,
    TransformerEncoder,
    __version__,
    load_bundle,
)
from embedtune.errors import BundleError
from test_classifier import LABELS, TEXTS
from tiny_models import build_tiny_bert


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build_tiny_bert(tmp_path / "bert")


@pytest.fixture
def bundle(model: Path, tmp_path: Path) -> Path:
    views = [("bert", TransformerEncoder(str(model), max_length=32)), ("words", LexicalEncoder())]
    return (
        EmbedClassifier(views, "logistic")
        .fit(TEXTS, LABELS)
        .save(tmp_path / "bundle", notes={"task": "moves"})
    )


def fail(bundle: Path) -> str:
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle)
    return str(caught.value)


def edit(bundle: Path, **changes: object) -> None:
    path = bundle / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_manifest_tells_labels_views_and_notes(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert (manifest["schema"], manifest["labels"], manifest["notes"]) == (
        1,
        ["down", "flat", "up"],
        {"task": "moves"},
    )
    assert [view["kind"] for view in manifest["views"]] == ["transformer", "lexical"]
    assert not list(bundle.rglob("*.pkl"))


def test_static_view_survives(tmp_path: Path) -> None:
    classifier = EmbedClassifier([StaticEncoder()], "logistic").fit(TEXTS, LABELS)
    again = load_bundle(classifier.save(tmp_path / "bundle"))
    assert list(again.predict(TEXTS)) == list(classifier.predict(TEXTS))


def test_projected_lexical_view_survives(tmp_path: Path) -> None:
    classifier = EmbedClassifier([LexicalEncoder(n_components=4)], "logistic").fit(TEXTS, LABELS)
    again = load_bundle(classifier.save(tmp_path / "bundle"))
    np.testing.assert_allclose(again.predict_proba(TEXTS), classifier.predict_proba(TEXTS), atol=1e-6)


def test_changed_file_is_refused(bundle: Path) -> None:
    with (bundle / "head.skops").open("ab") as file:
        file.write(b"x")
    assert fail(bundle) == (
        f"head.skops in {bundle} is not the file that was saved: copy the bundle again, or build it anew."
    )


def test_missing_file_is_refused(bundle: Path) -> None:
    (bundle / "view-words.json").unlink()
    assert fail(bundle) == f"{bundle} lacks its file view-words.json: copy the whole bundle again."


def test_newer_schema_is_refused(bundle: Path) -> None:
    edit(bundle, schema=9, embedtune="7.0")
    assert fail(bundle) == (
        f"{bundle} has schema 9, written by embedtune 7.0; "
        f"this embedtune {__version__} reads up to 1: upgrade embedtune."
    )


def test_backbone_with_other_weights_is_refused(bundle: Path, model: Path) -> None:
    shutil.rmtree(model)
    build_tiny_bert(model, seed=1)
    message = fail(bundle)
    assert message.startswith(f"the bundle's view 'bert' was trained on {model} with weights ")
    assert message.endswith("get the same model, or train again.")


def test_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    assert fail(tmp_path) == (
        f"{tmp_path} is not a bundle (no bundle.json): give the bundle folder of a run, "
        "such as runs/demo/sentiment/bundle."
    )


def test_damaged_manifest_is_refused(bundle: Path) -> None:
    (bundle / "bundle.json").write_text("{")
    assert fail(bundle) == f"{bundle / 'bundle.json'} is damaged: copy the bundle again."


def test_type_outside_the_short_list_is_refused(bundle: Path) -> None:
    from embedtune.embed.checkpoints import hash_file

    skops.io.dump(Evil(), bundle / "head.skops")
    files = json.loads((bundle / "bundle.json").read_text())["files"]
    edit(bundle, files={**files, "head.skops": hash_file(bundle / "head.skops")})
    assert fail(bundle) == "head.skops holds types we don't load: test_bundle.Evil. Get a bundle you trust."


def test_saving_over_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    classifier = EmbedClassifier([LexicalEncoder()], "logistic").fit(TEXTS, LABELS)
    with pytest.raises(BundleError) as caught:
        classifier.save(tmp_path)
    assert str(caught.value) == f"{tmp_path} exists and is not a bundle: choose another path."


class Evil:
    """A type no bundle should bring."""

    def __init__(self) -> None:
        self.x = 1
