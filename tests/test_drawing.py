"""Figures in other formats, and figures of a user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from vaelab.report import gallery

MINE = """
from matplotlib.figure import Figure


def spread(scene, bins=20):
    figure = Figure()
    figure.subplots().hist(scene.codes.flatten().numpy(), bins=bins)
    return figure


def broken(scene):
    return scene.model.no_such_thing


def number(scene):
    return 3
"""
SPREAD = "+figures.own.spread._target_=mypictures.spread"


@pytest.fixture
def few(monkeypatch):
    """Fewer of vaelab's own figures."""
    monkeypatch.setattr(gallery, "FIGURES", {"errors": gallery.FIGURES["errors"]})


@pytest.fixture
def mine(few, tmp_path):
    """A module of figures in the working folder."""
    (tmp_path / "mypictures.py").write_text(MINE)


def kinds(run: Path, name: str) -> dict[str, bytes]:
    return {path.suffix: path.read_bytes()[:5] for path in (run / "figures").glob(f"{name}.*")}


WHOLE = {".png": b"\x89PNG\r", ".pdf": b"%PDF-", ".svg": b"<?xml"}


def test_every_figure_has_the_formats_that_are_asked_for(few, finished, command):
    run = finished("model=vae").run
    assert command("report", f"run={run}", "figures=false")[0] == 0
    assert not (run / "figures").exists()
    assert command("report", f"run={run}", "figures.format=[svg,pdf]")[0] == 0
    assert kinds(run, "errors") == kinds(run, "curves") == WHOLE


def test_a_training_draws_figures_of_one_s_own_and_tells_the_lines_of_those_that_fail(mine, train):
    others = [f"+figures.own.{name}._target_=mypictures.{name}" for name in ("broken", "number")]
    result = train("report=true", "figures.format=svg", *others, SPREAD, "+figures.own.spread.bins=7")
    assert result.code == 0, result.err
    assert result.out.count("could not be drawn") == 2
    assert "figures.own.broken could not be drawn" in result.out
    assert "return scene.model.no_such_thing" in result.out
    assert "mypictures.number must return a matplotlib Figure, and gives int" in result.out
    assert "build.py" not in result.out  # the lines of vaelab are in the log
    assert "build.py" in (result.run / "run.log").read_text()
    assert kinds(result.run, "spread").keys() == kinds(result.run, "errors").keys() == {".png", ".svg"}
    page = (result.run / "report.html").read_text()
    assert page.count("Drawn by mypictures.spread.") == 1
    assert "Drawn by mypictures.broken" not in page


def test_a_report_draws_what_the_user_names_and_of_a_run_s_config_only_what_is_trusted(mine, finished, command):
    run = finished("model=vae").run
    assert command("report", f"run={run}", SPREAD)[0] == 0
    assert kinds(run, "spread")
    (run / "figures" / "spread.png").unlink()
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("  own: {}", "  own:\n    spread: {_target_: mypictures.spread}"))
    code, out, _ = command("report", f"run={run}")
    assert code == 0
    assert "would run mypictures.spread for it; trust=true" in out
    assert not kinds(run, "spread")
    assert command("report", f"run={run}", "trust=true")[0] == 0
    assert kinds(run, "spread")
    config.write_text(config.read_text().replace("spread: {", "../x: {"))
    code, _, err = command("report", f"run={run}", "trust=true")
    assert (code, "figures.own.../x: it names a file" in err) == (2, True)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("figures.format=jpg", "figures.format='jpg': must be 'png', 'pdf' or 'svg'"),
        ("figures.own=3", "figures.own=3: must be a mapping of keys"),
        ("+figures.own.errors._target_=mypictures.spread", "figures.own.errors: vaelab draws a figure of this name"),
        ("+figures.own.x._target_=mypictures.sprea", "figures.own.x._target_=mypictures.sprea: cannot be imported"),
        ("+figures.own.x={_target_:mypictures.spread,bin:3}", "did you mean figures.own.x.bins?"),
        ("+figures.own={a-b:{_target_:mypictures.spread}}", "figures.own.a-b: it names a file"),
        ("+figures.own.x={bins:3}", "figures.own.x"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_any_work(mine, train, finished, command, argument, said):
    done = train(argument)
    assert (done.code, said in done.err) == (2, True), done.err
    code, _, err = command("report", f"run={finished('model=vae').run}", argument)
    assert (code, said in err) == (2, True), err
