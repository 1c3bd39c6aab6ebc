"""Normalising flows of vectors: masked autoregressive transforms one after the other, by the library zuko."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vaelab.core.errors import UserError

LEAST_SCALE = 0.1
"""Smallest factor by which a transform scales a latent, its inverse being the largest: a wider range makes a step that
goes astray cost thousands of nats."""


class Flow(nn.ModuleList):
    """An invertible function f of vectors, z -> f(z; context), as transforms that follow each other.

    In each of them a latent is transformed by a function whose numbers a network finds of the latents before it and of
    the context; the order is reversed from one transform to the next. It starts as the identity.

    option: what a user has chosen, for messages. latent_dim: number d of latents. count: of transforms. hidden_dims:
    layers of the network in each. context_dim: numbers that it is told, 0 for none. passes: how many it takes to run a
    transform backwards: d if None; 2 makes it a coupling (Dinh et al. 2017). bins: of the monotonic rational-quadratic
    spline on [-5, 5] that a latent is transformed by (Durkan et al. 2019); None for a shift and a scale.
    Raises UserError if zuko is not installed.
    """

    def __init__(
        self,
        option: str,
        latent_dim: int,
        count: int,
        hidden_dims: list[int],
        context_dim: int = 0,
        passes: int | None = None,
        bins: int | None = None,
    ):
        super().__init__()
        try:
            from zuko.flows.autoregressive import MaskedAutoregressiveTransform
            from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform
        except ImportError:
            raise UserError(f'{option} needs another package: pip install "vaelab[flow]"') from None
        kind = MonotonicAffineTransform if bins is None else MonotonicRQSTransform
        numbers: Any = ((), ()) if bins is None else ((bins,), (bins,), (bins - 1,))
        order: Any = torch.arange(latent_dim)
        for _ in range(count):
            sizes: Any = {"features": latent_dim, "context": context_dim, "passes": passes, "order": order}
            how: Any = {"univariate": partial(kind, slope=LEAST_SCALE), "shapes": numbers}
            transform: Any = MaskedAutoregressiveTransform(**sizes, **how, hidden_features=hidden_dims)
            last = getattr(transform, "hyper", [transform])[-1]  # a single latent without context has no network
            for weight in last.parameters():
                nn.init.zeros_(weight)
            self.append(transform)
            order = order.flip(0)

    def carry(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Runs the flow: f(z; context), [..., B, d], and log |det df/dz|, [..., B], in one pass."""
        return _through([transform(context) for transform in self], z)

    def back(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Runs the flow backwards: what f carries to z, [..., B, d], and the log |det| of that, [..., B]."""
        return _through([transform(context).inv for transform in reversed(list(self))], z)


def _through(steps: list[Any], z: Tensor) -> tuple[Tensor, Tensor]:
    total = z.new_zeros(z.shape[:-1])
    with torch.autocast(z.device.type, enabled=False):
        for step in steps:
            z, log_det = step.call_and_ladj(z)
            total = total + log_det
    return z, total
