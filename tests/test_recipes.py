"""The laws that the recipes of conf/experiment show on MNIST, in small on the embedded digits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.datasets import load_digits


def ppca_optimum(x: np.ndarray, latents: int) -> tuple[float, float]:
    """The greatest log-likelihood of probabilistic PCA per image, and KL of its posteriors, nats.

    x: [N, D]. Tipping & Bishop 1999, eq. 3.8: with eigenvalues l of the covariance and sigma^2 the
    mean of the D - d smallest, log p = -(D log 2 pi + sum_{i<=d} log l_i + (D - d) log sigma^2 + D) / 2.
    The aggregate KL of the exact posterior is sum_{i<=d} log(l_i / sigma^2) / 2.
    """
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    dimensions = x.shape[1]
    noise = values[latents:].mean()
    top = np.log(values[:latents]).sum()
    evidence = -0.5 * (dimensions * math.log(2 * math.pi) + top + (dimensions - latents) * math.log(noise) + dimensions)
    return evidence, 0.5 * (top - latents * math.log(noise))


@pytest.mark.slow
@pytest.mark.parametrize("model", [["model=vae"], ["model=hierarchical", "model.top_hidden_dims=[]"]])
def test_a_linear_vae_reaches_probabilistic_pca(train, model):
    result = train(
        *(
            "experiment=mnist_ppca",
            *model,
            "dataset=digits",
            "dataset.val_size=0",
            "model.latent_dim=5",
            "averaging=none",
        ),
        *("trainer.max_epochs=150", "dataset.batch_size=128", "optimizer.lr=0.02", "trainer.accelerator=cpu"),
        small=False,
    )
    assert result.code == 0, result.err
    images = train_images()
    optimum, kl = ppca_optimum(images, 5)
    elbo = result.summary["metrics"]["train/elbo"]
    assert elbo < optimum + 0.05  # the noise of one draw per image, averaged over 1,438 images
    assert elbo == pytest.approx(optimum, abs=0.5)
    assert result.summary["metrics"]["train/kl"] == pytest.approx(kl, abs=0.2)


def train_images() -> np.ndarray:
    from tests.test_conf import composed
    from vaelab.core.config import build

    data = build(composed("dataset=digits", "dataset.val_size=0")["dataset"])
    data.setup()
    images = data.train.images.flatten(1).numpy() / 255
    assert len(images) < len(load_digits().data)
    return images


@pytest.mark.slow
def test_capacity_is_followed_and_carries_information(train):
    result = train(
        *(
            "model=capacity",
            "dataset=digits",
            "model.capacity=10",
            "schedule.capacity.over=1000",
            "schedule.capacity.unit=steps",
        ),
        *("trainer.max_epochs=40", "dataset.batch_size=32", "trainer.accelerator=cpu"),
        small=False,
    )
    assert result.code == 0, result.err
    rows = [r for r in result.rows("train/kl") if float(r["train/capacity"]) >= 4]
    assert max(abs(float(r["train/capacity_gap"])) for r in rows[1:]) < 0.3
    metrics = result.summary["metrics"]
    assert metrics["train/kl"] == pytest.approx(10, abs=0.1)
    assert metrics["train/reconstruction"] < 23  # a constant picture: 27.2
    assert result.summary["findings"] == []


@pytest.mark.slow
def test_the_label_is_worth_nats(train):
    arguments = ("dataset=digits", "trainer.max_epochs=20", "network=mlp", "network.hidden_dims=[64]")
    arguments += ("optimizer.lr=3e-3", "dataset.batch_size=64", "trainer.accelerator=cpu")
    with_label = train("model=cvae", *arguments, small=False).summary["metrics"]["test/elbo"]
    without = train("model=vae", *arguments, small=False).summary["metrics"]["test/elbo"]
    assert with_label > without + 2
