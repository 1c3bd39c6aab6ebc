"""Codebooks that are learned: by the gradient, or as moving averages (van den Oord et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vaelab.core.distributed import Share, all_sum, random_rows
from vaelab.core.types import Decay, PositiveFloat, PositiveInt
from vaelab.core.words import Remedy
from vaelab.nn.quantizers.base import Chosen, Codebook, code_counts, rows_of
from vaelab.nn.quantizers.search import nearest_code


class GradientCodebook(Codebook):
    """Codebook of parameters, moved by |sg(z) - e|^2 (van den Oord et al. 2017, eq. 3).

    num_embeddings: K. embedding_dim: D. The codes start at encoder outputs of the first training
    batch. restart_after: a code that no vector of this many consecutive steps has chosen is moved onto
    a random encoder output; None never restarts.
    """

    codes: Tensor
    idle: Tensor
    instead = "codebook=ema, "  # what is livelier by itself: measured in docs/vqvae.md

    def __init__(
        self,
        num_embeddings: PositiveInt,
        embedding_dim: PositiveInt,
        restart_after: PositiveInt | None,
        rotation: bool = False,
    ):
        super().__init__(num_embeddings, embedding_dim, rotation)
        self.restart_after = restart_after
        self._make_codes(torch.empty(num_embeddings, embedding_dim).uniform_(-1 / num_embeddings, 1 / num_embeddings))
        self.register_buffer("idle", torch.zeros(num_embeddings))
        self.initialised = False

    def _make_codes(self, start: Tensor) -> None:
        self.codes = nn.Parameter(start)

    def get_extra_state(self) -> dict[str, bool]:
        return {"initialised": self.initialised}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        self.initialised = state["initialised"]

    @property
    def vectors(self) -> Tensor:
        return self.codes

    @property
    def remedy(self) -> Remedy:
        restarts = "codebook.restart_after=100" if self.restart_after is None else "a lower codebook.restart_after"
        further = "more model.commitment_cost, a lower optimizer.lr"
        return Remedy(f"{restarts}, {self.instead}{further}", "model.num_embeddings")

    def choose(self, rows: Tensor) -> Tensor:
        return nearest_code(rows, self.codes.detach())

    def codebook_loss(self, z: Tensor, codes: Tensor, share: Share | None) -> Tensor:
        return (z.detach() - codes).square().flatten(1).sum(1)

    @property
    def unplaced(self) -> bool:
        return not self.initialised

    @torch.no_grad()
    def place(self, z: Tensor, share: Share | None) -> None:
        rows = rows_of(self.project(z.float()))
        self._move(torch.ones_like(self.idle, dtype=torch.bool), rows, share)
        self.initialised = True

    @torch.no_grad()
    def learn(self, chosen: Sequence[Chosen]) -> None:
        """Moves the codes if they learn by averages, and restarts those that were idle too long."""
        counts = code_counts(chosen[0].indices, self.num_embeddings)
        for batch in chosen[1:]:
            counts += code_counts(batch.indices, self.num_embeddings)
        counts = all_sum(counts)
        self._average(chosen, counts)
        self.idle.add_(1).mul_(counts == 0)
        if self.restart_after is not None:
            self._move(self.idle >= self.restart_after, chosen[-1].rows, chosen[-1].share)

    def _average(self, chosen: Sequence[Chosen], counts: Tensor) -> None:
        """Does nothing: the optimiser moves the codes. counts: [K], how often each was chosen, over all processes."""

    def _move(self, which: Tensor, rows: Tensor, share: Share | None) -> None:
        """Moves the codes where `which`, [K] bool, onto random rows, [N, D], without a host sync.

        The rows come from all processes' batches, and every process takes the same.
        """
        fresh = random_rows(rows, self.num_embeddings, share)
        self.codes.data.copy_(torch.where(which[:, None], fresh, self.codes))
        self.idle.mul_(~which)


class EMACodebook(GradientCodebook):
    """Codebook of moving averages of the vectors that choose them (van den Oord et al. 2017, appendix A.1).

    decay: that of the averages (gamma in the paper). epsilon: Laplace smoothing of the cluster sizes,
    as in the authors' published code: n_i -> (n_i + epsilon) / (n + K epsilon) * n, with n their sum.
    """

    cluster_size: Tensor
    cluster_sum: Tensor
    instead = "codebook=cosine, "

    def __init__(
        self,
        num_embeddings: PositiveInt,
        embedding_dim: PositiveInt,
        restart_after: PositiveInt | None,
        decay: Decay,
        epsilon: PositiveFloat,
        rotation: bool = False,
    ):
        super().__init__(num_embeddings, embedding_dim, restart_after, rotation)
        self.decay, self.epsilon = decay, epsilon
        self.register_buffer("cluster_size", torch.ones(num_embeddings))
        self.register_buffer("cluster_sum", self.codes.clone())

    def _make_codes(self, start: Tensor) -> None:
        self.register_buffer("codes", start)

    def codebook_loss(self, z: Tensor, codes: Tensor, share: Share | None) -> Tensor:
        return z.new_zeros(len(z))

    def _average(self, chosen: Sequence[Chosen], counts: Tensor) -> None:
        sums = torch.zeros_like(self.codes)
        for batch in chosen:
            sums.index_add_(0, batch.indices, batch.rows)
        self.cluster_size.lerp_(counts, 1 - self.decay)
        self.cluster_sum.lerp_(all_sum(sums), 1 - self.decay)
        self.codes.copy_(self._centres(counts))

    def _centres(self, counts: Tensor) -> Tensor:
        """Computes the codes that follow from the averages, [K, D]. counts: how often each was chosen just now, [K]."""
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + self.epsilon) / (total + self.num_embeddings * self.epsilon) * total
        return self.cluster_sum / smoothed[:, None]

    def _move(self, which: Tensor, rows: Tensor, share: Share | None) -> None:
        super()._move(which, rows, share)
        self.cluster_size.copy_(torch.where(which, torch.ones_like(self.cluster_size), self.cluster_size))
        self.cluster_sum.copy_(torch.where(which[:, None], self.codes, self.cluster_sum))
