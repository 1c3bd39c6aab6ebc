"""`vaelab doctor`: the installation's checks, and the findings about a run."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from vaelab.cli import main
from vaelab.core.conf import CONF
from vaelab.core.errors import UserError
from vaelab.training import installation
from vaelab.training.installation import machine as machine_checks
from vaelab.training.installation import packages, probes
from vaelab.training.installation.machine import DATA_FILES
from vaelab.training.installation.packages import PAIR

FACTS = {
    "version": "2.15.0+cu132",
    "cuda": "13.2",
    "hip": None,
    "gpus": [],
    "mps_built": False,
    "mps": False,
    "threads": 1,
    "vectors": "AVX512",
    "bf16": True,
    "warnings": [],
}
VISION = {"version": "0.29.2+cu132"}
VERSIONS = {"torch": "2.15.0", "torchvision": "0.29.2", "wandb": "0.31.0", "pytorch-lightning": "2.6.6"}
REQUIRES = {
    "vaelab": ["torch>=2.11", "torchvision>=0.26", "pytorch-lightning>=2.6,<3", "wandb>=0.26", 'h5py; extra == "x"'],
    "torchvision": ["numpy", "torch>=2.14.0"],
}
SECRET = "0123456789abcdef-marker"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine whose packages and probes can be set: versions, requirements, and what the probes say."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    state = {"versions": dict(VERSIONS), "requires": dict(REQUIRES), "torch": FACTS, "torchvision": VISION}
    state["driver"] = None

    def version(name):
        if name not in state["versions"]:
            raise metadata.PackageNotFoundError(name)
        return state["versions"][name]

    monkeypatch.setattr(packages.metadata, "version", version)
    monkeypatch.setattr(packages.metadata, "requires", lambda name: state["requires"].get(name))
    monkeypatch.setattr(installation, "run_python", lambda code: state["torchvision" if "nms" in code else "torch"])
    monkeypatch.setattr(installation, "nvidia_driver", lambda: state["driver"])
    return state


@pytest.fixture
def doctor(monkeypatch, tmp_path, capsys):
    """Runs `vaelab doctor` in an empty folder. Returns exit code, printed text, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        code = main(["doctor", *arguments])
        return code, *capsys.readouterr()

    return run


# --- installation ---------------------------------------------------------------------------------


def test_a_sound_machine(machine, doctor, tmp_path):
    code, out, err = doctor()
    assert (code, err) == (0, "")
    assert "problem found" not in out
    assert "no problem" in out
    columns = {line.index(" ok ") for line in out.splitlines() if " ok " in line}
    assert len(columns) == 1
    assert list(tmp_path.iterdir()) == []  # nothing is written


