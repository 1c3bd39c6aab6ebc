"""Values that change during training, as plain functions of its progress.

Every function takes a `Progress` first and returns a float. It keeps no state, so a resumed run
continues on the same curve, and validation cannot advance it. `over` is the length of the change,
counted in `unit`: optimiser `steps`, `epochs` (a float: half an epoch is 0.5) or a `fraction` of
the whole run.

A new shape is one function here and one file in conf/schedule.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from vaelab.core.types import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Real

Unit = Literal["steps", "epochs", "fraction"]


class Progress(NamedTuple):
    """How far training is: optimiser steps done, epochs done (a float), fraction of the run done."""

    step: int
    epoch: float
    fraction: float


ENDLESS = Progress(10**12, 1e12, 0.0)
"""Progress at the end of a run without an end, of which no number of steps is a part."""


def elapsed(progress: Progress, unit: Unit) -> float:
    """Returns the progress counted in `unit`."""
    return float({"steps": progress.step, "epochs": progress.epoch, "fraction": progress.fraction}[unit])


def ramp(progress: Progress, over: float, unit: Unit) -> float:
    """Returns the part of `over` that has passed, in [0, 1]; 1 at once if `over` is 0."""
    return min(1.0, elapsed(progress, unit) / over) if over > 0 else 1.0


def constant(progress: Progress, value: Real) -> float:
    """Stays at `value` throughout."""
    return value


def linear(progress: Progress, start: Real, end: Real, over: NonNegativeFloat, unit: Unit) -> float:
    """Follows a straight line from `start` to `end`, then stays at `end`.

    With start 0, end 1, over 5 and unit epochs it is the warm-up min(1, epoch / 5); with start 0
    and end C it is the capacity ramp of Burgess et al. 2018, section 5.
    """
    return start + (end - start) * ramp(progress, over, unit)


def cosine(progress: Progress, start: Real, end: Real, over: NonNegativeFloat, unit: Unit) -> float:
    """Follows half a cosine from `start` to `end`: flat at both ends."""
    return start + (end - start) * 0.5 * (1 - math.cos(math.pi * ramp(progress, over, unit)))


def sigmoid(
    progress: Progress, start: Real, end: Real, over: NonNegativeFloat, unit: Unit, steepness: PositiveFloat
) -> float:
    """Follows a logistic curve from `start` to `end`, centred at half of `over` (Bowman et al. 2016).

    `steepness` is the logistic's argument at the ends; the curve is rescaled to meet both exactly.
    """
    # the logistic function is (1 + tanh(x / 2)) / 2
    value = math.tanh(steepness * (ramp(progress, over, unit) - 0.5)) / math.tanh(steepness / 2)
    return start + (end - start) * 0.5 * (1 + value)


def cyclical(
    progress: Progress, start: Real, end: Real, over: PositiveFloat, unit: Unit, cycles: PositiveInt, rise: Fraction
) -> float:
    """Follows `cycles` sawteeth within `over`, then stays at `end` (Fu et al. 2019, eq. 6-7).

    Each cycle rises linearly during its first part `rise` (R in the paper) and stays at `end` for
    the rest.
    """
    now = elapsed(progress, unit)
    if now >= over:
        return end
    within = math.fmod(now * cycles / over, 1.0)
    return start + (end - start) * (min(1.0, within / rise) if rise > 0 else 1.0)


def warmup_cosine(
    progress: Progress, warmup: NonNegativeFloat, over: PositiveFloat, unit: Unit, floor: Fraction
) -> float:
    """Gives a factor for learning rates: linear from 0 to 1 over `warmup`, then a cosine down to `floor` at `over`."""
    now = elapsed(progress, unit)
    if now < warmup:
        return now / warmup
    rest = min(1.0, (now - warmup) / max(over - warmup, 1e-12))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * rest))
