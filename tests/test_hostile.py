"""A stranger's run folder executes nothing: every gadget, at every place of a config, for every command."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import vaelab
from tests.test_conf import CONF, composed
from vaelab.cli import main
from vaelab.core.config import build
from vaelab.core.errors import UserError
from vaelab.core.terminal import plain
from vaelab.datasets.prepared import PreparedSplit
from vaelab.datasets.prepared.file import MAGIC, PARTS, PREFIX, VERSION, read_header
from vaelab.nn.networks import MLP
from vaelab.runs import Files, gate, read_config, write_config
from vaelab.runs.model import with_weights

CANARY, PICKLE, SCRIPT, SHELL = "canary", "canary.pkl", "canary.py", "touch canary"
GADGETS = {
    "joblib.load": {"filename": PICKLE},
    "torch.load": {"f": PICKLE, "weights_only": False},
    "torch.serialization.load": {"f": PICKLE, "weights_only": False},
    "torch.hub.load": {"repo_or_dir": ".", "model": "canary", "source": "local"},
    "torch.hub.load_state_dict_from_url": {"url": "file:canary.pkl"},
    "torch.jit.load": {"f": PICKLE},
    "torch.package.PackageImporter": {"file_or_buffer": PICKLE},
    "torch.utils.cpp_extension.load": {"name": "canary", "sources": [SCRIPT]},
    "torch.utils.cpp_extension.include_paths": {},
    "torch.classes.load_library": {"path": PICKLE},
    "torch.ops.load_library": {"path": PICKLE},
    "torch.distributed.run.main": {"args": [SCRIPT]},
    "numpy.load": {"file": PICKLE, "allow_pickle": True},
    "numpy.fromfile": {"file": PICKLE},
    "numpy.ctypeslib.load_library": {"libname": "canary", "loader_path": "."},
    "pickle.load": {"file": PICKLE},
    "pickle.loads": {"data": "x"},
    "cloudpickle.load": {"file": PICKLE},
    "cloudpickle.loads": {"data": "x"},
    "shelve.open": {"filename": CANARY},
    "dbm.open": {"file": CANARY, "flag": "c"},
    "marshal.loads": {"bytes": "x"},
    "yaml.unsafe_load": {"stream": "!!python/object/apply:os.system [touch canary]"},
    "yaml.load": {"stream": "!!python/object/apply:os.system [touch canary]", "Loader": "x"},
    "omegaconf.OmegaConf.load": {"file_": SCRIPT},
    "hydra.utils.instantiate": {"config": {"_target_": "os.system", "command": SHELL}},
    "hydra.utils.call": {"config": {"_target_": "os.system", "command": SHELL}},
    "hydra.utils.get_method": {"path": "os.system"},
    "hydra.utils.get_class": {"path": "subprocess.Popen"},
    "hydra.utils.get_object": {"path": "os.system"},
    "hydra.main": {"config_path": "."},
    "runpy.run_path": {"path_name": SCRIPT},
    "runpy.run_module": {"mod_name": "canary"},
    "importlib.import_module": {"name": "canary"},
    "importlib.machinery.SourceFileLoader": {"fullname": "canary", "path": SCRIPT},
    "pydoc.locate": {"path": "canary"},
    "pydoc.importfile": {"path": SCRIPT},
    "pkgutil.resolve_name": {"name": "canary"},
    "site.addsitedir": {"sitedir": "."},
    "site.execsitecustomize": {},
    "os.system": {"command": SHELL},
    "os.popen": {"cmd": SHELL},
    "os.mkdir": {"path": CANARY},
    "os.makedirs": {"name": CANARY},
    "os.rename": {"src": PICKLE, "dst": CANARY},
    "os.symlink": {"src": PICKLE, "dst": CANARY},
    "posix.system": {"command": SHELL},
    "subprocess.Popen": {"args": SHELL, "shell": True},
    "subprocess.run": {"args": SHELL, "shell": True},
    "subprocess.getoutput": {"cmd": SHELL},
    "pty.spawn": {"argv": ["touch", CANARY]},
    "builtins.eval": {"_args_": ["open('canary', 'w')"]},
    "builtins.exec": {"_args_": ["open('canary', 'w')"]},
    "builtins.open": {"file": CANARY, "mode": "w"},
    "builtins.__import__": {"name": "canary"},
    "builtins.getattr": {"_args_": ["os", "system"]},
    "io.open": {"file": CANARY, "mode": "w"},
    "pathlib.Path.touch": {"self": CANARY},
    "shutil.copyfile": {"src": PICKLE, "dst": CANARY},
    "shutil.copytree": {"src": ".", "dst": CANARY},
    "shutil.move": {"src": PICKLE, "dst": CANARY},
    "shutil.rmtree": {"path": "run"},
    "shutil.unpack_archive": {"filename": PICKLE},
    "tempfile.mkdtemp": {"prefix": CANARY, "dir": "."},
    "tarfile.open": {"name": CANARY, "mode": "w"},
    "zipfile.ZipFile": {"file": CANARY, "mode": "w"},
    "sqlite3.connect": {"database": CANARY},
    "logging.FileHandler": {"filename": CANARY},
    "logging.basicConfig": {"filename": CANARY},
    "logging.config.dictConfig": {"config": {"version": 1, "handlers": {"h": {"()": "os.system", "command": SHELL}}}},
    "logging.config.fileConfig": {"fname": SCRIPT},
    "functools.partial": {"_args_": ["os.system", SHELL]},
    "functools.reduce": {"_args_": ["os.system", [SHELL, SHELL]]},
    "operator.methodcaller": {"_args_": ["system", SHELL]},
    "ctypes.CDLL": {"name": PICKLE},
    "ctypes.cdll.LoadLibrary": {"name": PICKLE},
    "webbrowser.open": {"url": "file:canary.py"},
    "urllib.request.urlretrieve": {"url": "file:canary.py", "filename": CANARY},
    "multiprocessing.Process": {"target": "os.system", "args": [SHELL]},
    "multiprocessing.managers.SyncManager": {"address": CANARY},
    "threading.Timer": {"interval": 0, "function": "os.system", "args": [SHELL]},
    "code.interact": {"banner": "x"},
    "timeit.timeit": {"stmt": "open('canary', 'w')", "number": 1},
    "cProfile.run": {"statement": "open('canary', 'w')"},
    "doctest.testfile": {"filename": SCRIPT},
    "unittest.main": {"module": "canary"},
    "pip.main": {"args": ["install", "."]},
    "setuptools.setup": {"script_name": SCRIPT},
    "wandb.init": {"dir": "."},
    "wandb.restore": {"name": CANARY},
    "pytorch_lightning.LightningModule.load_from_checkpoint": {"checkpoint_path": PICKLE},
    "pytorch_lightning.callbacks.OnExceptionCheckpoint": {"dirpath": CANARY},
    "pytorch_lightning.cli.LightningCLI": {"args": [SCRIPT]},
    "pytorch_lightning.callbacks.ModelCheckpoint": {"dirpath": CANARY},
    "pytorch_lightning.loggers.CSVLogger": {"save_dir": CANARY},
    "pytorch_lightning.loggers.MLFlowLogger": {"tracking_uri": "http://stranger"},
    "pytorch_lightning.profilers.SimpleProfiler": {"dirpath": CANARY},
    "PIL.Image.open": {"fp": PICKLE},
    "h5py.File": {"name": CANARY, "mode": "w"},
    "matplotlib.pyplot.savefig": {"fname": CANARY},
    "ray.init": {"address": "stranger"},
    "submitit.core.utils.CommandFunction": {"command": ["touch", CANARY]},
    "optuna.load_study": {"study_name": "x", "storage": "sqlite:///canary"},
    "safetensors.torch.save_file": {"tensors": {}, "filename": CANARY},
    "vaelab.runs.os.system": {"command": SHELL},
    "vaelab.models.base.torch.load": {"f": PICKLE, "weights_only": False},
    "vaelab.nn.coders.torch.load": {"f": PICKLE, "weights_only": False},
    "vaelab.nn.networks.pairwise": {"iterable": "x"},
    "vaelab.datasets.files.os.system": {"command": SHELL},
    "vaelab.datasets.files.Image.open": {"fp": PICKLE},
    "vaelab.datasets.sources.fetch_url": {"url": "file:canary.py", "target": CANARY},
    "vaelab.core.files.write_text": {"path": CANARY, "text": "x"},
    "vaelab.cli.main": {"arguments": ["train", f"run.dir={CANARY}"]},
    "vaelab.training.callbacks.LastOnException": {"path": CANARY},
    "vaelab.training.loggers.MetricsFile": {"path": CANARY, "resumed_step": None},
    "vaelab.__main__.main": {},
    "canary.Network": {},
    "tests.canary": {},
    "": {},
    "os": {},
    "..os.system": {},
    "vaelab.models.": {},
    "vaelab.models..VAE": {},
    "vaelab.models.\0.VAE": {},
    f"vaelab.models.{'a' * 5000}.VAE": {},
}
"""What would run code, read or write a file, or start a program, given a name or a path."""
ODD = [None, 1, True, ["os.system"], {"_target_": "os.system"}, 1e300]
"""What is no name of anything."""
COMMANDS = {
    "sample": [], "eval": [], "report": [], "export": [], "reconstruct": [], "traverse": [], "interpolate": [],
    "encode": ["input=pictures"], "decode": ["codes=codes.npz"], "prior": [],
}  # fmt: skip
"""Every command that opens a run, with what else it needs."""


class Touch:
    """Makes the canary when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (CANARY,)


