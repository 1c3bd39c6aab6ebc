"""`vaelab runs`: the table, what selects and sorts it, and folders in any state."""

from __future__ import annotations

import csv
import fcntl
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vaelab.cli import main
from vaelab.core import terminal
from vaelab.evaluation.comparison.listed import Listed
from vaelab.runs import offline, overview, runs_below

CONFIG = """run: {{name: vae-mnist, overrides: [dataset=mnist, model.latent_dim={d}, model.beta={beta}, seed={seed}]}}
seed: {seed}
dataset: {{_target_: vaelab.datasets.MNIST, batch_size: 128}}
model: {{_target_: vaelab.models.VAE, latent_dim: {d}, beta: {beta}}}
trainer: {{max_epochs: 3}}
optimizer: {{weight_decay: {d}}}
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes the folder of a run that ended, below ./outputs."""
    monkeypatch.chdir(tmp_path)
    times = iter(range(10**9, 2 * 10**9, 100))

    def folder(name: str, status: str = "finished", model: str = "VAE", config: str | None = None, **metrics) -> Path:
        run = Path("outputs") / name
        run.mkdir(parents=True)
        summary = {
            **{"status": status, "name": "vae-mnist", "epochs": 3, "seconds": 12.3, "metrics": metrics},
            "best": {"epoch": 2, "by": "val/elbo", "value": metrics.get("val/elbo", -100.0)},
            **{"model": {"class": model}, "data": {"class": "MNIST"}},
        }
        (run / "run.log").write_text("")
        (run / "summary.json").write_text(json.dumps(summary))
        (run / "config.yaml").write_text(config or CONFIG.format(d=10, beta=1.0, seed=42))
        now = next(times)
        for path in run.iterdir():
            os.utime(path, (now, now))
        return run

    return folder


def table(capsys, *arguments: str) -> list[list[str]]:
    """The cells of the table's rows, after the header, and all other words line by line."""
    assert main(["runs", *arguments]) == 0, capsys.readouterr().err
    return [line.split() for line in capsys.readouterr().out.splitlines()[1:]]


def names(capsys, *arguments: str) -> list[str]:
    return [Path(row[-1]).name for row in table(capsys, *arguments)]


def test_a_run_is_a_row(make, capsys):
    make("a", **{"val/elbo": -101.5})
    (row,) = table(capsys)
    assert row == ["vae", "mnist", "finished", "3", "val/elbo", "-101.500", "12", "outputs/a"]


def test_a_failed_run_shows_what_is_wrong_before_what_to_do(make, capsys):
    summary = make("a", status="failed") / "summary.json"
    content = json.loads(summary.read_text()) | {"best": {}, "error": "x.png is broken\nreplace it"}
    summary.write_text(json.dumps(content))
    assert " ".join(table(capsys)[0][4:8]) == "x.png is broken 12"


def test_the_newest_is_first_and_the_limit_says_what_it_leaves_out(make, capsys):
    for name in ("a", "b", "c"):
        make(name)
    assert names(capsys) == ["c", "b", "a"]
    rows = table(capsys, "limit=2")
    assert [Path(row[-1]).name for row in rows[:2]] == ["c", "b"]
    assert rows[2][:3] == ["…", "1", "more:"]
    assert names(capsys, "limit=null") == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("test/elbo", ["b", "c", "a", "without"]),
        ("-test/elbo", ["a", "c", "b", "without"]),
        ("test/kl", ["a", "c", "b", "without"]),
        ("seconds", ["without", "c", "b", "a"]),  # all the same: the newest first
    ],
)
def test_the_best_is_first_and_runs_without_the_figure_are_last(make, capsys, sort, order):
    for name, elbo, kl in (("a", -120.0, 1.0), ("b", -90.0, 3.0), ("c", -100.0, 2.0)):
        make(name, **{"test/elbo": elbo, "test/kl": kl})
    make("without", **{"test/elbo": math.nan, "test/kl": math.nan})
    assert names(capsys, f"sort={sort}") == order


