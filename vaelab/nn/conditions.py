"""Conditions: what a model is told of an image beside its pixels, as a vector for encoder and decoder."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveInt, Share

ROWS = 256
"""Number of the data's label vectors that a model keeps, to draw images of when none are asked for."""


class Unconditional(nn.Module):
    """Base class of the conditions, which tells a model nothing beside the pixels.

    num_classes: number of classes of the data's labels, which are not looked at.
    """

    size = 0
    """Number E of entries of an image's vector; 0 where nothing is told."""
    drop = 0.0
    """Share of training images of which nothing is told."""
    null: float | None = None
    """The value that fills the label of an image of which nothing is told; None where a model does not know how that
    is."""
    axes = 0
    """Number of axes of an image's label: 0 of a class, 1 of a vector."""
    example = "label=0"
    """How a user asks for a label."""

    def __init__(self, num_classes: int | None):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, labels: Tensor | None) -> Tensor | None:
        """Returns the vector of each image, [B, E], or None. labels: [B] or [B, A]; None where the data has none."""
        return None

    @property
    def table(self) -> Tensor | None:
        """The vector of each class, [K, E], or None."""
        return None

    def start_from(self, labels: Callable[[], Tensor], held_out: Callable[[], Tensor]) -> None:
        """Tells a fresh condition of the labels to train on, and of others to draw images of; each [N] or [N, A]."""

    def in_turn(self, count: int) -> Tensor | None:
        """Chooses labels for `count` new images when none are asked for: [count] or [count, A], or None."""
        return None

    def dropped(self, labels: Tensor | None) -> Tensor | None:
        """Puts the null in the place of a share `drop` of the labels of a training batch, drawn at random."""
        if labels is None or self.null is None:
            return labels
        gone = torch.rand(len(labels), device=labels.device) < self.drop
        return labels.masked_fill(gone.view(-1, *[1] * (labels.ndim - 1)), self.null)

    def read(self, label: Any, class_of: Callable[[Any], int]) -> Tensor:
        """Returns the label that a user asks for, [1] or [1, A]. Raises UserError for one that there is not.

        class_of: finds the number of a class by its name or number.
        """
        return torch.tensor([class_of(label)])

    def words(self, label: Tensor, name_of: Callable[[int], str]) -> str:
        """Says in words which label this is, [] or [A]. name_of: gives the name of a class."""
        return f"class {name_of(int(label))}"


class Label(Unconditional):
    """Tells a model the class of an image as a learned vector (Sohn, Lee & Yan 2015).

    Its entries start as N(0, 1) / sqrt(dim), so its norm is about 1 while |z| under the prior is about
    sqrt(latent_dim): the label informs the decoder without dwarfing z.

    dim: number of entries. drop: the share of training images that have the null's vector in the place of their
    class's, so that the model also draws images of which no class is told (Ho & Salimans 2022, algorithm 1).
    Raises UserError for data without classes.
    """

    def __init__(self, num_classes: int | None, dim: PositiveInt, drop: Share = 0.0):
        super().__init__(num_classes)
        if num_classes is None:
            raise UserError(
                "condition=label needs labels that are classes, and this data set has none: use model=vae "
                "condition=none; labels that are vectors are told by condition=attributes or condition=vector"
            )
        self.size, self.drop, self.null = dim, drop, num_classes if drop else None
        self.embedding = nn.Embedding(num_classes + bool(drop), dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)

    def forward(self, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError("a conditional model needs the images' labels")
        return self.embedding(labels)

    @property
    def table(self) -> Tensor:
        return self.embedding.weight[: self.num_classes]

    def in_turn(self, count: int) -> Tensor:
        """Takes every class in turn: [count] int64."""
        return torch.arange(count, device=self.embedding.weight.device) % len(self.table)


class Vector(Unconditional):
    """Tells a model a vector of numbers of each image, standardised by the training images' mean and deviation.

    The null is a vector of NaN, which is told as zeros. As zeros are the mean, too, a last entry then says whether
    anything is told.

    names: of the vector's A entries; None where the data's labels are no vectors. drop: the share of training images
    of which nothing is told (Ho & Salimans 2022, algorithm 1). Raises UserError for data whose labels are no vectors.
    """

    axes = 1
    mean: Tensor
    deviation: Tensor
    rows: Tensor

    def __init__(self, num_classes: int | None, names: list[str] | None, drop: Share = 0.0):
        super().__init__(num_classes)
        self.name = type(self).__name__.lower()
        if names is None or num_classes is not None:
            known = "no labels" if num_classes is None else "classes, which condition=label tells"
            raise UserError(
                f"condition={self.name} needs labels that are vectors, [N, A], and this data set has {known}"
            )
        self.names, self.drop, self.null = names, drop, math.nan if drop else None
        self.size = len(names) + bool(drop)
        self.register_buffer("mean", torch.zeros(len(names)))
        self.register_buffer("deviation", torch.ones(len(names)))
        self.register_buffer("rows", torch.zeros(ROWS, len(names)))

    def forward(self, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError("a conditional model needs the images' labels")
        told = self.scaled(labels).nan_to_num()
        return torch.cat([told, (~labels.isnan()[:, :1]).to(told.dtype)], 1) if self.drop else told

    def scaled(self, labels: Tensor) -> Tensor:
        """Brings labels, [B, A], to the size of a standard normal's draws."""
        return (labels - self.mean) / self.deviation

    @torch.no_grad()
    def start_from(self, labels: Callable[[], Tensor], held_out: Callable[[], Tensor]) -> None:
        """Takes mean and deviation of the labels to train on, and keeps some of the others at random."""
        known, others = labels(), held_out()
        if known.shape[1:] != self.mean.shape:
            raise UserError(
                f"condition.names: {len(self.names)} of them, and the data's labels are {list(known.shape)}: leave it "
                "out, and name them by dataset.label_names"
            )
        self.check(torch.cat([known, others]))
        self.mean.copy_(known.double().mean(0))
        deviation = known.double().std(0, correction=0)
        self.deviation.copy_(deviation.where(deviation > 0, 1.0))
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))
        self.rows.copy_(others[order[torch.arange(ROWS) % len(others)]])

    def check(self, labels: Tensor) -> None:
        """Raises UserError for labels, [N, A], that the condition is not for."""

    def in_turn(self, count: int) -> Tensor:
        """Takes the label vectors that were kept of the data, one after the other: [count, A]."""
        return self.rows[torch.arange(count, device=self.rows.device) % ROWS]

    @property
    def example(self) -> str:  # type: ignore[override]
        return f"label=[{','.join('0' * min(len(self.names), 3))}{',…' * (len(self.names) > 3)}]"

    def read(self, label: Any, class_of: Callable[[Any], int]) -> Tensor:
        values = list(label) if isinstance(label, list | tuple) else [label]
        if len(values) != len(self.names) or not all(map(_is_number, values)):
            what = ", ".join(self.names[:12]) + ", …" * (len(self.names) > 12)
            raise UserError(f"label={_shown(label)}: give {len(self.names)} numbers, as in {self.example}: {what}")
        return torch.tensor([[float(value) for value in values]])

    def words(self, label: Tensor, name_of: Callable[[int], str]) -> str:
        """Names each entry with its value, of the first few."""
        said = [f"{name} {value:.3g}" for name, value in zip(self.names[:6], label.tolist(), strict=False)]
        return ", ".join(said) + ", …" * (len(self.names) > 6)