@pytest.fixture
def run(finished, tmp_path):
    """A run in a folder with a pickle, a script and a hubconf that would make the canary; checked afterwards."""
    folder = finished("model=vae", "trainer.max_epochs=1").run
    (tmp_path / PICKLE).write_bytes(pickle.dumps(Touch()))
    for name in (SCRIPT, "hubconf.py", "sitecustomize.py", "canary.pth"):
        (tmp_path / name).write_text("import os; os.mkdir('canary')\n")
    yield folder
    assert not (tmp_path / CANARY).exists()


def places(node, path=()):
    """Paths of all that a config node holds, itself left out."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def with_at(node, path, value):
    """A copy of a config with `value` at a path."""
    if not path:
        return value
    key, *rest = path
    if isinstance(node, dict):
        return node | {key: with_at(node[key], rest, value)}
    return [with_at(item, rest, value) if i == key else item for i, item in enumerate(node)]


def dotted(path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


@pytest.mark.parametrize("target", [*GADGETS, *ODD], ids=lambda target: str(target)[:60])
def test_no_gadget_passes_at_any_place(run, target):
    arguments = GADGETS.get(target, {}) if isinstance(target, str) else {}
    config = read_config(run)
    for path in places(config):
        if path[-1] == "_target_":
            wrong, at = with_at(config, path, target), path[:-1]
            if arguments.keys() & gate.PLACES:
                continue  # a class that may be built, but not told where to write
        else:
            wrong, at = with_at(config, path, {"_target_": target} | arguments), path
        found = [deed.key for deed in gate.deeds(wrong)]
        assert any(key.startswith(dotted(at)) for key in found), (at, found)
        with pytest.raises(UserError, match="trust=true"):
            gate.check(wrong, "", run, trust=False)


@pytest.mark.parametrize("section", ["model", "dataset"])
@pytest.mark.parametrize("target", [*GADGETS][:6])
def test_what_is_loaded_passes_the_gate(run, section, target):
    from vaelab.runs.trained import Trained

    write_config(run, with_at(read_config(run), (section, "_target_"), target))
    with pytest.raises(UserError, match=f"{section} would run {target}"):
        Trained(run)


@pytest.mark.parametrize(("command", "given"), COMMANDS.items(), ids=[*COMMANDS])
def test_no_command_runs_a_strangers_folder(run, capsys, command, given):
    Path("pictures").mkdir()
    np.savez("codes.npz", z=np.zeros((2, 10), np.float32))
    gadget = {"_target_": "joblib.load", "filename": PICKLE}
    for place in (("model", "network"), ("dataset", "val_size"), ("model", "likelihood", "_target_")):
        if command in ("encode", "decode") and place == ("dataset", "val_size"):
            continue
        clean = read_config(run)
        write_config(run, with_at(clean, place, "joblib.load" if place[-1] == "_target_" else gadget))
        assert main([command, f"run={run}", *given]) == 2
        err = capsys.readouterr().err
        where = ".".join(part for part in place if part != "_target_")
        assert f"{where} would run joblib.load" in err, err
        assert "trust=true" in err
        assert len(err.strip().splitlines()) == 2
        write_config(run, clean)
        assert not Path(CANARY).exists()


class Opening(MLP):
    """A network of the run's maker, which opens a pickle."""

    def __init__(self, filename: str):
        with open(filename, "rb") as file:
            pickle.load(file)


