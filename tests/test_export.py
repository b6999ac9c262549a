"""Bundles written in another form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from embedtune import EmbedClassifier, LexicalEncoder, TransformerEncoder, load_bundle
from embedtune.cli import app
from embedtune.errors import BundleError
from embedtune.export import export_onnx, export_standalone
from embedtune.finetune.train import fine_tune
from test_classifier import LABELS, TEXTS


def read_graph(folder: Path, facts: dict[str, Any], texts: list[str]) -> Any:
    """Read texts with a graph as its user would: tokenizers and onnxruntime, no torch."""
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / facts["tokenizer"] / "tokenizer.json"))
    tokenizer.enable_truncation(facts["max_length"])
    tokenizer.enable_padding()
    rows = tokenizer.encode_batch(texts)
    inputs = {
        "input_ids": np.array([row.ids for row in rows], dtype=np.int64),
        "attention_mask": np.array([row.attention_mask for row in rows], dtype=np.int64),
    }
    session = onnxruntime.InferenceSession(str(folder / facts["file"]))
    return np.hstack(session.run(facts["outputs"], inputs))


@pytest.mark.parametrize(
    ("family", "poolings"), [("bert", ("mean", "cls", "max")), ("llama", ("last", "mean"))]
)
def test_onnx_graph_gives_the_encoders_vectors(
    family: str, poolings: tuple[str, ...], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = request.getfixturevalue(f"tiny_{family}")
    tuned = fine_tune(
        model,
        TEXTS,
        labels=LABELS,
        label_names=sorted(set(LABELS)),
        output_dir=tmp_path / "tuned",
        method="lora",
        epochs=1,
        max_length=32,
        precision="float32",
        device="cpu",
    )
    encoder = TransformerEncoder(
        str(model),
        layers=(-1, 1),
        pooling=poolings,
        max_length=8,
        adapter=str(tuned.path),
        precision="float32",
        backend="torch",
    )
    views = [("tuned", encoder), ("words", LexicalEncoder())]
    bundle = EmbedClassifier(views, "logistic").fit(TEXTS, LABELS).save(tmp_path / "bundle")
    out = export_onnx(bundle, tmp_path / "onnx")
    (facts,) = json.loads((out / "onnx.json").read_text())["graphs"]
    assert facts["inputs"] == ["input_ids", "attention_mask"]
    texts = [*TEXTS, "one", "sales " * 40]
    found = read_graph(out, facts, texts)
    assert np.abs(found - encoder.transform(texts)).max() < 1e-3
    assert np.abs(found - found[0]).max() > 1e-2


def test_pooling_that_reads_padding_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    encoder = TransformerEncoder(str(tiny_bert), pooling="mean_padded", max_length=16)
    bundle = EmbedClassifier([("bert", encoder)], "logistic").fit(TEXTS, LABELS).save(tmp_path / "bundle")
    result = CliRunner().invoke(app, ["export", str(bundle), "-o", str(tmp_path / "out"), "--as", "onnx"])
    assert result.exit_code != 0
    assert "pooling 'mean_padded' can't be written as ONNX" in result.output
    assert not (tmp_path / "out").exists()


def test_standalone_copy_gives_the_same_and_keeps_notes_and_card(tiny_bert: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_bert, tmp_path / "model")
    encoder = TransformerEncoder(str(model), max_length=32)
    classifier = EmbedClassifier([("bert", encoder)], "logistic").fit(TEXTS, LABELS)
    bundle = classifier.save(tmp_path / "bundle", notes={"task": "moves"})
    (bundle / "README.md").write_text("# Mine\n")
    result = CliRunner().invoke(app, ["export", str(bundle), "-o", str(tmp_path / "alone")])
    assert result.exit_code == 0, result.output
    expected = classifier.predict_proba(TEXTS)
    shutil.rmtree(model)
    np.testing.assert_allclose(load_bundle(tmp_path / "alone").predict_proba(TEXTS), expected, atol=1e-6)
    assert json.loads((tmp_path / "alone" / "bundle.json").read_text())["notes"] == {"task": "moves"}
    assert (tmp_path / "alone" / "README.md").read_text() == "# Mine\n"


def test_existing_target_and_bundle_without_backbone_are_refused(tmp_path: Path) -> None:
    bundle = EmbedClassifier([LexicalEncoder()], "logistic").fit(TEXTS, LABELS).save(tmp_path / "bundle")
    with pytest.raises(BundleError, match="exists and is not written over"):
        export_standalone(bundle, bundle)
    with pytest.raises(BundleError, match="reads no backbone"):
        export_onnx(bundle, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]