PROBLEMS = {
    "pinned pair": (
        {"requires": REQUIRES | {"torchvision": ["torch==2.9.1"]}},
        "for torch==2.9.1, and torch is 2.15.0",
    ),
    "compiled part": ({"torchvision": {"error": "RuntimeError: operator torchvision::nms does not exist"}}, "nms does"),
    "no torchvision": ({"versions": {k: v for k, v in VERSIONS.items() if k != "torchvision"}}, "not installed"),
    "torch crashes": ({"torch": {"error": "it crashed (signal 11)"}}, "signal 11"),
    "old torch": (
        {"versions": VERSIONS | {"torch": "2.10.0"}, "requires": REQUIRES | {"torchvision": []}},
        "torch>=2.11",
    ),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_torch_and_torchvision_that_do_not_belong_together(machine, doctor, case):
    change, named = PROBLEMS[case]
    machine |= change
    code, out, _ = doctor()
    assert code == 1
    assert named in out
    assert f"{PAIR}" in out
    assert "\n1 problem" in out


def test_a_local_version_fits_its_own_pin():
    """torchvision of another index says torch==2.15.0+cu132, or torch==2.15.0 of torch 2.15.0+cu132."""
    from packaging.requirements import Requirement

    assert packages.fits(Requirement("torch==2.15.0"), "2.15.0+cu132")
    assert packages.fits(Requirement("torch>=2.14"), "2.15.0a0+git123")
    assert not packages.fits(Requirement("torch==2.14.0"), "2.15.0")


@pytest.mark.parametrize(
    ("versions", "says"),
    [
        ({"wandb": None}, "wandb is not installed"),
        ({"pytorch-lightning": "1.9.0"}, "pytorch-lightning 1.9.0, and vaelab needs"),
    ],
)
def test_packages(machine, doctor, versions, says):
    machine["versions"] = {k: v for k, v in (VERSIONS | versions).items() if v}
    code, out, _ = doctor()
    assert code == 1
    assert says in out
    assert 'remedy: pip install "' in out
    assert "h5py" not in out  # an extra's


@pytest.mark.parametrize(
    ("facts", "driver", "state", "says"),
    [
        ({}, None, "ok", "none"),
        (
            {"gpus": [["NVIDIA H200", 139 * 2**30]]},
            "NVIDIA H200, driver 580.95",
            "ok",
            "1 x NVIDIA H200, 139 GiB, driver 580",
        ),
        ({"cuda": None}, "NVIDIA H200, driver 580.95", "problem", "built for the processor"),
        ({"warnings": ["The NVIDIA driver is too old"]}, "NVIDIA H200, driver 470.1", "problem", "driver is too old"),
        ({"gpu_error": "no kernel image"}, "NVIDIA K80, driver 470.1", "problem", "no kernel image"),
        ({"mps": True, "mps_built": True}, None, "ok", "accelerator=mps"),
    ],
)
def test_gpus(machine, facts, driver, state, says):
    check = machine_checks.check_gpu(FACTS | facts, driver)
    assert check.state == state
    assert says in check.says
    assert bool(check.remedy) == (state == "problem")


def test_a_hidden_gpu_is_no_problem(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine_checks.check_gpu(FACTS, "NVIDIA H200, driver 580.95").state == "note"


def test_more_threads_than_cores(machine):
    assert machine_checks.check_processor(FACTS).state == "ok"
    assert machine_checks.check_processor(FACTS | {"threads": 10_000}).state == "note"


def test_the_probes_run_and_their_failures_are_told(monkeypatch):
    assert probes.run_python("print('noise'); print('{\"a\": 1}')") == {"a": 1}
    assert probes.run_python("raise RuntimeError('operator x does not exist')")["error"] == (
        "RuntimeError: operator x does not exist"
    )
    assert "signal 11" in probes.run_python("import os; os.kill(os.getpid(), 11)")["error"]
    monkeypatch.setattr(probes, "IMPORT_SECONDS", 0.2)
    assert "0.2 seconds" in probes.run_python("import time; time.sleep(60)")["error"]


def test_this_machine():
    """The real probe: what it says is what torch says here."""
    import torch

    facts = probes.run_python(probes.TORCH_PROBE)
    assert facts["version"] == torch.__version__
    assert facts.keys() >= FACTS.keys()
    assert len(facts["gpus"]) == torch.cuda.device_count()


# --- data, disk, compiler, W&B --------------------------------------------------------------------


def put(root, name, files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def test_data_sets_are_found(machine, doctor, tmp_path):
    root = tmp_path / "my data, 1"
    for name in ("mnist", "dsprites"):
        put(root, name, DATA_FILES[name])
    put(root, "svhn", DATA_FILES["svhn"][:1])
    code, out, _ = doctor(f"root={root}")
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith("data  "))
    assert line.endswith(": mnist, dsprites")
    assert "svhn is not whole, test_32x32.mat is missing" in out
    assert "cifar10" not in out


def test_a_data_root_that_is_missing_or_empty_is_no_problem(machine, tmp_path):
    assert [check.state for check in machine_checks.check_data(None)] == ["note"]  # no ./data
    assert [check.state for check in machine_checks.check_data(tmp_path)] == ["note"]


def test_a_data_root_that_was_named_must_exist(machine, doctor, tmp_path):
    code, out, _ = doctor("root=/nowhere/at all")
    assert code == 1
    assert "/nowhere/at all is no folder" in out
    assert "\n1 problem\n" in out
    put(tmp_path, "data", [f"data/{file}" for file in DATA_FILES["mnist"]])
    assert ": mnist" in doctor()[1].replace("data: mnist", ": mnist")
    assert doctor()[0] == 0


def test_shapes3d_without_h5py(machine, tmp_path, monkeypatch):
    put(tmp_path, "shapes3d", DATA_FILES["shapes3d"])
    monkeypatch.setattr(machine_checks, "find_spec", lambda name: None)
    assert [check.state for check in machine_checks.check_data(tmp_path)] == ["ok", "problem"]


WITH_FILES = [p.stem for p in (CONF / "dataset").glob("*.yaml") if yaml.safe_load(p.read_text()).get("root") == "data"]


@pytest.mark.parametrize("name", WITH_FILES)
def test_the_files_are_those_that_the_data_sets_read(name, tmp_path):
    """A data set asks for exactly the files in the table: with one of them away it names that one."""
    import vaelab.datasets

    files = DATA_FILES[name]
    target = yaml.safe_load((CONF / "dataset" / f"{name}.yaml").read_text())["_target_"]
    data = object.__new__(getattr(vaelab.datasets, target.rpartition(".")[2]))
    data.root, data.download, data.size, data.test_size = str(tmp_path), False, 64, 100
    for file in files:
        put(tmp_path, name, files)
        (tmp_path / file).unlink()
        with pytest.raises(UserError, match=r"dataset\.root") as error:
            data.load()
        assert str(tmp_path / file) in str(error.value)
    put(tmp_path, name, files)
    with pytest.raises(UserError) as error:  # whole by name: it is the content that is wrong now
        data.load()
    assert "dataset.root=" not in str(error.value)


def test_outputs(machine, tmp_path, monkeypatch):
    assert machine_checks.check_outputs(Path("outputs")).state == "ok"
    free = type("Usage", (), {"free": 5 * 10**8})
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda place: free)
    assert machine_checks.check_outputs(Path("outputs")).state == "note"
    free.free = 10**7
    assert machine_checks.check_outputs(Path("outputs")).state == "problem"
    check = machine_checks.check_outputs(Path("/proc/outputs"))
    assert check.state == "problem"
    assert "cannot be written" in check.says


def test_compiler(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "nowhere-g++ -O2")
    check = machine_checks.check_compiler(gpu=False)
    assert check.state == "note"
    assert "nowhere-g++" in check.says
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(machine_checks.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "Python.h" in machine_checks.check_compiler(gpu=False).says
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(machine_checks, "find_spec", lambda name: None)
    assert machine_checks.check_compiler(gpu=False).state == "ok"
    assert "Triton" in machine_checks.check_compiler(gpu=True).says


def test_wandb_state_without_the_key(machine, doctor, monkeypatch, tmp_path):
    assert "no key" in doctor()[1]
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {SECRET}\n")
    (tmp_path / ".netrc").chmod(0o600)
    out = doctor()[1]
    assert "a key in netrc" in out
    assert SECRET not in out
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_MODE", "offline")
    code, out, err = doctor()
    assert code == 0
    assert "a key in WANDB_API_KEY; WANDB_MODE=offline" in out
    monkeypatch.setenv("WANDB_MODE", SECRET)
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / ".netrc").write_text(f"machine {SECRET} oops {SECRET}\n")
    out += doctor()[1]
    assert "no key" in out
    assert SECRET not in out + err


def test_without_hydra(machine, monkeypatch, capsys):
    from vaelab.commands import doctor as module

    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "hydra" else True)
    assert main(["doctor"]) == 1
    assert "pip install hydra-core" in capsys.readouterr().out


