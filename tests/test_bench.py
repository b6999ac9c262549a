"""embedtune bench: contests between processes, and the suites on small parts."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from embedtune.bench.contest import Contestant, hold
from embedtune.bench.scale import write_texts
from embedtune.bench.suite import SUITES, Row, load_suite
from embedtune.bench.work import count_extraction
from embedtune.cli import app
from embedtune.errors import ConfigError, ResourceError

ROOT = Path(__file__).parent.parent

SCRIPT = """
import time
import numpy as np

def prepare(job):
    def run():
        print("noise")
        time.sleep(job["seconds"])
        return {"array": np.full(3, job["seconds"]), "rows": 7}
    return run
"""


@pytest.fixture
def draw() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "draw.py")))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "sleeper.py"
    path.write_text(SCRIPT)
    return path


def test_contest_times_each_contestant_round_by_round(script: Path) -> None:
    found = hold(
        [Contestant("quick", script, {"seconds": 0.02}), Contestant("slow", script, {"seconds": 0.1})],
        rounds=3,
    )
    assert len(found["quick"].seconds) == len(found["slow"].seconds) == 3
    ratio = found["slow"].over(found["quick"])
    assert ratio.low <= ratio.median <= ratio.high
    assert 2 < ratio.median < 6
    np.testing.assert_array_equal(found["slow"].arrays["array"], np.full(3, 0.1))
    assert found["slow"].facts[-1] == {"rows": 7}
    assert found["slow"].peak_bytes > 2**20


def test_failing_contestant_says_what_it_printed(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("import no_such_module_anywhere\n")
    with pytest.raises(ResourceError, match=r"'broken' stopped with code 1: .*no_such_module_anywhere"):
        hold([Contestant("broken", script)])


def test_row_knows_whether_its_aim_is_reached() -> None:
    assert Row("a", "b", 3.6, aim=3.5).reached is True
    assert Row("a", "b", 3.4, aim=3.5).reached is False
    assert Row("a", "b", 0.2, aim=0.3, at_most=True).reached is True
    assert Row("a", "b", None, aim=3.5).reached is None


def test_unknown_suite_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="suite 'cpus' is unknown"):
        load_suite("cpus")


def test_startup_suite_prints_and_writes(tmp_path: Path) -> None:
    path = tmp_path / "startup.json"
    result = CliRunner().invoke(app, ["bench", "startup", "--rounds", "1", "-o", str(path)])
    assert result.exit_code == 0, result.output
    written = json.loads(path.read_text())
    assert {row["what"] for row in written["rows"]} == {"embedtune --help", "import embedtune"}
    assert written["machine"]["gflops"]["float32"] > 0
    assert "it doesn't import torch" in result.output
    assert set(SUITES) >= {written["suite"]}


def test_page_says_what_the_results_say() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/draw.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_drawn_numbers_have_three_figures(draw: SimpleNamespace) -> None:
    assert [draw.show(value) for value in (0.01234, 1.0, 12.345, 123.45, 4567.8)] == [
        "0.0123", "1.00", "12.3", "123", "4568",
    ]  # fmt: skip


def test_table_tells_missed_from_unmeasured(draw: SimpleNamespace) -> None:
    row = Row("grid", "one by one", 8.0, 7.5, 9.0, aim=10.0)
    assert draw.draw_row({**row._asdict(), "reached": row.reached}).endswith("| ≥ 10 | **missed** |")
    row = Row("extraction on a GPU", "padded", None, aim=1.8)
    assert "| not measured |" in draw.draw_row({**row._asdict(), "reached": row.reached})


@pytest.mark.slow
def test_heads_suite_compares_each_cell(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    peers = Path(__file__).parent.parent / "benchmarks" / "peers"
    result = CliRunner().invoke(app, ["bench", "heads", "--smoke", "--peers", str(peers), "-o", str(path)])
    assert result.exit_code == 0, result.output
    written = json.loads(path.read_text())
    assert [row["aim"] for row in written["rows"]] == [10, None, 3, None]
    assert all(row["value"] > 0 for row in written["rows"])
    for name in ("minilm", "llama"):
        assert len(written["details"][name]["published"]["facts"]["accuracy"]) == 2
    differences = [float(row["note"].split()[5].rstrip(";")) for row in written["rows"][::2]]
    assert max(differences) < 1e-3


@pytest.mark.slow
def test_run_suite_runs_every_arm_on_a_small_part(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    result = CliRunner().invoke(app, ["bench", "run", "--smoke", "-o", str(path)])
    assert result.exit_code == 0, result.output
    written = json.loads(path.read_text())
    assert written["rows"][0]["aim"] == 3
    (facts,) = [found["facts"] for found in written["details"].values()]
    assert {"majority", "floor", "frozen", "frozen+", "tuned", "end-to-end"} <= set(facts["macro_f1"])


@pytest.mark.slow
def test_finetune_suite_runs_and_compares(tmp_path: Path) -> None:
    path = tmp_path / "finetune.json"
    options = ["--smoke", "--peers", str(ROOT / "benchmarks" / "peers"), "-o", str(path)]
    result = CliRunner().invoke(app, ["bench", "finetune", *options])
    assert result.exit_code == 0, result.output
    written = json.loads(path.read_text())
    assert [row["aim"] for row in written["rows"]] == [3.0, -1.0, 1.6, 0.0, 4.0]
    assert all(row["value"] is not None for row in written["rows"])
    facts = written["details"]["sentiment"]["facts"]
    assert facts["3 upper layers, 4 epochs"][0]["trunk_seconds"] > 0
    assert facts["3 upper layers, 4 epochs, trunk there"][0]["trunk_seconds"] == 0


def test_finetune_suite_refuses_an_unknown_part() -> None:
    result = CliRunner().invoke(app, ["bench", "finetune", "--only", "gold"])
    assert result.exit_code != 0
    assert "part 'gold' is unknown" in " ".join(result.output.split())


def test_gpu_suite_runs_its_small_shape_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    result = CliRunner().invoke(app, ["bench", "gpu", "--smoke", "-o", str(path)])
    assert result.exit_code == 0, result.output
    written = json.loads(path.read_text())
    assert [row["aim"] for row in written["rows"]] == [30, 1.8, None, 60, 2]
    assert all(row["value"] > 0 for row in written["rows"])
    assert "lowest cosine between packed and padded 1.00000" in written["rows"][1]["note"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpu_suite_without_a_device_says_so() -> None:
    result = CliRunner().invoke(app, ["bench", "gpu"])
    assert result.exit_code == 2
    assert "bench gpu needs a CUDA device" in result.output


@pytest.mark.slow
def test_cpu_suite_compares_with_float32(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    result = CliRunner().invoke(app, ["bench", "cpu", "--smoke", "--only", "contest", "-o", str(path)])
    assert result.exit_code == 0, result.output
    written = json.loads(path.read_text())
    assert written["rows"][0]["what"] == "five layers × two poolings"
    assert written["details"]["lowest_cosine"]["ours"] > 0.999
    assert written["details"]["gflop"] > 0


def test_work_of_a_reading_is_that_of_its_matrices() -> None:
    from transformers import BertConfig, LlamaConfig

    bert = BertConfig(hidden_size=8, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)
    per_layer = 2 * 10 * (4 * 8 * 8 + 2 * 8 * 32) + 4 * 8 * (4**2 + 6**2)
    assert count_extraction([4, 6], bert) == 3 * per_layer
    assert count_extraction([4, 6], bert, n_layers=1) == per_layer
    llama = LlamaConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    assert count_extraction([3], llama) == 2 * 3 * (2 * 64 + 2 * 8 * 4 + 3 * 8 * 16) + 4 * 8 * 9


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["store", "scale"])
def test_suite_works_on_a_small_part(suite: str, tiny_bert: Path, tmp_path: Path) -> None:
    path = tmp_path / f"{suite}.json"
    command = ["bench", suite, "--smoke", "--rounds", "1", "--model", str(tiny_bert), "-o", str(path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    written = json.loads(path.read_text())
    assert all(row["value"] is not None for row in written["rows"])
    if suite == "scale":
        peaks = [row["value"] for row in written["rows"] if row["unit"] == "MiB"]
        assert len(peaks) == 3 and min(peaks) > 50
        assert [file["rows"] for file in written["details"]["files"].values()] == [200, 400, 800]
    else:
        assert len(written["rows"]) == 4


def test_scale_texts_are_nearly_all_distinct_and_the_same_each_time(tmp_path: Path) -> None:
    sentences = [
        f"the {word} of the {word} rose in the third {word} of {word}" for word in map(str, range(30))
    ]
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        write_texts(path, sentences, 1000)
    texts = [json.loads(line)["text"] for line in paths[0].read_text().splitlines()]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert len(texts) == 1000 and len(set(texts)) > 950
