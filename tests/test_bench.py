"""embedtune bench: contests between processes, and the suites on small parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from embedtune.bench.contest import Contestant, hold
from embedtune.bench.scale import write_texts
from embedtune.bench.suite import SUITES, Row, load_suite
from embedtune.cli import app
from embedtune.errors import ConfigError, ResourceError

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