def test_trust_runs_it(run, capsys):
    """Which also shows that the canary sings."""
    write_config(
        run,
        with_at(read_config(run), ("model", "network"), {"_target_": "tests.test_hostile.Opening", "filename": PICKLE}),
    )
    with pytest.raises((UserError, AttributeError, TypeError)):
        vaelab.load(run, trust=True)
    os.rmdir(CANARY)


READING = ["compare {run}", "runs {run}", "doctor run={run}", "watch run={run}"]
"""Commands that read a run's files and build nothing."""


@pytest.mark.parametrize("line", READING)
def test_what_only_reads_builds_nothing(run, monkeypatch, line):
    config = read_config(run)
    for path in list(places(config)):
        if path[-1] == "_target_":
            config = with_at(config, path, "canary.Network")
    write_config(run, config)
    monkeypatch.syspath_prepend(Path.cwd())
    main(line.format(run=run).split())


OVERRIDES = [
    "+callbacks.x={_target_: os.system, command: touch canary}",
    "+callbacks.x={_target_: joblib.load, filename: canary.pkl}",
    "+callbacks.x._target_=os.system",
    "++callbacks.health._target_=os.system",
    "callbacks={x: {_target_: canary.Network}}",
    "trainer.profiler={_target_: joblib.load, filename: canary.pkl}",
    "trainer.profiler={_target_: pytorch_lightning.profilers.SimpleProfiler, dirpath: canary}",
    "trainer.plugins=[{_target_: os.system, command: touch canary}]",
    "trainer._target_=os.system",
    "model.network={_target_: os.system}",
    "model._partial_=true1",
    "+model._args_=[1]",
    "+hydra.callbacks.x={_target_: joblib.load, filename: canary.pkl}",
    "+hydra.callbacks.x._target_=canary.Network",
    "hydra.searchpath=[file://.]",
    "hydra/launcher=basic",
    "hydra/job_logging=default",
    "hydra.job_logging={version: 1, handlers: {h: {(): os.system}}}",
    "hydra.run.dir=canary",
    "+hydra.job.env_set.LD_PRELOAD=canary.so",
    "hydra={callbacks: {}}",
    "+defaults=[x]",
    "model@hydra.callbacks=vae",
    "+experiment@_global_=x",
    "experiment=../../canary",
    "experiment='/tmp/canary'",
    "+model=[vae,../canary]",
    "model.latent_dim=${oc.env:HOME}",
    "run.name=${oc.env:SECRET}",
    "trainer.max_steps='${oc.decode:1}'",
    "run.name=\\${now:x}",
    "--experimental-rerun=canary.pkl",
    "--config-dir=.",
    "-m",
    "",
    "canary",
]
"""Arguments that a run folder may not have a resume start with."""


