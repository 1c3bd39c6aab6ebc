"""Layouts: what a model's latents are, for code that looks at them: levels, shapes, axes, codes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from torch.nn.functional import normalize

from vaelab.core.errors import UserError
from vaelab.core.words import listed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Level:
    """A group of latents of one image.

    name: what to call it. shape: that of one image's latents, (d,) for a vector, (h, w) for a map of codes.
    codes: number K of the values that each latent can have; None for real numbers.
    """

    name: str
    shape: tuple[int, ...]
    codes: int | None = None


@dataclass(frozen=True)
class Layout:
    """The latents of one image, as `encode` gives them and `decode` takes them.

    levels: from the first that is drawn to the one next to the pixels, all of real numbers or all of codes with the
    same K. A single level keeps its shape, [B, d] or [B, h, w]; several lie one after the other in one vector.
    arrays: names under which files hold a code; the first that a file has counts.
    standard: whether each axis has mean 0 and standard deviation 1 under the prior, so that -3 to 3
    spans it; distances are measured in standard deviations of the codes otherwise.
    spherical: whether latents lie on the unit sphere: see `onto`.
    """

    levels: tuple[Level, ...]
    arrays: tuple[str, ...]
    standard: bool = False
    spherical: bool = False

    @property
    def dimensions(self) -> int | None:
        """Number d of the axes of a code vector, or None where the code is no vector of real numbers."""
        return None if self.codes is not None else sum(self.sizes)

    @property
    def codes(self) -> int | None:
        """Number K of codes to choose from, or None where latents are real numbers."""
        return self.levels[0].codes

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image's latents: that of the only level, or (sum of the levels' sizes,)."""
        return self.levels[0].shape if len(self.levels) == 1 else (sum(self.sizes),)

    @property
    def sizes(self) -> list[int]:
        """Number of latents of each level."""
        return [prod(level.shape) for level in self.levels]

    def split(self, z: Tensor) -> list[Tensor]:
        """Splits latents, [B, ...], into those of each level, [B, *its shape]."""
        parts = z.flatten(1).split(self.sizes, 1)
        return [part.unflatten(1, level.shape) for part, level in zip(parts, self.levels, strict=True)]

    def onto(self, z: Tensor) -> Tensor:
        """Gives latents as a decoder sees them: of those on a sphere the direction alone, others as they are.

        The direction has the length sqrt(d), with which each coordinate of a uniform draw has the deviation 1, as one
        of N(0, I) has: networks learn slowly from smaller ones.
        """
        return z.shape[-1] ** 0.5 * normalize(z, dim=-1) if self.spherical else z

    def axis(self, index: int) -> str:
        """Names an axis of the code vector: `z3`, or `top 3` where there are several levels."""
        if len(self.levels) == 1:
            return f"z{index}"
        for level in self.levels:
            if index < prod(level.shape):
                return f"{level.name} {index}"
            index -= prod(level.shape)
        raise IndexError(index)

    def span(self, name: str) -> range:
        """Returns the axes of a level in the code vector. Raises UserError for codes, and for a name that none has."""
        start = 0
        for level in self.levels if len(self.levels) > 1 else ():
            axes = range(start, start + prod(level.shape))
            if level.name == name and self.codes is None:
                return axes
            if level.name == name:
                raise UserError(f"level={name}: the model draws the codes of all levels at once: leave it out")
            start = axes.stop
        names = listed([level.name for level in self.levels])
        remedy = f"the levels are {names}" if len(self.levels) > 1 else "the model has a single level: leave it out"
        raise UserError(f"level={name}: {remedy}")

    def require_axes(self, model: str, verb: str) -> int:
        """Returns the number d of axes. Raises UserError for a model whose codes have none to `verb` along."""
        if self.dimensions is None:
            raise UserError(
                f"run: the codes of {model} are discrete: there is no direction to {verb} along\n"
                "vaelab report makes a page on which single codes can be changed; vaelab reconstruct works, too"
            )
        return self.dimensions

    def require_codes(self, model: str) -> int:
        """Returns the number K of codes. Raises UserError for a model whose codes are real numbers."""
        if self.codes is None:
            raise UserError(f"run: codes of {model} are real numbers, and this is for codes of a codebook: model=vqvae")
        return self.codes


def vector(size: int, standard: bool, arrays: tuple[str, ...] = ("z", "mean"), spherical: bool = False) -> Layout:
    """Makes the layout of one vector of `size` real numbers."""
    return Layout((Level("z", (size,)),), arrays, standard, spherical)
