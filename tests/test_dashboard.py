"""`vaelab dashboard`: its sections, that every panel has something to show, and what is written."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import SMALL, smaller
from tests.wandb_server import wandb_server
from vaelab.cli import main
from vaelab.core.conf import CONF
from vaelab.report.hosted import workspace

pytest.importorskip("wandb_workspaces")

SECTIONS = ["Objective", "Rate and distortion", "Schedules", "Codebook", "Others", "Samples", "System"]
MODELS = ["capacity", "cvae", "vqvae"]
"""Which log, together, all that a panel reads: a schedule's figures, pictures of classes, a codebook's."""
GPU = {"system/gpu.0.gpu", "system/gpu.0.memoryAllocated"}
"""Logged where there is a GPU."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The files of a dashboard, by name."""
    folder = tmp_path_factory.mktemp("dashboard")
    assert main(["dashboard", f"out={folder}", "name=mine", "project=lab"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["comparison.json", "report.json", "workspace.json"]
    return {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}


def sections(view: dict) -> dict[str, list[dict]]:
    return {s["name"]: s["panels"] for s in view["spec"]["section"]["panelBankConfig"]["sections"]}


def panels(node) -> list[dict]:
    """All panels anywhere in a file."""
    if isinstance(node, list):
        return [panel for item in node for panel in panels(item)]
    if not isinstance(node, dict):
        return []
    return [node] if "viewType" in node else [panel for item in node.values() for panel in panels(item)]


def keys(panel: dict) -> set[str]:
    """The keys of runs that a panel reads, as they stand in the file."""
    config = panel["config"]
    found = [*config.get("metrics", []), *config.get("mediaKeys", [])]
    found += [config[axis] for axis in ("xAxis", "yAxis", "zAxis") if axis in config]
    return {key.removeprefix("summary:") for key in found}


def test_the_workspace_has_these_sections(written):
    view = written["workspace"]
    assert list(sections(view)) == SECTIONS
    assert all(sections(view).values())
    assert (view["project"], view["displayName"]) == ("lab", "mine")


def test_lines_are_over_the_trainers_steps_or_epochs_or_the_systems_time(written):
    for name, found in sections(written["workspace"]).items():
        axes = {panel["config"]["xAxis"] for panel in found if panel["viewType"] == "Run History Line Plot"}
        assert axes <= ({"_runtime"} if name == "System" else {"trainer/global_step"}), name
    lines = [p for p in panels(written["comparison"]) if p["viewType"] == "Run History Line Plot"]
    assert {panel["config"]["xAxis"] for panel in lines} == {"epoch"}


def test_rate_and_distortion_is_a_scatter_plot(written):
    (scatter,) = [p for p in sections(written["workspace"])["Rate and distortion"] if p["viewType"] == "Scatter Plot"]
    assert scatter["config"]["xAxis"] == "summary:val/kl"
    assert scatter["config"]["yAxis"] == "summary:val/reconstruction"


def test_only_figures_of_single_batches_are_smoothed(written):
    for panel in panels(written["workspace"]):
        smoothed = panel["config"].get("smoothingWeight", 0) > 0
        assert not smoothed or all(key.startswith("step/") for key in panel["config"]["metrics"])
    assert any(panel["config"].get("smoothingWeight", 0) > 0 for panel in panels(written["workspace"]))


def test_the_comparison_is_grouped_by_model(written):
    view = written["comparison"]
    (runs,) = view["spec"]["section"]["runSets"]
    assert runs["grouping"] == [{"section": "config", "name": "model.value._target_"}]
    bars = [panel["config"] for panel in panels(view) if panel["viewType"] == "Bar Chart"]
    assert bars
    assert {bar["groupBy"] for bar in bars} == {"model.value._target_"}
    assert {bar["groupAgg"] for bar in bars} == {"mean"}


def test_the_report_asks_answers_and_says_what_is_missing(written):
    report = written["report"]
    headings = [block["children"][0]["text"] for block in report["spec"]["blocks"] if block["type"] == "heading"]
    assert headings[0] == "Question"
    assert headings[-1] == "What this does not show"
    grids = [block for block in report["spec"]["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == 4
    for grid in grids:
        places = [(p["layout"]["x"], p["layout"]["y"]) for p in grid["metadata"]["panelBankSectionConfig"]["panels"]]
        assert len(set(places)) == len(places)  # none on top of another


def test_files_are_the_same_every_time(written, tmp_path):
    assert main(["dashboard", f"out={tmp_path}", "name=mine", "project=lab"]) == 0
    assert {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()} == written
    ids = re.findall(r'"__id__": "([^"]*)"', (tmp_path / "workspace.json").read_text())
    assert len(set(ids)) == len(ids) == sum(map(len, workspace.SECTIONS.values()))


def test_panels_read_what_the_table_says(written):
    for name, table in (("workspace", workspace.SECTIONS), ("comparison", workspace.COMPARISON)):
        wanted = [workspace.figures([panel]) for section in table.values() for panel in section]
        assert [keys(panel) for panel in panels(written[name])] == wanted


# --- what the lab logs ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """All keys that these models log in an epoch, in metrics.csv and in W&B's own files, and the machine's."""
    found = {"_runtime"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        patch.setenv("HOME", str(Path.cwd()))
        for model in MODELS:
            small = [*SMALL, *smaller([f"model={model}"])]
            arguments = [*small, f"model={model}", "trainer.max_epochs=1", "logger=wandb", f"run.dir={model}"]
            assert main(["train", *arguments]) == 0
            with (Path(model) / "metrics.csv").open(newline="") as file:
                found |= set(csv.DictReader(file).fieldnames or [])
            (log,) = Path(model).glob("wandb/offline-run-*/*.wandb")
            command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
            lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout.splitlines()
            for record in map(json.loads, lines):
                if record["type"] == "history":
                    found |= {re.sub(r"\.(path|bins|_type|values)$", "", key) for key in record["history"]["item"]}
                if record["type"] == "stats":
                    found |= {f"system/{key}" for key in record["stats"]["item"]}
    return found


@pytest.mark.parametrize("name", ["workspace", "comparison", "report"])
def test_every_panel_reads_what_the_lab_logs(written, logged, name):
    read = set().union(*map(keys, panels(written[name])))
    assert read
    assert not read - logged - GPU


# --- what goes wrong --------------------------------------------------------------------------

BAD = {
    "upload=yes": ("upload",),
    "out=/dev/null/x": ("out=/dev/null/x",),
    "name=": ("name=",),
    "foo=1": ("foo",),
    "-m project=a,b": ("-m",),
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_named(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(["dashboard", *arguments.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith("vaelab: ")
    assert "Traceback" not in err
    assert all(part in err for part in BAD[arguments])


def test_without_the_extra_it_says_which_one(tmp_path, monkeypatch, capsys):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb_workspaces" else real(name))
    assert main(["dashboard"]) == 2
    assert 'pip install "vaelab[wandb]"' in capsys.readouterr().err


# --- in an account ----------------------------------------------------------------------------


@pytest.fixture
def upload(tmp_path, monkeypatch, capsys):
    """Runs `vaelab dashboard upload=true`, with a key if there is an address: (exit code, output, errors)."""
    import wandb

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)

    def run(address: str | None, *arguments: str) -> tuple[int, str, str]:
        if address:
            monkeypatch.setenv("WANDB_BASE_URL", address)
            monkeypatch.setenv("WANDB_API_KEY", 40 * "0")
        wandb.teardown()
        code = main(["dashboard", "upload=true", "out=d", *arguments])
        return code, *capsys.readouterr()

    yield run
    monkeypatch.undo()
    wandb.teardown()


def test_what_is_uploaded_is_what_is_written(upload):
    with wandb_server() as server:
        code, out, err = upload(server.address, "name=mine", "project=lab")
    assert (code, err) == (0, "")
    assert server.projects == ["lab"]
    assert "made: the project someone/lab" in out
    assert [view["displayName"] for view in server.views] == ["mine", "mine: models compared", "mine: report"]
    assert {(view["entityName"], view["projectName"]) for view in server.views} == {("someone", "lab")}
    for view, name in zip(server.views, ("workspace", "comparison", "report"), strict=True):
        assert f"{name}: {server.address}/someone/lab" in out
        sent = panels(json.loads(view["spec"]))
        file = panels(json.loads(Path(f"d/{name}.json").read_text()))
        assert [panel["config"] for panel in sent] == [panel["config"] for panel in file]


@pytest.mark.parametrize("entity", ["null", "someone"])
def test_uploading_without_a_key_is_refused_before_anything_is_written(upload, entity):
    code, _, err = upload(None, f"entity={entity}")
    assert code == 2
    assert err == "vaelab: upload=true: there is no W&B key: run wandb login first, or leave upload out\n"
    assert not list(Path().glob("d/*.json"))


REFUSED = {
    "key": ({"Viewer": (401, "permission denied")}, ("W&B does not take the key", "wandb login")),
    "entity": ({"CreateProject": (404, "entity nobody not found")}, ("nobody/vaelab", "not found", "entity=")),
    "view": ({"UpsertView2": (403, "permission denied")}, ("the workspace was not made", "nobody/vaelab", "denied")),
    "report": ({"upsertView": (200, "too large")}, ("the report was not made", "too large")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_server_refuses_is_said_in_a_line(upload, what):
    refused, says = REFUSED[what]
    with wandb_server(refused) as server:
        code, out, err = upload(server.address, "entity=nobody")
    assert code == 2
    assert err.startswith("vaelab: upload=true: ")
    assert err.count("\n") == 1, err
    assert all(part in err for part in says), err
    assert ("comparison: http" in out) == (what == "report")  # addresses of views that are there are not lost


def test_an_account_without_an_entity_must_name_one(upload):
    with wandb_server(entity=None) as server:
        code, _, err = upload(server.address)
    assert code == 2
    assert "entity=" in err
    assert not server.views


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_told(tmp_path):
    """In a process of its own: W&B's client would go on asking."""
    code = "import sys; from vaelab.commands import dashboard; dashboard.SECONDS = 1"
    code += "; from vaelab import cli; sys.exit(cli.main(sys.argv[1:]))"
    environment = os.environ | {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": 40 * "0"}
    command = [sys.executable, "-c", code, "dashboard", "upload=true"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith("vaelab: upload=true: W&B cannot be reached")
    assert done.stderr.count("\n") == 1, done.stderr


# --- sweeps of W&B ----------------------------------------------------------------------------

SWEEPS = sorted((CONF.parent / "scripts" / "wandb").glob("*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=[path.stem for path in SWEEPS])
def test_the_agent_of_a_wandb_sweep_gets_a_command_that_trains(path, monkeypatch, capsys, tmp_path):
    """The command is put together by W&B's own function; `--cfg job` composes it."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep = yaml.safe_load(path.read_text())
    assert sweep["command"][:3] == ["${env}", "vaelab", "train"]
    assert sweep["command"][-1] == "${args_no_hyphens}"
    drawn = {
        key: {"value": spec["values"][-1] if "values" in spec else spec["max"]}
        for key, spec in sweep["parameters"].items()
    }
    monkeypatch.chdir(tmp_path)
    words = sweep["command"][3:-1] + create_sweep_command_args({"args": drawn})["args_no_hyphens"]
    assert main(["train", *words, "--cfg", "job"]) == 0, capsys.readouterr().err
    part, _, figure = sweep["metric"]["name"].partition("/")
    assert part == "val"
    high = figure == "elbo"
    assert sweep["metric"]["goal"] == ("maximize" if high else "minimize")
    assert not {"model", "dataset", "logger"} & sweep["parameters"].keys()  # W&B locks them, and the config is lost
