"""Searches: what is found, what is not repeated after a kill, which trials count, what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vaelab.commands import command

ROOT = Path(command.__file__).parent.parent
CONFIG = """
defaults:
  - _self_
  - kind: a
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
x: 0.0
y: 0.0
n: 1
sweep:
  dir: sweep
hydra:
  output_subdir: null
  job:
    chdir: false
  sweep:
    dir: ${sweep.dir}
    subdir: ${hydra.job.num}
"""
CONF = command.CONF / "hydra"


def make_conf(folder: Path) -> Path:
    """A small config folder with a group: `kind=b` has a key `kind.width`, `kind=a` has not."""
    (folder / "kind").mkdir(parents=True)
    (folder / "fake.yaml").write_text(CONFIG)
    (folder / "kind" / "a.yaml").write_text("name: a\n")
    (folder / "kind" / "b.yaml").write_text("name: b\nwidth: 1\n")
    shutil.copytree(CONF, folder / "hydra")
    return folder


def job(config: Any) -> str:
    """A run in a moment: its figure is -(x - 2)² - y², its state what `n` asks for."""
    import json
    import math
    from pathlib import Path

    from hydra.core.hydra_config import HydraConfig

    run = Path(HydraConfig.get().runtime.output_dir)
    value = -((config.x - 2) ** 2) - config.y**2
    metrics = {"val/elbo": value, "val/kl": abs(config.x), "val/odd": math.nan if config.n == 7 else 1.0}
    status = {3: "failed", 4: "pruned", 5: "interrupted"}.get(config.n, "finished")
    summary = {"status": status, "metrics": metrics, "error": "broken on purpose" if status == "failed" else None}
    if config.n != 6:
        (run / "summary.json").write_text(json.dumps(summary))
    with (run / "times").open("a") as file:
        file.write("once\n")
    return str(run)


class Found(NamedTuple):
    code: int
    out: str
    err: str
    folder: Path

    @property
    def trials(self) -> list[Any]:
        import optuna

        study = optuna.load_study(study_name="search", storage=f"sqlite:///{self.folder / 'study.db'}")
        return study.trials

    @property
    def states(self) -> list[str]:
        return [trial.state.name for trial in self.trials]

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "optimization_results.json").read_text())


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., Found]:
    """Searches with jobs that take no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "CONF", make_conf(tmp_path / "conf"))

    def run(*arguments: str, task: Callable[[Any], Any] = job) -> Found:
        given = [command.of_search(command.quoted(a)) for a in ("-m", "hydra/sweeper=optuna", *arguments)]
        code = command.run("fake", task, given)
        folder = next((a.partition("=")[2] for a in arguments if a.startswith("sweep.dir=")), "sweep")
        return Found(code, *capsys.readouterr(), tmp_path / folder)

    return run


@pytest.mark.slow
def test_the_optimum_is_found(search):
    found = search("x=interval(-10,10)", "n_trials=25")
    assert found.code == 0, found.err
    best = found.results["best"][0]
    assert best["parameters"]["x"] == pytest.approx(2, abs=0.5)
    assert best["values"]["val/elbo"] == max(trial.value for trial in found.trials)
    metrics = json.loads((found.folder / best["run"] / "summary.json").read_text())["metrics"]
    assert metrics["val/elbo"] == best["values"]["val/elbo"]
    assert f"run: sweep/{best['run']}" in found.out


@pytest.mark.slow
def test_what_is_less_the_better_is_minimised(search):
    found = search("x=interval(-4,9)", "optimize=val/kl", "n_trials=15")
    assert found.results["best"][0]["values"]["val/kl"] == min(trial.value for trial in found.trials)
    given = search("x=interval(-4,9)", "optimize=val/elbo", "direction=min", "n_trials=5", "sweep.dir=other")
    assert given.results["best"][0]["values"]["val/elbo"] == min(trial.value for trial in given.trials)


def test_spaces_of_hydra_grammar(search):
    spaces = ("x=tag(log,interval(1e-4,1e-2))", "n=range(10,70,step=20)", "y=1,2.5,4", "kind=a,b", "n_trials=20")
    found = search(*spaces)
    assert found.code == 0, found.err
    values = {key: {trial.params[key] for trial in found.trials} for key in ("x", "n", "y", "kind")}
    assert values["n"] == {10, 30, 50}  # a range does not reach its stop
    assert values["y"] == {1, 2.5, 4}
    assert values["kind"] == {"a", "b"}
    assert all(1e-4 <= x <= 1e-2 for x in values["x"])
    assert sum(x < 1e-3 for x in values["x"]) > 4  # half of the scale, where a uniform one has a tenth
    assert found.trials[0].distributions["x"].log


