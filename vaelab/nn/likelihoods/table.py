"""The observation model of a table: each column has a distribution of its own kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaelab.core.errors import UserError
from vaelab.core.types import Shape
from vaelab.nn.likelihoods.base import Likelihood
from vaelab.nn.likelihoods.columns import columns_of, spans
from vaelab.nn.likelihoods.pixels import log_bernoulli


class Table(Likelihood):
    """Columns that are independent given z; after HI-VAE (Nazábal et al. 2020, section 3), with differences.

    One raw parameter of each number that a model sees of a row:
    - gaussian: the mean of the standardised value. The standard deviation is learned, one per column, and not decoded
      (as HI-VAE does), for a decoded one grows without bound on a value that repeats; it stays above FLOOR.
    - bernoulli: a logit. categorical: the logits of its values.
    - poisson: log(rate / mean of the column). negative_binomial: the same of its mean, with a learned dispersion r per
      column, so that the variance is m + m^2 / r.

    columns: the schema of the table as `vaelab.nn.likelihoods.columns` has it; the data set gives it.
    """

    name = "table"
    GAIN, FLOOR, MOST = 10.0, 0.01, 15.0
    order: Tensor

    def __init__(self, columns: list[dict[str, Any]] | None):
        super().__init__()
        self.columns = columns_of(columns or [])
        places: dict[str, list[int]] = {}
        for column, span in zip(self.columns, spans(self.columns), strict=True):
            places.setdefault(column.kind, []).extend(range(span.start, span.stop))
        self.kinds = tuple(places)
        for kind, numbers in places.items():
            of_kind = [(column.mean, column.scale) for column in self.columns if column.kind == kind]
            self.register_buffer(f"places_{kind}", torch.tensor(numbers), persistent=False)
            self.register_buffer(f"scaling_{kind}", torch.tensor(of_kind).T, persistent=False)
        order = torch.tensor([place for numbers in places.values() for place in numbers]).argsort()
        self.register_buffer("order", order, persistent=False)
        self.blocks = [column.width for column in self.columns if column.kind == "categorical"]
        self.scaled_log_sigma = nn.Parameter(torch.zeros(len(places.get("gaussian", []))))
        self.scaled_log_dispersion = nn.Parameter(torch.zeros(len(places.get("negative_binomial", []))))

    @property
    def sigma(self) -> Tensor:
        """Standard deviations of the Gaussian columns given z, in units of their spread, [G]."""
        return ((2 * self.GAIN * self.scaled_log_sigma).exp() + self.FLOOR**2).sqrt()

    @property
    def dispersion(self) -> Tensor:
        """The r of the negative binomial columns, [R]."""
        return (self.GAIN * self.scaled_log_dispersion).exp()

    def raw_shape(self, shape: Shape) -> Shape:
        numbers = sum(column.width for column in self.columns)
        if not self.columns:
            raise UserError("likelihood=table: this data set has no columns: use dataset=table, or likelihood=gaussian")
        if shape != (1, 1, numbers):
            raise UserError(
                f"likelihood.columns are of {numbers} numbers, and the data of {' x '.join(map(str, shape))}"
            )
        return shape

    def log_density(self, raw: Tensor, x: Tensor) -> Tensor:
        raw, x = raw.float(), x.float()
        return self._by_kind(lambda kind, *part: getattr(self, f"_{kind}")(*part), raw, x)

    def _gaussian(self, raw: Tensor, x: Tensor) -> Tensor:
        return -0.5 * ((x - raw) / self.sigma).square() - self.sigma.log() - 0.5 * math.log(2 * math.pi)

    def _bernoulli(self, raw: Tensor, x: Tensor) -> Tensor:
        return log_bernoulli(raw, x)

    def _categorical(self, raw: Tensor, x: Tensor) -> Tensor:
        return x * self._log_softmax(raw)

    def _poisson(self, raw: Tensor, x: Tensor) -> Tensor:
        counts, log_rate = self._counts("poisson", x), self._log_rate("poisson", raw)
        return counts * log_rate - log_rate.exp() - torch.lgamma(counts + 1)

    def _negative_binomial(self, raw: Tensor, x: Tensor) -> Tensor:
        counts, log_mean = self._counts("negative_binomial", x), self._log_rate("negative_binomial", raw)
        r = self.dispersion
        log_odds = log_mean - r.log()  # of a count against a stop: m / r
        chosen = torch.lgamma(counts + r) - torch.lgamma(r) - torch.lgamma(counts + 1)
        return chosen + counts * F.logsigmoid(log_odds) + r * F.logsigmoid(-log_odds)

    def mean(self, raw: Tensor) -> Tensor:
        """Returns E[x|z] as the model sees rows: standardised numbers, and the probabilities of categories."""
        return self._by_kind(self._mean, raw.float())

    def _mean(self, kind: str, raw: Tensor) -> Tensor:
        if kind == "categorical":
            return self._log_softmax(raw).exp()
        if kind == "bernoulli":
            return raw.sigmoid()
        return raw if kind == "gaussian" else self._standardised(kind, self._log_rate(kind, raw).exp())

    def sample(self, raw: Tensor) -> Tensor:
        return self._by_kind(self._draw, raw.float())

    def _draw(self, kind: str, raw: Tensor) -> Tensor:
        if kind == "gaussian":
            return raw + self.sigma * torch.randn_like(raw)
        if kind == "bernoulli":
            return torch.bernoulli(raw.sigmoid())
        if kind == "categorical":
            blocks = (raw - torch.rand_like(raw).clamp_min(1e-30).log().neg().log()).split(self.blocks, -1)  # Gumbel
            return torch.cat([F.one_hot(block.argmax(-1), block.shape[-1]).to(raw) for block in blocks], -1)
        rate = self._log_rate(kind, raw).exp()
        if kind == "negative_binomial":  # a Poisson rate that has a gamma distribution
            rate = torch.distributions.Gamma(self.dispersion, self.dispersion / rate).sample()
        return self._standardised(kind, torch.poisson(rate))

    def raw_from_mean(self, mean: Tensor) -> Tensor:
        return self._by_kind(self._raw, mean.float())

    def _raw(self, kind: str, mean: Tensor) -> Tensor:
        if kind == "gaussian":
            return mean
        if kind == "bernoulli":
            return mean.clamp(1e-3, 1 - 1e-3).logit()
        if kind == "categorical":
            return mean.clamp_min(1e-3).log()
        centre, scale = self._scaling(kind)
        return ((mean * scale + centre).clamp_min(1e-3) / centre.clamp_min(1e-3)).log()

    def start_from(self, spread: float) -> None:
        """Starts every Gaussian column at its own spread, which is 1."""

    def density(self, binary: bool) -> str:
        if self.kinds == ("gaussian",):
            return "a density of standardised columns"
        if "gaussian" not in self.kinds:
            return "a probability of categories and counts"
        return "a density of standardised columns, times the probability of categories and counts"

    # --- columns of a kind --------------------------------------------------------------------

    def _by_kind(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """Calls `function` with each kind and the numbers of its columns, [..., n]; returns rows again, [..., D]."""
        parts = [function(kind, *(x[..., self.get_buffer(f"places_{kind}")] for x in rows)) for kind in self.kinds]
        return torch.cat(parts, -1).index_select(-1, self.order)

    def _log_softmax(self, raw: Tensor) -> Tensor:
        return torch.cat([block.log_softmax(-1) for block in raw.split(self.blocks, -1)], -1)

    def _scaling(self, kind: str) -> Tensor:
        """Returns means and scales of the columns of a kind, [2, n]."""
        return self.get_buffer(f"scaling_{kind}")

    def _counts(self, kind: str, x: Tensor) -> Tensor:
        mean, scale = self._scaling(kind)
        return (x * scale + mean).round().clamp_min(0)

    def _standardised(self, kind: str, counts: Tensor) -> Tensor:
        mean, scale = self._scaling(kind)
        return (counts - mean) / scale

    def _log_rate(self, kind: str, raw: Tensor) -> Tensor:
        """Returns the logarithm of the mean count, kept below e^15."""
        return (raw + self._scaling(kind)[0].clamp_min(1e-3).log()).clamp_max(self.MOST)
