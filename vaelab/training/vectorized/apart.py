"""What stacked models compute each by itself, rounded as alone: products, and the steps of their optimisers.

All else of a step is of single numbers, or sums along the last dimensions, which come out alike in a stack. A product
does not: its kernel depends on how many there are. A weight that differs in its last digit is another run before long
where units have a kink, as ReLU: one that is that close to it passes an image's gradient on, or does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vaelab.models import Model

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv_transpose1d, F.conv_transpose2d)
PRODUCTS: dict[Callable[..., Tensor], int] = dict.fromkeys((F.linear, *CONVOLUTIONS, torch.addmm), 3) | dict.fromkeys(
    (torch.mm, torch.matmul, Tensor.mm, Tensor.matmul, Tensor.__matmul__), 2
)
"""Functions that are rounded otherwise for several models at once, with how many of their arguments are tensors."""


class Products(TorchFunctionMode):
    """Has each product of stacked models computed by itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return each(func, args) if func in PRODUCTS and not kwargs else func(*args, **(kwargs or {}))


def each(function: Callable[..., Tensor], args: tuple[Any, ...]) -> Tensor:
    """Calls one of `PRODUCTS` for each of the stacked models by itself."""
    count = PRODUCTS[function]
    return _Each.apply(function, args[count:], *args[:count])


class _Each(torch.autograd.Function):
    """A function of stacked tensors, called for one model after the other."""

    @staticmethod
    def forward(function: Callable[..., Tensor], options: tuple[Any, ...], *tensors: Tensor | None) -> Tensor:
        return function(*tensors, *options)  # of what is no model's, and needs no gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keeps nothing."""

    @staticmethod
    def vmap(
        info: Any, dims: Any, function: Callable[..., Tensor], options: tuple[Any, ...], *tensors: Tensor | None
    ) -> tuple[Tensor, int]:
        count = info.batch_size
        stacked = [
            x if x is None else x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(tensors, dims[2:], strict=True)
        ]
        first = stacked[0]
        assert first is not None
        if function is F.linear and first.ndim == 3 and not torch.is_autocast_enabled(first.device.type):
            return _Linear.apply(*stacked), 0
        parts = [[None] * count if x is None else x.unbind(0) for x in stacked]
        return torch.stack([function(*of_model, *options) for of_model in zip(*parts, strict=True)]), 0


class _Linear(torch.autograd.Function):
    """Linear layers of J models, without copies: x [J, B, I], weight [J, O, I], bias [J, O] or None -> [J, B, O]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        made = x.new_empty(*x.shape[:2], weight.shape[1])
        factors = x.unbind(0), weight.mT.unbind(0)
        if bias is None:
            for rows, columns, out in zip(*factors, made.unbind(0), strict=True):
                torch.mm(rows, columns, out=out)
        else:
            for added, rows, columns, out in zip(bias.unbind(0), *factors, made.unbind(0), strict=True):
                torch.addmm(added, rows, columns, out=out)
        return made

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (x, weight), each = ctx.saved_tensors, gradient.unbind(0)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = torch.empty_like(x)
            for rows, columns, out in zip(each, weight.unbind(0), of_x.unbind(0), strict=True):
                torch.mm(rows, columns, out=out)
        if ctx.needs_input_grad[1]:
            of_weight = torch.empty_like(weight)
            for rows, columns, out in zip(gradient.mT.unbind(0), x.unbind(0), of_weight.unbind(0), strict=True):
                torch.mm(rows, columns, out=out)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(1)
        return of_x, of_weight, of_bias


class Steps:
    """The optimisers of stacked models, each of which moves each of its weights by itself.

    Where they are of one class, one takes their steps in one call, with their states.

    models, trainers: of the jobs, in their order; each trainer has its optimiser. weights: stacked, by name; those of
    the models are views of them.
    """

    def __init__(self, models: Sequence[Model], trainers: Sequence[pl.Trainer], weights: dict[str, Tensor]):
        self.models, self.trainers = list(models), list(trainers)
        self.single = [trainer.optimizers[0] for trainer in trainers]
        self.weights = [(whole, [model.get_parameter(name) for model in models]) for name, whole in weights.items()]
        self.one: torch.optim.Optimizer | None = None
        self.alike = False  # whether it was made for options, learning rates among them, that are the same for all

    def clip(self) -> None:
        """Gives each model its gradients, and clips them as its trainer wants."""
        for whole, parts in self.weights:
            gradients = [None] * len(parts) if whole.grad is None else whole.grad.unbind(0)
            for part, gradient in zip(parts, gradients, strict=True):
                part.grad = gradient
        for model, trainer, optimizer in zip(self.models, self.trainers, self.single, strict=True):
            if trainer.gradient_clip_val:
                value, how = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
                model.configure_gradient_clipping(optimizer, value, how)

    def step(self) -> None:
        """Steps by the gradients that `clip` has given."""
        if any(type(optimizer) is not type(self.single[0]) for optimizer in self.single):
            for optimizer in self.single:
                optimizer.step()
            return
        options = [
            [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
            for optimizer in self.single
        ]
        alike = options[1:] == options[:-1]
        one = self.one if self.one is not None and alike == self.alike else self._joined(alike)
        wanted = options[0] if alike else [group for of_model in options for group in of_model]
        for group, given in zip(one.param_groups, wanted, strict=True):
            group.update(given)
        one.step()
        if one is not self.one:
            self.one, self.alike = one, alike
            for optimizer in self.single:  # the states are the same from here on
                own = [weight for group in optimizer.param_groups for weight in group["params"]]
                optimizer.state.update({weight: one.state[weight] for weight in own if weight in one.state})

    def _joined(self, alike: bool) -> torch.optim.Optimizer:
        """Makes the one optimiser, with the single ones' states. alike: whether their options are the same."""
        groups = [optimizer.param_groups for optimizer in self.single]
        joined = [dict(group) for of_model in groups for group in of_model]
        if alike:
            of_all = zip(*groups, strict=True)
            joined = [{**group[0], "params": [weight for one in group for weight in one["params"]]} for group in of_all]
        one = type(self.single[0])(joined)  # pyright: ignore[reportCallIssue]
        for optimizer in self.single:
            one.state.update(optimizer.state)
        return one

    def split(self) -> None:
        """Does nothing: the single optimisers can step at any time."""
