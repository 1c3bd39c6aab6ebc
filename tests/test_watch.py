"""`vaelab watch`: what it shows of files in any state, when it ends, and what it does to a terminal."""

from __future__ import annotations

import fcntl
import json
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from vaelab.cli import main
from vaelab.commands.watch import Watched
from vaelab.core.terminal import BLOCKS, spark

CONFIG = "run: {name: vae-mnist}\nmodel: {_target_: vaelab.models.VAE}\ntrainer: {max_epochs: 10, max_steps: -1}\n"
FINISHED = {"status": "finished", "epochs": 10, "seconds": 75, "best": {"epoch": 9, "by": "val/elbo", "value": -99.5}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of 10 epochs, of which 4 are done, 50 steps each: two and a half seconds so far."""
    monkeypatch.chdir(tmp_path)
    return begin(Path("outputs/12-00-00-000000-vae-mnist"))


def begin(folder: Path, epochs: int = 4) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "run.log").write_text("12:00 INFO vae-mnist\n12:01 WARNING epoch 2: something ails it\n")
    header = "step,epoch,step/loss,train/loss,train/elbo,val/loss,val/elbo\n"
    lines = [f"{50 * e + 50},{e}.0,{200 - e},{150 - e},{e - 150},{160 - e},{e - 160}\n" for e in range(epochs)]
    (folder / "metrics.csv").write_text(header + "".join(lines))
    now = time.time()
    os.utime(folder / "config.yaml", (now - 2.5, now - 2.5))
    os.utime(folder / "metrics.csv", (now, now))
    return folder


@contextmanager
def training(*folders: Path):
    """Holds the locks that processes which train these folders would hold."""
    files = [(folder / "run.log").open("a") for folder in folders]
    for file in files:
        fcntl.flock(file, fcntl.LOCK_EX)
    yield
    for file in files:
        file.close()


def end(folder: Path, **summary) -> None:
    (folder / "summary.json").write_text(json.dumps(FINISHED | summary))


def look(folder: Path, width: int = 100, height: int = 40):
    return Watched(folder, {"VAE": "vae"}).look(width, height)


def test_a_running_run_shows_how_far_it_is_and_how_long_it_takes(run):
    with training(run):
        view = look(run)
    text = "\n".join(view.lines)
    assert view.live
    assert "vae-mnist  running" in text
    assert "epoch 4/10  step 200  80 steps/s  4 s left" in text  # 500 steps in all
    assert " 40%" in text
    assert text.count("█" * 10 + "░" * 14) == 1
    assert "something ails it" in text


def test_figures_are_the_newest_beside_their_curves(run):
    lines = look(run).lines
    elbo = next(line for line in lines if line.startswith("elbo")).split()
    assert elbo == ["elbo", "-147.000", "-157.000", "▁▃▆█"]


def test_speed_is_that_between_two_looks(run):
    with training(run):
        watched = Watched(run, {})
        watched.look(100, 40)
        with (run / "metrics.csv").open("a") as file:
            file.write("250,4.0,100,,,,\n")
        later = time.time() + 5
        os.utime(run / "metrics.csv", (later, later))
        text = "\n".join(watched.look(100, 40).lines)
    assert re.search(r"step 250  (10|9\.9\d) steps/s", text), text


def test_a_resumed_run_has_no_speed_before_something_was_seen(run):
    (run / "config.yaml").write_text(CONFIG + "resume: outputs/x\n")
    with training(run):
        assert "steps/s" not in "\n".join(look(run).lines)


def test_an_ended_run_is_not_live_and_shows_its_best(run):
    end(run)
    view = look(run)
    assert not view.live
    text = "\n".join(view.lines)
    assert "vae-mnist  finished" in text
    assert "epoch 10/10" in text
    assert "done in 1:15" in text
    assert "best val/elbo -99.500 in epoch 9" in text


def test_a_failed_run_shows_its_error(run):
    end(run, status="failed", error="what is wrong\nwhat to do\nmore", best={})
    lines = look(run).lines
    assert lines[lines.index("what is wrong") + 1] == "what to do"
    assert "more" not in lines


@pytest.mark.parametrize("damage", ["empty", "no metrics", "half a row", "no config", "damaged config"])
def test_files_that_are_just_being_written_stop_nothing(run, damage):
    if damage == "empty":
        (run / "metrics.csv").write_text("")
    elif damage == "no metrics":
        (run / "metrics.csv").unlink()
    elif damage == "half a row":
        with (run / "metrics.csv").open("a") as file:
            file.write("250,4.")
    elif damage == "no config":
        (run / "config.yaml").unlink()
    else:
        (run / "config.yaml").write_text("a: [")
    with training(run):
        assert look(run).lines


def test_a_row_cut_short_leaves_what_was_read_before(run):
    with training(run):
        watched = Watched(run, {})
        before = watched.look(100, 40).lines
        with (run / "metrics.csv").open("a") as file:
            file.write("250,4.")
        os.utime(run / "metrics.csv", (time.time() + 0.5,) * 2)
        assert [line for line in watched.look(100, 40).lines if line.startswith("elbo")] == [
            line for line in before if line.startswith("elbo")
        ]


def test_a_sweep_shows_its_jobs_in_order(tmp_path):
    sweep = tmp_path / "sweep"
    jobs = [begin(sweep / f"{i}-vae-mnist") for i in (0, 2, 10)]
    end(jobs[0])
    end(jobs[1], status="failed", error="it broke\nmend it", best={})
    with training(jobs[2]):
        view = look(sweep)
    assert view.live
    assert view.lines[1].startswith("3 jobs so far: ")
    names = [line.split()[0] for line in view.lines[3:]]
    assert names == ["0-vae-mnist", "2-vae-mnist", "10-vae-mnist"]
    assert "val/elbo -99.500" in view.lines[3]
    assert view.lines[4].endswith("it broke")
    assert "4/10" in view.lines[5]


def test_a_sweep_larger_than_the_terminal_shows_what_runs(tmp_path):
    sweep = tmp_path / "sweep"
    jobs = [begin(sweep / f"{i}-vae-mnist", 1) for i in range(20)]
    for job in jobs[:-1]:
        end(job)
    with training(jobs[-1]):
        view = look(sweep, width=60, height=10)
    assert len(view.lines) == 10
    assert all(len(line) <= 60 for line in view.lines)
    assert any(line.startswith("19-vae-mnist") for line in view.lines)
    assert view.lines[-1] == "… and 14 more"


def test_a_sweep_lives_as_long_as_its_lock_or_a_job_began_lately(tmp_path):
    sweep = tmp_path / "sweep"
    job = begin(sweep / "0-vae-mnist")
    end(job)
    assert look(sweep).live  # the next job may be about to begin
    for path in job.iterdir():
        os.utime(path, (time.time() - 60,) * 2)
    assert not look(sweep).live
    lock = sweep / ".lock"
    lock.touch()
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert look(sweep).live
    assert not look(sweep).live


def test_last_is_the_newest_run_or_the_sweep_it_belongs_to(run, capsys):
    assert main(["watch"]) == 0
    assert str(run) in capsys.readouterr().out
    job = begin(Path("outputs/13-00-00-000000-sweep/0-vae-mnist"))
    os.utime(job / "run.log", (time.time() + 9,) * 2)
    assert main(["watch"]) == 0
    assert "1 job so far" in capsys.readouterr().out


def test_without_a_terminal_it_prints_once(run, capsys):
    with training(run):
        assert main(["watch", f"run={run}"]) == 0
    out = capsys.readouterr().out
    assert out.count("epoch 4/10") == 1
    assert "\x1b" not in out


def test_without_a_terminal_nothing_is_cut(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "40")
    folder = begin(Path("outputs") / ("a-long-name-" * 10))
    assert main(["watch", f"run={folder}"]) == 0
    assert str(folder) in capsys.readouterr().out


@contextmanager
def in_a_terminal(*arguments: str):
    """The process, and a function that waits until its terminal has shown a text, and returns all it has shown."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "vaelab", *arguments], stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = ""

    def until(text: str) -> str:
        nonlocal shown
        deadline = time.monotonic() + 240
        while text not in shown and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    shown += os.read(ours, 65536).decode()
                except OSError:  # it has ended
                    break
        assert text in shown, shown
        return shown

    yield process, until
    process.kill()
    process.wait()
    os.close(ours)


@pytest.mark.slow
def test_a_terminal_is_drawn_over_until_the_run_ends(run):
    with in_a_terminal("watch", "refresh=0.1") as (process, until):
        with training(run):
            until("epoch 4/10")
            with (run / "metrics.csv").open("a") as file:
                file.write("250,4.0,100,145,-145,155,-155\n")
            until("epoch 5/10")
            end(run)
        until("done in 1:15")
        shown = until("\x1b[?25h")  # the cursor is back
        assert process.wait(20) == 0
    assert "\x1b[?25l" in shown
    assert re.search(r"\x1b\[\d+A", shown)  # drawn over


@pytest.mark.slow
def test_ctrl_c_ends_it_with_0(run):
    with training(run), in_a_terminal("watch", f"run={run}") as (process, until):
        until("epoch 4/10")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert "Traceback" not in until("\x1b[?25h")


@pytest.mark.parametrize("width", [30, 40, 60, 100])
def test_a_narrow_terminal_cuts_no_number_and_no_curve(run, width):
    """A number or a curve without its end would be read as another one."""
    with training(run):
        lines = look(run, width).lines
    assert all(len(line) <= width for line in lines)
    elbo = next(line for line in lines if line.startswith("elbo"))
    assert elbo.endswith({30: "…", 40: "-157.000"}.get(width, "▁▃▆█")), elbo
    bar = next(line for line in lines if "epoch 4" in line)
    assert bar.lstrip("█░ ").startswith("40%  epoch 4/10  step"), bar
    assert bar.endswith("s left") or bar.endswith("…"), bar


@pytest.mark.parametrize("width", [4, 32])
def test_a_small_curve_goes_from_the_lowest_to_the_highest(width):
    assert spark([], width) == ""
    assert spark([3.0], width) == BLOCKS[0]
    curve = spark([float(i) for i in range(97)], width)
    assert len(curve) == width
    assert list(curve) == sorted(curve)
    assert (curve[0], curve[-1]) == (BLOCKS[0], BLOCKS[-1])
    assert len(spark([1.0, 2.0], width)) == 2
    assert spark([1.0, 2.0, 3.0, 4.0, 5.0], 3) == ""
    assert spark([1.0, math.nan, 2.0, math.inf], width) == f"{BLOCKS[0]}×{BLOCKS[-1]}×"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [("run=nowhere", "nowhere"), ("run=.", "no run"), ("", "outputs"), ("refresh=0", "refresh"), ("foo=1", "foo")],
)
def test_bad_input_is_named(tmp_path, monkeypatch, capsys, arguments, part):
    monkeypatch.chdir(tmp_path)
    assert main(["watch", *arguments.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith("vaelab: ")
    assert part in err
    assert "Traceback" not in err
