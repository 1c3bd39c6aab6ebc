"""Several processes train as one would on all their images: losses, gradients and weights, for every variant.

Two processes with batches of B are held against one with batches of 2B, in one pair of processes for
all variants. The noise of z and of quantizer dropout is replaced by a function of step and image; what a
codebook draws need not be.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import vaelab.models.vae
from tests.conftest import once
from vaelab.core.conf import CONF
from vaelab.core.errors import Stopped
from vaelab.datasets.loaders import IndexBatches, batch_bounds, epoch_order, rank_slice
from vaelab.datasets.splits import TensorSplit
from vaelab.nn.quantizers.learned import GradientCodebook
from vaelab.nn.quantizers.several import ResidualVQ
from vaelab.training.fit import prepare

BATCH, STEPS = 16, 14
"""Images per process. 87 training images are 32, 32 and 23 a step: in the last, one process has 11 and the other 12."""

ADAM = [
    "optimizer.lr=1e-3",
    "+optimizer.eps=1e-6",
]  # with 1e-8 it takes a step of lr where a gradient is rounding alone
SGD = [
    "optimizer._target_=torch.optim.SGD",
    "optimizer.lr=1e-4",
    "~optimizer.betas",
    "~optimizer.weight_decay",
    "~optimizer.fused",
]
VQVAE = ["model=vqvae", "likelihood=gaussian", "model.num_embeddings=16", "codebook.restart_after=2"]
SHARDED = ["accelerator=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy.min_weights=20000"]
VARIANTS = {
    "ae": ["model=ae"],
    "vae": ["model=vae"],
    "beta": ["model=beta"],
    "lagrangian": [
        "model=capacity",
        "model.constraint=lagrangian",
        "schedule.capacity.over=15",
        "schedule.capacity.unit=steps",
    ],
    "l1": [
        "model=capacity",
        "model.constraint=l1",
        "model.gamma=5",
        "schedule.capacity.over=15",
        "schedule.capacity.unit=steps",
    ],
    "cvae": ["model=cvae"],
    "ema codebook": [*VQVAE, "codebook.decay=0.9"],
    "gradient codebook": [*VQVAE, "codebook=gradient"],
    "accumulated": [
        "model=capacity",
        "trainer.accumulate_grad_batches=2",
        "schedule.capacity.over=15",
        "schedule.capacity.unit=steps",
    ],
    "clipped": ["model=vae", "trainer.gradient_clip_val=0.5"],
}
RUNS = {f"{name}, adam": (variant, ADAM) for name, variant in VARIANTS.items() if name != "accumulated"}
RUNS |= {"accumulated, sgd": (VARIANTS["accumulated"], SGD)}
LEARNED = ["model=vae", "likelihood=gaussian_learned", "trainer.accumulate_grad_batches=2"]
RUNS |= {f"sharded {name}, sgd": (VARIANTS[name], SGD) for name in ("lagrangian", "ema codebook")}
SIMVQ = ["model=vqvae", "likelihood=gaussian", "codebook=simvq", "codebook.rotation=true", "model.num_embeddings=16"]
SEVERAL = [*VQVAE[:-1], "codebook.of.restart_after=2"]
RUNS |= {
    "cosine codebook, sgd": ([*VQVAE, "codebook=cosine"], SGD),
    "rotated simvq, sgd": (SIMVQ, SGD),
    "residual codebook, sgd": ([*SEVERAL, "codebook=residual"], SGD),
    "residual codebook, shared, sgd": ([*SEVERAL, "codebook=residual", "codebook.shared=true"], SGD),
    "residual codebook, dropout, sgd": ([*SEVERAL, "codebook=residual", "codebook.dropout=0.6"], SGD),
    "grouped codebook, sgd": ([*SEVERAL, "codebook=grouped"], SGD),
    "vqvae2 codebook, sgd": ([*VQVAE, "model=vqvae2"], SGD),
    "fsq, sgd": (["model=vqvae", "likelihood=gaussian", "codebook=fsq", "codebook.levels=[4,3]"], SGD),
    "lfq, sgd": (["model=vqvae", "likelihood=gaussian", "codebook=lfq", "codebook.bits=4"], SGD),
}
RUNS |= {  # whose objectives are of the whole batch
    "tcvae, sgd": (["model=tcvae"], SGD),
    "dip, sgd": (["model=dip"], SGD),
    "factor, adam": (["model=factor", "model.discriminator_dims=[32]"], ADAM),
    "geco, adam": (["model=geco"], ADAM),
}
RUNS |= {"sharded learned noise, adam": (LEARNED, ADAM)}  # whose one number FSDP does not take
STOPPED = {
    "lagrangian, adam, SIGINT": (VARIANTS["lagrangian"], ADAM),
    "ema codebook, sgd, SIGTERM": (VARIANTS["ema codebook"], SGD),
    "averaged, adam, SIGTERM": ([*VARIANTS["vae"], "averaging=ema"], ADAM),
    "sharded learned noise, adam, SIGTERM": (["model=vae", "likelihood=gaussian_learned"], ADAM),
    "sharded ema codebook, sgd, SIGINT": (VARIANTS["ema codebook"], SGD),
}
"""Runs whose second process gets a signal in the seventh step; figures are written, and a stop agreed, every second."""


FAILED = [*VARIANTS["lagrangian"], *ADAM]


class Signal(pl.Callback):
    """Sends the second process a signal, in the seventh step: the first of an epoch's three."""

    def __init__(self, name: str):
        self.number = getattr(signal, name)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 6:
            os.kill(os.getpid(), self.number)


