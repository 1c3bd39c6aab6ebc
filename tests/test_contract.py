"""The contract of variants and of their parts (CONTRIBUTING), held to by every option of conf/."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import torch

import vaelab
from tests.test_conf import composed, condition, in_training, options, with_part
from vaelab.cli import main
from vaelab.core.batch import Batch
from vaelab.core.config import build
from vaelab.core.errors import UserError
from vaelab.models import VAE
from vaelab.report.hosted.workspace import OTHERS

SHAPE, CLASSES = (1, 8, 8), 3
PARTS = [
    *([f"model={name}"] for name in options("model")),
    *(["model=vqvae", f"codebook={name}"] for name in options("codebook") if name != "none"),
    *([*with_part("posterior", name), "model.latent_dim=4"] for name in options("posterior") if name != "none"),
    *([*with_part("prior", name), "model.latent_dim=4"] for name in options("prior") if in_training(name)),
    *(["model=vae", "dataset=fake", *condition(name)] for name in options("condition")),
]
"""Every variant, and every option of each group of parts in a variant that takes it."""


def made(*overrides: str) -> Any:
    """A model as training builds it, in eval mode, its parameters moved from where they start."""
    torch.manual_seed(0)
    node = composed(*overrides)["model"]
    of_vectors = (node.get("condition") or {}).get("names")
    model = build(node, shape=SHAPE, num_classes=None if of_vectors else CLASSES).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape)
    return model


def batch(count: int = 6, model: Any = None) -> Batch:
    """Images with classes, or such labels as a model takes."""
    labels = None if model is None else model.condition.in_turn(count)
    labels = torch.arange(count) % CLASSES if labels is None else labels
    return Batch(torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1)), labels)


def placed(model: Any) -> Any:
    """The model in training, after what has to see a first batch has seen one."""
    model.train().place(batch(64, model))
    return model


@pytest.fixture(params=PARTS, ids=" ".join)
def model(request) -> Any:
    return made(*request.param)


def equal(one: Any, other: Any) -> bool:
    """Whether two states of modules are the same, buffers that are not saved included."""
    tensors = [dict([*m.named_parameters(), *m.named_buffers()]) for m in (one, other)]
    return all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_terms_and_objective_change_no_state_and_draw_no_noise(model):
    placed(model)
    before, images = copy.deepcopy(model), batch(model=model)
    noise = model.noise(6)
    random = torch.get_rng_state()
    first, second = model.terms(images, noise), model.terms(images, noise)
    model.objective(first).backward()
    assert torch.equal(torch.get_rng_state(), random)
    assert equal(model, before)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_learns_without_the_optimiser_stays_where_it_is(model):
    """A captured step finds it there again, and does not run Python's part another time."""
    placed(model)
    images = batch(model=model)
    terms = model.terms(images, model.noise(6))
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    plain = {name: {k: v for k, v in vars(m).items() if k[0] != "_"} for name, m in model.named_modules()}
    places = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    with torch.no_grad():
        if (seen := model.observe(images, terms)) is not None:
            model.learn([seen])
    assert places == {n: t.data_ptr() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    assert plain == {name: {k: v for k, v in vars(m).items() if k[0] != "_"} for name, m in model.named_modules()}


def test_the_reconstruction_is_per_image_and_the_objective_a_scalar(model):
    terms = placed(model).terms(batch(model=model), model.noise(6))
    assert terms["reconstruction"].shape == (6,)
    assert model.objective(terms).shape == ()


def test_a_posterior_is_a_set_of_images(model):
    """Selecting, splitting and joining images gives theirs, and the code is what the layout says."""
    images = batch(model=model)
    posterior = model.encode(images.images, images.labels)
    assert posterior.code.shape == (6, *model.layout.shape)
    assert posterior.code.dtype == (torch.int64 if model.layout.codes else torch.float32)
    assert set(model.layout.arrays) & set(posterior.outputs)
    joined = posterior.cat(posterior.split(4))
    assert [len(part) for part in posterior.split(4)] == [4, 2]
    assert all(torch.equal(joined.outputs[name], values) for name, values in posterior.outputs.items())
    torch.testing.assert_close(posterior[2:3].code, posterior.code[2:3])
    assert model.decode(posterior.code, images.labels).shape == images.images.shape


def test_a_posteriors_density_and_kl_agree_with_its_draws(model):
    """The mean of -log p(z) + log q(z|x) over draws is the KL, in closed form or by other draws."""
    prior = model.prior
    posterior = model.encode(batch(2, model).images, batch(2, model).labels)
    if not (posterior.density and prior is not None):
        assert not model.bounded
        return
    noise = torch.randn(4_000, 2, model.layout.dimensions, generator=torch.Generator().manual_seed(2))
    z, log_ratio = posterior.draw(noise, prior)
    torch.testing.assert_close(prior.log_prob(z) - posterior.log_prob(z), log_ratio, rtol=0, atol=2e-3)
    kl = posterior.sample_with_kl(noise, prior)[1]
    gap = (kl.total + log_ratio).double()
    assert torch.all(gap.mean(0).abs() < 5 * gap.std(0) / math.sqrt(len(noise)) + 1e-4)
    assert kl.exact == posterior.has_kl(prior)
    if kl.per_dim is not None:
        torch.testing.assert_close(kl.per_dim.sum(-1), kl.total)


def test_a_prior_draws_latents_that_the_model_decodes(model):
    prior = model.prior
    if prior is None:
        with pytest.raises(UserError, match="has no prior"):
            model.sample(2)
        return
    draws = [prior.sample(5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert draws[0].shape == (5, *model.layout.shape)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert prior.log_prob(draws[0]).shape == (5,)
    assert prior.log_prob(draws[0]).isfinite().all()
    if model.layout.codes:  # each as likely as any other of the K ** (h w) maps
        nats = math.prod(model.layout.shape) * math.log(model.layout.codes)
        torch.testing.assert_close(prior.log_prob(draws[0]), torch.full((5,), -nats))
    assert model.sample(5).shape == (5, *SHAPE)


class Rough(VAE):
    """A VAE that also measures how rough its reconstructions are: a metric that nothing else knows."""

    def terms(self, batch, noise):
        terms = super().terms(batch, noise)
        return terms | {"roughness": terms["reconstruction"].detach() / 7}


@pytest.fixture(scope="module")
def rough(tmp_path_factory):
    """Two runs of it, of one sweep folder, the first with a report."""
    from tests.conftest import SMALL

    folder = tmp_path_factory.mktemp("rough")
    runs = [folder / f"seed{seed}" for seed in (0, 1)]
    given = ["model._target_=tests.test_contract.Rough", *SMALL]
    for seed, run in enumerate(runs):
        assert main(["train", *given, f"run.dir={run}", f"seed={seed}", f"report={str(seed == 0).lower()}"]) == 0
    return runs


def test_a_new_metric_is_seen_without_another_edit(rough, capsys):
    """In the progress line, the folder, the report, the tables, the comparison and the workspace."""
    name, run = "roughness", rough[0]
    assert main(["runs", str(rough[0].parent), f"show=val/{name}", f"sort=val/{name}"]) == 0
    assert name in capsys.readouterr().out
    assert main(["compare", *map(str, rough), f"figures={name}"]) == 0
    assert name in capsys.readouterr().out
    assert f"val/{name}" in (run / "metrics.csv").read_text().splitlines()[0]
    assert re.search("roughness", (run / "report.html").read_text(), re.IGNORECASE)
    assert re.match(OTHERS, f"val/{name}")


def test_a_new_metric_is_in_the_progress_line_and_can_be_searched(train):
    given = ["model._target_=tests.test_contract.Rough"]
    result = train(*given, "trainer.max_epochs=1")
    assert result.code == 0, result.err
    assert re.search(r"roughness \S+", result.out + result.err)
    pytest.importorskip("optuna")
    search = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.optimize=val/roughness", "hydra.sweeper.n_trials=2"]
    found = train(*given, *search, "hydra.sweeper.direction=min", "optimizer.lr=interval(1e-4,1e-2)", "sweep.dir=sweep")
    assert found.code == 0, found.err
    assert "val/roughness" in found.out


def test_a_run_of_ones_own_class_loads(rough):
    assert vaelab.load(rough[0], trust=True).encode(batch().images).code.shape == (6, 20)
