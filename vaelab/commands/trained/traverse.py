"""`vaelab traverse` shows what each latent dimension changes in a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from vaelab.commands import command
from vaelab.commands.trained import viewing
from vaelab.core.errors import UserError
from vaelab.core.types import AskedLabel

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from vaelab.models import Model
    from vaelab.nn.posteriors import Usage
    from vaelab.runs.trained import Trained

ROWS = 20
"""Most dimensions that are drawn unless all are asked for."""
IN_A_FIGURE = 8192
"""Most images of a figure."""
IN_A_COLUMN = 512


@dataclass(frozen=True)
class Options(viewing.Options):
    """The keys of conf/traverse.yaml."""

    dims: Any
    range: Annotated[float, Field(gt=0, le=1e6)]
    steps: Annotated[int, Field(ge=2, le=101)]
    image: Any
    label: AskedLabel | None
    resize: bool
    level: str | None


class Start(NamedTuple):
    """The start of a traversal. code: [1, d]. labels: [1] or [1, A], or None. name: in words."""

    code: Tensor
    labels: Tensor | None
    name: str


class Axes(NamedTuple):
    """The axes of the latents by how much they are used, the most used first.

    dims: [d]. used: how much each is used. centre, scale: [d] each, origin and unit of the steps; None where these
    are the prior's 0 and 1.
    """

    dims: list[int]
    used: Usage
    centre: Tensor | None
    scale: Tensor | None


def main(arguments: list[str]) -> int:
    """Runs `vaelab traverse` with these arguments. Returns the exit code."""
    return command.single("traverse", job, arguments)


def job(config: Any) -> Path:
    """Hydra's job: checks what is asked, moves along the dimensions, draws, prints their use. Returns the path."""
    import torch

    from vaelab.core.config import options

    asked = options(Options, config)
    dims = _dims(asked.dims)
    wanted = None if asked.image is None else viewing.one_image(asked.image, "image")
    viewing.check_figure(asked.out)
    trained = viewing.opened(asked)
    viewing.require_pictures(trained, "traverse")
    label = viewing.label_of(trained, asked.label)
    _check(trained.model, asked, dims)
    path = viewing.destination(asked.out, trained.folder, "traverse")

    from vaelab.figures import style, walks
    from vaelab.inference import paths

    axes, start = _axes(trained, asked.split, asked.level), _start(trained, asked, wanted, label)
    rows = axes.dims[: len(axes.dims) if asked.dims == "all" else ROWS] if dims is None else dims
    used = dict(zip(axes.dims, axes.used.values.tolist(), strict=True))
    values = torch.linspace(-asked.range, asked.range, asked.steps)
    images = paths.traverse(
        trained.model, start.code, rows, values, start.labels, trained.pixel_range, axes.scale, axes.centre
    )
    measure, unit, at = axes.used.unit or f"of {axes.used.word}", walks.PLAIN, start.code[0]
    if axes.scale is not None and axes.centre is not None:
        unit, at = walks.DEVIATIONS, (at - axes.centre) / axes.scale
    names = [f"{trained.model.layout.axis(j)}\n{used[j]:.2f} {measure}" for j in rows]
    title = f"{trained.config['run']['name']}: one dimension at a time, from {start.name}"
    style.save(walks.traversals(images, values, names, title, at[rows], unit), path)
    print(f"from {start.name}" + ("" if axes.scale is None else "; values are standard deviations from the mean code"))
    head = f"{axes.used.word} ({axes.used.unit})" if axes.used.unit else axes.used.word
    print(f"{'dimension':>9} {head:>10} {'own value':>10}")
    for j in rows:
        name = str(j) if len(trained.model.layout.levels) == 1 else f"{j} ({trained.model.layout.axis(j)})"
        print(f"{name:>9} {used[j]:10.3f} {float(at[j]):10.2f}")
    if left := len(axes.dims) - len(rows) if dims is None else 0:
        print(f"{left} more, none of more than {axes.used.values[ROWS]:.3f}: dims=all draws them, too")
    print(f"figure: {path}")
    return path


def _dims(value: Any) -> list[int] | None:
    """Returns the dimensions that are asked for, None for all. Raises UserError for values that are no dimensions."""
    if value is None or value == "all":
        return None
    dims = value if isinstance(value, list) else [value]
    if not dims or any(isinstance(j, bool) or not isinstance(j, int) or j < 0 for j in dims):
        raise UserError(f"dims={value}: give numbers from 0, as in dims=3 or dims=[0,3], or dims=all")
    return dims


def _check(model: Model, asked: Options, dims: list[int] | None) -> None:
    """Raises UserError for options that do not fit the model."""
    count = model.layout.require_axes(type(model).__name__, "traverse")
    axes = range(count) if asked.level is None else model.layout.span(asked.level)
    if dims and not all(j in axes for j in dims):
        where = "the model" if asked.level is None else f"level={asked.level}"
        raise UserError(f"dims={asked.dims}: {where} has {len(axes)} dimensions, {axes.start} to {axes.stop - 1}")
    rows = min(ROWS, len(axes)) if dims is None and asked.dims is None else len(dims or axes)
    if rows > IN_A_COLUMN or rows * asked.steps > IN_A_FIGURE:
        raise UserError(
            f"dims={asked.dims}: {rows:,} dimensions in {asked.steps} steps, and a figure holds {IN_A_COLUMN} "
            f"dimensions and {IN_A_FIGURE:,} images: name fewer"
        )
    if asked.image is None and (model.prior is None or model.prior.mean is None):
        raise UserError(f"image=null: {type(model).__name__} has no prior whose mean to start at: give image=0")
    if asked.image is None and model.conditional and asked.label is None:
        raise UserError(
            "label: a conditional model has to know which label to draw from the prior's mean: give "
            f"{model.condition.example}"
        )


def _axes(trained: Trained, split: str, level: str | None) -> Axes:
    """Returns the dimensions from the most to the least used, by images of the split: all, or those of a level."""
    import torch

    from vaelab.inference import coding, paths

    model = trained.model
    count = min(viewing.LOOKED_AT, max(1, viewing.NUMBERS // math.prod(model.shape)))
    batch = trained.batch(split, viewing.spread(trained, split, count))
    dims, used = paths.usage(model, batch.images, batch.labels)
    if level is not None:
        chosen = torch.isin(dims, torch.tensor(model.layout.span(level)))
        dims, used = dims[chosen], used._replace(values=used.values[chosen])
    if model.layout.standard:
        return Axes(dims.tolist(), used, None, None)
    codes = coding.codes(model, batch.images, batch.labels)
    return Axes(dims.tolist(), used, codes.mean(0), codes.std(0, unbiased=False))


def _start(trained: Trained, asked: Options, wanted: int | str | None, label: Tensor | None) -> Start:
    """Returns the code of the image, or the prior's mean; decoded as class `label` if one is asked for."""

    from vaelab.inference import coding

    model = trained.model
    if wanted is None:
        mean = model.require_prior().mean
        assert mean is not None  # a prior of vectors has one
        return Start(mean[None].cpu(), label, viewing.as_label(trained, "the prior's mean", label))
    chosen = viewing.choose(trained, asked.split, [wanted], "image", label, asked.resize)
    code = coding.codes(model, chosen.images, chosen.labels)
    return Start(code, chosen.labels if label is None else label, viewing.as_label(trained, chosen.names[0], label))
