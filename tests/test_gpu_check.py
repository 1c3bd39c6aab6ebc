"""scripts/gpu: how it keeps to its time, and the arithmetic of its sweeps. `check.py --cpu` rehearses the whole."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "scripts" / "gpu"


@pytest.fixture
def load(monkeypatch):
    """Imports a module of scripts/gpu as its scripts would."""
    monkeypatch.syspath_prepend(str(FOLDER))
    path, own = list(sys.path), {file.stem for file in FOLDER.glob("*.py")}
    yield importlib.import_module
    sys.path[:] = path
    for name in own & set(sys.modules):
        del sys.modules[name]


@pytest.fixture
def work(load, tmp_path):
    return load("work").Work(tmp_path, True, 1, 1, "basic", [], [])


def test_jobs_that_train_together_share_their_seconds(load):
    seconds = load("speed").per_epoch_and_job
    one = [[1.0, 3.0, 5.0]]
    assert seconds(one) == 2.0
    assert seconds(4 * one) == 0.5
    assert seconds([*one, [11.0, 13.0, 15.0]]) == 2.0  # one after the other: what lies between is nobody's epoch
    assert seconds([*one, [3.0, 5.0, 7.0]]) == 1.5  # overlapping
    assert seconds([[1.0]]) is None


def test_epochs_are_counted_by_their_rows(load, tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("step,step/loss,train/loss,val/loss\n1,5.0,,\n2,4.0,,\n2,,4.5,4.6\n4,,3.5,3.6\n5,3.0,")
    assert load("speed").epochs_of(file) == 2
    file.write_text("")
    assert load("speed").epochs_of(file) == 0


def test_a_command_ends_with_its_stage(work):
    work.until = time.monotonic() + 1
    done = work.run([sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"])
    assert done.code is None
    assert done.seconds < 10
    assert done.said == "begun\n\nout of time"
    assert done.brief()["said"]
    work.until = time.monotonic() + 60
    assert work.run([sys.executable, "-c", "print(1)"]).brief().keys() == {"code", "seconds"}


def test_a_stage_that_fails_leaves_the_others_their_results_and_its_time(load, work, monkeypatch):
    check = load("check")
    given = []

    def fails(work):
        given.append(work.left())
        work.keep("begun", True)
        raise ValueError("broken")

    def succeeds(work):
        given.append(work.left())
        work.keep("done", True)

    monkeypatch.setattr(check, "STAGES", {"a": (fails, 1), "b": (succeeds, 3), "c": (succeeds, 1)})
    check.perform(work, ["a", "b", "c"], 100)
    saved = json.loads((work.out / "results.json").read_text())
    assert saved["a"]["begun"]
    assert "broken" in saved["a"]["failed"]
    assert saved["b"] == saved["c"] == {"done": True}
    assert given == pytest.approx([20, 75, 100], abs=1)  # a fifth; three quarters of the rest; all that is left


def test_each_stage_has_a_table_or_needs_none(load):
    assert load("tables").TABLES.keys() <= load("check").STAGES.keys()
