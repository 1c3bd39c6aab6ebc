"""Codes compared by their direction alone (Yu et al. 2021, "Vector-quantized Image Modeling with Improved VQGAN")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vaelab.core.types import Decay, PositiveInt
from vaelab.nn.quantizers.learned import EMACodebook


class CosineCodebook(EMACodebook):
    """Codebook of unit vectors, each the direction of a moving average of the vectors that choose it.

    The encoder's output is divided by its length before the nearest code is chosen, so that this is the code of the
    largest cosine (Yu et al. 2021, section 3.1, "l2-normalized codes"). There the codes are parameters; averages that
    are normalised anew are the choice of vector-quantize-pytorch, a step of spherical k-means. The number of vectors
    that an average is of has no part in its direction, so there is no smoothing; an idle code stays where it is.
    """

    instead = ""

    def __init__(
        self,
        num_embeddings: PositiveInt,
        embedding_dim: PositiveInt,
        restart_after: PositiveInt | None,
        decay: Decay,
        rotation: bool = False,
    ):
        super().__init__(num_embeddings, embedding_dim, restart_after, decay, 0.0, rotation)

    def project(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=1)

    def _centres(self, counts: Tensor) -> Tensor:
        return torch.where(counts[:, None] > 0, F.normalize(self.cluster_sum), self.codes)