def test_the_best_by_different_figures_do_not_compare(make, capsys):
    make("a", **{"val/elbo": -90.0})
    make("b", **{"val/elbo": -80.0})
    assert names(capsys, "sort=best") == ["b", "a"]
    summary = make("c") / "summary.json"
    summary.write_text(summary.read_text().replace('"by": "val/elbo"', '"by": "val/reconstruction"'))
    assert main(["runs", "sort=best"]) == 2
    assert "val/elbo and by val/reconstruction" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("model=beta", ["b"]),
        ("status=failed", ["c"]),
        ("model=vae,model=beta,status=finished", ["b", "a"]),
        ("model.latent_dim=10", ["c", "a"]),
        ("model.latent_dim=20", ["b"]),
        ("optimizer.lr=1e-3", ["b"]),
        ("model.latent_dim=1", []),
    ],
)
def test_where_keeps_runs_of_which_all_is_true(make, capsys, where, kept):
    make("a")
    make("b", model="BetaVAE", config="model: {latent_dim: 20}\noptimizer: {lr: 0.001}\n")
    make("c", status="failed")
    if kept:
        assert names(capsys, f"where={where}") == kept
    else:
        assert main(["runs", f"where={where}"]) == 0
        assert "no runs" in capsys.readouterr().out


def test_runs_of_a_sweep_are_counted(make, capsys):
    make("12-00-00-000000-sweep/0-vae-mnist")
    make("12-00-00-000000-sweep/1-vae-mnist", status="failed")
    make("11-00-00-000000-vae-mnist")
    rows = table(capsys)
    assert ["outputs/12-00-00-000000-sweep", "2", "runs:", "1", "failed,", "1", "finished"] in rows
    assert not any(row[:1] == ["outputs"] for row in rows)  # single runs are no sweep
    make("10-00-00-000000-sweep/0-vae-mnist")
    assert [row[0] for row in table(capsys, "limit=1")[-2:]] == ["outputs/10-00-00-000000-sweep", "…"]
    rows = table(capsys, "where=sweep=12-00-00-000000-sweep")
    assert [Path(row[-1]).name for row in rows[:2]] == ["1-vae-mnist", "0-vae-mnist"]
    assert rows[2] == []
    assert ["outputs/10-00-00-000000-sweep", "1", "run:", "1", "finished"] in table(capsys)


def sweep_of(make, *settings: tuple[int, float, int]) -> None:
    for i, (d, beta, seed) in enumerate(settings):
        config = CONFIG.format(d=d, beta=beta, seed=seed)
        make(f"12-00-00-000000-sweep/{i}-vae-mnist", config=config, **{"test/kl": d / 4})


def columns(capsys, *arguments: str) -> list[dict[str, str]]:
    """The rows of a table that has no empty cell."""
    assert main(["runs", *arguments]) == 0
    header, *rows = capsys.readouterr().out.replace("val/elbo ", "").partition("\n\n")[0].splitlines()
    return [dict(zip(header.split(), row.split(), strict=True)) for row in rows if row[0] != "…"]


def test_what_was_swept_and_differs_is_shown_under_its_short_name(make, capsys):
    sweep_of(make, (14, 1.5, 7), (2, 0.25, 7), (2, 1.5, 7))
    rows = columns(capsys)
    assert [(row["latent_dim"], row["beta"]) for row in rows] == [("2", "1.5"), ("2", "0.25"), ("14", "1.5")]
    assert not {"seed", "batch_size", "weight_decay"} & set(rows[0])  # the same, never set, or not by the user
    make("13-00-00-000000-vae", config=CONFIG.format(d=5, beta=3.0, seed=1))
    assert "latent_dim" not in columns(capsys, "limit=1")[0]  # of the runs that are shown


def test_a_group_that_was_set_is_shown_by_the_option_and_not_by_its_settings(make, capsys):
    config = CONFIG.format(d=10, beta=1.0, seed=1).replace("overrides: [", "overrides: [logger=tensorboard, ")
    make("a", config=config + "logger: {tensorboard: {_target_: vaelab.training.loggers.TensorBoard}}\n")
    (row,) = columns(capsys, "show=logger")
    assert row["logger"] == "tensorboard"


def test_show_adds_columns_by_name(make, capsys):
    sweep_of(make, (14, 1.5, 7), (2, 1.5, 8))
    (row, _) = columns(capsys, "show=trainer.max_epochs,test/kl,seed,model.beta")
    assert list(row)[6:] == ["latent_dim", "seed", "max_epochs", "test/kl", "beta", "path"]
    assert (row["max_epochs"], row["test/kl"], row["seed"], row["beta"]) == ("3", "0.500", "8", "1.5")


