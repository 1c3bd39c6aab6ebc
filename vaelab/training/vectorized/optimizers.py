"""The optimisers of a stack's models, which step as one wherever that comes to the same."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from vaelab.models import Model

PROPORTIONAL = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
"""Optimisers whose step is proportional to the learning rate: one step at a rate of 1 gives that of any rate."""


class Optimizers:
    """The optimiser of each model, and one of the stacked weights that steps in their place.

    The states of the single ones are views of the one's, once it has stepped.

    models, trainers: of the jobs, in their order; each trainer has its optimiser. weights: stacked, by name.
    """

    def __init__(self, models: Sequence[Model], trainers: Sequence[pl.Trainer], weights: dict[str, Tensor]):
        self.models, self.weights = list(models), weights
        self.trainers = list(trainers)
        self.single = [trainer.optimizers[0] for trainer in trainers]
        self.one: torch.optim.Optimizer | None = None
        self.shared = False  # whether the single ones' states are views of the one's
        self.alike = all(
            _parts(*pair) == _parts(models[0], self.single[0]) for pair in zip(models, self.single, strict=True)
        )
        device = next(iter(weights.values())).device
        self.rates = [torch.zeros(len(models), device=device) for _ in self.single[0].param_groups]
        self.written: list[list[float]] = [[] for _ in self.rates]

    def clip(self) -> None:
        """Clips each model's gradients as its trainer wants."""
        for index, (model, trainer) in enumerate(zip(self.models, self.trainers, strict=True)):
            if trainer.gradient_clip_val:
                self._give_gradients(index)
                value, how = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
                model.configure_gradient_clipping(self.single[index], value, how)

    def step(self) -> None:
        """Steps by the gradients of the stacked weights."""
        if not self.join():
            for index, optimizer in enumerate(self.single):
                self._give_gradients(index)
                optimizer.step()
            return
        assert self.one is not None
        rates = self._rates()
        if all(len(set(of_group)) == 1 for of_group in rates):
            for group, (rate, *_) in zip(self.one.param_groups, rates, strict=True):
                group["lr"] = rate
            self.one.step()
        else:
            self.write_rates()
            self.step_by_rates()
        if not self.shared:
            self._share()

    def join(self) -> bool:
        """Makes one optimiser of all, unless there is one. Returns whether that is possible.

        It is where they are of one class, with the same groups of weights and the same options, learning rates apart,
        and have taken as many steps.
        """
        if not self.alike:
            return False
        options = [_options(optimizer) for optimizer in self.single]
        one_rate = all(len(set(of_group)) == 1 for of_group in self._rates())
        if any(other != options[0] for other in options[1:]) or not (one_rate or type(self.single[0]) in PROPORTIONAL):
            self.split()
        elif self.one is None:
            self._join()
        if self.one is None:
            return False
        for group, given in zip(self.one.param_groups, options[0], strict=True):
            group.update(given)
        return True

    def _join(self) -> None:
        states = [
            {name: optimizer.state.get(weight, {}) for name, weight in model.named_parameters()}
            for model, optimizer in zip(self.models, self.single, strict=True)
        ]
        counts = [
            [float(value) for state in of_model.values() for value in state.values() if _counts(value)]
            for of_model in states
        ]
        if any(other != counts[0] for other in counts[1:]):
            return
        names = {weight: name for name, weight in self.models[0].named_parameters()}
        first = self.single[0]
        groups = [
            {**group, "params": [self.weights[names[weight]] for weight in group["params"]]}
            for group in first.param_groups
        ]
        accepted = inspect.signature(type(first)).parameters  # AdamW has defaults that it does not take
        self.one = type(first)(groups, **{key: value for key, value in first.defaults.items() if key in accepted})
        for name, weight in self.weights.items():
            if states[0].get(name):
                self.one.state[weight] = {
                    key: deepcopy(value)
                    if _counts(value)
                    else torch.stack([of_model[name][key] for of_model in states])
                    for key, value in states[0][name].items()
                }
        self.shared = False

    def split(self) -> None:
        """Has the single optimisers step for themselves: each counts its own steps."""
        if self.one is None:
            return
        self.one = None
        for optimizer in self.single:
            for state in optimizer.state.values():
                state.update({key: deepcopy(value) for key, value in state.items() if _counts(value)})

    # --- a learning rate for each -------------------------------------------------------------

    def _rates(self) -> list[list[float]]:
        """Returns the learning rates of each group of weights, one for each model."""
        groups = zip(*(optimizer.param_groups for optimizer in self.single), strict=True)
        return [[group["lr"] for group in of_models] for of_models in groups]

    def write_rates(self) -> None:
        """Writes the learning rates that schedules have set to where `step_by_rates` reads them."""
        for number, rates in enumerate(self._rates()):
            if rates != self.written[number]:
                self.written[number] = rates
                self.rates[number].copy_(torch.tensor(rates))

    @torch.no_grad()
    def step_by_rates(self, **options: Any) -> None:
        """Has the one optimiser step by the rates that were written. options: of it, for this step alone."""
        assert self.one is not None
        groups = self.one.param_groups
        before = [[weight.clone() for weight in group["params"]] for group in groups]
        kept = [{key: group[key] for key in ("lr", *options)} for group in groups]
        for group in groups:
            group.update(lr=1.0, **options)
        self.one.step()
        for group, starts, rates, given in zip(groups, before, self.rates, kept, strict=True):
            group.update(given)
            for weight, start in zip(group["params"], starts, strict=True):
                weight.copy_(start.lerp(weight, rates.view(-1, *[1] * (weight.ndim - 1))))

    # --- gradients and states -----------------------------------------------------------------

    def _give_gradients(self, index: int) -> None:
        """Gives a model's weights their gradients, as views of the stacked ones."""
        for name, weight in self.models[index].named_parameters():
            gradient = self.weights[name].grad
            weight.grad = None if gradient is None else gradient[index]

    def _share(self) -> None:
        """Makes the states of the single optimisers views of the one's; a count of steps is the same for all."""
        assert self.one is not None
        for name, weight in self.weights.items():
            state = self.one.state.get(weight, {})
            parts = {key: None if _counts(value) else value.unbind(0) for key, value in state.items()}
            for index, (model, optimizer) in enumerate(zip(self.models, self.single, strict=True)):
                optimizer.state[model.get_parameter(name)] = {
                    key: state[key] if part is None else part[index] for key, part in parts.items()
                }
        self.shared = True


def _parts(model: Model, optimizer: torch.optim.Optimizer) -> tuple[type, list[list[str]]]:
    """Returns an optimiser's class, and the names of the weights of each of its groups."""
    names = {weight: name for name, weight in model.named_parameters()}
    return type(optimizer), [[names[weight] for weight in group["params"]] for group in optimizer.param_groups]


def _counts(value: Any) -> bool:
    """Whether a part of an optimiser's state is a count of steps, and no tensor of a weight's shape."""
    return not torch.is_tensor(value) or value.ndim == 0


def _options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Returns the options of an optimiser's groups, but for the learning rate."""
    return [
        {key: value for key, value in group.items() if key not in ("params", "lr")} for group in optimizer.param_groups
    ]