@pytest.mark.parametrize("override", OVERRIDES)
def test_a_resume_takes_no_hostile_argument(run, capsys, override):
    config = read_config(run)
    config["run"]["overrides"] = [*config["run"]["overrides"], override]
    write_config(run, config)
    assert main(["train", f"resume={run}", "trainer.max_epochs=2"]) == 2
    err = capsys.readouterr().err
    assert str(run / "config.yaml") in err, err
    assert len(err.strip().splitlines()) <= 2


def test_a_resume_takes_no_folder_of_configs(run, capsys, tmp_path):
    (tmp_path / "theirs" / "model").mkdir(parents=True)
    (tmp_path / "theirs/model/vae.yaml").write_text("_target_: joblib.load\nfilename: canary.pkl\n")
    config = read_config(run)
    config["run"]["config_dir"] = str(tmp_path / "theirs")
    write_config(run, config)
    assert main(["train", f"resume={run}", "trainer.max_epochs=2"]) == 2
    assert "--config-dir" in (err := capsys.readouterr().err)
    assert "trust=true" in err


def test_trust_is_said_by_the_user_alone(run, capsys):
    config = read_config(run)
    config |= {"trust": True, "run": config["run"] | {"overrides": ["trust=true", "+callbacks.x._target_=os.system"]}}
    write_config(run, with_at(config, ("model", "network", "_target_"), "os.system"))
    assert main(["train", f"resume={run}", "trainer.max_epochs=2"]) == 2
    assert main(["sample", f"run={run}"]) == 2
    assert "would run os.system" in capsys.readouterr().err
    assert main(["train", "trust=true"]) == 2
    assert "resume=" in capsys.readouterr().err
    assert main(["train", f"resume={run}", "trust=yes"]) == 2


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${run.dir}", "a${now:%Y}", "\\${x}"])
def test_a_config_is_resolved(run, text):
    """What is written is; what is not was written by hand, and could read the environment."""
    write = (run / "config.yaml").write_text
    write((run / "config.yaml").read_text().replace("activation: relu", f"activation: '{text}'"))
    with pytest.raises(UserError, match="would resolve"):
        vaelab.load(run)


def test_what_conf_offers_passes():
    """A new option passes, or joins the list of vaelab/runs/gate.py."""
    refused = []
    for path in sorted(CONF.rglob("*.yaml")):
        if "hydra" in path.relative_to(CONF).parts:
            continue
        node = yaml.safe_load(path.read_text()) or {}
        for own in ("hydra", "run", "sweep") if path.parent == CONF else ():
            node.pop(own, None)
        refused += [
            (path.name, deed)
            for deed in gate.deeds(node)
            if "would resolve" not in deed.does and "???" not in deed.does
        ]
    assert not refused


