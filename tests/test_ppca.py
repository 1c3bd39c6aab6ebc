"""A linear VAE of a Gaussian table is probabilistic PCA: with several levels of latents, with values missing, too."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.test_conf import composed
from vaelab.core.batch import Batch
from vaelab.core.config import build
from vaelab.evaluation.metrics.likelihood import importance_weighted
from vaelab.training.fit import build_model

ROWS, COLUMNS, LATENTS = 500, 5, 2


def table(missing: float) -> np.ndarray:
    """Rows of two hidden numbers and noise, in other units each, with holes at random."""
    dice = np.random.default_rng(0)
    x = dice.normal(size=(ROWS, LATENTS)) @ dice.normal(size=(LATENTS, COLUMNS)) + 0.4 * dice.normal(
        size=(ROWS, COLUMNS)
    )
    x = x * [1, 10, 0.1, 3, 100] + [0, 50, -1, 7, 1000]
    x[dice.random(x.shape) < missing] = np.nan
    return x


def density(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """The mean log-density of the rows of x under a Gaussian, of what is there of each."""
    total = 0.0
    for row in x:
        there = ~np.isnan(row)
        c, off = covariance[np.ix_(there, there)], (row - mean)[there]
        total -= 0.5 * (there.sum() * math.log(2 * math.pi) + np.linalg.slogdet(c)[1] + off @ np.linalg.solve(c, off))
    return total / len(x)


def best_ppca(x: np.ndarray) -> float:
    """The greatest mean log-density of x under pPCA, in closed form (Tipping & Bishop 1999, eq. 7 and 8)."""
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    noise = values[:-LATENTS].mean()
    top = vectors[:, -LATENTS:] * (values[-LATENTS:] - noise)
    return density(x, x.mean(0), top @ vectors[:, -LATENTS:].T + noise * np.eye(COLUMNS))


def em_ppca(x: np.ndarray, steps: int = 30) -> float:
    """The same with holes, by EM over hidden numbers of each row given what is there of it."""
    w, mean, noise = 0.5 * np.random.default_rng(1).normal(size=(COLUMNS, LATENTS)), np.nanmean(x, 0), 0.5
    there = ~np.isnan(x)
    for _ in range(steps):
        z, zz = np.empty((len(x), LATENTS)), np.empty((len(x), LATENTS, LATENTS))
        for i, (row, known) in enumerate(zip(x, there, strict=True)):
            inverse = np.linalg.inv(w[known].T @ w[known] + noise * np.eye(LATENTS))
            z[i] = inverse @ w[known].T @ (row - mean)[known]
            zz[i] = noise * inverse + np.outer(z[i], z[i])
        errors = 0.0
        for column, known in enumerate(there.T):
            mean[column] = (x[known, column] - z[known] @ w[column]).mean()
            off = x[known, column] - mean[column]
            w[column] = np.linalg.solve(zz[known].sum(0), z[known].T @ off)
            errors += (off**2 - 2 * off * (z[known] @ w[column])).sum() + np.einsum(
                "nij,i,j->", zz[known], w[column], w[column]
            )
        noise = errors / there.sum()
    return density(x, mean, w @ w.T + noise * np.eye(COLUMNS))


LADDER = ("model=hierarchical", "model.top_hidden_dims=[]")


@pytest.mark.parametrize(
    ("missing", "model"),
    [
        *((missing, ("model=vae",)) for missing in (0.0, 0.2)),
        *((0.0, (*LADDER, f"model.top_dim={sizes}")) for sizes in ("2", "[1,2]")),
    ],
    ids=["vae", "missing", "two levels", "three levels"],
)
def test_a_linear_vae_of_a_table_reaches_the_optimum_of_ppca(tmp_path, missing, model):
    """Within 0.05 nats without holes, and within 0.1 of what EM finds with a fifth of all values missing; never above.

    Levels above the one that is decoded add nothing: p(x) has the same rank.
    """
    x = table(missing)
    np.savez(tmp_path / "x.npz", x=x)
    config = composed(
        *(*model, "network=mlp", "network.hidden_dims=[]", f"model.latent_dim={LATENTS}", "dataset=table"),
        *("likelihood=gaussian_learned", f"dataset.root={tmp_path / 'x.npz'}", "dataset.missing=mask"),
        *("dataset.val_size=0", "dataset.test_size=1"),
    )
    torch.manual_seed(0)
    data = build(config["dataset"])
    data.setup()
    model = build_model(config, data)
    seen = data.as_model_sees(data.train.batch(torch.arange(len(data.train)))).images
    assert missing - 0.03 < seen.isnan().double().mean() < missing + 0.03
    optimizer, steps = torch.optim.Adam(model.parameters(), lr=0.02), 1000 if missing else 300
    model.start_from(data.mean_image, data.spread, len(data.train))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / steps)
        optimizer.zero_grad()
        model.objective(model.terms(Batch(seen), model.noise(len(seen)))).backward()
        optimizer.step()
    rows = seen[:, 0, 0].double().numpy()
    best = em_ppca(rows) if missing else best_ppca(rows)
    reached = (
        importance_weighted(model, seen, None, 200, 2**24, torch.Generator().manual_seed(0)).log_p_hat.mean().item()
    )
    assert best - (0.1 if missing else 0.05) < reached < best + 0.02
