"""What the tests of the command line share."""

from __future__ import annotations

import copy
import csv
import dataclasses
import fcntl
import functools
import gc
import hashlib
import json
import logging
import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# one thread per test process: the suite runs several at a time
os.environ.setdefault("OMP_NUM_THREADS", "1")
gc.set_threshold(10_000)  # as a command does, before tests import what commands do
# a shell's background job ignores Ctrl-C, and so would the processes that tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored

SMALL = [
    "dataset=fake",
    "dataset.image_shape=[1,8,8]",
    "dataset.size=96",
    "dataset.batch_size=32",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "report=false",
]
"""A run of a second: 96 fake images, two epochs, on the processor."""


def smaller(arguments: Iterable[str]) -> list[str]:
    """What SMALL lacks for single models.

    A codebook that is learned has no more codes than the 86 training images have vectors, and a discriminator not
    four million weights, which each checkpoint would hold three times.
    """
    given = {*arguments}
    learned = not {"codebook=fsq", "codebook=lfq"} & given
    codes = ["model.num_embeddings=64"] if learned and {"model=vqvae", "model=vqvae2"} & given else []
    return codes + (["model.discriminator_dims=[32,32]"] if "model=factor" in given else [])


SLOW = {"browser", "processes", "logged", "no_key"}
"""Fixtures that start other programs: Chromium, two processes that train together, W&B's."""


LONGEST = {
    "test_matrix",
    "test_distributed",
    "test_ddp",
    "test_launchers",
    "test_sweep",
    "test_prepared",
    "test_readme",
}
"""Files of the longest tests."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests slow that ask for a slow fixture, and has the longest begin first: none is waited for alone."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    for item in items:
        if isinstance(item, pytest.Function) and SLOW & set(item.fixturenames):
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """Spares the search for cycles all that is imported by now: nothing of it is let go of before the end."""
    gc.freeze()


def terms_of(model, x, labels=None):
    """The terms of images, with the noise that the model draws for them."""
    from vaelab.core.batch import Batch

    return model.terms(Batch(x, labels), model.noise(len(x)))


def fit(model, parameters, steps):
    """Trains on fresh images of `model.images(count, seed)` by Adam, whose rate falls from 0.02 to 0."""
    import torch

    from vaelab.core.batch import Batch

    optimizer = torch.optim.Adam(parameters, lr=0.02)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / steps)
        terms = model.terms(model.untold(Batch(model.images(128, 100 + step), None)), model.noise(128))
        optimizer.zero_grad()
        model.objective(terms).backward()
        optimizer.step()


class Result(NamedTuple):
    """What a command did: exit code, printed text, and the run folder if there is one."""

    code: int
    out: str
    err: str
    run: Path

    def rows(self, column: str) -> list[dict[str, str]]:
        """Rows of metrics.csv in which `column` is filled."""
        with (self.run / "metrics.csv").open(newline="") as file:
            return [row for row in csv.DictReader(file) if row.get(column)]

    def series(self, column: str) -> list[float]:
        return [float(row[column]) for row in self.rows(column)]

    @property
    def summary(self) -> dict:
        return json.loads((self.run / "summary.json").read_text())


@pytest.fixture(scope="session", autouse=True)
def composed_once() -> Iterator[None]:
    """Spares the composition that Hydra makes of every command's config only to read hydra.mode in it.

    That is null, unless `sweep=` or a key of Hydra's sets it: then Hydra is asked.
    """
    from hydra._internal.hydra import Hydra

    ask = Hydra.get_mode

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        may_be_set = any(word.lstrip("+").startswith(("sweep=", "hydra")) for word in overrides)
        return ask(self, config_name, overrides) if may_be_set else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hydra, "get_mode", get_mode)
        yield


@pytest.fixture(scope="session", autouse=True)
def chosen_once() -> Iterator[None]:
    """Spares reading and merging the same files of conf/ again: what follows from the chosen options is kept.

    The values that a command line sets are put into a copy of it, by Hydra, as ever.
    """
    from hydra._internal import config_loader_impl as hydra
    from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
    from hydra._internal.defaults_list import Overrides

    from vaelab.core.conf import CONF

    list_, merge = hydra.create_defaults_list, hydra.ConfigLoaderImpl._compose_config_from_defaults_list
    search, load = hydra.ConfigLoaderImpl._process_config_searchpath, ConfigRepository.load_config
    lists: dict[Any, Any] = {}
    loaded: dict[Any, bytes] = {}
    merged: dict[int, bytes | None] = {}  # by the id of a list's defaults, which are kept

    def files(source: Any) -> list[tuple[Path, int]]:
        """Files of a test's own with their times, for they may change."""
        own = source.scheme() == "file" and source.path != str(CONF)
        return sorted((file, file.stat().st_mtime_ns) for file in Path(source.path).rglob("*.yaml")) if own else []

    def places(repo: Any) -> list[Any]:
        """Where files of conf/ are looked for, and what of a test's own lies there."""
        return [(source.path, *files(source)) for source in repo.get_sources()]

    def load_config(self: Any, config_path: str) -> Any:
        key = (*places(self), config_path)
        kept = loaded.get(key) or pickle.dumps(load(self, config_path))
        loaded[key] = kept
        return pickle.loads(kept)

    def create_defaults_list(repo: Any, config_name: Any, overrides_list: list[Any], **how: bool) -> Any:
        options = [o.input_line for o in overrides_list if repo.group_exists(o.key_or_group)]
        key = (*places(repo), config_name, *options, *how.items())
        if key not in lists:
            lists[key] = list_(repo, config_name, overrides_list, **how)
            merged[id(lists[key].defaults)] = None
        return dataclasses.replace(lists[key], config_overrides=Overrides(repo, overrides_list).config_overrides)

    def compose(self: Any, defaults: Any, repo: Any) -> Any:
        if id(defaults) not in merged:
            return merge(self, defaults, repo)
        kept = merged[id(defaults)] or pickle.dumps(merge(self, defaults, repo))
        merged[id(defaults)] = kept
        return pickle.loads(kept)

    def look(self: Any, delegate: Any) -> None:
        self.delegate, self.cache = copy.copy(delegate), {}  # sources are replaced as a whole: no deep copy is needed

    def process_config_searchpath(self: Any, config_name: Any, parsed_overrides: list[Any], repo: Any) -> None:
        """Reads the whole of train.yaml for one key, which none of ours has."""
        if any(override.get_key_element() == "hydra.searchpath" for override in parsed_overrides):
            search(self, config_name, parsed_overrides, repo)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hydra.ConfigLoaderImpl, "_process_config_searchpath", process_config_searchpath)
        patch.setattr(CachingConfigRepository, "__init__", look)
        patch.setattr(ConfigRepository, "load_config", load_config)
        patch.setattr(hydra, "create_defaults_list", create_defaults_list)
        patch.setattr(hydra.ConfigLoaderImpl, "_compose_config_from_defaults_list", compose)
        yield


