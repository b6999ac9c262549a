"""The layers of ARCHITECTURE.md hold: every import, function-level ones too, goes to the same line or one above."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import embedtune

ROOT = Path(embedtune.__file__).parent
#: Prefixes by layer, the most specific match wins.
LAYERS = {
    "": 0, "errors": 0, "files": 0, "memory": 0, "progress": 0,
    "config": 1, "recipe": 1, "runfolder": 1, "data.dataset": 1, "embed.pooling": 1, "embed.batching": 1,
    "embed.texts": 1, "evaluate.metrics": 1, "engine": 1,
    "data": 2, "embed": 2, "prompt": 2, "heads": 2, "evaluate": 2,
    "finetune": 3, "report": 3, "trackers": 3, "recipes": 1,
    "bundle": 4, "views": 4, "classifier": 5,
    "plan": 6, "assemble": 6, "scan": 6, "fitting": 6, "predictions": 6, "results": 6, "tables": 6,
    "across": 7, "suspects": 7, "confounding": 7, "curve": 7, "comparison": 7, "cascade": 7, "tracking": 7,
    "export": 6, "interop": 6,
    "pipeline": 8, "predict": 8, "ablation": 8, "repeat": 8, "doctor": 8, "bench": 8, "serve": 8,
    "console": 9, "cli": 9, "__main__": 9,
}  # fmt: skip
#: Folders that must not know each other.
STRANGERS = [
    ("embed", "heads"),
    ("heads", "embed"),
    ("evaluate", "embed"),
    ("evaluate", "heads"),
    ("data", "embed"),
]
SEES_EXPERIMENT = {
    "config", "plan", "assemble", "scan", "suspects", "confounding", "curve", "comparison", "pipeline",
    "repeat", "tracking", "cli",
}  # fmt: skip


def list_modules() -> list[str]:
    return sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").removesuffix(".")
        for path in ROOT.rglob("*.py")
    )


def find_imports(module: str) -> set[str]:
    path = ROOT.joinpath(*module.split(".")) if module else ROOT
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "embedtune":
            inside = node.module.partition(".")[2]
            for alias in node.names:
                candidate = f"{inside}.{alias.name}".strip(".")
                found.add(candidate if candidate in list_modules() else inside)
        elif isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.split(".")[0] == "embedtune"}
    return found


def find_layer(module: str) -> int:
    parts = module.split(".")
    for n in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:n])) in LAYERS:
            return LAYERS[prefix]
    raise AssertionError(f"{module} is in no layer of this test and of ARCHITECTURE.md")


@pytest.mark.parametrize("module", [name for name in list_modules() if name])
def test_module_imports_only_its_own_layer_or_above(module: str) -> None:
    lower = {name for name in find_imports(module) if find_layer(name) > find_layer(module)}
    assert not lower


@pytest.mark.parametrize("module", list_modules())
def test_module_does_not_import_strangers(module: str) -> None:
    imported = {name.split(".")[0] for name in find_imports(module)}
    assert not {there for here, there in STRANGERS if module.split(".")[0] == here and there in imported}


def test_experiment_is_seen_by_the_rim_only() -> None:
    seers = {module for module in list_modules() if "config" in find_imports(module)}
    assert {module.split(".")[0] for module in seers} <= SEES_EXPERIMENT


def test_a_run_imports_the_trainer_only_to_train() -> None:
    code = "import sys, embedtune.pipeline; print({'peft', 'bitsandbytes', 'transformers.trainer'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
