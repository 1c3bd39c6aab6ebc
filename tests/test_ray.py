"""The launcher on Ray, here a local one: jobs side by side, one that raises, one that is killed, its refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vaelab import command

ROOT = Path(command.__file__).parent.parent
SCRIPT = """
import os, signal, sys
from pathlib import Path
import hydra
from vaelab import command

def job(config):
    import json, os, signal
    from pathlib import Path
    from hydra.core.hydra_config import HydraConfig
    run = Path(HydraConfig.get().runtime.output_dir)
    if config.seed == 1:
        raise ValueError("broken on purpose")
    if config.seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    facts = {"pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"], "folder": os.getcwd()}
    (run / "summary.json").write_text(json.dumps({"status": "finished", "metrics": facts, "error": None}))
    return str(run)

hydra.main(version_base="1.3", config_path=str(command.CONF), config_name="train")(job)()
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A sweep over four jobs, in a program of its own."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "program.py").write_text(SCRIPT)
    launcher = ["hydra/launcher=ray", "hydra.launcher.cpus=2", "+hydra.launcher.init.num_cpus=4"]
    arguments = ["-m", "seed=0,1,2,3", "sweep.dir='a sweep'", *launcher]
    result = subprocess.run(
        [sys.executable, "program.py", *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )
    return result, folder


def summaries(folder: Path) -> dict[str, dict]:
    return {p.parent.name: json.loads(p.read_text()) for p in (folder / "a sweep").glob("*/summary.json")}


def test_jobs_that_raise_or_are_killed_take_no_other_along(sweep):
    result, folder = sweep
    assert result.returncode == 0, result.stderr
    states = {name: summary["status"] for name, summary in summaries(folder).items()}
    assert states == {
        "0-vae-digits": "finished",
        "1-vae-digits": "failed",
        "2-vae-digits": "failed",
        "3-vae-digits": "finished",
    }


def test_a_failed_job_has_its_reason_and_its_traceback(sweep):
    _, folder = sweep
    assert summaries(folder)["1-vae-digits"]["error"] == "broken on purpose"
    assert 'raise ValueError("broken on purpose")' in (folder / "a sweep" / "1-vae-digits" / "run.log").read_text()
    assert "died" in summaries(folder)["2-vae-digits"]["error"]


def test_every_job_is_a_process_with_threads_of_its_own_in_the_working_folder(sweep):
    _, folder = sweep
    facts = [summaries(folder)[name]["metrics"] for name in ("0-vae-digits", "3-vae-digits")]
    assert facts[0]["pid"] != facts[1]["pid"]
    assert {f["threads"] for f in facts} == {"2"}
    assert {f["folder"] for f in facts} == {str(folder)}


def run_vaelab(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vaelab", "train", "-m", "hydra/launcher=ray", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_more_than_the_machine_has_is_refused(tmp_path):
    result = run_vaelab(tmp_path, "seed=0,1", "hydra.launcher.cpus=2", "+hydra.launcher.init.num_cpus=1")
    assert result.returncode == 2
    assert "hydra.launcher.cpus=2" in result.stderr
    assert "Traceback" not in result.stderr


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


def test_training_and_a_search_run_on_ray(tmp_path):
    small = ["dataset=fake", "dataset.image_shape=[1,8,8]", "dataset.size=96", "trainer.max_epochs=1", "report=false"]
    arguments = ["hydra/sweeper=optuna", "n_trials=2", "n_jobs=2", "model.latent_dim=range(2,9)", "sweep.dir=sweep"]
    result = run_vaelab(tmp_path, *small, *arguments, "+hydra.launcher.init.num_cpus=2")
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "sweep" / "optimization_results.json").read_text())
    assert results["trials"]["finished"] == 2
    assert (tmp_path / "sweep" / results["best"][0]["run"] / "checkpoints" / "best.ckpt").exists()