def test_a_network_of_ones_own_takes_a_word(train, tmp_path, monkeypatch, capsys):
    (tmp_path / "mynet.py").write_text("from vaelab.nn.networks import MLP\nclass Net(MLP): pass\n")
    (tmp_path / "mine" / "network").mkdir(parents=True)
    (tmp_path / "mine/network/net.yaml").write_text(
        "_target_: mynet.Net\nhidden_dims: [4]\nactivation: relu\nnorm: none\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = train("--config-dir", "mine", "network=net", "trainer.max_epochs=1").run
    assert main(["sample", f"run={run}", "n=4"]) == 2
    assert "model.network would run mynet.Net" in capsys.readouterr().err
    assert main(["sample", f"run={run}", "n=4", "trust=true"]) == 0
    assert train(f"resume={run}", "trainer.max_epochs=2").code == 2
    assert train(f"resume={run}", "trainer.max_epochs=2", "--config-dir", "mine").code == 0
    assert train(f"resume={run}", "trainer.max_epochs=3", "trust=true").code == 0
    assert "trust" not in (run / "config.yaml").read_text()
    shutil.rmtree(run)


# --- checkpoints ------------------------------------------------------------------------------


@pytest.fixture
def trained(finished):
    return finished("model=vae", "trainer.max_epochs=1").run


def resaved(path: Path, **changed) -> None:
    """Saves a checkpoint anew with other entries; those that are None are left out."""
    saved = torch.load(path, weights_only=True) | changed
    torch.save({name: value for name, value in saved.items() if value is not None}, path)


@pytest.mark.parametrize(
    "changed",
    [
        *({name: None} for name in ("shape", "window", "epoch_means", "state_dict", "epoch", "global_step", "loops")),
        *(
            {"shape": shape}
            for shape in ([1, 8], [1, 8, -8], [1, 8, 8.0], [10**4] * 3, [10**12, 1, 1], "abc", [[1, 8, 8]])
        ),
        {"shape": [1, 2**14, 2**14]},
        {"shape": [1, 9, 9]},
        {"num_classes": 10**12},
        {"num_classes": -1},
        {"num_classes": "2"},
        {"epoch": "1"},
        {"global_step": [1]},
        {"state_dict": {}},
        {"state_dict": [1]},
        {"state_dict": {"x": torch.zeros(1).expand(10**12)}},
        {"window": {}},
        {"window": {"names": [], "sums": torch.zeros(1).expand(10**12), "vectors": {}, "count": 0}},
    ],
    ids=lambda changed: str(changed)[:40],
)
def test_an_odd_checkpoint_ends_in_a_line(trained, capsys, changed):
    resaved(trained / "checkpoints" / "best.ckpt", **changed)
    assert main(["sample", f"run={trained}"]) == 2
    err = capsys.readouterr().err
    assert "best.ckpt" in err
    assert len(err.strip().splitlines()) <= 2


@pytest.mark.parametrize("content", [[1], "text", 5, None, {"a": 1}])
def test_a_checkpoint_of_another_type_ends_in_a_line(trained, content):
    torch.save(content, trained / "checkpoints" / "best.ckpt")
    with pytest.raises(UserError, match=r"best\.ckpt is damaged"):
        vaelab.load(trained)


def test_a_flipped_byte_is_noticed_and_the_other_checkpoint_offered(trained, capsys):
    path = trained / "checkpoints" / "best.ckpt"
    whole = path.read_bytes()
    weight = torch.load(path, weights_only=True)["state_dict"]["decoder.body.0.weight"].numpy().tobytes()
    place = whole.index(weight) + len(weight) // 2
    for damaged in (whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], whole[: len(whole) // 2], b""):
        path.write_bytes(damaged)
        assert main(["sample", f"run={trained}"]) == 2
        err = capsys.readouterr().err
        assert f"{path} is damaged" in err
        assert "last.ckpt beside it is whole: take checkpoint=last" in err
        assert len(err.strip().splitlines()) == 2
    (trained / "checkpoints" / "last.ckpt").write_bytes(damaged)
    with pytest.raises(UserError, match="train again"):
        vaelab.load(trained)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("optimizer_states", 0, "state", 0, "exp_avg"), torch.zeros(3)),
        (("optimizer_states", 0, "state", 0, "exp_avg"), torch.tensor(1.0)),
        (("optimizer_states", 0, "param_groups"), []),
        (("callbacks", "Plateau", "_last_lr"), "x"),
        (("loops", "fit_loop", "epoch_progress", "current", "ready"), "x"),
        (("reported", "vectors"), {"val": 1}),
    ],
    ids=str,
)
def test_states_that_are_none_end_in_a_line(finished, capsys, place, value):
    """A valid checkpoint whose optimiser, callbacks or counters no run could have written."""
    run = finished("lr_schedule=plateau", "trainer.max_epochs=1").run
    path = run / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    node = saved
    for part in place[:-1]:
        node = node[part]
    node[place[-1]] = value
    torch.save(saved, path)
    code = main(["train", f"resume={run}", "trainer.max_epochs=2"])
    out, err = capsys.readouterr()
    if place[0] == "reported":  # which shows when it is read: the other one is taken
        assert code == 0
        assert "its `reported` is of another type" in out
        return
    assert code == 2
    assert f"{path} is damaged: its states are not of this run" in err
    assert "remove it, and training goes on from best.ckpt" in err
    assert len(err.strip().splitlines()[-2:]) == 2
    path.unlink()
    assert main(["train", f"resume={run}", "trainer.max_epochs=2"]) == 0  # nothing of the run was lost


def test_a_zip_bomb_is_no_checkpoint(trained):
    path = trained / "checkpoints" / "best.ckpt"
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in content.items():
            new.writestr(name, data + bytes(10**5))
    with pytest.raises(UserError, match="compressed"):
        vaelab.load(trained)


@pytest.mark.parametrize(("command", "given"), COMMANDS.items(), ids=[*COMMANDS])
def test_a_run_that_ended_before_its_first_validation_has_its_last_checkpoint(trained, capsys, command, given):
    (trained / "checkpoints" / "best.ckpt").unlink()
    Path("pictures").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("pictures/a.png")
    np.savez("codes.npz", z=np.zeros((2, 20), np.float32))
    short = {"eval": ["sections=[reconstruction]"], "report": ["figures=false"], "sample": ["n=4"]}
    assert main([command, f"run={trained}", *given, *short.get(command, [])]) == 0
    out = capsys.readouterr().out
    assert out.count("has no best checkpoint") == 1
    assert "best checkpoint)" not in out


