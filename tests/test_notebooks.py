"""The notebooks are those of their sources, and each of their cells runs."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import vaelab
from vaelab.commands.explain import TOPICS

FOLDER = Path(__file__).parent.parent / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_is_that_of_its_source(source):
    pytest.importorskip("jupytext")
    made = runpy.run_path(str(FOLDER.parent / "scripts" / "notebooks.py"))["made"](source)
    assert made == source.with_suffix(".ipynb").read_text(encoding="utf-8"), "run python scripts/notebooks.py"
    assert "%pip install -q vaelab" in made


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_its_cells_run(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAELAB_NOTEBOOK_EPOCHS", "1")
    if source.stem == "fundamentals":  # whose figures take seconds, and have tests of their own
        monkeypatch.setattr(vaelab, "explain", lambda topic: {topic: TOPICS[topic]})
    names = runpy.run_path(str(source))
    assert names["epochs"] == 1
    assert names.keys() >= ({"scores", "plain"} if source.stem == "fundamentals" else {"quantised", "capacity"})
