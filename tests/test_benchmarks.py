"""The benchmarks' own arithmetic, and that the page shows what they measured."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "scripts" / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Imports a benchmark as a script of that folder would."""
    monkeypatch.syspath_prepend(str(FOLDER))
    own = {path.stem for path in FOLDER.glob("*.py")}
    yield importlib.import_module
    for name in own & set(sys.modules):
        del sys.modules[name]


def test_a_change_of_the_machines_speed_leaves_the_ratios(load):
    common = load("common")
    speed = iter(range(1, 100))
    called = []

    def program(name, work):
        def run():
            called.append(name)
            return work * (1 + next(speed) // 3)  # the machine slows from round to round

        return run

    seconds = common.interleave({"a": program("a", 1.0), "b": program("b", 2.0), "c": program("c", 3.0)}, rounds=4)
    assert [len(taken) for taken in seconds.values()] == [4, 4, 4]
    assert called[:6] == ["a", "b", "c", "b", "c", "a"]  # the first round is dropped, the order rotates
    rows = common.compare(seconds, "a", "group")
    assert [row["label"] for row in rows] == ["group: a", "group: b", "group: c"]
    assert rows[0]["ratios"] == [1.0] * 4
    assert rows[1]["ratios"] == pytest.approx([b / a for a, b in zip(seconds["a"], seconds["b"], strict=True)])


@pytest.mark.parametrize(
    "name", ["training", "variants", "runs", "options", "quantizer", "scaling", "memory", "startup"]
)
def test_the_page_shows_the_saved_results(load, name):
    page = (ROOT / "docs" / "performance.md").read_text()
    shown = re.search(rf"<!-- table: {name} -->\n(.*?)\n<!-- end -->", page, re.S)
    assert shown, f"docs/performance.md has no place for {name}"
    assert shown[1] == load("common").markdown(name)


def test_rendering_leaves_tables_without_a_result(load, tmp_path, monkeypatch, capsys):
    common, everything = load("common"), load("all")
    result = {
        "machine": {"cpu": "abacus", "threads": 1},
        "notes": "Beads.",
        "rows": [{"label": "x", "extra": {"n": "3"}}],
    }
    (tmp_path / "mine.json").write_text(json.dumps(result))
    for module in (common, everything):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table: mine -->\nold\n<!-- end -->\nb\n<!-- table: other -->\nkept\n<!-- end -->\n")
    everything.render(page)
    text = page.read_text()
    assert "| x | 3 |" in text
    assert "abacus" in text
    assert "old" not in text
    assert "<!-- table: other -->\nkept\n<!-- end -->" in text
    assert "no result for the table other" in capsys.readouterr().err