class Attributes(Vector):
    """Tells a model which of several attributes an image has, each as 1 or -1; nothing is told as zeros.

    names: of the attributes; None where the data's labels are no vectors. Raises UserError for labels that are not 0
    or 1, and as `Vector` does.
    """

    def scaled(self, labels: Tensor) -> Tensor:
        return 2 * labels - 1

    def check(self, labels: Tensor) -> None:
        wrong = (labels != 0) & (labels != 1)
        if wrong.any():
            name, value = self.names[int(wrong.nonzero()[0, 1])], labels[wrong][0].item()
            raise UserError(
                f"condition=attributes: attributes are 0 or 1, and {name} is {value:g} for some image: take "
                "condition=vector, which is for any numbers"
            )

    @property
    def example(self) -> str:  # type: ignore[override]
        return f"label=[{','.join(self.names[:2])}]"

    def read(self, label: Any, class_of: Callable[[Any], int]) -> Tensor:
        """Reads the names of the attributes that an image has, of which all others are absent; or a 0 or 1 of each."""
        values = list(label) if isinstance(label, list | tuple) else [label]
        if values and all(map(_is_number, values)):
            if set(values) - {0, 1}:
                raise UserError(f"label={_shown(label)}: attributes are 0 or 1; or name them, as in {self.example}")
            return super().read(label, class_of)
        has = torch.zeros(1, len(self.names))
        for value in values:
            has[0, self._place(label, value)] = 1
        return has

    def _place(self, label: Any, value: Any) -> int:
        """Finds an attribute by its name, in capitals or not."""
        folded = [name.casefold() for name in self.names]
        if str(value).casefold() not in folded:
            near = difflib.get_close_matches(str(value), self.names, 1) or self.names[:12]
            raise UserError(f"label={_shown(label)}: no attribute is called {value}; there is {', '.join(near)}")
        return folded.index(str(value).casefold())

    def words(self, label: Tensor, name_of: Callable[[int], str]) -> str:
        return ", ".join(name for name, has in zip(self.names, label.tolist(), strict=True) if has) or "no attribute"


Condition = Unconditional


def beside(x: Tensor, context: Tensor | None) -> Tensor:
    """Appends the context of each image to vectors, feature maps or images, as further entries or channels.

    x: [B, d] or [B, C, H, W]; context: [B, E], or None for nothing to add. Returns [B, d + E] or
    [B, C + E, H, W].
    """
    if context is None:
        return x
    context = context.to(x.dtype)
    if x.ndim > 2:
        context = context[(...,) + (None,) * (x.ndim - 2)].expand(-1, -1, *x.shape[2:])
    return torch.cat([x, context], 1)


def for_all(labels: Tensor, count: int) -> Tensor:
    """Gives each of `count` images its label: one label, [1] or [1, A], is that of all of them."""
    return labels.expand(count, *labels.shape[1:])


def again(labels: Tensor | None, count: int) -> Tensor | None:
    """Repeats the labels of a batch `count` times, one after the other: [B] or [B, A] to [count * B, ...]."""
    return None if labels is None else labels.repeat(count, *[1] * (labels.ndim - 1))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(label: Any) -> str:
    return f"[{','.join(map(str, label))}]" if isinstance(label, list) else str(label)