class Failure(pl.Callback):
    """The first process fails, in the eighth step."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.is_global_zero and trainer.global_step == 7:
            raise RuntimeError("an accident")


class Watch(pl.Callback):
    """Keeps the averaged gradients of every optimiser step, and tells the noise which images there are."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.images, self.step = batch.factors[:, 0], trainer.fit_loop.epoch_loop.total_batch_idx

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.images, self.step = batch.factors[:, 0], 0

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        weights = trainer.strategy.lightning_module_state_dict()
        self.weights = {name: w.clone() for name, w in weights.items() if torch.is_tensor(w)}

    def noise(self, model: Any, count: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.step)
        return torch.randn(200, model.latent_dim, generator=generator)[self.images]

    def dropout(self, codebook: Any, count: int) -> torch.Tensor | None:
        noise = torch.rand(200, generator=torch.Generator().manual_seed(self.step))[self.images]
        return noise if codebook.training and codebook.dropout else None


def config(*arguments: str) -> dict[str, Any]:
    small = ["dataset=fake", "dataset.image_shape=[1,8,8]", "dataset.size=97", f"trainer.max_steps={STEPS}"]
    small += ["trainer.max_epochs=-1", "trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false"]
    small += ["run.name=x", "run.dir=x"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed: Any = OmegaConf.to_container(compose("train", overrides=small + list(arguments)), resolve=True)
    return composed


def trained(folder: Path, *arguments: str, callbacks: Sequence[pl.Callback] = ()) -> dict[str, Any]:
    """Figures, gradients of every step, and the last weights of a run whose noise is known.

    A run that is in the folder already goes on.
    """
    folder.mkdir(exist_ok=True)
    last = folder / "checkpoints" / "last.ckpt"
    checkpoint = last if last.exists() else None
    data, model, trainer = prepare(config(*arguments), folder, checkpoint)
    for part in ("train", "val"):
        split = getattr(data, part)
        # noise, or vectors of a codebook would be alike, and rounding would choose between them
        images = torch.randint(256, split.images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        setattr(data, part, TensorSplit(images, split.labels, torch.arange(len(split))[:, None]))
    restarts = watch_restarts(model)
    watch = Watch()
    trainer.callbacks.extend([watch, *callbacks])  # type: ignore[attr-defined]
    vaelab.models.VAE.noise = lambda model, count: watch.noise(model, count)  # type: ignore[method-assign]
    ResidualVQ.noise = lambda codebook, count: watch.dropout(codebook, count)  # type: ignore[method-assign]
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    figures = {name: value.item() for name, value in trainer.callback_metrics.items()}
    rows = (folder / "metrics.csv").read_text() if trainer.is_global_zero else ""
    found = {"figures": figures, "rows": rows, "gradients": watch.gradients, "weights": watch.weights}
    return found | {"restarts": restarts}


def watch_restarts(model: Any) -> dict[str, list[int]]:
    """How many codes of each codebook are placed, each time; filled while the model trains."""
    counts: dict[str, list[int]] = {}
    for name, part in model.named_modules():
        if isinstance(part, GradientCodebook):
            part._move = counted(part._move, counts.setdefault(name, []))
    return counts


def counted(place: Callable[..., None], counts: list[int]) -> Callable[..., None]:
    def placed(which: torch.Tensor, *rest: Any) -> None:
        counts.append(int(which.sum()))
        place(which, *rest)

    return placed


def process(folder: Path) -> None:
    """What each of the two processes does: all runs, one after the other."""
    results = {}
    for name, (variant, optimizer) in (RUNS | STOPPED).items():
        two = SHARDED if "sharded" in name else ["accelerator=ddp_cpu"]
        run, arguments = folder / name, [*variant, *optimizer, *two, f"dataset.batch_size={BATCH}"]
        if name in STOPPED:
            arguments.append("trainer.log_every_n_steps=2")
            with pytest.raises(Stopped) as stop:
                trained(run, *arguments, callbacks=[Signal(name.rpartition(" ")[2])])
            assert stop.value.number == getattr(signal, name.rpartition(" ")[2])
            if os.environ["RANK"] == "0":
                shutil.copytree(run, folder / f"{name}, as it was stopped")
        results[name] = trained(run, *arguments)
    torch.save(results, folder / f"process{os.environ['RANK']}.pt")
    with pytest.raises(RuntimeError, match="an accident" if os.environ["RANK"] == "0" else ""):
        trained(folder / "failed", *FAILED, "accelerator=ddp_cpu", f"dataset.batch_size={BATCH}", callbacks=[Failure()])


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    """Where the two processes train; each test goes on with a run of its own."""
    return shared / "two processes"


@pytest.fixture(scope="module")
def processes(folder: Path) -> list[dict[str, Any]]:
    """What the two processes found, by the name of the run."""
    once(folder, train_in_two)
    return [torch.load(folder / f"process{rank}.pt") for rank in (0, 1)]


def train_in_two(folder: Path) -> None:
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}  # as torchrun sets them
    code = f"from pathlib import Path; from tests.test_distributed import process as t; t(Path({str(folder)!r}))"
    root = Path(__file__).parents[1]
    started = []
    for rank in ("0", "1"):
        environment = os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}
        started.append(subprocess.Popen([sys.executable, "-c", code], cwd=root, env=environment))
    try:
        assert [process.wait(timeout=600) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()


def numbers(text: str) -> list[list[float]]:
    return [[float(cell or "nan") for cell in line.split(",")] for line in text.splitlines()[1:]]


def assert_alike(two: dict[str, Any], one: dict[str, Any]) -> None:
    """Weights, figures of the last epoch and metrics.csv."""
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-5, atol=1e-5)
    assert two["figures"] == pytest.approx(one["figures"], rel=1e-5, abs=1e-5)
    assert two["rows"].splitlines()[0] == one["rows"].splitlines()[0]
    torch.testing.assert_close(
        torch.tensor(numbers(two["rows"])), torch.tensor(numbers(one["rows"])), rtol=1e-5, atol=1e-5, equal_nan=True
    )


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one_with_all_images(processes, name, tmp_path, monkeypatch):
    for owner in (vaelab.models.VAE, ResidualVQ):
        monkeypatch.setattr(owner, "noise", None)  # put back what `trained` sets
    variant, optimizer = RUNS[name]
    one = trained(tmp_path, *variant, *optimizer, "accelerator=cpu", f"dataset.batch_size={2 * BATCH}")
    first, second = (found[name] for found in processes)
    assert len(one["gradients"]) == len(first["gradients"]) == STEPS
    if "sharded" not in name:
        torch.testing.assert_close(first["gradients"], one["gradients"], rtol=1e-5, atol=1e-5)
    assert_alike(first, one)
    for key, value in second["weights"].items():  # none, where they are put together by the first process alone
        assert torch.equal(value, first["weights"][key]), key
    assert first["restarts"] == second["restarts"] == one["restarts"]
    assert "codebook" not in name or all(sum(counts[1:]) > 0 for counts in first["restarts"].values())


