"""A VAE with two levels of latents, or more."""

import shutil

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

import vaelab
from tests.conftest import fit
from vaelab.core.errors import UserError
from vaelab.evaluation.metrics.likelihood import importance_weighted, mean_and_error
from vaelab.models.hierarchical import Hierarchical, Ladder
from vaelab.nn.likelihoods import Gaussian
from vaelab.nn.networks import MLP
from vaelab.nn.posteriors import DiagonalGaussian
from vaelab.nn.priors import StandardNormal

TOP, BOTTOM, SIGMA, SHAPE, PIXELS = 2, 3, 0.5, (1, 2, 3), 6
TWO, THREE = [TOP, BOTTOM], [1, TOP, BOTTOM]
SIZES = ["model.latent_dim=3", "model.top_dim=2", "model.top_hidden_dims=[4]", "network.hidden_dims=[8]"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ladder(sizes, hidden_dims=(5,), stirred=True):
    """Each p(z|above); `stirred`, where each z depends on the one above."""
    torch.manual_seed(0)
    made = Ladder(sizes, list(hidden_dims))
    if stirred:
        for weights in made.parameters():
            weights.data += 0.5 * torch.randn(weights.shape)
    return made


def posterior_of(made, count=3):
    return made(0.7 * torch.randn(count, made.features, generator=seeded(1)))


levels = pytest.mark.parametrize("sizes", [TWO, THREE], ids=["two", "three"])


@levels
def test_the_density_is_that_of_the_draws(sizes):
    posterior, prior = posterior_of(ladder(sizes)), StandardNormal(sum(sizes))
    noise = torch.randn(5, 3, sum(sizes), generator=seeded(2))
    z, log_ratio = posterior.draw(noise, prior)
    assert torch.equal(z, posterior.rsample(noise))
    one = posterior[:1]
    jacobian = torch.autograd.functional.jacobian(lambda e: one.rsample(e[None])[0], noise[0, 0])
    density = prior.log_prob(noise[0, :1]) - jacobian.slogdet()[1]
    torch.testing.assert_close(one.log_prob(z[0, :1]), density, rtol=0, atol=1e-4)
    torch.testing.assert_close(prior.log_prob(z[0, :1]) - density, log_ratio[0, :1], rtol=0, atol=1e-4)


@levels
def test_the_bottom_is_the_product_of_its_prior_and_what_is_seen(sizes):
    """On a grid of z1: p(z1|z2) times the encoder's Gaussian, normalised."""
    made = ladder(sizes)
    posterior = posterior_of(made, 1)
    u = torch.randn(1, sum(sizes), generator=seeded(3))
    above = u[:, :-BOTTOM]
    mean, logvar = made.given(made.above.bottom(above) if made.above else above)
    bottom = posterior.levels(u)[-1]
    scale = (0.5 * logvar).exp()
    seen_mean, seen_logvar = posterior.seen_mean[:, -BOTTOM:], posterior.seen_logvar[:, -BOTTOM:]
    z1 = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
    for j in range(BOTTOM):
        seen = Normal(seen_mean[0, j].double(), (0.5 * seen_logvar[0, j]).exp().double())
        weights = (seen.log_prob(z1) + Normal(mean[0, j].double(), scale[0, j].double()).log_prob(z1)).exp()
        expected = (weights * z1).sum() / weights.sum()
        deviation = ((weights * (z1 - expected).square()).sum() / weights.sum()).sqrt()
        own = bottom.mean[0, j] * scale[0, j] + mean[0, j], (0.5 * bottom.logvar[0, j]).exp() * scale[0, j]
        assert own[0].item() == pytest.approx(expected.item(), abs=1e-4)
        assert own[1].item() == pytest.approx(deviation.item(), rel=1e-4)


def test_z1_is_decoded_from_all_levels():
    made = ladder(THREE)
    z3, u2, u1 = torch.randn(4, 3, sum(THREE), generator=seeded(4)).split(THREE, -1)
    first, second = made.steps
    mean, logvar = first.given(z3)
    z2 = mean + (0.5 * logvar).exp() * u2
    mean, logvar = second.given(z2)
    torch.testing.assert_close(made.bottom(torch.cat([z3, u2, u1], -1)), mean + (0.5 * logvar).exp() * u1)


@levels
def test_the_kl_of_a_draw_is_right_in_expectation_and_the_sum_of_its_levels(sizes):
    prior, posterior = StandardNormal(sum(sizes)), posterior_of(ladder(sizes))
    noise = torch.randn(40_000, 3, sum(sizes), generator=seeded(5))
    kl = posterior.sample_with_kl(noise, prior)[1]
    assert not kl.exact
    torch.testing.assert_close(kl.per_dim.sum(-1), kl.total)
    plain = -posterior.draw(noise, prior)[1]
    for image in range(3):
        gap = mean_and_error((kl.total - plain)[:, image])
        assert abs(gap.mean) < 4 * gap.error
        assert kl.total[:, image].std() < 0.7 * plain[:, image].std()
    torch.testing.assert_close(posterior.control_variate(noise, prior), kl.total - plain, rtol=0, atol=1e-4)


@levels
def test_it_starts_as_a_vae_of_its_bottom(sizes):
    """No level says anything of the one below, so z = u, and the KL is that of independent Gaussians in closed form."""
    made = ladder(sizes, stirred=False)
    posterior, prior = posterior_of(made), StandardNormal(sum(sizes))
    u = torch.randn(3, sum(sizes), generator=seeded(6))
    assert torch.equal(made.bottom(u), u[:, -BOTTOM:])
    each = posterior.levels(u)
    flat = DiagonalGaussian(torch.cat([q.mean for q in each], 1), torch.cat([q.logvar for q in each], 1))
    torch.testing.assert_close(posterior.sample_with_kl(u, prior)[1].total, flat.kl(prior).total)


class Linear(Hierarchical):
    """A linear Gaussian hierarchy, whose log p(x) is in closed form; only encoder and posterior are free."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(SHAPE, None, MLP([], "relu", False), Gaussian(SIGMA), BOTTOM, TOP, [])
        ladder, decoder = self.posterior, self.decoder.body[-1]
        with torch.no_grad():
            ladder.mean.weight.copy_(torch.randn(BOTTOM, TOP, generator=seeded(7)))
            ladder.logvar.bias.copy_(torch.tensor([-1.0, 0.0, -0.5]))
            decoder.weight.copy_(torch.randn(PIXELS, BOTTOM, generator=seeded(8)))
            decoder.bias.zero_()
            scale = (0.5 * ladder.logvar.bias).exp().diag()
            self.map = decoder.weight @ torch.cat([ladder.mean.weight, scale], 1)

    def images(self, count, seed):
        noise = seeded(seed)
        u = torch.randn(count, TOP + BOTTOM, generator=noise)
        return (u @ self.map.t() + SIGMA * torch.randn(count, PIXELS, generator=noise)).view(-1, *SHAPE)

    def log_evidence(self, x):
        covariance = (self.map @ self.map.t() + SIGMA**2 * torch.eye(PIXELS)).double()
        return MultivariateNormal(torch.zeros(PIXELS).double(), covariance).log_prob(x.flatten(1).double())


def test_bounds_are_below_the_evidence_and_reach_it_with_draws():
    model = Linear()
    fit(model, model.encoder.parameters(), 400)
    x = model.images(1000, 9)
    truth, bound = model.log_evidence(x), importance_weighted(model, x, None, 500, 2**22, seeded())
    missing, still = mean_and_error(truth - bound.elbo), mean_and_error(truth - bound.log_p_hat)
    assert 4 * missing.error < missing.mean < 3  # no diagonal Gaussian is the posterior
    assert abs(still.mean) < 0.02
    assert still.mean < 0.05 * missing.mean


def test_the_kl_of_each_level_is_logged_and_adds_up(train):
    result = train("model=hierarchical", *SIZES)
    assert result.code == 0, result.err
    for split in ("train", "val"):
        total, top, bottom = (result.series(f"{split}/{name}") for name in ("kl", "kl_top", "kl_bottom"))
        assert total == pytest.approx([a + b for a, b in zip(top, bottom, strict=True)], rel=1e-3, abs=1e-5)
    assert len(result.summary["kl_per_dim"]["train"]) == 5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from tests.conftest import SMALL
    from vaelab.cli import main

    folder = tmp_path_factory.mktemp("hierarchical") / "run"
    assert main(["train", "model=hierarchical", *SIZES, *SMALL, f"run.dir={folder}"]) == 0
    return folder


def test_samples_of_a_level_share_those_above(trained, monkeypatch, tmp_path):
    from vaelab.cli import main

    monkeypatch.chdir(tmp_path)
    shown = []
    decode = Hierarchical.decode
    monkeypatch.setattr(Hierarchical, "decode", lambda self, z, labels=None: shown.append(z) or decode(self, z, labels))
    assert main(["sample", f"run={trained}", "level=bottom", "n=16", "out=made.npz"]) == 0
    codes = torch.cat(shown)
    model = vaelab.load(trained)
    above, below = (codes[:, list(model.layout.span(name))].view(2, 8, -1) for name in ("top", "bottom"))
    assert torch.equal(above, above[:, :1].expand_as(above))
    assert not torch.equal(above[0], above[1])
    assert len(below.flatten(0, 1).unique(dim=0)) == 16


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["sample", "level=middle"], "level=middle: the levels are top and bottom"),
        (["traverse", "level=middle"], "level=middle: the levels are top and bottom"),
        (["traverse", "level=bottom", "dims=[0,2]"], "level=bottom has 3 dimensions, 2 to 4"),
    ],
)
def test_a_wrong_level_is_refused_with_those_there_are(trained, capsys, command, said):
    from vaelab.cli import main

    assert main([*command, f"run={trained}"]) == 2
    assert said in capsys.readouterr().err


def test_a_model_of_one_level_has_none_to_name():
    from vaelab.models import VAE

    model = VAE(SHAPE, None, MLP([], "relu", False), Gaussian(SIGMA), 2)
    with pytest.raises(UserError, match="level=top: the model has a single level: leave it out"):
        model.layout.span("top")


def test_a_traversal_of_a_level_walks_its_dimensions(trained, capsys, monkeypatch, tmp_path):
    from vaelab.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["traverse", f"run={trained}", "level=top", "dims=all", "image=0"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "(top " in line or "(bottom " in line]
    assert sorted(line[0] for line in lines) == ["0", "1"]


def test_sizes_above_the_bottom_name_the_levels(train):
    """Three levels are trained, logged and named; no level above the bottom is refused."""
    result = train("model=hierarchical", *SIZES, "model.top_dim=[1,2]", "trainer.max_epochs=1")
    assert result.code == 0, result.err
    total, *each = (result.series(f"val/kl{level}") for level in ("", "_top", "_middle", "_bottom"))
    assert total == pytest.approx([sum(parts) for parts in zip(*each, strict=True)], rel=1e-3, abs=1e-5)
    with pytest.raises(UserError, match="the levels are top, middle and bottom"):
        vaelab.load(result.run).layout.span("none")
    refused = train("model=hierarchical", "model.top_dim=[]")
    assert refused.code == 2
    assert "model.top_dim" in refused.err


def test_a_prior_that_draws_all_levels_at_once_shares_none(trained, capsys, tmp_path):
    from vaelab.cli import main

    run = shutil.copytree(trained, tmp_path / "run")
    assert main(["prior", f"run={run}", "prior=gmm", "prior.components=1"]) == 0
    assert main(["sample", f"run={run}", "prior=gmm", "level=bottom"]) == 2
    err = capsys.readouterr().err
    assert "level=bottom: a mixture of 1 Gaussian" in err
    assert "draws all levels at once: leave it out" in err
    assert main(["report", f"run={run}", "prior=gmm"]) == 0
    assert not (run / "figures" / "levels.png").exists()
