"""Models of one shape as one: their weights stacked, a batch of each measured and all moved in one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from vaelab.core.batch import Batch
from vaelab.models import Model
from vaelab.models.module import Outcome
from vaelab.training.vectorized import apart
from vaelab.training.vectorized.alike import Numbers, numbers_of
from vaelab.training.vectorized.optimizers import Optimizers

GROUPED = ("cpu",)
"""Devices on which convolutions of many models take less time as grouped ones than one after the other."""
TOLERANCE = 1e-3
"""Relative difference of a loss or a gradient, together with others and alone, above which something is wrong."""


class Asked(NamedTuple):
    """A step that a job asks for.

    batch, noise: as `Model.measure` takes them. learn: `learned_by`, which draws from the job's own generators.
    """

    batch: Batch
    noise: Tensor | None
    learn: Callable[[Outcome], Outcome]


class _Together(TorchFunctionMode):
    """Computes linear layers of many models at once; and their convolutions, where that is faster, as grouped ones.

    Linear layers as W x, not as x W: the gradient of W then lies as W does.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and args[0].ndim == 2:
            x, weight, *bias = args
            product = weight @ x.t()
            return (product if not bias or bias[0] is None else product + bias[0].unsqueeze(1)).t()
        if func in apart.CONVOLUTIONS and not kwargs and args[0].device.type not in GROUPED:
            return apart.each(func, args)
        return func(*args, **(kwargs or {}))


class _Measure(nn.Module):
    """`Model.measure` as a module's forward, with the numbers that differ between models given as tensors."""

    def __init__(self, model: Model, numbers: Sequence[Numbers], products: type[TorchFunctionMode]):
        super().__init__()
        self.model, self.numbers, self.products = model, list(numbers), products
        self.observes = type(model).observe is not Model.observe

    def forward(self, batch: tuple[Tensor | None, ...], noise: Tensor | None, rest: Any, numbers: list[Tensor]) -> Any:
        holders = [(self.model.get_submodule(part), name) for part, name in self.numbers]
        before = [getattr(holder, name) for holder, name in holders]
        try:
            for (holder, name), value in zip(holders, numbers, strict=True):
                setattr(holder, name, value)
            with self.products():
                outcome = self.model.measure(Batch(*batch, *rest), noise)  # type: ignore[arg-type]
        finally:
            for (holder, name), value in zip(holders, before, strict=True):
                setattr(holder, name, value)
        return outcome if self.observes else outcome._replace(terms={})