@pytest.mark.parametrize("value", [10**9, 10**15])
def test_no_memory_is_taken_for_a_model_that_the_weights_are_not_of(trained, value):
    config = read_config(trained)
    write_config(trained, with_at(config, ("model", "latent_dim"), value))
    with pytest.raises(UserError, match=r"best\.ckpt is of another model|latent_dim=\d+: must be less"):
        vaelab.load(trained)


@pytest.mark.parametrize("arguments", [["posterior=flow"], ["codebook=fsq"], ["codebook=ema"]], ids=" ".join)
def test_every_part_can_be_measured_before_it_is_built(arguments):
    model = "vqvae" if "codebook" in arguments[0] else "vae"
    node = composed(f"model={model}", *arguments)["model"]
    state = build(node, shape=(1, 16, 16), num_classes=None).state_dict()
    assert with_weights(node, [1, 16, 16], None, state).shape == (1, 16, 16)


# --- configs and records ----------------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS = {
    "binary": b"\x00\xff\xfe\x80",
    "bomb": BOMB.encode(),
    "deep": b"a: " + b"[" * 20_000,
    "tag": b"run: !!python/object/apply:os.mkdir [canary]\nmodel: {}\ndataset: {}\n",
    "large": b"#" * (2**24 + 1),
    "list": b"[1, 2]",
    "number": b"9" * 5000,
    "newer": b"run: {format: 99}\nmodel: {}\ndataset: {}\n",
    "odd format": b"run: {format: x}\nmodel: {}\ndataset: {}\n",
}
"""Files in the place of config.yaml."""
VALUES = {
    "run": ["x", [1], {"name": 1}, {"overrides": 5}, {"overrides": [1]}, {"config_dir": 7}],
    "model": ["x", [1], {}, None, {"_target_": 5}],
    "dataset": ["x", [1], {}, None, {"_target_": "vaelab.datasets.Fake"}],
}
"""Values in the place of sections."""
OPENING = ["sample", "train resume", "doctor"]


@pytest.mark.parametrize("command", [*OPENING, "compare", "runs", "watch"])
def test_an_odd_config_ends_in_a_line(run, capsys, command):
    word, _, key = command.partition(" ")
    config, path = read_config(run), run / "config.yaml"
    values = VALUES if command in OPENING else {}
    texts = TEXTS | {f"{k}={v}": yaml.safe_dump(config | {k: v}).encode() for k in values for v in values[k]}
    for name, text in texts.items():
        path.write_bytes(text)
        argument = str(run) if command in ("compare", "runs") else f"{key or 'run'}={run}"
        code = main([word, argument])
        out, err = capsys.readouterr()
        if command == "sample":
            assert code == 2, (name, out)
        assert "Traceback" not in out + err
        if name.startswith(("newer", "bomb", "large", "binary")) and command in OPENING:
            assert str(path) in err, (name, err)
            assert len(err.strip().splitlines()) <= 2


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(run, capsys):
    for name in ("config.yaml", "metrics.csv", "summary.json", "run.log"):
        (run / name).unlink()
        os.mkfifo(run / name)
    for line in ("sample run={run}", "doctor run={run}", "runs {run}", "compare {run}"):
        main(line.format(run=run).split())


# --- data -------------------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path, monkeypatch, capsys):
    """A prepared file with labels, its header, and a function that writes the file with another header."""
    monkeypatch.chdir(tmp_path)
    small = ["dataset=fake", "dataset.image_shape=[1,8,8]", "dataset.size=40", "dataset.classes=3"]
    assert main(["data", "prepare", *small, "out=x.vaelab"]) == 0
    path = tmp_path / "x.vaelab"
    whole = path.read_bytes()

    def write(header) -> Path:
        content = json.dumps(header).encode()
        prefix = PREFIX.pack(MAGIC, VERSION, zlib.crc32(content), len(content))
        path.write_bytes((prefix + content).ljust(4096, b" ") + whole[4096:])
        return path

    return read_header(path), write


def test_no_header_of_a_prepared_file_does_harm(prepared):
    """Every value of it replaced by odd ones, with a right checksum: a line, or all of the file can be read."""
    header, write = prepared
    odd = [
        -1,
        -4096,
        0,
        1,
        4096,
        2**31,
        2**62,
        10**30,
        1.5,
        True,
        None,
        "x",
        "|O",
        "<f8",
        [],
        [1],
        {},
        {"a": 1},
        "8" * 5000,
    ]
    for place in places(header):
        for value in odd:
            path = write(with_at(header, place, value))
            with suppress(UserError):
                again = read_header(path)
                for part in PARTS:
                    split = PreparedSplit(path, again, part)
                    split.batch(torch.arange(len(split)))
                    split.verify()
    assert read_header(write(header)) == header


@pytest.mark.parametrize("text", [b"[1, 2]", b"{}", b"x", b"[" * 10_000, b'{"size": 1e999}'])
def test_a_header_that_is_none(prepared, text):
    _, write = prepared
    path = write({})
    whole = path.read_bytes()
    path.write_bytes(PREFIX.pack(MAGIC, VERSION, zlib.crc32(text), len(text)) + text + whole[4096:])
    with pytest.raises(UserError, match=r"x\.vaelab"):
        read_header(path)


