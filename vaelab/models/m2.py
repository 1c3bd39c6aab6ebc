"""The semi-supervised VAE M2: labels are known for some images only (Kingma, Rezende, Mohamed & Welling 2014)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.core.errors import UserError
from vaelab.core.types import NonNegativeFloat, PositiveInt, Shape
from vaelab.models.base import Build, Terms
from vaelab.models.cvae import CVAE
from vaelab.nn.conditions import Condition
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import Head
from vaelab.nn.priors import Prior


class M2(CVAE):
    """Maximises bounds on log p(x, y) where the label y is known, and on log p(x) where it is not.

    The model is p(y) p(z) p(x|y, z), with every class as likely, and the posterior q(y|x) q(z|x, y). L(x, y), the
    bound given y, is that of a conditional VAE plus log p(y) (eq. 6); that of an image without a label is the sum
    over all classes, sum_y q(y|x) L(x, y) + H(q(y|x)) (eq. 7). The classifier learns from known labels too, by
    alpha times their mean -log q(y|x) (eq. 9, where alpha is N times as much: its bounds are summed over N images).

    Training shows images with labels more often than they are among the data (`dataset.labelled`), and each bound
    counts so much less or more that the objective is that of the data. Held-out images are taken as without labels,
    which tell the accuracy of the classifier alone.

    label_dim: size of the label's vector, which encoder and decoder see. alpha: weight of the classification.
    """

    semi_supervised = True

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        label_dim: PositiveInt,
        alpha: NonNegativeFloat,
        posterior: Build[Head] = None,
        prior: Build[Prior] = None,
        condition: Build[Condition] = None,
    ):
        if num_classes is None:
            raise UserError("model=m2 needs labels that are classes, and this data set has none: use model=vae")
        super().__init__(shape, num_classes, network, likelihood, latent_dim, label_dim, posterior, prior, condition)
        if self.condition.drop:
            raise UserError(
                f"condition.drop={self.condition.drop:g}: model=m2 sums over the classes where no label is told "
                "(dataset.labelled), and has no use for a null: leave it out"
            )
        self.alpha = float(alpha)
        self.classifier = network.encoder(self.shape, self.classes)

    def classify(self, x: Tensor) -> Tensor:
        """Computes log q(y|x) of each class, [B, K], nats."""
        return self.classifier(self.seen(x)).float().log_softmax(1)

    def noise(self, count: int) -> Tensor:
        """Draws standard normal noise, [K, count, d]."""
        return torch.randn(self.classes, count, self.latent_dim, device=self.device)

    def terms(self, batch: Batch, noise: Tensor | None) -> Terms:
        """Computes the terms of the bound as means over classes, with all weight on a label that is known."""
        assert noise is not None
        x, count = batch.images, len(batch.images)
        every = torch.arange(self.classes, device=x.device).repeat_interleave(count)
        given, _, _ = self.measured(Batch(x.repeat(self.classes, 1, 1, 1), every), noise.flatten(0, 1))
        log_q = self.classify(x)
        labels = every.new_full((count,), -1) if batch.labels is None else batch.labels
        known = labels >= 0
        told = known if self.training else torch.zeros_like(known)
        one = labels.unsqueeze(1) == torch.arange(self.classes, device=x.device)
        shares = torch.where(told.unsqueeze(1), one, log_q.exp())
        terms = {}
        for name, values in given.items():
            each = values.unflatten(0, (self.classes, count))
            terms[name] = (each * shares.t().reshape(-1, count, *[1] * (values.ndim - 1))).sum(0)
        entropy = torch.where(told, 0.0, -(log_q.exp() * log_q).sum(1))
        terms["kl_label"] = math.log(self.classes) - entropy
        terms["kl"] = terms["kl"] + terms["kl_label"]
        if batch.labels is not None:
            part = 1.0 if batch.labelled is None else batch.labelled.places  # so that means are over known labels
            terms["classification"] = -(log_q * one).sum(1) * known / part
            terms["accuracy"] = (log_q.argmax(1) == labels) / part
        if batch.labelled is not None:
            places, images = batch.labelled
            rest = (1 - images) / (1 - places) if places < 1 else 0.0
            terms["weights"] = torch.where(told, images / places, rest).unsqueeze(1)
        return terms

    def objective(self, terms: Terms) -> Tensor:
        bounds = terms["reconstruction"] + self.beta * terms["kl"]
        bounds = bounds * terms["weights"][:, 0] if "weights" in terms else bounds
        known = terms["classification"].mean() if "classification" in terms else 0.0
        return bounds.mean() + self.alpha * known
