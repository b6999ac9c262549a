from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io

from embedtune import (
    EmbedClassifier,
    LexicalEncoder,
    StaticEncoder,
    TransformerEncoder,
    load_bundle,
)
from embedtune.errors import BackboneError, BundleError, EmbedtuneError
from embedtune.files import hash_file, read_sealed, write_sealed
from embedtune.finetune.train import fine_tune
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
    write_sealed(path, {**read_sealed(path, {}, again=""), **changes})


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
    edit(bundle, schema=9, new="what this release doesn't know", labels=3)
    assert fail(bundle) == (
        f"{bundle / 'bundle.json'} was written by a newer release of embedtune (schema 9, and this one reads 1): "
        "upgrade embedtune."
    )


def test_earlier_schema_is_refused(bundle: Path) -> None:
    edit(bundle, schema=0)
    assert fail(bundle) == (
        f"{bundle / 'bundle.json'} was written by an earlier release of embedtune (schema 0, and this one reads 1): "
        "train and save the bundle again."
    )


def test_manifest_without_a_hash_is_an_earlier_release_s(bundle: Path) -> None:
    path = bundle / "bundle.json"
    path.write_text(json.dumps(read_sealed(path, {}, again="")))
    assert fail(bundle) == (
        f"{path} has no sha256, as files of earlier releases: train and save the bundle again."
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


def test_changed_manifest_is_refused(bundle: Path) -> None:
    path = bundle / "bundle.json"
    path.write_text(path.read_text().replace('"up"', '"uq"'))
    assert fail(bundle) == f"{path} is damaged: copy the bundle again."


def test_type_outside_the_short_list_is_refused(bundle: Path) -> None:
    skops.io.dump(Evil(), bundle / "head.skops")
    files = json.loads((bundle / "bundle.json").read_text())["files"]
    edit(bundle, files={**files, "head.skops": hash_file(bundle / "head.skops")})
    assert fail(bundle) == "head.skops holds types we don't load: test_bundle.Evil. Get a bundle you trust."


def relist(bundle: Path, **files: str) -> None:
    """Put names in the manifest with the hash of what lies there now."""
    listed = json.loads((bundle / "bundle.json").read_text())["files"]
    edit(bundle, files={**listed, **{name: hash_file(bundle / name) for name in files.values()}})


@pytest.mark.parametrize(
    "name", ["numpy.fromfile", "numpy.f2py.__main__.main", "numpy.memmap", "builtins.eval"]
)
def test_function_or_module_in_place_of_a_class_is_refused(bundle: Path, name: str) -> None:
    with zipfile.ZipFile(bundle / "head.skops") as archive:
        files = {member: archive.read(member) for member in archive.namelist()}
    schema = json.loads(files["schema.json"])
    schema["__module__"], _, schema["__class__"] = name.rpartition(".")
    with zipfile.ZipFile(bundle / "head.skops", "w") as archive:
        for member, data in {**files, "schema.json": json.dumps(schema)}.items():
            archive.writestr(member, data)
    relist(bundle, x="head.skops")
    assert fail(bundle) == f"head.skops holds types we don't load: {name}. Get a bundle you trust."


def test_head_that_a_bundle_cannot_hold_is_told_when_it_is_saved(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    classifier = EmbedClassifier([LexicalEncoder()], RandomForestClassifier(n_estimators=2)).fit(
        TEXTS, LABELS
    )
    with pytest.raises(
        BundleError, match=r"RandomForestClassifier holds types that a bundle can't \(sklearn.tree"
    ):
        classifier.save(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("kind", ["calibrated", "network"])
def test_heads_of_scikit_learn_are_saved(tmp_path: Path, kind: str) -> None:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import LinearSVC

    head = {
        "calibrated": lambda: CalibratedClassifierCV(LinearSVC(), cv=2),
        "network": lambda: MLPClassifier((4,), max_iter=500, tol=0.1, random_state=0),
    }[kind]()
    classifier = EmbedClassifier([LexicalEncoder()], head).fit(TEXTS, LABELS)
    loaded = load_bundle(classifier.save(tmp_path / "bundle"))
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), classifier.predict_proba(TEXTS))


@pytest.mark.parametrize("thing", [{"classes_": ["up"]}, np.zeros(3), "up"])
@pytest.mark.parametrize("name", ["head.skops", "calibrator.skops"])
def test_head_that_is_none_is_refused(bundle: Path, name: str, thing: Any) -> None:
    skops.io.dump(thing, bundle / name)
    relist(bundle, x=name)
    assert fail(bundle).startswith(f"{bundle} is damaged (AttributeError")


def test_labels_that_are_not_the_heads_are_refused(bundle: Path) -> None:
    edit(bundle, labels=["down", "flat", "sideways"])
    assert "the head has other labels" in fail(bundle)


def test_setting_of_another_type_is_refused(bundle: Path) -> None:
    views = json.loads((bundle / "bundle.json").read_text())["views"]
    views[0]["params"]["pooling"] = 7
    edit(bundle, views=views)
    assert fail(bundle) == (
        f"{bundle} sets 'pooling' of its view 'bert' to '7', which it can't be: get a bundle you trust."
    )


def test_export_leaves_a_card_that_is_a_link(bundle: Path, tmp_path: Path) -> None:
    from embedtune.bundle import copy_bundle

    (tmp_path / "secret").write_text("hf_secret")
    (bundle / "README.md").unlink()
    (bundle / "README.md").symlink_to(tmp_path / "secret")
    copied = copy_bundle(bundle, tmp_path / "alone", standalone=False)
    assert "hf_secret" not in (copied / "README.md").read_text()


def test_pipe_in_place_of_the_manifest_is_no_bundle(bundle: Path) -> None:
    (bundle / "bundle.json").unlink()
    os.mkfifo(bundle / "bundle.json")
    assert fail(bundle).startswith(f"{bundle} is not a bundle")


def test_smuggled_pickle_is_refused_and_does_not_run(bundle: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    payload = pickle.dumps(Smuggler(mark))
    (bundle / "head.pkl").write_bytes(payload)
    assert fail(bundle) == (
        f"{bundle} holds 'head.pkl', which wasn't saved with it: delete it, or copy the bundle again."
    )
    relist(bundle, x="head.pkl")
    assert fail(bundle).startswith(f"{bundle} holds 'head.pkl', and only .json, ")
    (bundle / "head.pkl").rename(bundle / "head.skops")
    files = json.loads((bundle / "bundle.json").read_text())["files"]
    edit(bundle, files={name: sha256 for name, sha256 in files.items() if name != "head.pkl"})
    relist(bundle, x="head.skops")
    assert fail(bundle) == f"head.skops in {bundle} is no skops file: get a bundle you trust."
    assert not mark.exists()


@pytest.mark.parametrize("name", ["/etc/hostname.json", "../outside.json", "adapters/../../outside.json"])
def test_path_out_of_the_bundle_is_refused(bundle: Path, name: str) -> None:
    (bundle.parent / "outside.json").write_text("{}")
    files = json.loads((bundle / "bundle.json").read_text())["files"]
    edit(bundle, files={**files, name: "0" * 64})
    assert fail(bundle) == f"{bundle} lists the file '{name}' outside of itself: get a bundle you trust."


def test_link_out_of_the_bundle_is_refused(bundle: Path) -> None:
    outside = bundle.parent / "outside.json"
    (bundle / "view-words.json").rename(outside)
    (bundle / "view-words.json").symlink_to(outside)
    assert fail(bundle) == (
        f"'view-words.json' in {bundle} is a link that leads out of it: get a bundle you trust."
    )


def test_view_that_speaks_of_a_file_outside_is_refused(bundle: Path) -> None:
    views = json.loads((bundle / "bundle.json").read_text())["views"]
    views[1]["file"] = "../outside.json"
    edit(bundle, views=views)
    assert fail(bundle) == (
        f"{bundle} speaks of '../outside.json' and doesn't hold it: copy the whole bundle again."
    )


def test_bundle_cannot_ask_for_remote_code(bundle: Path, model: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (model / "custom.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "custom.C", "AutoModel": "custom.M"}}
    (model / "config.json").write_text(json.dumps(config))
    views = json.loads((bundle / "bundle.json").read_text())["views"]
    assert "trust_remote_code" not in views[0]["params"]
    views[0]["params"]["trust_remote_code"] = True
    edit(bundle, views=views)
    assert fail(bundle).startswith(
        f"{bundle} sets 'trust_remote_code' of its view 'bert', which a bundle can't"
    )
    del views[0]["params"]["trust_remote_code"]
    edit(bundle, views=views)
    with pytest.raises(EmbedtuneError) as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_missing_backbone_is_told_and_can_be_given(bundle: Path, model: Path, tmp_path: Path) -> None:
    before = load_bundle(bundle).predict_proba(TEXTS)
    shutil.move(model, tmp_path / "moved")
    with pytest.raises(BackboneError) as caught:
        load_bundle(bundle)
    assert str(model) in str(caught.value)
    again = load_bundle(bundle, models={str(model): tmp_path / "moved"})
    np.testing.assert_allclose(again.predict_proba(TEXTS), before, atol=1e-6)


def test_name_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    classifier = EmbedClassifier([("../up", LexicalEncoder())], "logistic").fit(TEXTS, LABELS)
    with pytest.raises(BundleError, match="can't be saved under that name"):
        classifier.save(tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [{"files": 3}, {"views": None}, {"head": []}, {"notes": "x"}])
def test_manifest_of_another_shape_is_another_release_s(bundle: Path, damage: dict[str, object]) -> None:
    edit(bundle, **damage)
    assert fail(bundle) == (
        f"{bundle / 'bundle.json'} was written by another release of embedtune "
        f"('{next(iter(damage))}' is of another kind): train and save the bundle again."
    )


def test_standalone_bundle_needs_nothing_else(model: Path, tmp_path: Path) -> None:
    tuned = fine_tune(
        model,
        TEXTS,
        labels=LABELS,
        label_names=sorted(set(LABELS)),
        output_dir=tmp_path / "tuned",
        method="lora",
        epochs=1,
        max_length=32,
        device="cpu",
    )
    views = [
        ("bert", TransformerEncoder(str(model), max_length=32)),
        ("tuned", TransformerEncoder(str(model), max_length=32, adapter=str(tuned.path))),
        ("static", StaticEncoder()),
        ("words", LexicalEncoder()),
    ]
    classifier = EmbedClassifier(views, "logistic").fit(TEXTS, LABELS)
    saved = classifier.save(tmp_path / "bundle", standalone=True, notes={"task": "moves"})
    expected = classifier.predict_proba(TEXTS)
    moved = tmp_path / "elsewhere" / "bundle"
    shutil.copytree(saved, moved)
    for folder in (model, tuned.path, saved):
        shutil.rmtree(folder)
    again = load_bundle(moved)
    assert {Path(again.views_[i][1].model).parent for i in (0, 1)} == {moved / "backbones"}
    np.testing.assert_allclose(again.predict_proba(TEXTS), expected, atol=1e-5)


def test_card_tells_task_labels_backbones_and_limits(bundle: Path, model: Path) -> None:
    card = (bundle / "README.md").read_text()
    assert "# moves" in card
    assert "`down`, `flat`, `up`" in card
    assert "up to 32 tokens" in card
    (bundle / "README.md").write_text("# Mine")
    load_bundle(bundle)


def test_saving_over_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    classifier = EmbedClassifier([LexicalEncoder()], "logistic").fit(TEXTS, LABELS)
    with pytest.raises(BundleError) as caught:
        classifier.save(tmp_path)
    assert str(caught.value) == f"{tmp_path} exists and is not a bundle: choose another path."


class Smuggler:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


class Evil:
    """A type no bundle should bring."""

    def __init__(self) -> None:
        self.x = 1
