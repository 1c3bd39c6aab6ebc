"""Launchers whose jobs are elsewhere: one that raises, one that is killed, what reaches them, what they refuse.

Ray is a local one; `slurm/` has a sbatch, srun and sacct that run the jobs of a SLURM cluster on this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SLURM = Path(__file__).parent / "slurm"
SCRIPT = """
import hydra
from vaelab.commands import command

def job(config):
    import json, os, signal
    from pathlib import Path
    from hydra.core.hydra_config import HydraConfig
    run = Path(HydraConfig.get().runtime.output_dir)
    if config.seed == 1:
        raise ValueError("broken on purpose")
    if config.seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    facts = {"pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS"), "folder": os.getcwd()}
    (run / "summary.json").write_text(json.dumps({"status": "finished", "metrics": facts, "error": None}))
    return str(run)

hydra.main(version_base="1.3", config_path=str(command.CONF), config_name="train")(job)()
"""
KEYS = {
    "ray": ["hydra.launcher.cpus=2", "+hydra.launcher.init.num_cpus=4"],
    "submitit_local": [],
    "submitit_slurm": ["hydra.launcher.partition=short", "hydra.launcher.timeout_min=77"],
}
"""What each is given besides. None is killed on SLURM: submitit waits 15 s for a result that might still come."""
ENDS = {0: "finished", 1: "failed", 2: "interrupted", 3: "finished"}


class Sweep:
    """A sweep over four jobs, in a program of its own."""

    def __init__(self, folder: Path, launcher: str):
        self.folder, self.launcher = folder, launcher
        self.seeds = [0, 1, 3] if launcher == "submitit_slurm" else [0, 1, 2, 3]
        (folder / "program.py").write_text(SCRIPT)
        environment = os.environ | {"PATH": f"{SLURM}:{os.environ['PATH']}", "FAKE_SLURM": str(folder)}
        del environment["OMP_NUM_THREADS"]
        arguments = ["-m", f"seed={','.join(map(str, self.seeds))}", f"hydra/launcher={launcher}", *KEYS[launcher]]
        self.result = subprocess.run(
            [sys.executable, "program.py", *arguments, "sweep.dir='a sweep'"],
            cwd=folder, capture_output=True, text=True, timeout=300, env=environment,
        )  # fmt: skip
        found = (folder / "a sweep").glob("*/summary.json")
        self.jobs = {self.seeds[int(path.parent.name[0])]: json.loads(path.read_text()) for path in sorted(found)}


@pytest.fixture(scope="module", params=[pytest.param(key, marks=pytest.mark.slow) for key in KEYS])
def sweep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return Sweep(tmp_path_factory.mktemp(request.param), request.param)


def test_jobs_that_raise_or_are_killed_take_no_other_along(sweep):
    assert sweep.result.returncode == 0, sweep.result.stderr
    states = {seed: job["status"] for seed, job in sweep.jobs.items()}
    assert states == {seed: ENDS[seed] for seed in sweep.seeds}


def test_a_failed_job_has_its_reason_and_its_traceback(sweep):
    assert "broken on purpose" in sweep.jobs[1]["error"]
    (log,) = sweep.folder.glob("*/1-vae-digits/run.log")
    text = log.read_text()
    assert ", in job\n" in text  # a program's own code is pickled, and may have lost its lines on the way
    assert "ValueError: broken on purpose" in text
    assert 2 not in sweep.jobs or "its process" in sweep.jobs[2]["error"]


def test_every_job_is_a_process_of_its_own_in_the_working_folder(sweep):
    facts = [job["metrics"] for job in sweep.jobs.values() if job["status"] == "finished"]
    assert facts[0]["pid"] != facts[1]["pid"]
    assert {f["folder"] for f in facts} == {str(sweep.folder)}
    assert {f["threads"] for f in facts} == {"2" if sweep.launcher == "ray" else None}


def test_what_is_asked_of_a_cluster_reaches_it(sweep):
    if sweep.launcher == "submitit_slurm":
        script = (sweep.folder / "script").read_text()
        assert {"#SBATCH --array=0-2%3", "#SBATCH --partition=short", "#SBATCH --time=77"} <= set(script.splitlines())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hydra/launcher=submitit_slurm", "+hydra.launcher.odd=1"], "odd"),
        (["hydra/launcher=submitit_local", "hydra.launcher.nodes=2"], "hydra.launcher.nodes"),
        (["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=soon"], "hydra.launcher.timeout_min=soon"),
        (["hydra/launcher=submitit_local", "model.latent_dim=0"], "all jobs: model.latent_dim=0: must be greater"),
    ],
)
def test_what_submitit_does_not_take_is_refused(train, tmp_path, monkeypatch, arguments, words):
    monkeypatch.setenv("PATH", f"{SLURM}:{os.environ['PATH']}")
    result = train("-m", "seed=0,1", "sweep.dir=sweep", *arguments)
    assert result.code == 2
    assert words in result.err
    assert not (tmp_path / "sweep").exists()


def test_slurm_where_there_is_none_is_refused(train, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    result = train("-m", "seed=0,1", "sweep.dir=sweep", "hydra/launcher=submitit_slurm")
    assert result.code == 2
    assert "slurm cluster" in result.err


def test_more_than_the_machine_has_is_refused(train, monkeypatch):
    import ray

    started = {}
    monkeypatch.setattr(ray, "init", lambda **given: started.update(given))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(started["num_cpus"])})
    cpus = ["hydra/launcher=ray", "hydra.launcher.cpus=2", "+hydra.launcher.init.num_cpus=1"]
    result = train("-m", "seed=0,1", "sweep.dir=sweep", *cpus)
    assert result.code == 2
    assert "hydra.launcher.cpus=2: a job can have no more than this machine, 1" in result.err
    assert "Traceback" not in result.err


def test_settings_are_checked(train):
    result = train("-m", "seed=0,1", "hydra/launcher=ray", "hydra.launcher.cpus=0", "sweep.dir=sweep")
    assert result.code == 2
    assert "cpus=0" in result.err


def test_without_ray_the_extra_is_named(train, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ray" else find(name, *a))
    result = train("-m", "seed=0,1", "hydra/launcher=ray", "sweep.dir=sweep")
    assert result.code == 2
    assert "vaelab[ray]" in result.err


@pytest.mark.slow
def test_training_and_a_search_run_on_ray(tmp_path):
    small = ["dataset=fake", "dataset.image_shape=[1,8,8]", "dataset.size=96", "trainer.max_epochs=1", "report=false"]
    arguments = ["hydra/sweeper=optuna", "n_trials=2", "n_jobs=2", "model.latent_dim=range(2,9)", "sweep.dir=sweep"]
    command = [sys.executable, "-m", "vaelab", "train", "-m", "hydra/launcher=ray", "+hydra.launcher.init.num_cpus=2"]
    result = subprocess.run([*command, *small, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "sweep" / "optimization_results.json").read_text())
    assert results["trials"]["finished"] == 2
    assert (tmp_path / "sweep" / results["best"][0]["run"] / "checkpoints" / "best.ckpt").exists()
