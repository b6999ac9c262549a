"""Bundles pushed to a Hub and fetched from it, by the command line in processes of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedtune import EmbedClassifier, LexicalEncoder, load_bundle
from embedtune.errors import BundleError
from hub_server import Hub, serve_hub
from test_classifier import LABELS, TEXTS


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serve_hub() as found:
        yield found


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    classifier = EmbedClassifier([("words", LexicalEncoder())], "logistic").fit(TEXTS, LABELS)
    return classifier.save(tmp_path_factory.mktemp("hub") / "bundle", notes={"task": "moves"})


def call(hub: Hub, home: Path, *words: Any, token: str = "hf_right") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_TOKEN": token}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_pushed_bundle_is_loaded_by_name(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    (bundle / "notes.log").unlink(missing_ok=True)
    pushed = call(hub, tmp_path, "-m", "embedtune", "push", bundle, "team/moves")
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.strip().endswith("team/moves")
    assert hub.private["team/moves"]
    assert set(hub.files["team/moves"]) == {
        file.relative_to(bundle).as_posix() for file in bundle.rglob("*") if file.is_file()
    }
    script = (
        "import json, sys; from embedtune import load_bundle; "
        "print(json.dumps(load_bundle('team/moves').predict_proba(json.loads(sys.argv[1])).tolist()))"
    )
    loaded = call(hub, tmp_path, "-c", script, json.dumps(TEXTS))
    assert loaded.returncode == 0, loaded.stderr
    expected = load_bundle(bundle).predict_proba(TEXTS)
    assert abs(expected - json.loads(loaded.stdout)).max() < 1e-9


def test_what_a_link_leads_to_is_not_pushed(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    forged = tmp_path / "forged"
    shutil.copytree(bundle, forged)
    (tmp_path / "secret").write_text("hf_secret")
    (forged / "README.md").unlink()
    (forged / "README.md").symlink_to(tmp_path / "secret")
    assert call(hub, tmp_path, "-m", "embedtune", "push", forged, "team/linked").returncode == 0
    assert "README.md" not in hub.files["team/linked"]
    (forged / "view-words.json").unlink()
    (forged / "view-words.json").symlink_to(tmp_path / "secret")
    refused = call(hub, tmp_path, "-m", "embedtune", "push", forged, "team/other")
    assert "'view-words.json' in " in refused.stderr
    assert "is a link that leads out of it" in refused.stderr
    assert "team/other" not in hub.files


def test_bundle_changed_on_the_hub_is_refused(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    assert call(hub, tmp_path, "-m", "embedtune", "push", bundle, "team/changed").returncode == 0
    hub.files["team/changed"]["view-words.json"] += b" "
    loaded = call(hub, tmp_path, "-c", "from embedtune import load_bundle; load_bundle('team/changed')")
    assert "view-words.json in " in loaded.stderr.splitlines()[-1]
    assert "is not the file that was saved" in loaded.stderr.splitlines()[-1]


def test_missing_model_and_wrong_token_are_one_line(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    told = call(hub, tmp_path, "-m", "embedtune", "export", "team/none", "-o", tmp_path / "out")
    assert told.returncode != 0
    assert "there is no folder 'team/none', and no model of that name on the Hub" in told.stderr
    refused = call(hub, tmp_path, "-m", "embedtune", "push", bundle, "team/other", token="hf_wrong_secret")
    assert refused.returncode != 0
    assert "'team/other' can't be written on the Hub" in refused.stderr
    assert "hf_wrong_secret" not in refused.stderr + refused.stdout
    assert "team/other" not in hub.files


def test_name_that_the_hub_does_not_allow_is_one_line() -> None:
    with pytest.raises(BundleError, match=r"'a--b/c' can't be fetched from the Hub"):
        load_bundle("a--b/c")


def test_hub_that_cannot_be_reached_is_told(bundle: Path, tmp_path: Path) -> None:
    nobody = Hub(address="http://127.0.0.1:9")
    told = call(nobody, tmp_path, "-m", "embedtune", "export", "team/none", "-o", tmp_path / "out")
    assert "the Hub can't be reached" in told.stderr
    assert not (tmp_path / "out").exists()