def test_what_is_no_file_is_no_image(train, tmp_path, capsys):
    """A pipe would be waited for, a device read without end."""
    (tmp_path / "images").mkdir()
    for i in range(20):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"images/{i}.png")
    os.mkfifo(tmp_path / "images/pipe.png")
    (tmp_path / "images/zero.png").symlink_to("/dev/zero")
    (tmp_path / "images/gone.png").symlink_to("nowhere")
    result = train("dataset=folder", "dataset.root=images", "dataset.channels=1", "trainer.max_epochs=1", small=False)
    assert result.code == 2
    for name in ("pipe.png", "zero.png", "gone.png"):
        assert name in result.err
    assert len(result.err.strip().splitlines()) <= 2


def test_all_broken_images_are_named_at_once(train, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(60):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"images/{i:02}.png")
    broken = [f"{i:02}.png" for i in range(5, 40, 3)]
    for name in broken:
        (tmp_path / "images" / name).write_bytes(b"no image")
    result = train("dataset=folder", "dataset.root=images", "dataset.channels=1", "trainer.max_epochs=1", small=False)
    assert result.code == 2
    assert "11 images cannot be used" in result.err
    assert sum(name in result.err for name in broken) == 10
    assert "and 1 more" in result.err


# --- codes ------------------------------------------------------------------------------------


def npz(**members: bytes) -> None:
    with zipfile.ZipFile("codes.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)


def npy(shape: str, descr: str = "'<f4'", content: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    "content",
    [
        npy("(1000000, 1000000)"), npy("(1000000000000,)"), npy("(-1, 20)"), npy("(2, 20)", "'|O'"), npy("'x'"), b"",
        b"x",
        npy("(2, 20)", "[('a', '<f4')]", bytes(160)), npy("(2, 20)", "'<U1000'"), npy("(" * 500 + ")" * 500),
        npy("(2,)" * 9),
    ],
    ids=range(11),
)  # fmt: skip
def test_codes_that_are_none_end_in_a_line(run, capsys, content):
    npz(z=content)
    assert main(["decode", f"run={run}", "codes=codes.npz", "out=made"]) == 2
    assert "codes=codes.npz" in (err := capsys.readouterr().err)
    assert len(err.strip().splitlines()) <= 2


def test_a_bomb_of_codes_takes_no_memory(run, capsys, monkeypatch):
    from types import SimpleNamespace

    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20))
    np.savez_compressed("codes.npz", z=np.zeros((10_000, 20), np.float32))
    assert main(["decode", f"run={run}", "codes=codes.npz", "out=made"]) == 2
    assert "in parts" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a" * 5000, "a" * 300 + "/b.png", "/".join(["a"] * 3000)])
def test_a_name_too_long_for_a_file(run, capsys, name):
    np.savez("codes.npz", z=np.zeros((1, 20), np.float32), files=np.array([name]))
    assert main(["decode", f"run={run}", "codes=codes.npz", "out=made"]) == 2
    assert "too long" in (err := capsys.readouterr().err)
    assert len(err) < 400


@pytest.mark.parametrize("link", ["made/000000.png", "made/sub", "made/other.png"])
def test_nothing_is_decoded_through_a_link(run, capsys, tmp_path, link):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "made").mkdir()
    (tmp_path / link).symlink_to(tmp_path / "theirs")
    np.savez("codes.npz", z=np.zeros((1, 20), np.float32), files=np.array(["sub/x.png"]))
    assert main(["decode", f"run={run}", "codes=codes.npz", "out=made"]) == 2
    assert "is a link" in capsys.readouterr().err
    assert not list((tmp_path / "theirs").iterdir())


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "run.log", "checkpoints", "checkpoints/last.ckpt", "x"])
def test_no_training_writes_through_a_link(run, capsys, tmp_path, name):
    """Nor into a file that is not there yet."""
    theirs = tmp_path / "theirs"
    if (run / name).exists():
        (run / name).rename(theirs)
        before = theirs.stat().st_mtime_ns
    (run / name).symlink_to(theirs)
    if name == "x":  # no file of a run's
        assert Files(run).leading_out is None
        return
    for line in (f"resume={run}", f"run.dir={run}"):
        assert main(["train", line, "trainer.max_epochs=9", "dataset=fake"]) == 2
        assert f"{run / name} is a link" in capsys.readouterr().err
    assert not theirs.exists() or theirs.stat().st_mtime_ns == before
    (run / name).unlink()
    (run / name).symlink_to("elsewhere")  # within the folder
    assert Files(run).leading_out is None


# --- what is printed, and what is kept ---------------------------------------------------------

ESCAPE = "\x1b]0;title\x07\x1b[2J\x1b[5A\x9b31m\u202e\x08"