class Stack:
    """Models that are alike, as one.

    Each model's weights and buffers are views of the stacked ones from here on, so that all that looks at a single
    model or changes it (checkpoints, schedules, controllers, averages) goes on as ever. So are the states of its
    optimiser, once it has stepped here.

    models, trainers: of the jobs, in their order; each trainer has its optimiser. together: whether products and the
    optimisers' steps are of all models at once, as is faster on a GPU; else each comes out as alone, to the last digit.
    """

    def __init__(self, models: Sequence[Model], trainers: Sequence[pl.Trainer], together: bool):
        self.models, self.trainers = list(models), list(trainers)
        first = models[0]
        self.weights = _stacked([dict(model.named_parameters()) for model in models])
        self.buffers = _stacked([dict(model.named_buffers()) for model in models])
        for name, weight in first.named_parameters():
            self.weights[name].requires_grad_(weight.requires_grad)
        values = [numbers_of(model) for model in models]
        numbers = [key for key in values[0] if len({of_model[key] for of_model in values}) > 1]
        self.numbers = [torch.tensor([of_model[key] for of_model in values], device=first.device) for key in numbers]
        self.measured = _Measure(first, numbers, _Together if together else apart.Products)
        self.optimizers = (Optimizers if together else apart.Steps)(models, trainers, self.weights)

    def measure(self, asked: Sequence[Asked]) -> Outcome:
        """Measures a batch of each model. Returns what `Model.measure` does, with the models as the first dimension."""
        return self._measure(*self._joined(asked))

    def _joined(self, asked: Sequence[Asked]) -> tuple[Batch, Tensor | None, Any]:
        """Stacks batches and noise. Returns them, and the dimensions of their tensors that the models lie along."""
        batches = [_joined(parts) for parts in zip(*(ask.batch[:3] for ask in asked), strict=True)]
        noise, dim = _joined([ask.noise for ask in asked])
        batch = Batch(*(values for values, _ in batches), *asked[0].batch[3:])  # type: ignore[arg-type]
        return batch, noise, (tuple(dim for _, dim in batches), dim)

    def _measure(self, batch: Batch, noise: Tensor | None, dims: Any) -> Outcome:
        def one(weights: dict[str, Tensor], tensors: Any, noise: Any, numbers: Any) -> Any:
            named = {f"model.{name}": tensor for name, tensor in weights.items()}
            return functional_call(self.measured, named, (tensors, noise, batch[3:], numbers))

        weights = self.weights | self.buffers
        with self.trainers[0].precision_plugin.forward_context():
            return torch.vmap(one, in_dims=(0, *dims, 0))(weights, batch[:3], noise, self.numbers)

    def take(self, asked: Sequence[Asked], training: bool) -> list[Outcome]:
        """Measures a batch of each model and, in training, takes a step of each. Returns what came of each batch."""
        if not training:
            with torch.inference_mode():
                return self._apart(self.measure(asked))
        outcomes = learned_of(asked, self._apart(self._backward(*self._joined(asked))))
        self.optimizers.step()
        return outcomes

    def _backward(self, batch: Batch, noise: Tensor | None, dims: Any) -> Outcome:
        """Measures a batch of each model, and computes the gradients of all, clipped."""
        outcome = self._gradients(batch, noise, dims)
        self.optimizers.clip()
        return outcome

    def _gradients(self, batch: Batch, noise: Tensor | None, dims: Any) -> Outcome:
        for weight in self.weights.values():
            weight.grad = None
        outcome = self._measure(batch, noise, dims)
        outcome.loss.sum().backward()
        return outcome

    def _apart(self, outcome: Outcome) -> list[Outcome]:
        """Splits what `measure` has given by the models."""
        count = len(self.models)
        losses = outcome.loss.detach().unbind(0)
        parts = [_unbound(values, count) for values in (outcome.metrics, outcome.vectors, outcome.terms)]
        return [Outcome(losses[i], *(part[i] for part in parts)) for i in range(count)]

    def check(self, asked: Sequence[Asked]) -> None:
        """Raises ValueError if the losses of a batch of each model, or their gradients, are not those of each alone."""
        losses = self.measure(asked).loss
        learned = {name: weight for name, weight in self.weights.items() if weight.requires_grad}
        got = torch.autograd.grad(losses.sum(), list(learned.values()), allow_unused=True)
        gradients = dict(zip(learned, got, strict=True))
        for index, (model, trainer) in enumerate(zip(self.models, self.trainers, strict=True)):
            with trainer.precision_plugin.forward_context():
                loss = model.measure(asked[index].batch, asked[index].noise).loss
            alone = torch.autograd.grad(loss, [model.get_parameter(name) for name in learned], allow_unused=True)
            if not _close(losses[index], loss):
                raise ValueError("torch.vmap gives other losses than each has alone")
            for name, gradient in zip(learned, alone, strict=True):
                whole = gradients[name]
                if not (gradient is None if whole is None else gradient is not None and _close(whole[index], gradient)):
                    raise ValueError(f"torch.vmap gives another gradient of {name} than each has alone")

    def alone(self, index: int, asked: Asked, training: bool) -> Outcome:
        """Measures a batch of one of the models and, in training, takes a step of it."""
        if training:
            self.optimizers.split()
        return step_alone(self.models[index], self.trainers[index], asked, training)


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same up to rounding, beside the largest value of the second; NaN is NaN."""
    a, b = a.detach().double().nan_to_num(), b.detach().double().nan_to_num()
    return bool((a - b).abs().max() <= TOLERANCE * b.abs().max() + torch.finfo(torch.float32).tiny)


def step_alone(model: Model, trainer: pl.Trainer, asked: Asked, training: bool) -> Outcome:
    """Measures a batch of a model and, in training, takes a step of it, as the training loop would."""
    if not training:
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            return model.measure(asked.batch, asked.noise)
    optimizer = trainer.optimizers[0]
    with trainer.precision_plugin.forward_context():
        outcome = model.measure(asked.batch, asked.noise)
    optimizer.zero_grad()
    outcome.loss.backward()
    outcome = asked.learn(outcome)
    if trainer.gradient_clip_val:
        model.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
    optimizer.step()
    return outcome._replace(loss=outcome.loss.detach())


@torch.no_grad()
def learned_by(model: Model, batch: Batch, outcome: Outcome) -> Outcome:
    """Moves what learns without the optimiser: after the backward pass and before a step, as the training loop does."""
    if outcome.terms and (seen := model.observe(batch, outcome.terms)) is not None:
        model.learn([seen])
    return outcome._replace(terms={})


def learned_of(asked: Sequence[Asked], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Moves what learns without the optimiser, of each model by itself."""
    return [ask.learn(outcome) if outcome.terms else outcome for ask, outcome in zip(asked, outcomes, strict=True)]


def _stacked(tensors: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stacks tensors by name, and makes each a view of its stack."""
    stacked = {}
    for name in tensors[0]:
        whole = torch.stack([named[name].detach() for named in tensors])
        for named, part in zip(tensors, whole.unbind(0), strict=True):
            named[name].data = part
        stacked[name] = whole
    return stacked


def _joined(values: Sequence[Tensor | None]) -> tuple[Tensor | None, int | None]:
    """Stacks values, with the dimension that they lie along: None for what is the same for all."""
    first = values[0]
    if first is None or all(value is first for value in values):
        return first, None
    return torch.stack(values), 0  # type: ignore[arg-type]


def _unbound(values: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Splits stacked tensors by name into those of each model."""
    parts = {name: value.detach().unbind(0) for name, value in values.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(count)]
