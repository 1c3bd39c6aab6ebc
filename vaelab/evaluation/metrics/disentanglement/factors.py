"""Brings codes and factors into the form that disentanglement metrics need: checked, standardised, split, binned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vaelab.evaluation.metrics.probes import equal_mass_bins

BINS = 20
"""Bins of a code, and of a continuous factor: disentanglement_lib's number."""
MIN_ROWS = 100
"""Fewest images that are measured: with fewer every metric would measure its own noise."""
MIN_OTHERS = 30
"""Fewest rows that a factor needs outside its commonest value, so that both parts of a split hold two values."""


Continuous = bool | Sequence[bool] | np.ndarray | None
"""Type that says which factors are continuous: one word for all, or one for each. None: floating point ones are."""


class Measured(NamedTuple):
    """Codes and factors that were checked.

    codes: [N, d], standardised in each dimension; a constant dimension is all zeros. active: [d],
    whether a dimension varies. factors: [N, F] float64. classes: [N, F], the factor's value as an index
    from 0; for a continuous factor, its bin of equal mass. continuous: [F].
    """

    codes: np.ndarray
    active: np.ndarray
    factors: np.ndarray
    classes: np.ndarray
    continuous: np.ndarray


def measured(codes: np.ndarray, factors: np.ndarray, continuous: Continuous) -> Measured:
    """Checks the arrays and brings them into the metrics' form.

    codes: [N, d], numbers, at least two dimensions. factors: [N, F], numbers, at least two.
    continuous: which factors are; one word for all, or one for each. None goes by the type of the
    array: floating point is continuous, integers are discrete.

    Raises ValueError for other shapes (transposed, reshaped), other types, NaN, fewer than MIN_ROWS
    images, codes that are constant in every dimension, a factor with one value (in all but MIN_OTHERS
    rows), and a discrete factor with more than one value per five images.
    """
    codes, factors = checked(codes, factors)
    kinds = which_continuous(factors, continuous)
    active = ~is_constant(codes)
    if not active.any():
        raise ValueError(f"codes {codes.shape} are constant in every dimension: there is nothing to measure")
    codes = np.where(active, codes - codes.mean(0), 0.0)
    codes /= np.where(active, codes.std(0), 1.0)
    classes = as_classes(factors, kinds)
    for j, column in enumerate(classes.T):
        others = others_than_commonest(column)
        if others < MIN_OTHERS:
            raise ValueError(f"factors[:, {j}] takes one value in all but {others} rows: leave that factor out")
        if column.max() + 1 > len(column) / 5:
            raise ValueError(
                f"factors[:, {j}] is discrete but takes {column.max() + 1} values in {len(column)} rows: declare it "
                "continuous, or evaluate more images"
            )
    return Measured(codes, active, factors.astype(np.float64), classes, kinds)


def checked(codes: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the arrays, codes in float64, if they are [N, d] and [N, F] numbers without NaN; else ValueError."""
    codes, factors = np.asarray(codes), np.asarray(factors)
    shapes = f"codes {codes.shape} and factors {factors.shape}"
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors):
        raise ValueError(f"{shapes} must be [N, d] and [N, F]: one row per image, not transposed or reshaped")
    if len(codes) < MIN_ROWS:
        raise ValueError(f"{shapes} have {len(codes)} rows: at least {MIN_ROWS} images are needed, one to a row")
    if codes.shape[1] < 2 or factors.shape[1] < 2:
        raise ValueError(f"{shapes}: at least two dimensions and two factors are needed to compare them")
    if codes.dtype.kind not in "fiu" or factors.dtype.kind not in "fiub":
        raise ValueError(f"{shapes} must be numbers, not {codes.dtype} and {factors.dtype}")
    for name, array in (("codes", codes), ("factors", factors)):
        if not np.isfinite(array).all():
            raise ValueError(f"{name} {array.shape} hold NaN or infinity")
    return codes.astype(np.float64), factors


def is_constant(x: np.ndarray) -> np.ndarray:
    """Tells which columns of [N, K] vary by no more than a rounding of single precision, [K]."""
    return x.std(0) <= 1e-7 * np.abs(x).max(0)


def as_classes(factors: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Returns the factors' values as indices from 0, [N, F]; continuous ones in BINS bins of equal mass."""
    columns = [
        equal_mass_bins(column[:, None], BINS)[:, 0] if kind else np.unique(column, return_inverse=True)[1]
        for column, kind in zip(factors.T, kinds, strict=True)
    ]
    return np.stack(columns, axis=1)


def others_than_commonest(classes: np.ndarray) -> int:
    """Counts the rows [N] that do not have the commonest value."""
    return len(classes) - int(np.bincount(classes).max())


def which_continuous(factors: np.ndarray, continuous: Continuous) -> np.ndarray:
    """Tells which factors are continuous, [F] bool; see `measured`."""
    kinds = np.asarray(factors.dtype.kind == "f" if continuous is None else continuous, dtype=bool)
    if kinds.shape not in ((), (factors.shape[1],)):
        raise ValueError(f"continuous has shape {kinds.shape}, factors {factors.shape}: one word per factor is needed")
    return np.broadcast_to(kinds, factors.shape[1:])


def split(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws rows to fit on and rows to score, two to one as disentanglement_lib's 10,000 and 5,000."""
    order = np.random.default_rng(seed).permutation(n)
    return order[: 2 * n // 3], order[2 * n // 3 :]