@pytest.fixture(scope="session", autouse=True)
def looked_up_once() -> Iterator[None]:
    """Spares each of Lightning's trainers a search through all installed packages for callbacks that they bring."""
    from lightning_fabric.utilities import registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "entry_points", functools.cache(registry.entry_points))
        yield


@pytest.fixture(scope="session")
def parsed_once() -> Iterator[None]:
    """Spares each export to ONNX parsing the thousand functions that torch's operations are written in there.

    They depend on the version of ONNX's operations alone.
    """
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session", autouse=True)
def written_without_waiting() -> Iterator[None]:
    """Spares waiting for the disk: no test looks at what a power cut leaves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """Undoes what a test did to logging: Hydra's own flags, `--info` say, print through a handler that they leave."""
    root, hydra = logging.getLogger(), logging.getLogger("hydra")
    before = root.level, hydra.level
    handlers = [*root.handlers]
    yield
    root.handlers[:] = handlers
    root.setLevel(before[0])
    hydra.setLevel(before[1])


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs `vaelab train` in this process, in an empty folder. `small=False` leaves out SMALL, but for the report."""
    from vaelab.cli import main

    monkeypatch.chdir(tmp_path)
    count = iter(range(1000))

    def run(*arguments: str, small: bool = True) -> Result:
        given = {a.partition("=")[0] for a in arguments}
        folder = Path(f"run{next(count)}")
        if not given & {"run.dir", "resume", "-m", "sweep"}:
            arguments = (*arguments, f"run.dir={folder}")
        defaults = [*SMALL, *smaller(arguments)] if small else ["report=false"]
        defaults = [a for a in defaults if a.partition("=")[0] not in given and "resume" not in given]
        code = main(["train", *defaults, *arguments])
        return Result(code, *capsys.readouterr(), folder)

    return run


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a test session share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills, by whichever process of a test session comes first; the others wait for it."""
    new = folder.with_suffix(".new")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            shutil.rmtree(new, ignore_errors=True)
            make(new)
            new.rename(folder)
    return folder


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Has torch compute on two threads, and sees to it that it still does afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process; gives its exit code and what it printed."""
    from vaelab.cli import main

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


@pytest.fixture
def finished(train: Callable[..., Result], shared: Path) -> Callable[..., Result]:
    """Gives a finished run of such arguments as `train` takes: a copy of one that all tests share.

    For tests of what is done with a run. What a training does or prints is not in it: that takes `train`.
    """
    count = iter(range(1000))

    def run(*arguments: str, small: bool = True) -> Result:
        def make(folder: Path) -> None:
            made = train(*arguments, "run.dir=new", small=small)
            assert made.code == 0, made.err
            shutil.move("new", folder)

        name = hashlib.sha256(repr((arguments, small)).encode()).hexdigest()
        folder = Path(f"finished{next(count)}")
        shutil.copytree(once(shared / name, make), folder)
        return Result(0, "", "", folder)

    return run
