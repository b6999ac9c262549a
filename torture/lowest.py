"""python -m torture.lowest FOLDER: a venv with the lowest version of every dependency, and the tests that touch each.

    python -m torture.lowest /tmp/lowest              # or --highest: the newest of all, whatever constraints.txt has

torch is the one of constraints.txt in both, since another build of it is gigabytes. uv, which knows how to take the
lowest versions that fit together, is installed into the folder.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from torture import ROOT

EXTRAS = ("demo", "energy", "interop", "llm", "onnx", "openvino", "search", "serve", "track")
#: What the tests need, at any version.
TOOLS = (
    "pytest",
    "pytest-xdist",
    "hypothesis",
    "httpx",
    "polars",
    "onnxruntime",
    "openai",
    "wandb",
    "mteb",
    "statsmodels",
)
#: Tests by what they touch; whatever else a dependency is used for stays untried.
TESTS = {
    "pylance, filelock, fsspec": ("test_store.py", "test_predict_places.py"),
    "transformers, tokenizers, safetensors": ("test_backbone.py", "test_encoder.py"),
    "peft, accelerate, tensorboard": ("test_finetune_resume.py",),
    "trl": ("test_instruction.py",),
    "scikit-learn, scipy, joblib, threadpoolctl": (
        "test_linear.py",
        "test_sklearn.py",
        "test_significance.py",
    ),
    "cleanlab": ("test_suspects.py",),
    "pandas, pyarrow, openpyxl, datasets": ("test_sources.py", "test_predict_rows.py"),
    "pydantic, PyYAML": ("test_config.py",),
    "typer, rich, jinja2": ("test_run_errors.py", "test_report.py"),
    "skops": ("test_bundle.py",),
    "wordllama": ("test_static.py",),
    "openvino": ("test_openvino.py",),
    "onnx, onnxscript": ("test_export.py",),
    "optuna": ("test_search.py",),
    "mlflow-skinny, SQLAlchemy, alembic": ("test_tracking.py",),
    "fastapi, uvicorn, prometheus-client": ("test_serve.py",),
    "sentence-transformers": ("test_interop.py",),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m torture.lowest", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--highest", action="store_true")
    parser.add_argument(
        "--only", metavar="WORD", help="only the tests of dependencies with this in their names"
    )
    options = parser.parse_args()
    python = make_venv(options.folder, resolution="highest" if options.highest else "lowest-direct")
    sys.stdout.write(f"{', '.join(list_versions(python))}\n")
    chosen = [name for what, names in TESTS.items() if (options.only or "") in what for name in names]
    paths = [str(ROOT / "tests" / name) for name in chosen]
    command = [python, "-m", "pytest", "-q", "-o", "filterwarnings=default", "-p", "no:cacheprovider", *paths]
    return subprocess.run(command, cwd=ROOT, env=make_environment(), check=False).returncode


def make_venv(folder: Path, *, resolution: str) -> str:
    """Make the venv, or go on with it, and return its interpreter."""
    python = str(folder / "bin" / "python")
    if not Path(python).exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    torch = next(
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")
    )
    subprocess.run([*pip, torch, "uv"], check=True)
    (folder / "torch.txt").write_text(f"{torch}\n")
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    chosen = subprocess.run(
        [str(folder / "bin" / "uv"), "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python", python,
         "--resolution", resolution, "--override", str(folder / "torch.txt"), *extras, str(ROOT / "pyproject.toml")],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    # Without what torch's own build on the index brings: the one that is there needs none of it.
    unwanted = re.compile(r"(torch|triton|nvidia-(?!ml-py)[\w-]+|cuda-[\w-]+)==")
    kept = [line for line in chosen.splitlines() if not unwanted.match(line)]
    (folder / "versions.txt").write_text("\n".join(kept) + "\n")
    subprocess.run([*pip, "--no-deps", "-r", str(folder / "versions.txt")], check=True)
    subprocess.run([*pip, "--constraint", str(folder / "versions.txt"), *TOOLS], check=True)
    subprocess.run([*pip, "--no-deps", "--editable", str(ROOT)], check=True)
    return python


def list_versions(python: str) -> list[str]:
    """Return what is installed of the packages that pyproject.toml names."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in EXTRAS for line in project["optional-dependencies"][extra]),
    ]
    names = {re.split(r"[\[><=]", line)[0].lower().replace("_", "-") for line in wanted}
    found = subprocess.run([python, "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout
    lines = [line for line in found.splitlines() if "==" in line]
    return [line for line in lines if line.split("==")[0].lower().replace("_", "-") in names]


def make_environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


if __name__ == "__main__":
    sys.exit(main())