@pytest.mark.parametrize("line", [*READING, "report run={run} figures=false", "sample run={run}"])
def test_no_escape_reaches_the_terminal(finished, capsys, line):
    folder = finished("model=vae", "trainer.max_epochs=1").run.rename(f"a{ESCAPE}b")
    config, summary = read_config(folder), json.loads((folder / "summary.json").read_text())
    write_config(folder, with_at(config, ("run", "name"), ESCAPE))
    finding = {"code": ESCAPE, "evidence": ESCAPE, "remedy": ESCAPE}
    text = json.dumps(summary | {"name": ESCAPE, "error": ESCAPE, "findings": [finding]})
    (folder / "summary.json").write_text(text)
    before = sys.stdout
    main([part.format(run=folder) for part in line.split()])
    out, err = capsys.readouterr()
    assert not set(out + err) & {"\x1b", "\x07", "\x9b", "\u202e", "\x08"}
    assert "b" in out + err
    assert sys.stdout is before


def test_colours_stay():
    assert plain("\x1b[1;32mgood\x1b[0m\tx\r\n") == "\x1b[1;32mgood\x1b[0m\tx\r\n"
    assert plain("\x1b[2J") == "\ufffd[2J"


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "MY_SECRET", "DB_PASSWORD", "AWS_CREDENTIALS"])
@pytest.mark.parametrize("value", ["${oc.env:%s}", "x-${oc.env:%s}-y", "abcdefgh12345678"])
def test_a_secret_of_the_environment_reaches_no_file(train, monkeypatch, tmp_path, name, value):
    monkeypatch.setenv(name, "abcdefgh12345678")
    result = train(f"run.name='{value % name if '%' in value else value}'")
    assert result.code == 2
    assert f"run.name: it holds the value of the environment variable {name}" in result.err
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and b"abcdefgh12345678" in path.read_bytes()]
    assert not kept
    assert "abcdefgh" not in result.err + result.out


def test_another_variable_of_the_environment_may_be_used(train, monkeypatch):
    monkeypatch.setenv("MY_DATA", "somewhere/else")
    monkeypatch.setenv("SHORT_KEY", "0")
    result = train("run.name='${oc.env:MY_DATA}'", "trainer.max_epochs=1")
    assert result.code == 0
    assert read_config(result.run)["run"]["name"] == "somewhere/else"


RECORDS = {
    "status alone": ("summary.json", '{"status": "finished"}'),
    "metrics.csv of other columns": ("metrics.csv", "a,b\n1,2\n"),
    "metrics.csv without steps": ("metrics.csv", "epoch,train/loss\n1,2\n"),
    "metrics.csv of words": ("metrics.csv", "step,epoch,train/loss\na,b,c\n"),
    "metrics.csv at no step": ("metrics.csv", "step,epoch,train/loss\nnan,inf,1\n"),
    "metrics.csv, empty": ("metrics.csv", ""),
    "kl_per_dim.csv of other columns": ("kl_per_dim.csv", "a,b\n1,2\n1,2\n"),
    "kl_per_dim.csv of words": ("kl_per_dim.csv", "step,epoch,0\n1,1,x\n2,2,y\n"),
    "kl_per_dim.csv of uneven rows": ("kl_per_dim.csv", "step,epoch,0\n1,1,1,1\n2\n"),
    "kl_per_dim.csv, binary": ("kl_per_dim.csv", "\x00\x01"),
    "kl_per_dim.csv, empty": ("kl_per_dim.csv", ""),
    "a list": ("summary.json", "[1]"),
    "binary": ("summary.json", "\x00\x01"),
} | {
    f"{key}={value}": ("summary.json", {key: value})
    for key, value in {"status": [1], "epochs": "x", "best": "x", "findings": [1], "seconds": "x", "commit": 5}.items()
} | {
    f"{part}.{name}={value}": ("summary.json", {part: {name: value}})
    for part, name, value in [
        ("metrics", "test/elbo", "x"), ("metrics", "test/elbo", None), ("metrics", "test/elbo", [1]),
        ("best", "value", "x"), ("best", "epoch", []), ("best", "by", 5), ("kl_per_dim", "train", 5),
        ("kl_per_dim", "train", ["x"]), ("data", "test", "x"), ("data", "shape", [None]), ("data", "class_names", [5]),
        ("data", "pixel_range", 0), ("model", "parameters", "x"), ("objective", "beta", "x"),
        ("objective", "likelihood", {}), ("versions", "torch", 2),
    ]
}  # fmt: skip


@pytest.mark.parametrize("line", [*READING, "report run={run} figures=false"])
def test_an_odd_record_ends_in_a_line(finished, capsys, line):
    folder = finished("model=vae", "trainer.max_epochs=1").run
    wholes = {folder / name: (folder / name).read_text() for name in ("summary.json", "metrics.csv", "kl_per_dim.csv")}
    for name, content in RECORDS.values():
        for path, whole in wholes.items():
            path.write_text(whole)
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | content) if isinstance(content, dict) else content)
        main(line.format(run=folder).split())
        assert "Traceback" not in (said := capsys.readouterr()).out + said.err