@pytest.mark.slow
def test_starting_imports_no_torch(tmp_path):
    code = (
        "import sys\nfrom vaelab.training import installation\n"
        "installation.run_python = lambda code: {'error': 'left out'}\n"
        "from vaelab.cli import main; main(['doctor']); print([m for m in ('torch', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


# --- a run ----------------------------------------------------------------------------------------

CONFIG = "run: {name: vae-digits}\nmodel: {}\ndataset: {}\nschedule: {beta: {start: 0.0, end: 4.0, over: 9}}\n"
CHECKPOINT = {"name": "best", "epoch": 5}


@pytest.fixture
def run(tmp_path):
    """A run folder as training and `vaelab eval` leave it, healthy; returns its path."""
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    cells = [f"{40 * (i + 1)},{i}.0,{100 + i % 2},{101 + i % 2},4.0,4.0" for i in range(6)]
    (folder / "metrics.csv").write_text("\n".join(["step,epoch,train/loss,val/loss,train/beta,val/beta", *cells, ""]))
    summary = {"status": "finished", "epochs": 6, "best": {"epoch": 5, "by": "val/elbo"}, "findings": []}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "checkpoints").mkdir()
    for name in ("best", "last"):
        (folder / "checkpoints" / f"{name}.ckpt").write_bytes(b"weights")
    return folder


def evaluate(folder, figures, checkpoint=CHECKPOINT, name="evaluation.json"):
    content = {"split": "test", "images": 1000, "checkpoint": checkpoint, "figures": figures, "vectors": {}}
    (folder / name).write_text(json.dumps(content | {"subject": {"capacity": None}}))


