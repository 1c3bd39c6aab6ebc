"""Computes rate and distortion of configurations that move along one curve, as β-VAEs of different β do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vaelab.evaluation.comparison.configurations import Configuration, comparable, distinct
from vaelab.evaluation.comparison.rules import NATS

KNOBS = (
    *("model", "model.beta", "model.capacity", "model.num_embeddings"),
    *("schedule.beta.end", "schedule.capacity.end"),
)
"""Keys that move a model along its rate–distortion curve."""


class Point(NamedTuple):
    """Rate and distortion of the configuration at `index`, nats per image."""

    index: int
    rate: float
    distortion: float
    dominated: bool


def rate_distortion(rows: Sequence[Configuration]) -> list[list[Point]]:
    """Returns rate against distortion, nats per image, in sets of comparable configurations, each sorted by rate.

    Rate: the mean KL (Alemi et al. 2018, "Fixing a broken ELBO"); of a codebook P log K for P
    positions, its KL to the uniform prior. Distortion: the mean of -log p(x|z). A point is
    dominated if another one has neither more rate nor more distortion, and less of one. Sets in
    which beta, C and the like are all the same are left out: they are a point, not a curve.
    """
    curves = []
    for members in comparable(rows, "likelihood/reconstruction", NATS)[0]:
        located = [(i, _rate(rows[i]), rows[i].figures["likelihood/reconstruction"].mean) for i in members]
        places = sorted((rate, distortion, i) for i, rate, distortion in located if rate is not None)
        if distinct([rows[i] for _, _, i in places], KNOBS) > 1:
            curves.append([Point(i, r, d, _dominated(r, d, places)) for r, d, i in places])
    return curves


def _rate(row: Configuration) -> float | None:
    if "likelihood/kl" in row.figures:
        return row.figures["likelihood/kl"].mean
    bits = row.figures.get("likelihood/rate_uniform_bits")
    return None if bits is None else bits.mean * math.log(2)


def _dominated(rate: float, distortion: float, places: Iterable[tuple[float, float, int]]) -> bool:
    return any(r <= rate and d <= distortion and (r, d) != (rate, distortion) for r, d, _ in places)