@pytest.mark.parametrize("space", ["int(interval(1,4))", "tag(int,interval(1,4))", "tag(log,int,interval(1,4))"])
def test_integers_reach_both_ends(search, space):
    found = search(
        f"n={space}",
        "x=1",
        "n_trials=12",
        "hydra.sweeper.sampler._target_=optuna.samplers.RandomSampler",
        "~hydra.sweeper.sampler.constant_liar",
    )
    assert {trial.params["n"] for trial in found.trials} == {1, 2, 3, 4}


def test_a_key_that_only_one_option_has_is_searched_there(search):
    found = search("kind=a,b", "kind.width='range(1,9)'".replace("'", ""), "n_trials=12")
    assert found.code == 0, found.err
    assert {trial.params["kind"] for trial in found.trials} == {"a", "b"}
    assert all(("kind.width" in trial.params) == (trial.params["kind"] == "b") for trial in found.trials)


def test_several_figures_leave_a_pareto_front(search):
    found = search("x=interval(-1,4)", "optimize=val/elbo,val/kl", "n_trials=12")
    front = [row["values"] for row in found.results["best"]]
    assert found.results["optimize"] == {"val/elbo": "max", "val/kl": "min"}
    assert 1 < len(front) <= 12
    points = [(-a, b) for a, b in (trial.values for trial in found.trials)]
    beaten = {p for p in points if any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert sorted((-v["val/elbo"], v["val/kl"]) for v in front) == sorted(set(points) - beaten)


def test_states_of_jobs_are_states_of_trials(search):
    def one_of_each(config: Any) -> str:
        from hydra.core.hydra_config import HydraConfig

        config.n = [1, 3, 4, 6, 5][HydraConfig.get().job.num]
        return job(config)

    found = search("x=interval(0,1)", "n_trials=5", task=one_of_each)
    assert found.code == 0, found.err
    assert found.states == ["COMPLETE", "FAIL", "PRUNED", "FAIL", "RUNNING"]
    assert found.results["trials"] == {"finished": 1, "pruned": 1, "failed": 2, "unfinished": 1}
    assert found.trials[1].user_attrs["error"] == "broken on purpose"
    assert "summary.json" in found.trials[3].user_attrs["error"]
    assert "broken on purpose" in found.out


def test_a_job_that_its_launcher_lost_fails_its_trial_alone(search, monkeypatch):
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher
    from hydra.core.utils import JobReturn, JobStatus

    launch = BasicLauncher.launch

    def losing(self, job_overrides, initial_job_idx):
        if initial_job_idx == 1:
            return [JobReturn(status=JobStatus.FAILED, _return_value=RuntimeError("the worker died"))]
        return [None] if initial_job_idx == 2 else launch(self, job_overrides, initial_job_idx)

    monkeypatch.setattr(BasicLauncher, "launch", losing)
    found = search("x=interval(0,1)", "n_trials=4")
    assert found.states == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert found.trials[1].user_attrs["error"] == "the worker died"


def test_a_figure_that_is_no_number_fails_its_trial(search):
    found = search("x=interval(0,1)", "n=7", "optimize=val/odd", "direction=max", "n_trials=2")
    assert found.states == ["FAIL", "FAIL"]
    assert found.results["best"] == []


def test_trials_of_a_batch_differ_and_go_to_the_launcher_together(search, monkeypatch):
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    launched, launch = [], BasicLauncher.launch

    def recorded(self, job_overrides, initial_job_idx):
        launched.append((initial_job_idx, len(job_overrides), len({tuple(o) for o in job_overrides})))
        return launch(self, job_overrides, initial_job_idx)

    monkeypatch.setattr(BasicLauncher, "launch", recorded)
    found = search("x=interval(-9,9)", "n_trials=8", "n_jobs=3")
    assert launched == [(0, 3, 3), (3, 3, 3), (6, 2, 2)]
    assert found.states == ["COMPLETE"] * 8


@pytest.mark.slow
def test_batches_run_through_joblib(search):
    task = _by_value(job)
    found = search(
        "x=interval(-9,9)", "n_trials=4", "n_jobs=2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", task=task
    )
    assert found.code == 0, found.err
    assert found.states == ["COMPLETE"] * 4
    assert all(trial.value == -((trial.params["x"] - 2) ** 2) for trial in found.trials)


def _by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, pickled whole: the tests cannot be imported by other processes."""
    from types import FunctionType

    copy = FunctionType(function.__code__, {"__builtins__": __builtins__})
    copy.__module__ = "__main__"
    return copy


# --- once more -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_command_goes_on_up_to_its_number_of_trials(search):
    space = ("x=interval(-9,9)", "y=interval(-9,9)")
    search(*space, "n_trials=11")
    found = search(*space, "n_trials=14")
    assert len(found.trials) == 14
    assert all((found.folder / str(i) / "times").read_text() == "once\n" for i in range(14))
    whole = search(*space, "n_trials=14", "sweep.dir=whole")
    assert [t.params for t in found.trials] == [t.params for t in whole.trials]
    again = search(*space, "n_trials=14")
    assert len(again.trials) == 14
    assert again.results == whole.results


PARENT = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import test_optuna
from vaelab.commands import command

command.CONF = Path("conf").absolute()

def job(config):
    from hydra.core.hydra_config import HydraConfig
    if HydraConfig.get().job.num == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return test_optuna.job(config)

arguments = ["-m", "hydra/sweeper=optuna", *sys.argv[1:]]
sys.exit(command.run("fake", job, [command.of_search(command.quoted(a)) for a in arguments]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
def test_a_search_whose_process_was_killed_ends_as_if_it_had_not_been(search, tmp_path, batch):
    (tmp_path / "parent.py").write_text(PARENT.format(root=str(ROOT), tests=str(Path(__file__).parent)))
    space = ("x=interval(-9,9)", "y=interval(-9,9)", "n_trials=14", f"n_jobs={batch}")
    first = subprocess.run([sys.executable, "parent.py", *space], cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == -signal.SIGKILL, first.stderr
    killed, whole = search(*space), search(*space, "sweep.dir=whole")
    assert killed.code == 0, killed.err
    assert killed.states == ["COMPLETE"] * 14
    assert [(t.params, t.value) for t in killed.trials] == [(t.params, t.value) for t in whole.trials]
    assert killed.results == whole.results
    assert all((killed.folder / str(i) / "times").read_text() == "once\n" for i in range(12 - 12 % batch))


def test_an_interrupted_trial_is_taken_up_again_in_its_folder(search):
    search("x=interval(0,1)", "n=5", "n_trials=2")
    assert search("x=interval(0,1)", "n=5", "n_trials=2").states == ["RUNNING"] * 2

    def mended(config: Any) -> str:
        config.n = 1
        return job(config)

    found = search("x=interval(0,1)", "n=5", "n_trials=3", task=mended)
    assert found.states == ["COMPLETE"] * 3
    assert (found.folder / "0" / "times").read_text() == "once\n" * 3


def test_a_folder_with_spaces_and_signs_holds_its_study(search):
    found = search("x=interval(0,1)", "n_trials=1", "sweep.dir=a b%20é")
    assert found.code == 0, found.err
    assert sorted(p.name for p in found.folder.iterdir()) == ["0", "optimization_results.json", "study.db"]


# --- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x=1"], ["nothing to search"]),
        (["x=interval(2,1)"], ["x=interval(2,1)", "low"]),
        (["x=tag(log,interval(0,1))"], ["x=tag(log,interval(0,1))"]),
        (["x=tag(lgo,interval(1,2))"], ["x", "lgo", "log and int"]),
        (["n=range(5,1)"], ["n=range(5,1)", "empty"]),
        (["x=shuffle(1,2)"], ["x", "shuffle"]),
        (["x=1,1"], ["x=1,1", "twice"]),
        (["x=interval(0,1)", "optimize=val/odd"], ["optimize=val/odd", "direction=max"]),
        (["x=interval(0,1)", "optimize=val/kl,val/elbo", "direction=max"], ["direction"]),
        (["x=interval(0,1)", "direction=up"], ["direction"]),
        (["x=interval(0,1)", "n_trials=0"], ["n_trials=0"]),
        (["x=interval(0,1)", "pruning=sometimes"], ["pruning", "median"]),
        (["x=interval(0,1)", "pruning=median", "optimize=val/kl,val/elbo"], ["pruning=median"]),
        (["x=interval(0,1)", "pruning=median", "optimize=test/elbo"], ["pruning=median", "val/"]),
        (["x=interval(0,1)", "hydra.sweeper.storage=nowhere"], ["hydra.sweeper.storage=nowhere"]),
        (["x=interval(0,1)", "hydra.sweeper.sampler._target_=optuna.Nothing"], ["hydra.sweeper.sampler"]),
        (["x=interval(0,1)", "kind.depth=range(1,3)"], ["kind.depth", "no such key"]),
        (["x=interval(0,1)", "kind=a,c"], ["kind=c", "no such option"]),
    ],
)
def test_what_cannot_be_searched_is_refused_before_the_first_job(search, tmp_path, arguments, words):
    found = search(*arguments)
    assert found.code == 2
    assert "Traceback" not in found.err
    assert all(word in found.err for word in words), found.err
    assert not list((tmp_path / "sweep").glob("*/times"))


def test_a_figure_that_no_run_has_ends_the_search(search):
    found = search("x=interval(0,1)", "optimize=val/psnr", "direction=max", "n_trials=5")
    assert found.code == 2
    assert "val/psnr" in found.err
    assert "val/elbo, val/kl" in found.err
    assert len(list(found.folder.glob("*/times"))) == 1
    assert search("x=interval(0,1)", "optimize=val/odd", "direction=max", "n_trials=1").code == 0


@pytest.mark.parametrize("name", ["val/elob", "val/reconstuction"])
def test_a_figure_that_is_misspelt_is_refused_before_the_first_trial(search, name):
    found = search("x=interval(0,1)", f"optimize={name}", "direction=max", "n_trials=5")
    assert found.code == 2
    assert "did you mean val/" in found.err
    assert not list(found.folder.glob("*/times"))


def test_another_search_in_the_same_folder_is_refused(search):
    search("x=interval(0,1)", "y=1", "n_trials=2")
    for other in (
        ["x=interval(0,1)", "y=2"],
        ["x=interval(0,3)", "y=1"],
        ["x=interval(0,1)", "y=1", "optimize=val/kl"],
    ):
        found = search(*other, "n_trials=4")
        assert found.code == 2
        assert "sweep.dir=sweep" in found.err
        assert len(found.trials) == 2


def test_without_optuna_the_extra_is_named(search, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "optuna" else find(name, *a))
    found = search("x=interval(0,1)")
    assert found.code == 2
    assert "vaelab[optuna]" in found.err


def test_keys_of_a_search_without_one_say_what_is_missing(train):
    result = train("-m", "seed=0,1", "optimize=val/elbo", "sweep.dir=sweep")
    assert result.code == 2
    assert "hydra/sweeper=optuna" in result.err


# --- with real training ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_search_over_models_trains_them(train, tmp_path):
    result = train(
        "-m",
        "hydra/sweeper=optuna",
        "optimize=val/elbo",
        "model=vae,beta",
        "model.beta=interval(1,16)",
        "optimizer.lr=tag(log,interval(1e-4,1e-2))",
        "n_trials=3",
        "sweep.dir=sweep",
    )
    assert result.code == 0, result.err
    found = Found(result.code, result.out, result.err, tmp_path / "sweep")
    assert found.states == ["COMPLETE"] * 3
    for trial in found.trials:
        run = found.folder / trial.user_attrs["run"]
        assert json.loads((run / "summary.json").read_text())["metrics"]["val/elbo"] == trial.value
        assert f"lr: {trial.params['optimizer.lr']}" in (run / "config.yaml").read_text()


@pytest.mark.slow
def test_a_trial_behind_the_others_is_pruned(train, tmp_path):
    """The median of five others judges: first trials that do better are put into the study."""
    import optuna

    command = ("-m", "hydra/sweeper=optuna", "pruning=median", "model.latent_dim=range(2,9)", "sweep.dir=sweep")
    first = train(*command, "n_trials=1", "trainer.max_epochs=3")
    assert first.code == 0, first.err
    found = Found(0, "", "", tmp_path / "sweep")
    (trial,) = found.trials
    assert list(trial.intermediate_values) == [0, 1, 2]
    assert trial.intermediate_values[2] == pytest.approx(trial.value)

    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/sweep/study.db")
    better = {epoch: value + 1 for epoch, value in trial.intermediate_values.items()} | {0: -1e6}
    for _ in range(4):
        study.add_trial(
            optuna.create_trial(
                value=0.0,
                params=trial.params,
                distributions=trial.distributions,
                intermediate_values=better,
            )
        )
    second = train(*command, "n_trials=6", "trainer.max_epochs=3")
    assert second.code == 0, second.err
    run = tmp_path / "sweep" / found.trials[5].user_attrs["run"]
    summary = json.loads((run / "summary.json").read_text())
    assert found.states == ["COMPLETE"] * 5 + ["PRUNED"]
    assert (summary["status"], summary["epochs"]) == ("pruned", 2)  # not after the first epoch, where it led
    assert found.trials[5].value == pytest.approx(summary["metrics"]["val/elbo"])
    assert "test/elbo" not in summary["metrics"]
    resumed = train(f"resume={run}")
    assert resumed.code == 0, resumed.err
    assert json.loads((run / "summary.json").read_text())["epochs"] == 3


@pytest.mark.slow
def test_the_last_epoch_is_never_cut(train, tmp_path):
    import optuna

    command = ("-m", "hydra/sweeper=optuna", "pruning=median", "model.latent_dim=range(2,9)", "sweep.dir=sweep")
    train(*command, "n_trials=1", "trainer.max_epochs=1")
    found = Found(0, "", "", tmp_path / "sweep")
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/sweep/study.db")
    trial = found.trials[0]
    for _ in range(4):
        made = optuna.create_trial(
            value=0.0, params=trial.params, distributions=trial.distributions, intermediate_values={0: 0.0}
        )
        study.add_trial(made)
    assert train(*command, "n_trials=6", "trainer.max_epochs=1").code == 0
    assert found.states == ["COMPLETE"] * 6