def change(folder, **values):
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_healthy_run(doctor, run):
    code, out, err = doctor(f"run={run}")
    assert (code, err) == (0, "")
    assert "my run: vae-digits, finished, 6 epochs" in out
    assert out.count("nothing found") == 2
    assert "judged" not in out
    assert f"`vaelab eval run='{run}'`" in out
    assert "no finding" in out
    evaluate(run, {"likelihood/kl": 20.0})
    code, out, _ = doctor(f"run={run}")
    assert code == 0
    assert out.count("nothing found") == 3
    assert "test images, best checkpoint, epoch 5" in out
    assert "vaelab eval" not in out


@pytest.mark.parametrize("told", [{"findings": None, "steps": 300}, {"findings": [], "steps": 199}])
def test_what_was_not_judged_is_not_called_healthy(doctor, run, told):
    """The second is what version 0.1 wrote."""
    change(run, **told)
    lines = (run / "metrics.csv").read_text().splitlines()
    (run / "metrics.csv").write_text("\n".join([*lines[:5], ""]))
    out = doctor(f"run={run}")[1]
    assert f"while training\n  not judged  No health check has looked at this training of {told['steps']} steps" in out
    assert "curves in metrics.csv (no trend is judged from 4 epochs): nothing found" in out


def test_findings_of_all_sources_are_told_once(doctor, run):
    collapse = {"code": "posterior_collapse", "evidence": "of training", "remedy": "x"}
    blank = {"code": "blank_output", "evidence": "one colour", "remedy": "a lower rate"}
    change(run, findings=[collapse, blank], best={"epoch": 2, "by": "val/elbo"})
    evaluate(run, {"likelihood/kl": 0.1})
    code, out, _ = doctor(f"run={run}")
    assert code == 0
    assert "one colour\n" in out
    assert "remedy: a lower rate" in out
    assert out.count("\n  posterior_collapse") == 1
    assert "of training" not in out
    assert "evaluation_outdated" in out
    assert f"vaelab eval run='{run}'" in out
    assert "3 findings" in out
    assert "(found again by the evaluation: posterior_collapse)" in out
    change(run, findings=[collapse])
    training = doctor(f"run={run}")[1].split("\n\n")[1]
    assert training == "while training, at its last look (found again by the evaluation: posterior_collapse)"


def test_schedules_of_the_config_are_looked_at(doctor, run):
    text = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(text.replace("4.0,4.0", "3.0,3.0"))
    assert "schedule_unfinished" in doctor(f"run={run}")[1]
    change(run, status="interrupted")
    out = doctor(f"run={run}")[1]
    assert "schedule_unfinished" not in out  # it could not finish
    assert f"vaelab train resume='{run}'" in out


def test_a_run_without_summary_metrics_or_checkpoint(doctor, run):
    (run / "summary.json").unlink()
    (run / "metrics.csv").unlink()
    for path in run.glob("checkpoints/*"):
        path.unlink()
    code, out, _ = doctor(f"run={run}")
    assert code == 0
    assert "run_unfinished" in out
    assert "metrics.csv is missing: no curve is judged" in out
    assert "nor a checkpoint" in out
    assert "checkpoint_missing" not in out  # there may be none yet


@pytest.mark.parametrize(
    ("lost", "emptied", "says", "remedy"),
    [
        ("best", None, "checkpoints/best.ckpt is missing\n", "vaelab eval run='{run}' checkpoint=last takes the other"),
        (None, "best", "checkpoints/best.ckpt is empty\n", "vaelab eval run='{run}' checkpoint=last takes the other"),
        ("last", None, "checkpoints/last.ckpt is missing\n", "cannot be resumed"),
        ("last", "best", "checkpoints/best.ckpt is empty, checkpoints/last.ckpt is missing\n", "train again"),
    ],
)
def test_lost_checkpoints(doctor, run, lost, emptied, says, remedy):
    if lost:
        (run / "checkpoints" / f"{lost}.ckpt").unlink()
    if emptied:
        (run / "checkpoints" / f"{emptied}.ckpt").write_bytes(b"")
    code, out, _ = doctor(f"run={run}")
    assert code == 0
    assert f"checkpoint_missing  {says}" in out
    assert remedy.format(run=run) in out
    assert ("nor a checkpoint" in out) == bool(lost and emptied)
    if not (lost and emptied):
        other = " checkpoint=last" if "best" in (lost, emptied) else ""
        assert f"`vaelab eval run='{run}'{other}` adds" in out
    (run / "config.yaml").write_text(CONFIG + "trainer: {enable_checkpointing: false}\n")
    assert "checkpoint_missing" not in doctor(f"run={run}")[1]


