"""Runs and an export of version 0.1, kept in version_0_1/: they load, go on, and are evaluated as they were.

Each run is one epoch on the digits; resumed/ has the metrics that version 0.1 reached after a second one.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

import vaelab
from vaelab.cli import main

FOLDER = Path(__file__).parent / "version_0_1"
RUNS = ("cvae", "capacity", "vqvae")


@pytest.fixture
def run(request, tmp_path, monkeypatch):
    """A copy of an old run, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(FOLDER / request.param, request.param))


@pytest.mark.parametrize("run", RUNS, indirect=True)
def test_an_old_run_is_evaluated_as_it_was(run):
    before = json.loads((run / "evaluation.json").read_text())["figures"]
    assert main(["eval", f"run={run}", "sections=[likelihood]"]) == 0
    after = json.loads((run / "evaluation.json").read_text())["figures"]
    assert after == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("run", RUNS, indirect=True)
def test_an_old_run_goes_on_as_it_would_have(run):
    assert main(["train", f"resume={run}", "trainer.max_epochs=2", "report=true"]) == 0
    expected = json.loads((FOLDER / "resumed" / f"{run}.json").read_text())
    reached = json.loads((run / "summary.json").read_text())["metrics"]
    assert reached == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert (run / "report.html").is_file()


@pytest.mark.parametrize("run", RUNS, indirect=True)
def test_an_old_run_draws_and_exports(run):
    for command in (["sample", "n=4"], ["reconstruct"], ["export", "out=exported"]):
        assert main([*command, f"run={run}"]) == 0, command


def test_an_old_export_is_the_model_of_its_run():
    exported, run = vaelab.load(FOLDER / "cvae-export"), vaelab.load(FOLDER / "cvae")
    assert exported.state_dict().keys() == run.state_dict().keys()
    z, labels = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    assert torch.equal(exported.decode(z, labels), run.decode(z, labels))
