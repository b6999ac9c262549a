"""Energy from counters that are files here."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedtune.evaluate import energy
from embedtune.evaluate.cost import measure
from embedtune.evaluate.energy import Energy, open_meter


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages, of which one has a part that is counted in it."""
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    monkeypatch.setattr(energy, "_list_devices", tuple)
    for name, joules in (("intel-rapl:0", 100), ("intel-rapl:0:0", 40), ("intel-rapl:1", 990)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "max_energy_range_uj").write_text("1000000000\n")
        set_counter(tmp_path, name, joules)
    return tmp_path


def set_counter(root: Path, name: str, joules: float) -> None:
    (root / name / "energy_uj").write_text(f"{int(joules * 1e6)}\n")


def test_packages_are_added_and_a_counter_that_began_anew_goes_on(counters: Path) -> None:
    read = open_meter()
    set_counter(counters, "intel-rapl:0", 103.5)
    set_counter(counters, "intel-rapl:0:0", 99)
    set_counter(counters, "intel-rapl:1", 12)  # past its span of 1000
    assert read() == Energy(pytest.approx(3.5 + 22), "RAPL")


def test_blocks_inside_one_another_each_have_their_energy(counters: Path) -> None:
    with measure() as outer:
        set_counter(counters, "intel-rapl:0", 101)
        with measure() as inner:
            set_counter(counters, "intel-rapl:0", 105)
    assert (inner.energy, outer.energy) == (Energy(4.0, "RAPL"), Energy(5.0, "RAPL"))
    assert outer.as_record()["joules_source"] == "RAPL"


def test_counters_that_cannot_be_read_are_left_out(counters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (counters / "intel-rapl:1" / "energy_uj").unlink()
    assert set(energy._read_counters()) == {"intel-rapl:0"}


def test_without_counters_nothing_is_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    monkeypatch.setattr(energy, "_list_devices", tuple)
    with measure() as cost:
        pass
    assert cost.energy is None
    assert cost.as_record() == {
        "peak_memory_bytes": cost.peak_memory_bytes,
        "joules": None,
        "joules_source": None,
    }