def test_a_finished_run_without_its_metrics(doctor, run):
    (run / "metrics.csv").unlink()
    assert "metrics.csv is missing: no curve is judged): nothing found" in doctor(f"run={run}")[1]


def test_the_end_of_training_is_where_a_schedule_got(doctor, run):
    """Without validation: metrics.csv has the mean of the epoch, and summary.json the value that was reached."""
    (run / "metrics.csv").write_text("step,epoch,train/loss,train/beta,step/beta\n40,0,100,2.0,2.0\n")
    change(run, objective={"beta": 2.4}, best={})
    assert "beta had reached 2.4 of 4 at the last step" in doctor(f"run={run}")[1]
    change(run, objective={"beta": 4.0})
    assert "schedule_unfinished" not in doctor(f"run={run}")[1]


def test_the_evaluation_of_another_split_serves(doctor, run):
    evaluate(run, {"likelihood/kl": 0.1}, name="evaluation-val.json")
    assert "evaluation-val.json" in doctor(f"run={run}")[1]


def test_a_real_run(train, doctor, monkeypatch):
    result = train("model=beta", "model.beta=500", "schedule=constant", "run.dir=outputs/a")
    assert result.code == 0
    code, out, err = doctor("run=last")
    assert (code, err) == (0, "")
    assert out.startswith("outputs/a: beta-fake, finished, 2 epochs\n")
    assert "not judged" in out


BROKEN = {
    "summary.json": [
        "{",
        "[]",
        '{"best": 3}',
        '{"best": {"epoch": "5"}}',
        '{"status": ["finished"]}',
        '{"objective": []}',
        '{"findings": [{"cod": 1}]}',
        '{"findings": [{"code": "a", "evidence": 3, "remedy": "b"}]}',
        '{"findings": 5}',
        b"\xff\xfe{",
    ],
    "metrics.csv": [
        "",
        "a,b\n1,2\n",
        "step,epoch\n1\n",
        "step,epoch\nx,2\n",
        "step,x\n,2\n",
        "step\n\x00\n",
        b"\xff,\n",
    ],
    "evaluation.json": [
        "{",
        "{}",
        "[]",
        '{"figures": []}',
        '{"figures": {"likelihood/kl": "low"}}',
        '{"figures": {"latents/kl_index_code_mi": 3}, "images": "many"}',
        '{"figures": {"likelihood/kl": 1' + 400 * "0" + "}}",
    ],
    "config.yaml": [
        "run: [",
        "a: 1\n",
        "run: a\nmodel: {}\ndataset: {}\n",
        CONFIG.partition("schedule")[0] + "schedule: [1]",
    ],
}


@pytest.mark.parametrize(("name", "content"), [(name, c) for name, cs in BROKEN.items() for c in cs])
def test_a_damaged_file_is_named(doctor, run, name, content):
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, err = doctor(f"run={run}")
    assert code == 2
    assert str(run) in err
    assert 1 <= len(err.strip().splitlines()) <= 2
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run=nowhere"], "no such folder"),
        (["run=last"], "no run"),
        (["run="], "run= is empty"),
        (["root="], "root= is empty"),
        (["run=sweep/0-vae", "root=data"], "root=data: it is for the check of the installation"),
        (["-m", "run=a,b"], "-m"),
        (["runs=x"], "did you mean run?"),
        (["+foo=1"], "foo"),
        (["last"], "key=value"),
        (["run=sweep"], "2 runs: give one of them, run=sweep/0-vae"),
    ],
)
def test_refusals(doctor, tmp_path, arguments, named):
    for job in ("1-beta", "0-vae"):
        (tmp_path / "sweep" / job).mkdir(parents=True)
        (tmp_path / "sweep" / job / "config.yaml").write_text(CONFIG)
    code, out, err = doctor(*arguments)
    assert code == 2
    assert named in err
    assert len(err.strip().splitlines()) <= 2
    assert out == ""


def test_help_says_how(doctor, capsys):
    with pytest.raises(SystemExit, match="0"):
        doctor("--help")
    out = capsys.readouterr().out
    assert "vaelab doctor run=last" in out
    assert "run: null" in out
