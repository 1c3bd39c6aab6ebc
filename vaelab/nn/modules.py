"""Networks made of an encoder and a decoder that know nothing of vaelab: plain modules of torch."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from vaelab.core.errors import UserError
from vaelab.core.own import traceback_of
from vaelab.core.types import Shape
from vaelab.core.words import listed
from vaelab.nn.coders import Decoder, Encoder

EXAMPLES = 2
"""Images that a module is tried on when a model is built of it."""
Maker = Callable[..., nn.Module] | nn.Module
"""What makes a part of a network: a class or function that is told sizes, or a module, which is copied."""
_given: ContextVar[dict[str, Maker]] = ContextVar("given", default={})  # noqa: B039


@contextmanager
def giving(**parts: Maker | None) -> Iterator[None]:
    """Gives models that are built meanwhile these parts, where their config has `Given`."""
    token = _given.set(_given.get() | {name: part for name, part in parts.items() if part is not None})
    try:
        yield
    finally:
        _given.reset(token)


class Given(nn.Module):
    """Stands in a config for a part that was handed over in Python, and is in no file.

    role: `encoder` or `decoder`.
    """

    def __init__(self, role: str):
        super().__init__()
        self.role = role


class Modules:
    """Network of a user's own encoder and decoder.

    encoder: a module, of which each model has a copy, or what makes one. It takes images, [B, C, H, W], and gives as
    many numbers of each as the model asks for, [B, outputs], or a feature map, [B, channels, h, w], for a VQ-VAE.
    decoder: likewise, from [B, inputs], or such a map, to raw parameters of the likelihood, [B, C, H, W] or as many
    numbers in any shape. What makes a module is told `shape`, `outputs` and `inputs` if it has arguments of these
    names; `shape` and `outputs` count the channels of a map. A conditional model puts what it knows beside the image,
    as further channels, and beside z.
    """

    def __init__(self, encoder: Callable[..., nn.Module], decoder: Callable[..., nn.Module]):
        self._encoder: Maker = encoder
        self._decoder: Maker = decoder

    def encoder(self, shape: Shape, outputs: int, context: int = 0) -> Encoder:
        seen = (shape[0] + context, *shape[1:])
        body = _make("encoder", self._encoder, shape=seen, outputs=outputs)
        made = _tried("encoder", body, seen)
        if made.flatten(1).shape != (EXAMPLES, outputs):
            raise UserError(
                f"network.encoder: {_sizes(body, seen, made)}, and the model takes {outputs} numbers of each image: "
                "end it so, or change model.latent_dim (a Gaussian has a mean and a log-variance per dimension)"
            )
        return Encoder(nn.Sequential(body, nn.Flatten()), flat=False)

    def decoder(self, inputs: int, shape: Shape) -> Decoder:
        return self._decoding((inputs,), shape, inputs)

    def map_size(self, shape: Shape) -> tuple[int, int]:
        height, width = self._mapped(shape, 1)[1]
        return height, width

    def map_encoder(self, shape: Shape, channels: int) -> nn.Module:
        return self._mapped(shape, channels)[0]

    def map_decoder(self, channels: int, shape: Shape) -> Decoder:
        return self._decoding((channels, *self.map_size(shape)), shape, channels)

    def _mapped(self, shape: Shape, channels: int) -> tuple[nn.Module, torch.Size]:
        body = _make("encoder", self._encoder, shape=shape, outputs=channels)
        made = _tried("encoder", body, shape)
        if made.ndim != 4:
            raise UserError(
                f"network.encoder: {_sizes(body, shape, made)}, and this model needs a feature map [B, D, h, w]"
            )
        return body, made.shape[2:]

    def _decoding(self, latents: tuple[int, ...], shape: Shape, inputs: int) -> Decoder:
        body = _make("decoder", self._decoder, inputs=inputs, shape=shape)
        made = _tried("decoder", body, latents)
        if made[0].numel() != torch.Size(shape).numel():
            raise UserError(f"network.decoder: {_sizes(body, latents, made)}, and it must give {list(shape)} of each")
        return Decoding(nn.Sequential(body), shape)


class Decoding(Decoder):
    """Decoder of a user's own, whose last layer is left as it starts."""

    @torch.no_grad()
    def start_from(self, mean: Tensor, raw_from_mean: Callable[[Tensor], Tensor]) -> None:
        pass


def _make(role: str, maker: Maker, **sizes: Any) -> nn.Module:
    """Makes a module, which is told those of the sizes that its constructor has arguments for."""
    if isinstance(maker, functools.partial) and maker.func is Given:
        if role not in _given.get():
            raise UserError(
                f"network.{role}: it was given in Python, as an object, and is in no file\n"
                "give it again, vaelab.open(RUN, encoder=…, decoder=…), or train with a class that stands in a file"
            )
        maker = _given.get()[role]
    if isinstance(maker, nn.Module):
        return copy.deepcopy(maker)
    if not callable(maker):
        raise UserError(f"network.{role}: {maker!r:.60} is no module, nor a class or a function that makes one")
    set_already = maker.keywords if isinstance(maker, functools.partial) else {}
    try:
        known = inspect.signature(maker).parameters
    except ValueError:
        known = {}
    given = {name: size for name, size in sizes.items() if name in known and name not in set_already}
    wanted = [
        p.name for p in known.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if missing := [name for name in wanted if name not in given]:
        raise UserError(
            f"network.{role}: what makes it wants {listed(missing)}, and is told {listed(list(sizes))}: give a module, "
            "or what makes one of these"
        )
    made = maker(**given)
    if not isinstance(made, nn.Module):
        raise UserError(f"network.{role}: what makes it gives a {type(made).__name__}: a module of torch is wanted")
    return made


@torch.no_grad()
def _tried(role: str, body: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Runs a module on zeros, [2, *shape]. Raises UserError, with the user's lines, if it fails or gives no tensor."""
    device = next((weights.device for weights in body.parameters()), torch.device("cpu"))
    training = body.training
    try:
        with torch.random.fork_rng(devices=[]):
            made = body.eval()(torch.zeros(EXAMPLES, *shape, device=device))
    except Exception as error:
        lines = traceback_of(error) or f"{type(error).__name__}: {error}"
        raise UserError(f"network.{role}: it fails on {[EXAMPLES, *shape]}, a batch of zeros\n{lines}") from error
    finally:
        body.train(training)
    if not isinstance(made, Tensor) or len(made) != EXAMPLES:
        kind = list(made.shape) if isinstance(made, Tensor) else f"a {type(made).__name__}"
        raise UserError(f"network.{role}: it gives {kind} for {[EXAMPLES, *shape]}: it must give a tensor, [B, …]")
    return made


def _sizes(body: nn.Module, shape: tuple[int, ...], made: Tensor) -> str:
    return f"{type(body).__name__} makes {list(made.shape[1:])} of {list(shape)}"
