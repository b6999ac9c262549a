"""Wall time and peak memory of a block."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from embedtune.evaluate import cost as module
from embedtune.evaluate.cost import measure

MEGABYTES = 1024 * 1024
can_reset = pytest.mark.skipif(not module._reset_peak(), reason="the kernel doesn't reset the peak here")


def hold(n_megabytes):
    return float(np.ones(n_megabytes * MEGABYTES // 8).sum())


def test_measure_counts_wall_seconds():
    with measure() as cost:
        time.sleep(0.05)
    assert 0.05 <= cost.seconds < 2


def test_measure_block_that_fails_is_still_measured():
    with pytest.raises(ZeroDivisionError), measure() as cost:
        time.sleep(0.01)
        1 / 0  # noqa: B018
    assert cost.seconds >= 0.01
    assert module._open == []


@can_reset
def test_measure_peak_is_of_the_block_not_of_the_life():
    with measure() as before:
        hold(200)
    with measure() as after:
        hold(20)
    assert before.peak_memory_bytes - after.peak_memory_bytes > 100 * MEGABYTES


@can_reset
def test_measure_outer_block_keeps_the_peak_an_inner_block_resets():
    with measure() as outer:
        hold(200)
        with measure() as inner:
            hold(20)
    assert outer.peak_memory_bytes - inner.peak_memory_bytes > 100 * MEGABYTES


def test_measure_without_reset_reports_only_a_risen_mark(monkeypatch):
    monkeypatch.setattr(module, "_CLEAR_PATH", Path("/nowhere/clear_refs"))
    peaks = iter([500, 500, 500, 700])
    monkeypatch.setattr(module, "_read_peak", lambda: next(peaks))
    with measure() as flat:
        pass
    with measure() as risen:
        pass
    assert (flat.peak_memory_bytes, risen.peak_memory_bytes) == (None, 700)


def test_read_peak_without_proc_uses_getrusage(monkeypatch):
    monkeypatch.setattr(module, "_STATUS_PATH", Path("/nowhere/status"))
    assert module._read_peak() > 10 * MEGABYTES
