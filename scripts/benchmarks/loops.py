"""The variants written by hand: a bare loop, a loop as in tutorials, and one with Lightning's defaults. Not a command.

A loop is a function that trains so many steps more, and returns the seconds they took. All objectives
are in nats per image, on networks of the lab.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from common import clock
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor
from tqdm import tqdm

from vaelab.nn.networks import MLP, Conv, Network

Loop = Callable[[int], float]
Terms = dict[str, Tensor]


class Data(NamedTuple):
    """The data of a loop. images: [N, C, H, W] uint8. labels: [N], of 10 classes. batch: images per step."""

    images: Tensor
    labels: Tensor
    batch: int


# --- objectives -------------------------------------------------------------------------------


def bernoulli(raw: Tensor, x: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(raw, x, reduction="sum") / len(x)


def draw(mean: Tensor, logvar: Tensor) -> Tensor:
    return mean + (0.5 * logvar).exp() * torch.randn_like(mean)


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum() / len(mean)


class AE(nn.Module):
    """An autoencoder, base class of the models: each returns the loss and its terms. step: steps made before."""

    cross_entropy = staticmethod(bernoulli)

    def __init__(self, network: Network, shape: tuple[int, int, int]):
        super().__init__()
        self.encoder, self.decoder = network.encoder(shape, 20), network.decoder(20, shape)

    def forward(self, x: Tensor, labels: Tensor, step: int) -> Terms:
        return {"loss": self.cross_entropy(self.decoder(self.encoder(x)), x)}

    def after_step(self) -> None:
        """Does what follows an optimiser step."""


class VAE(AE):
    """A VAE or beta-VAE. over: steps in which beta goes from 1 to `beta`."""

    def __init__(self, network: Network, shape: tuple[int, int, int], latent: int = 20, beta: float = 1, over: int = 1):
        nn.Module.__init__(self)
        self.encoder, self.decoder = network.encoder(shape, 2 * latent), network.decoder(latent, shape)
        self.beta, self.over = beta, over

    def forward(self, x: Tensor, labels: Tensor, step: int) -> Terms:
        mean, logvar = self.encoder(x).chunk(2, 1)
        reconstruction, kl = self.cross_entropy(self.decoder(draw(mean, logvar)), x), gaussian_kl(mean, logvar)
        return {"loss": self.weigh(reconstruction, kl, step), "reconstruction": reconstruction, "kl": kl}

    def weigh(self, reconstruction: Tensor, kl: Tensor, step: int) -> Tensor:
        return reconstruction + (1 + (self.beta - 1) * min(1.0, step / self.over)) * kl


class Capacity(VAE):
    """A VAE with controlled capacity at the lab's defaults: C to 25 nats in 5,000 steps, gamma 1,000, latents 10."""

    multiplier: Tensor

    def __init__(self, network: Network, shape: tuple[int, int, int], l1: bool):
        super().__init__(network, shape, latent=10)
        self.l1 = l1
        self.register_buffer("multiplier", torch.tensor(1.0))

    def weigh(self, reconstruction: Tensor, kl: Tensor, step: int) -> Tensor:
        gap = kl - 25 * min(1.0, step / 5000)
        self.gap = gap.detach()
        if self.l1:
            return reconstruction + 1000 * gap.abs()
        return reconstruction + self.multiplier * (gap + 0.5 * gap.square())

    @torch.no_grad()
    def after_step(self) -> None:
        if not self.l1:
            self.multiplier.mul_((0.02 * self.gap).exp()).clamp_(max=1000)


class CVAE(VAE):
    def __init__(self, network: Network, shape: tuple[int, int, int]):
        nn.Module.__init__(self)
        self.embedding = nn.Embedding(10, 10)
        self.encoder, self.decoder = network.encoder(shape, 40, context=10), network.decoder(30, shape)

    def forward(self, x: Tensor, labels: Tensor, step: int) -> Terms:
        context = self.embedding(labels)
        mean, logvar = self.encoder(x, context).chunk(2, 1)
        raw = self.decoder(torch.cat([draw(mean, logvar), context], 1))
        reconstruction, kl = self.cross_entropy(raw, x), gaussian_kl(mean, logvar)
        return {"loss": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}


