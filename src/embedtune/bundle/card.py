"""The model card of a bundle: what it does, how well, at what cost, and where it ends."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from embedtune.embed.checkpoints import resolve_model
from embedtune.files import write_text

_SCORES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "mcc": "Matthews correlation",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
}


def write_card(folder: Path, manifest: Mapping[str, Any], results: Mapping[str, Any] | None = None) -> None:
    """Write a bundle's README.md.

    Parameters
    ----------
    folder : Path
    manifest : mapping
        As bundle.json has it.
    results : mapping, optional
        results.json of the run that made it; without it the card tells no figures.
    """
    notes = manifest["notes"]
    models = list(dict.fromkeys(view["params"]["model"] for view in _walk_backbones(manifest["views"])))
    head: dict[str, Any] = {
        "library_name": "embedtune",
        "pipeline_tag": "text-classification",
        "tags": ["embedtune", "text-classification"],
    }
    named = [m for m in models if re.fullmatch(r"[\w.-]+/[\w.-]+", str(m)) and not Path(m).is_dir()]
    if named:
        head["base_model"] = named
    title = notes.get("task") or "A text classifier"
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {_escape(title)}",
        "\n".join(_describe_task(manifest, results)),
    ]
    if results is not None:
        parts += ["## How well", "\n".join(_describe_scores(notes, results))]
        parts += ["## What it cost", "\n".join(_describe_cost(notes, results))]
    parts += ["## What it reads", "\n".join(_describe_views(manifest))]
    parts += ["## Limits", "\n".join(_describe_limits(manifest, results))]
    parts += ["## Use", _USE]
    write_text(folder / "README.md", "\n\n".join(parts) + "\n")


_USE = """```python
from embedtune import load_bundle

classifier = load_bundle("FOLDER")
classifier.predict_proba(["…"])
```

    embedtune predict FOLDER in.csv -o out.csv

Loading checks the hash of every file and of the backbones, and runs no code from this folder."""


def _describe_task(manifest: Mapping[str, Any], results: Mapping[str, Any] | None) -> Iterator[str]:
    labels = ", ".join(f"`{_escape(label)}`" for label in manifest["labels"])
    notes = manifest["notes"]
    yield f"Puts a text under one of {len(manifest['labels'])} labels: {labels}."
    yield ""
    if "arm" in notes:
        yield f"- Arm: {notes['arm']}, seed {notes.get('seed')}."
    if results is not None:
        n = results["n"]
        yield f"- Rows: {n['tune']:,} tune, {n['train']:,} train, {n['test']:,} test."
    if "data_fingerprint" in notes:
        yield f"- Data, prepared and split: fingerprint `{notes['data_fingerprint']}`."
    yield f"- Made by embedtune {manifest['embedtune']}, bundle schema {manifest['schema']}."


def _describe_scores(notes: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[str]:
    arm = results["arms"][notes["arm"]]
    yield f"On {results['n']['test']:,} test rows, with 95 % intervals:"
    yield ""
    yield "| | value | interval |"
    yield "|---|---|---|"
    for key, name in _SCORES.items():
        if (found := arm.get(key)) is not None:
            yield f"| {name} | {found['value']:.3f} | {found['low']:.3f} to {found['high']:.3f} |"
    yield ""
    yield f"{_escape(results['verdict'])}"
    yield ""
    calibration = arm.get("calibration")
    yield (
        f"Probabilities: calibrated ({calibration['method']}) on training rows it hadn't seen."
        if calibration and calibration.get("method") != "none"
        else "Probabilities: as the model gives them."
    )
    if sets := arm.get("sets"):
        yield (
            f"Sets of labels meant to hold the true one {100 * sets['coverage']:g} times in a hundred held it "
            f"{100 * sets['covered']:.1f} times, with {sets['mean_size']:.2f} labels on average."
        )


def _describe_cost(notes: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[str]:
    cost = results["arms"][notes["arm"]]["cost"]
    environment = results["environment"]
    device = environment.get("accelerator") or f"{environment.get('cpu')}, {environment.get('cores')} cores"
    seconds = cost["seconds"]  # None where an earlier run had read some of the texts
    told = (
        "Reading and training: seconds not measured"
        if seconds is None
        else f"{seconds:,.0f} seconds of reading and training"
    )
    yield f"- {told}, on {device}."
    trained, total = cost.get("trained_parameters"), cost.get("total_parameters")
    if trained is not None:
        yield f"- {trained:,} trained parameters" + (f" of {total:,}." if total is not None else ".")


def _describe_views(manifest: Mapping[str, Any]) -> Iterator[str]:
    for view in manifest["views"]:
        yield f"- **{_escape(view['name'])}**: {_describe_view(view)}"
    yield f"- Head: {manifest['head']['kind']}."


def _describe_view(view: Mapping[str, Any]) -> str:
    if view["kind"] == "cross-fitted":
        return f"{len(view['encoders'])} fine-tunings, averaged; each {_describe_view(view['encoders'][0])}"
    params = view["params"]
    if view["kind"] == "static":
        return f"static token vectors, {_escape(params['source'])}."
    if view["kind"] == "lexical":
        return "words and character n-grams, TF-IDF."
    tuned = ", fine-tuned" if "adapter" in view else ", frozen"
    packed = "; packed in" if "packed" in view else ""
    return (
        f"{_escape(params['model'])}{tuned}{packed}; layers {params['layers']}, pooling {_escape(params['pooling'])}, "
        f"up to {params['max_length']} tokens; weights `{view['backbone']['weights']}`; "
        f"licence: {_escape(read_licence(params['model']))}."
    )


def _describe_limits(manifest: Mapping[str, Any], results: Mapping[str, Any] | None) -> Iterator[str]:
    lengths = [view["params"]["max_length"] for view in _walk_backbones(manifest["views"])]
    splits = any(view["params"].get("long_texts") == "split" for view in _walk_backbones(manifest["views"]))
    yield "- It knows no other labels than these, and gives one of them to any text, whatever its language or topic."
    yield "- Its figures hold for texts like the test rows; a later year's, or another source's, may differ."
    if lengths and not splits:
        yield f"- Of a text longer than {min(lengths)} tokens the rest isn't read."
    if results is None:
        yield "- No test figures came with it."
    yield "- The licences of the backbones, and of the data it learned from, bind its use."


def _walk_backbones(views: list[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for view in views:
        if view["kind"] == "cross-fitted":
            yield from _walk_backbones(view["encoders"])
        elif view["kind"] == "transformer":
            yield view


def read_licence(model: str) -> str:
    """Return the licence that a model's own card names, where the card is at hand."""
    source = resolve_model(model)
    card = source / "README.md" if isinstance(source, Path) else None
    if isinstance(source, str):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(source, "README.md")
        card = Path(cached) if isinstance(cached, str) else None
    if card is not None and card.is_file():
        front = card.read_text(encoding="utf-8", errors="replace").split("---")
        found = re.search(r"^license:\s*(\S+)", front[1], re.MULTILINE) if len(front) > 2 else None
        if found:
            return found[1]
    return "see its own card"


def _escape(text: object) -> str:
    """Keep names from data and configs from being read as markup."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", str(text)).replace("\n", " ")
