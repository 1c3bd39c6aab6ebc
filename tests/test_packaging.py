"""What is published: the wheel, its version, and what a default run needs of the packages that it requires."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
import torch
import yaml

import vaelab
from tests.conftest import SMALL
from vaelab.core.randomness import seeded
from vaelab.runs.exported import FORMAT as EXPORT_FORMAT
from vaelab.runs.layout import FORMAT

ROOT = Path(__file__).parent.parent
NEEDLESS = (
    *("torchvision", "wandb", "wandb_workspaces", "mlflow", "huggingface_hub", "rich", "safetensors", "tensorboard"),
)
"""Packages, as they are imported, without which a default run trains."""


def test_one_version_is_told_everywhere_and_is_not_that_of_the_formats():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    latest = re.search(r"^## \[(.*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert [vaelab.__version__, citation["version"]] == [latest[1]] * 2
    assert str(citation["date-released"]) == latest[2]
    assert (FORMAT, EXPORT_FORMAT) == (2, "vaelab-1")  # older runs and exports are read


def test_a_seeded_block_asks_for_what_the_oldest_torch_has(monkeypatch):
    """`fork_rng` of torch 2.11 takes no device_type=None."""
    fork, asked = torch.random.fork_rng, []
    monkeypatch.setattr(torch.random, "fork_rng", lambda *args, **named: asked.append(named) or fork(*args, **named))
    with seeded(1, torch.device("cpu")):
        assert asked == [{}]


def test_dev_has_every_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.search(r"\[(.*)\]", extras["dev"][0])[1].split(",")
    assert sorted(named) == sorted(extras.keys() - {"dev"})


@pytest.mark.slow
def test_the_wheel_trains_outside_the_checkout_without_what_only_options_need(tmp_path):
    """In an environment that has this one's packages, but not those of NEEDLESS, and no source of vaelab."""
    run = lambda *words, **how: subprocess.run(words, capture_output=True, text=True, timeout=120, **how)  # noqa: E731
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("vaelab-*.whl")
    assert wheel.name == f"vaelab-{vaelab.__version__}-py3-none-any.whl"
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(torch.__file__).parents[1].iterdir():
        if path.name.partition("-")[0] not in (*NEEDLESS, "vaelab") and not path.name.startswith(("_", ".")):
            (packages / path.name).symlink_to(path)
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(f"{packages}\n")
    done = run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    assert done.returncode == 0, done.stderr
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (tmp_path / "empty").mkdir()
    done = run(
        python.with_name("vaelab"), "train", *SMALL, "trainer.max_epochs=1", cwd=tmp_path / "empty", env=environment
    )
    assert done.returncode == 0, done.stderr
    (summary,) = (tmp_path / "empty").glob("outputs/*/*/summary.json")
    assert f'"vaelab": "{vaelab.__version__}"' in summary.read_text()