class VQVAE(AE):
    """A VQ-VAE of 512 codes of 64, moving averages; normal pixels, one learned scale. Idle codes are not restarted."""

    codes: Tensor
    sizes: Tensor
    sums: Tensor

    def __init__(self, network: Network, shape: tuple[int, int, int]):
        nn.Module.__init__(self)
        self.encoder, self.decoder = network.map_encoder(shape, 64), network.map_decoder(64, shape)
        self.log_sigma = nn.Parameter(torch.tensor(-1.0))
        self.register_buffer("codes", torch.randn(512, 64) / 64)
        self.register_buffer("sizes", torch.ones(512))
        self.register_buffer("sums", self.codes.clone())

    def forward(self, x: Tensor, labels: Tensor, step: int) -> Terms:
        z = self.encoder(x)
        flat = z.detach().movedim(1, -1).flatten(0, -2)
        indices = torch.addmm(self.codes.square().sum(1), flat, self.codes.t(), alpha=-2).argmin(1)
        codes = self.codes[indices].view(len(z), *z.shape[2:], -1).movedim(-1, 1)
        raw = self.decoder(z + (codes - z).detach())
        commitment = 0.25 * (z - codes).square().sum() / len(x)
        squares = (x - raw).square().sum() / len(x)
        constant = x[0].numel() * (self.log_sigma + 0.5 * math.log(2 * math.pi))
        reconstruction = 0.5 * squares * (-2 * self.log_sigma).exp() + constant
        self.average(flat, indices)
        return {"loss": reconstruction + commitment, "reconstruction": reconstruction, "commitment": commitment}

    @torch.no_grad()
    def average(self, flat: Tensor, indices: Tensor) -> None:
        self.sizes.mul_(0.99).index_add_(0, indices, flat.new_ones(len(flat)), alpha=0.01)
        self.sums.mul_(0.99).index_add_(0, indices, flat, alpha=0.01)
        total = self.sizes.sum()
        self.codes.copy_(self.sums / ((self.sizes + 1e-5) / (total + 512e-5) * total)[:, None])