@pytest.mark.parametrize(
    ("sort", "order"), [("model.latent_dim", "1302"), ("-model.latent_dim", "2031"), ("seed", "3210"), ("name", "3210")]
)
def test_any_key_of_the_config_sorts(make, capsys, sort, order):
    sweep_of(make, (14, 1.0, 7), (2, 1.0, 7), (100, 1.0, 7), (5, 1.0, 7))
    assert [name[0] for name in (Path(row["path"]).name for row in columns(capsys, f"sort={sort}"))] == list(order)


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_the_file_has_the_settings(make, kind):
    sweep_of(make, (14, 1.5, 7), (2, 1.5, 8))
    make("13-00-00-000000-vae", config="model: {_target_: vaelab.models.VAE}\n")  # as of another program
    assert main(["runs", f"output=all.{kind}"]) == 0
    if kind == "json":
        records = json.loads(Path("all.json").read_text())
        assert [record["settings"].get("model.latent_dim") for record in records] == [None, 2, 14]
        assert records[1]["settings"]["dataset.batch_size"] == 128
    else:
        with Path("all.csv").open(newline="") as file:
            records = list(csv.DictReader(file))
        assert [record["model.latent_dim"] for record in records] == ["", "2", "14"]
        assert [record["seed"] for record in records] == ["", "8", "7"]
        assert not {"dataset.batch_size", "model.beta"} & set(records[0])


@pytest.mark.parametrize("logs", [("run.log",), ("output.txt",), ("run.log", "output.txt")])
def test_a_job_that_ended_before_it_began_is_stopped(make, capsys, logs):
    folder = make("12-00-00-000000-sweep/0-vae-mnist").with_name("1-vae-mnist")
    folder.mkdir()
    for name in logs:
        (folder / name).touch()
    assert table(capsys)[0][:7] == ["vae", "mnist", "stopped", "ended", "before", "it", "began"]
    with (folder.parent / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as a sweep that has just started it
        assert table(capsys)[0][2] == "running"


def test_a_long_error_is_cut_at_a_word_and_whole_in_the_file(make, capsys):
    error = "dataset.root: /data has no file of CelebA, which is needed\nset dataset.root"
    summary = make("a", status="failed") / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"best": {}, "error": error}))
    rows = table(capsys, "output=all.json")
    assert " ".join(rows[0][4:-2]) == "dataset.root: /data has no file of CelebA…"
    assert any("output=" in cell for row in rows for cell in row)  # where the remedy is
    assert json.loads(Path("all.json").read_text())[0]["error"] == error