@pytest.mark.parametrize("name", STOPPED)
def test_processes_stop_at_the_same_step_and_two_or_one_go_on(processes, folder, name, tmp_path, monkeypatch):
    """All of them save the eighth step, in the middle of an epoch, and the run ends as if it had not been stopped."""
    for owner in (vaelab.models.VAE, ResidualVQ):
        monkeypatch.setattr(owner, "noise", None)
    variant, optimizer = STOPPED[name]
    arguments = [*variant, *optimizer, "accelerator=cpu", f"dataset.batch_size={2 * BATCH}"]
    arguments.append("trainer.log_every_n_steps=2")
    stopped = folder / f"{name}, as it was stopped"
    assert torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8
    one = trained(tmp_path, *arguments)
    two, also_one = processes[0][name], trained(stopped, *arguments)
    for resumed in (two, also_one):
        assert len(resumed["gradients"]) == STEPS - 8
        assert_alike(resumed, one)


def test_the_first_process_saves_what_it_has_where_it_fails(processes, folder, tmp_path, monkeypatch):
    """Its weights are everybody's; of the epoch's figures it has its own part."""
    for owner in (vaelab.models.VAE, ResidualVQ):
        monkeypatch.setattr(owner, "noise", None)
    failed = folder / "failed"
    assert torch.load(failed / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 7
    one, rest = (
        trained(run, *FAILED, "accelerator=cpu", f"dataset.batch_size={2 * BATCH}") for run in (tmp_path, failed)
    )
    assert len(rest["gradients"]) == STEPS - 7
    torch.testing.assert_close(rest["weights"], one["weights"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "first", "then"), [(130, 1, 2), (130, 2, 1), (66, 1, 2), (97, 3, 2), (87, 1, 4)])
def test_the_rest_of_an_epoch_is_dealt_out_by_any_number_of_processes(size, first, then):
    order = epoch_order(size, 0, 0)
    for images in [stop for _, stop in batch_bounds(size, 16, first)][:-1]:
        parts = []
        for rank in range(then):
            batches = IndexBatches(lambda: (order, 0), size, 16, rank, then)
            done = batches.go_on_after(images)
            batches.order = lambda done=done: (order, done)
            places = list(batches)
            parts.append([place.index for place in places])
            assert done + len(parts[-1]) == len(batches)
            shares = [len(place.index) if place.share is None else place.share.count for place in places]
            assert shares == [len(p) for p in parts[-1]]
            batches.order = lambda: (order, 0)
            assert sum(len(place.index) for place in batches) == sum(
                len(range(size)[rank_slice(*b, rank, then)]) for b in batches.whole
            )
        assert torch.cat([torch.cat(parallel) for parallel in zip(*parts, strict=True)]).equal(order[images:])