def model(variant: str, data: Data) -> AE:
    """Makes the variant by hand, with the lab's default network and values."""
    shape: Any = tuple(data.images.shape[1:])
    small, wide = MLP([400, 400], "relu", False), MLP([512, 256], "relu", False)
    conv = Conv([32, 64], "relu", False, 0)
    make: dict[str, Callable[[], AE]] = {
        "ae": lambda: AE(small, shape),
        "vae": lambda: VAE(small, shape),
        "vae_conv": lambda: VAE(conv, shape),
        "beta": lambda: VAE(small, shape, latent=10, beta=4, over=10 * -(-len(data.images) // data.batch)),
        "capacity_l1": lambda: Capacity(wide, shape, l1=True),
        "capacity_lagrangian": lambda: Capacity(wide, shape, l1=False),
        "cvae": lambda: CVAE(wide, shape),
        "vqvae": lambda: VQVAE(conv, shape),
    }
    return make[variant]().to(data.images.device)


LAB = {
    "ae": ["model=ae"],
    "vae": ["model=vae"],
    "vae_conv": ["model=vae", "network=conv"],
    "beta": ["model=beta"],
    "capacity_l1": ["model=capacity", "model.constraint=l1"],
    "capacity_lagrangian": ["model=capacity"],
    "cvae": ["model=cvae"],
    "vqvae": ["model=vqvae"],
}
"""Arguments of `vaelab train` for the same variants."""


# --- loops ------------------------------------------------------------------------------------


def bare(variant: str, data: Data) -> Loop:
    """Makes the least loop that trains: bytes in a tensor, batches by index, fused Adam; no logs, nothing read back."""
    net = model(variant, data)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    images, labels, batch = data
    device, done = images.device, 0

    def loop(steps: int) -> float:
        nonlocal done
        started = clock(device)
        order = torch.randperm(len(images), device=device)[: steps * batch]
        for index in order.split(batch):
            x = images[index].float().div_(255)
            loss = net(x, labels[index], done)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            net.after_step()
            done += 1
        return clock(device) - started

    return loop


def graphed(variant: str, data: Data) -> Loop:
    """Makes the bare loop with its step captured once as a CUDA graph and replayed: the least that a GPU allows.

    Numbers that the host counts are captured as they stand at first: a beta or C that moves does not move here.
    """
    net = model(variant, data)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True, capturable=True)
    images, labels, batch = data
    device = images.device
    index = torch.arange(batch, device=device)

    def step() -> None:
        loss = net(images[index].float().div_(255), labels[index], 0)["loss"]
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()
        net.after_step()

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # capture needs all memory that is allocated once to be allocated before
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def loop(steps: int) -> float:
        started = clock(device)
        order = torch.randperm(len(images), device=device)
        for i in range(steps):
            start = i * batch % (len(images) - batch + 1)
            index.copy_(order[start : start + batch])
            graph.replay()
        return clock(device) - started

    loop.__dict__["kept"] = step  # with all that it uses: the graph has their memory, and does not keep it alive
    return loop


class Pictures(MNIST):
    """torchvision's MNIST with ToTensor, one picture at a time, of images in memory."""

    def __init__(self, data: Data):
        self.data, self.targets = data.images.cpu().squeeze(1), data.labels.cpu()
        self.transform, self.target_transform = ToTensor(), None


def squashed(raw: Tensor, x: Tensor) -> Tensor:
    """Computes the same objective as `bernoulli` from probabilities."""
    return F.binary_cross_entropy(raw.sigmoid(), x, reduction="sum") / len(x)


def tutorial(variant: str, data: Data) -> Loop:
    """Makes a loop as tutorials have it: torchvision's pictures one by one, a sigmoid before the loss, Adam by
    default, every metric read at every step, a bar."""
    net = model(variant, data)
    net.cross_entropy = squashed
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loader = DataLoader(Pictures(data), batch_size=data.batch, shuffle=True)
    device, done = data.images.device, 0

    def loop(steps: int) -> float:
        nonlocal done
        started = clock(device)
        totals: dict[str, float] = {}
        bar = tqdm(loader, total=steps)
        for step, (x, labels) in enumerate(bar, 1):
            terms = net(x.to(device), labels.to(device), done)
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            net.after_step()
            done += 1
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + term.item()
            bar.set_postfix({name: total / step for name, total in totals.items()}, refresh=False)
            if step == steps:
                break
        return clock(device) - started

    return loop


class Default(pl.LightningModule):
    """A model in a LightningModule with four metrics logged per step."""

    def __init__(self, net: AE):
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        terms = self.net(*batch, self.global_step)
        for name, term in (terms | {"elbo": -terms["reconstruction"] - terms["kl"]}).items():
            self.log(name, term, prog_bar=True)
        return terms["loss"]

    def on_train_batch_end(self, *_: Any) -> None:
        self.net.after_step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Stopwatch(pl.Callback):
    """Times one epoch, with what Lightning does at its end."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = clock(pl_module.device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = clock(pl_module.device) - self.started


def lightning(variant: str, data: Data, folder: Path) -> Loop:
    """Makes a loop of Lightning's defaults: Trainer, loader, logger, bar and checkpoints, a TensorDataset of floats."""
    module = Default(model(variant, data))
    dataset = TensorDataset(data.images.cpu().float().div(255), data.labels.cpu())
    loader = DataLoader(dataset, batch_size=data.batch, shuffle=True)

    def loop(steps: int) -> float:
        watch = Stopwatch()
        accelerator = "gpu" if data.images.is_cuda else "cpu"
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=1,
            limit_train_batches=steps,
            default_root_dir=folder,
            callbacks=[watch],
        )
        trainer.fit(module, loader)
        return watch.seconds

    return loop