BROKEN = {
    "no JSON": {"summary.json": "{", "config.yaml": "model: {}\n"},
    "no object": {"summary.json": "[1]"},
    "no YAML": {"config.yaml": "a: [", "run.log": ""},
    "of another program": {"summary.json": '{"model": 3}'},
    "nothing but a log": {"run.log": "x"},
    "not text": {"config.yaml": b"\xff\xfe\xfa", "run.log": ""},
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_damaged_folder_is_listed_as_such_among_the_others(make, capsys, what):
    make("sound")
    folder = Path("outputs/broken")
    folder.mkdir()
    for name, content in BROKEN[what].items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    rows = {Path(row[-1]).name: row for row in table(capsys) if row}
    assert "damaged" in rows["broken"]
    assert rows["broken"][1] in ("summary.json", "config.yaml", "it")  # what is wrong, and not where again
    assert "finished" in rows["sound"]


def test_a_run_is_running_as_long_as_its_lock_is_held_and_stopped_after(make, capsys):
    run = make("a", status="interrupted")
    time.sleep(0.01)
    (run / "metrics.csv").write_text("step,epoch,train/loss\n10,0.0,5.0\n20,1.0,4.0\n25,1.0,\n3")
    with (run / "run.log").open("a") as file:
        file.write("resumed\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert table(capsys)[0][2:4] == ["running", "2"]
    assert table(capsys)[0][2] == "interrupted"
    (run / "summary.json").unlink()
    assert table(capsys)[0][2] == "stopped"


def test_a_real_run_has_the_names_of_the_command_line(train, capsys):
    assert train("model=beta", "model.beta=3", "run.dir=outputs/mine", "trainer.max_epochs=1").code == 0
    assert Listed({}).config(overview.read(Path("outputs/mine"), {})).overrides["model.beta"] == "3"
    (row,) = table(capsys, "sort=model.beta", "show=likelihood,test/elbo")
    assert [row[-4], row[-2]] == ["bernoulli", "3"]
    assert row[:4] == ["beta", "fake", "finished", "1"]
    assert row[-1] == "outputs/mine"


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_the_file_has_all_runs_with_all_their_figures(make, capsys, kind):
    make("a", **{"test/elbo": -90.25})
    make("b", **{"test/mse": 0.5})
    assert main(["runs", "limit=1", f"output=all.{kind}"]) == 0
    if kind == "json":
        records = json.loads(Path("all.json").read_text())
        assert [record["metrics"] for record in records] == [{"test/mse": 0.5}, {"test/elbo": -90.25}]
    else:
        with Path("all.csv").open(newline="") as file:
            records = list(csv.DictReader(file))
        assert [record["test/elbo"] for record in records] == ["", "-90.25"]
    assert [record["folder"] for record in records] == ["outputs/b", "outputs/a"]
    assert not list(Path().glob(".*.tmp"))


def log_offline(run: Path, *stamps: str) -> None:
    for stamp in stamps:
        folder = run / "wandb" / f"offline-run-{stamp}-abc"
        folder.mkdir(parents=True)
        (folder / "run-abc.wandb").write_text("")


def test_what_was_not_sent_is_listed_with_the_command_that_sends_it(make, capsys):
    log_offline(make("it's here"), "1", "2")
    log_offline(make("12-00-00-000000-sweep/0-vae-mnist"), "1")
    log_offline(make("12-00-00-000000-sweep/1-vae-mnist"), "1")
    sent = make("sent")
    log_offline(sent, "1")
    (sent / "wandb" / "offline-run-1-abc" / "run-abc.wandb.synced").write_text("")
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    assert "not sent yet: 3" in out
    assert "WANDB_RESUME=allow wandb sync outputs/12-00-00-000000-sweep/*/wandb" in out
    assert "outputs/sent/wandb" not in out
    line = next(line.strip() for line in out.splitlines() if "here" in line and "sync" in line)
    words = subprocess.run(line.replace("wandb sync", "printf '%s'"), shell=True, capture_output=True, text=True).stdout
    assert words == "outputs/it's here/wandb"
    with (Path("outputs/12-00-00-000000-sweep/1-vae-mnist/run.log")).open("a") as file:  # it trains again
        file.write("resumed\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["runs"]) == 0
    out = capsys.readouterr().out
    assert "wandb sync outputs/12-00-00-000000-sweep/0-vae-mnist/wandb\n" in out
    assert "sweep/*/wandb" not in out  # which would send half of what is being written
    assert offline.unsent(Path("outputs/it's here")) == sorted(Path("outputs/it's here/wandb").iterdir())


BAD = {
    "nowhere": ("nowhere",),
    "where=model": ("where=model",),
    "where=": ("where=",),
    "where=nosuch=1": ("nosuch",),
    "sort=nosuch": ("sort=nosuch", "test/elbo"),
    "sort=latent_dim": ("sort=latent_dim", "model.latent_dim"),
    "show=nosuch": ("show=nosuch",),
    "show=seed,": ("show=seed,",),
    "where=status=done": ("where=status=done", "finished", "stopped"),
    "output=a.txt": ("output=a.txt", ".csv"),
    "output=no/a.csv": ("output=no/a.csv",),
    "limit=0": ("limit=0",),
    "-m seed=0,1": ("-m",),
    "status=failed": ("where=status=failed",),
    "+foo=1": ("foo",),
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_named(make, capsys, arguments):
    make("a", **{"test/elbo": -1.0})
    assert main(["runs", *arguments.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith("vaelab: ")
    assert "Traceback" not in err
    assert all(part in err for part in BAD[arguments])


def test_without_outputs_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 2
    assert "./outputs" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("word", ["runs", "watch", "dashboard"])
def test_torch_is_not_imported(word, tmp_path):
    """Nor wandb, for --help."""
    code = (
        "import sys; from vaelab.cli import main\n"
        f"try: main(['{word}', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'wandb', 'pytorch_lightning'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_listing_and_watching_import_no_torch(make):
    make("a", **{"test/elbo": -1.0})
    code = (
        "import sys; from vaelab.cli import main\n"
        "assert main(['runs', 'where=model.latent_dim=10', 'sort=test/elbo']) == 0\n"
        "assert main(['watch']) == 0\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_run_inside_a_run_is_none(make):
    run = make("a")
    (run / "deeper").mkdir()
    (run / "deeper" / "summary.json").write_text("{}")
    assert list(runs_below([Path("outputs"), Path("outputs/a")])) == [run]


def test_on_a_terminal_the_table_fits_and_has_colours(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    rows = [("status", "best", "path"), ("finished", "val/reconstruction -12.5", "outputs/" + "x" * 60)]
    text = terminal.table(rows, {1}, {"finished": "green"})
    assert "\x1b[32mfinished" in text
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert max(map(len, plain.splitlines())) <= 60
    assert "x" * 60 in "".join(line.split()[-1] for line in plain.splitlines() if "x" in line)


def test_elsewhere_it_is_plain_and_whole(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "20")
    rows = [("n", "path"), ("7", "y" * 300), ("12", "z")]
    assert terminal.table(rows, {0}, {"7": "red"}) == f" n  path\n 7  {'y' * 300}\n12  z"
