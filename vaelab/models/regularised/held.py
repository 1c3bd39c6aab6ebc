"""Findings on a quantity that a controller holds at a value."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from vaelab.core.words import Finding

FAR_OFF, FAR_BEHIND = (0.5, 0.05), (1.0, 0.25)
"""Limits of the distance from the goal, as nats and fraction of the goal: where it stands still, and where it moves."""
STANDS = 0.001
"""Fraction of the goal by which its mean over an epoch may differ from its last value if it stood still."""


class Held(NamedTuple):
    """A metric and the scalar it is held at, their names in a finding, and what to do where it stays below or above."""

    code: str
    metric: str
    scalar: str
    name: str
    goal: str
    below: str
    above: str


class Holding:
    """Findings of a variant whose controller holds a metric at one of its scalars."""

    held: Held

    def diagnose(self, figures: dict[str, float]) -> list[Finding]:
        """Diagnoses the means over a training epoch."""
        scalar: Tensor = getattr(self, self.held.scalar)
        return diagnose(self.held, figures[self.held.metric], figures[self.held.scalar], scalar.item())


def diagnose(held: Held, value: float, goal: float, end: float) -> list[Finding]:
    """Diagnoses a quantity that is not where it is to be held.

    value, goal: means over a training epoch, nats. end: the goal at the epoch's end. While it moves, the quantity runs
    after it and may be further away.
    """
    least, part = FAR_BEHIND if abs(end - goal) > STANDS * abs(end) else FAR_OFF
    gap = value - goal
    if abs(gap) <= max(least, part * abs(goal)):
        return []
    evidence = f"{held.name} is {value:.4g} nats where {held.goal} is {goal:.4g}"
    return [Finding(held.code, evidence, held.below if gap < 0 else held.above)]
