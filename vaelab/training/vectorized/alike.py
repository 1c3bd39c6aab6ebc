"""Tells whether two models can be stacked: of the same parts and sizes, whatever their numbers are."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import MethodType
from typing import Any, NamedTuple

import pytorch_lightning as pl
from torch import nn

from vaelab.models import Model

ASIDE = set(vars(pl.LightningModule())) | {
    "optimizer",
    "lr_factors",
    "seed",
    "compiled",
    "stepper",
    "observed",
    "window",
    "epoch_means",
    "held_out",
    "closed_at",
    "latest",
    "restored",
    "epoch_vectors",
}
"""Attributes of a model on which no term of a batch depends."""


class Numbers(NamedTuple):
    """A number that a part of a model holds as a plain attribute. part: its name, as `named_modules` has it."""

    part: str
    name: str


def numbers_of(model: Model) -> dict[Numbers, float]:
    """Lists the plain numbers that a model's parts hold."""
    found = {}
    for part, module in model.named_modules():
        for name, value in _attributes(module):
            if _is_number(value):
                found[Numbers(part, name)] = value
    return found


def _is_number(value: Any) -> bool:
    return type(value) in (float, int)


def difference(a: Model, b: Model) -> str | None:
    """Returns what keeps two models from being stacked, in a few words; None if nothing does."""
    ours, theirs = dict(a.named_modules()), dict(b.named_modules())
    if ours.keys() != theirs.keys():
        return "they are of other parts"
    for part, module in ours.items():
        if word := _difference(module, theirs[part], (a, b)):
            return f"{type(module).__name__}: {word}" if part else word
    return None


def _difference(a: nn.Module, b: nn.Module, models: tuple[Model, Model]) -> str | None:
    if type(a) is not type(b):
        return f"{type(a).__name__} and {type(b).__name__}"
    for name, tensor in (*a.named_parameters(recurse=False), *a.named_buffers(recurse=False)):
        other = getattr(b, name)
        if (tensor.shape, tensor.dtype, tensor.requires_grad) != (other.shape, other.dtype, other.requires_grad):
            return f"{name} is of another size"
    ours, theirs = dict(_attributes(a)), dict(_attributes(b))
    if ours.keys() != theirs.keys():
        return f"{', '.join(sorted(ours.keys() ^ theirs.keys()))}"
    for name, value in ours.items():
        numbers = _is_number(value) and _is_number(theirs[name])
        if not (numbers and float in (type(value), type(theirs[name]))) and not _same(value, theirs[name], models):
            return f"{name} differs"
    return None


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Gives the attributes of a module that are neither parts nor tensors."""
    aside = ASIDE if isinstance(module, pl.LightningModule) else {}
    for name, value in vars(module).items():
        if not name.startswith("_") and name not in aside and name != "training":
            yield name, value


def _same(a: Any, b: Any, models: tuple[Model, Model]) -> bool:
    """Whether two attributes are the same; a method of its own model, as a VampPrior has it, stands for no more."""
    if isinstance(a, functools.partial):
        ours, theirs = ((f.func, f.args, f.keywords) for f in (a, b)) if isinstance(b, functools.partial) else (a, b)
        return bool(ours == theirs)
    if type(a) is not type(b):
        return False
    if isinstance(a, MethodType) and (a.__self__, b.__self__) == models:
        return a.__func__ is b.__func__
    if type(a).__eq__ is object.__eq__ and hasattr(a, "__dict__") and not callable(a):
        ours, theirs = vars(a), vars(b)
        return ours.keys() == theirs.keys() and all(_same(value, theirs[name], models) for name, value in ours.items())
    return bool(a == b)
