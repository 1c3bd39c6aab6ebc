from types import SimpleNamespace

import pytest
import torch

from vaelab.core.words import ANY_CODEBOOK, Finding, Remedy
from vaelab.evaluation.findings.diagnosis import diagnose_evaluation
from vaelab.evaluation.findings.health import (
    diagnose_codebook,
    diagnose_latents,
    diagnose_mixture,
    diagnose_output,
    judged_from,
)
from vaelab.models import GECO, CapacityVAE, ControlVAE, FactorVAE
from vaelab.models.hierarchical import Hierarchical
from vaelab.models.regularised.capacity import HELD
from vaelab.models.regularised.held import diagnose
from vaelab.nn.likelihoods import Bernoulli
from vaelab.training.callbacks import Health

HEALTHY = {"reconstruction": 80.0, "kl": 25.0}
BASELINE, PERFECT = 205.0, 60.0


def codes(changes, kl_per_dim=None, baseline=BASELINE, beta=1.0, perfect=PERFECT, constraint=None):
    """The codes of what is found in a healthy model with these changes."""
    figures = HEALTHY | changes
    return [finding.code for finding in diagnose_latents(figures, kl_per_dim, baseline, perfect, beta, constraint)]


def found(changes, kl_per_dim=None, baseline=BASELINE, beta=1.0, perfect=PERFECT, constraint=None):
    (finding,) = diagnose_latents(HEALTHY | changes, kl_per_dim, baseline, perfect, beta, constraint)
    return finding


def per_dim(used, unused):
    return torch.tensor([2.0] * used + [0.001] * unused)


def test_a_healthy_model_has_no_findings():
    assert codes({}) == []
    assert codes({}, per_dim(10, 0)) == []
    assert codes({"capacity": 25.0}, per_dim(10, 0)) == []
    assert codes({"capacity": 24.2}, per_dim(8, 2), beta=4.0) == []


@pytest.mark.parametrize("kl", [0.0, 0.1, 0.49])
def test_a_posterior_that_says_nothing_has_collapsed(kl):
    finding = found({"kl": kl, "reconstruction": 205.0}, torch.full((10,), kl / 10))
    assert finding.code == "posterior_collapse"
    assert f"{kl:.3g} nats" in finding.evidence
    assert "beta" in finding.remedy


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("capacity", [None, 5.0])
def test_training_and_evaluation_say_the_same_of_a_collapse(capacity, conditional):
    figures = {"kl": 0.1, "reconstruction": 205.0} | ({} if capacity is None else {"capacity": capacity})
    told = diagnose_latents(figures, None, BASELINE, PERFECT, 1.0, None, conditional)[0]
    assert told.evidence.startswith("KL is 0.1 nats: the codes say next to nothing of the images")
    subject = {"scheduled": {"capacity": capacity}, "conditional": conditional}
    assert diagnose_evaluation({"likelihood/kl": 0.1}, subject) == [told]


def test_a_small_kl_may_be_right_beside_a_label():
    told, plain = (diagnose_latents(HEALTHY | {"kl": 0.4}, None, BASELINE, PERFECT, 1.0, None, c)[0] for c in (1, 0))
    assert told.code == plain.code == "posterior_collapse"
    assert "labels" in told.evidence
    assert told.remedy.startswith("none if the labels say most")
    assert told.remedy.endswith(plain.remedy)
    assert "label" not in str(plain)


def test_a_posterior_that_says_little_has_not_collapsed():
    assert "posterior_collapse" not in codes({"kl": 0.51, "reconstruction": 204.0})


@pytest.mark.parametrize(("capacity", "collapsed"), [(0.0, False), (0.9, False), (5.0, True)])
def test_no_kl_is_no_collapse_while_the_capacity_is_none(capacity, collapsed):
    assert ("posterior_collapse" in codes({"kl": 0.1, "reconstruction": 204.9, "capacity": capacity})) == collapsed


@pytest.mark.parametrize(
    ("constraint", "named", "not_named"),
    [
        (None, "optimizer.lr", "model."),
        ("l1", "model.constraint=lagrangian", "optimizer"),
        ("lagrangian", "model.capacity", "constraint"),
    ],
)
def test_kl_that_buys_no_reconstruction_is_found(constraint, named, not_named):
    """The remedy is one that is not taken yet."""
    finding = found({"reconstruction": 200.0}, constraint=constraint)
    assert finding.code == "kl_without_information"
    assert all(number in finding.evidence for number in ("25 nats", "5 nats", "3%", "205", "60"))
    assert named in finding.remedy
    assert not_named not in finding.remedy


DIGITS = {"constraint": "lagrangian", "baseline": 27.01, "perfect": 13.96}
"""8x8 digits: there are 13 nats to gain in all."""


def test_nats_beyond_need_are_no_lack_of_information():
    finding = found({"kl": 25.1, "capacity": 25.0, "reconstruction": 17.64}, **DIGITS)
    assert finding.code == "capacity_beyond_need"
    assert all(number in finding.evidence for number in ("25.1 nats", "9.37 nats", "72%", "27.01", "13.96"))
    assert "model.capacity" in finding.remedy
    assert "9.4 nats" in finding.remedy
    assert not any(word in str(finding) for word in ("constraint", "gamma", "optimizer"))


@pytest.mark.parametrize("reconstruction", [15.0, 17.64, 20.0, 22.6])
def test_a_capacity_that_is_paid_back_is_not_beyond_need(reconstruction):
    """The remedy works: with the KL at the named bound, the same reconstruction is healthy, far beyond it is not."""
    paid = 27.01 - reconstruction
    assert codes({"kl": paid, "capacity": paid, "reconstruction": reconstruction}, **DIGITS) == []
    spent = {"kl": 2.01 * paid, "capacity": 2.01 * paid, "reconstruction": reconstruction}
    assert codes(spent, **DIGITS) == ["capacity_beyond_need"]


@pytest.mark.parametrize(("part", "code"), [(0.33, "kl_without_information"), (0.34, "capacity_beyond_need")])
def test_need_is_judged_from_a_third_of_the_way_on(part, code):
    reconstruction = 27.01 - part * (27.01 - 13.96)
    assert codes({"capacity": 25.0, "reconstruction": reconstruction}, **DIGITS) == [code]


@pytest.mark.parametrize("constraint", ["l1", None])
def test_only_a_lagrangian_tells_what_is_needed(constraint):
    assert codes({"reconstruction": 17.64}, **DIGITS | {"constraint": constraint}) == ["kl_without_information"]


@pytest.mark.parametrize(("gain", "ill"), [(-10.0, True), (0.0, True), (12.4, True), (12.6, False), (125.0, False)])
def test_kl_must_buy_half_its_nats(gain, ill):
    """Where little can be gained at all, half a nat per nat is enough."""
    ailments = codes({"reconstruction": BASELINE - gain}, perfect=BASELINE - 30)
    assert ("kl_without_information" in ailments) == ill


@pytest.mark.parametrize(("kl", "reconstruction", "ill"), [(25, 176, True), (25, 150, False), (4.9, 176, False)])
def test_many_nats_must_explain_a_third_of_the_way(kl, reconstruction, ill):
    """The published penalty at gamma = 1000 on MNIST: 25 nats and a reconstruction of 176, of 205 to 60."""
    assert ("kl_without_information" in codes({"kl": kl, "reconstruction": reconstruction})) == ill


def test_kl_that_costs_little_need_buy_little():
    perfect = BASELINE - 5
    assert codes({"reconstruction": BASELINE - 3}, beta=0.1, perfect=perfect) == []
    assert codes({"reconstruction": BASELINE - 1}, beta=0.1, perfect=perfect) == ["kl_without_information"]


@pytest.mark.parametrize(("used", "unused", "ill"), [(10, 0, False), (6, 4, False), (5, 5, True), (1, 9, True)])
def test_a_latent_half_of_which_is_unused_is_found(used, unused, ill):
    assert codes({}, per_dim(used, unused)) == (["dead_dimensions"] if ill else [])


def test_dead_dimensions_are_counted():
    finding = found({}, per_dim(3, 7))
    assert "7 of 10" in finding.evidence
    assert "model.latent_dim" in finding.remedy


def test_the_dimensions_of_a_collapsed_posterior_are_not_listed_again():
    assert codes({"kl": 0.1, "reconstruction": 205.0}, per_dim(0, 10)) == ["posterior_collapse"]


def missed(kl, capacity, end):
    return [finding.code for finding in diagnose(HELD, kl, capacity, end)] == ["capacity_missed"]


@pytest.mark.parametrize(
    ("kl", "capacity", "ill"),
    [
        (25.0, 25.0, False),
        (26.0, 25.0, False),
        (23.0, 25.0, True),
        (27.0, 25.0, True),
        (2.4, 2.0, False),
        (2.6, 2.0, True),
    ],
)
def test_kl_off_a_capacity_that_stands_still_is_found(kl, capacity, ill):
    assert missed(kl, capacity, capacity) == ill


@pytest.mark.parametrize(
    ("kl", "capacity", "ill"),
    [(14.8, 16.6, False), (12.6, 16.6, False), (12.4, 16.6, True), (1.1, 2.0, False), (0.9, 2.0, True)],
)
def test_kl_may_run_after_a_capacity_that_moves_but_not_be_lost(kl, capacity, ill):
    assert missed(kl, capacity, 1.1 * capacity) == ill
    assert missed(kl, capacity, 0.9 * capacity) == ill
    assert missed(kl, capacity, capacity)


@pytest.mark.parametrize(("kl", "remedy"), [(30.0, "model.gamma"), (20.0, "smaller model.capacity")])
def test_a_missed_capacity_says_both_numbers(kl, remedy):
    (finding,) = diagnose(HELD, kl, 25.0, 25.0)
    assert finding.evidence == f"KL is {kl:.4g} nats where C is 25"
    assert remedy in finding.remedy
    assert "schedule.capacity.over" in finding.remedy


def look(constraint, conditional, train, val, capacity):
    """The codes that the callback finds in a model whose reconstructions are good, of images of 8 pixels."""
    images = (torch.rand(64, 1, 2, 4) > 0.5).float()
    model = SimpleNamespace(
        **{"device": "cpu", "training": True, "eval": lambda: None, "train": lambda mode: None},
        **{"reconstruct": lambda images, labels: images, "likelihood": Bernoulli(), "conditional": conditional},
        **{
            "constraint": constraint,
            "held": CapacityVAE.held,
            "capacity": torch.tensor(capacity),
            "epoch_vectors": {"val": {"kl_per_dim": None}},
            "prior": None,
        },
    )
    model.diagnose = (lambda figures: CapacityVAE.diagnose(model, figures)) if capacity is not None else lambda _: []
    data = SimpleNamespace(
        sample_batch=lambda count, device: SimpleNamespace(images=images, labels=None),
        mean_image=torch.full((1, 2, 4), 0.5),
    )
    figures = {f"train/{k}": v for k, v in train.items()} | {f"val/{k}": v for k, v in val.items()}
    metrics = {name: torch.tensor(value) for name, value in figures.items()}
    health = Health()
    health.on_train_epoch_end(
        SimpleNamespace(  # type: ignore[arg-type]
            **{"estimated_stepping_batches": 1000, "global_step": 1000, "current_epoch": 0},
            **{"callback_metrics": metrics, "datamodule": data},
        ),
        model,
    )
    return {finding.code: str(finding) for finding in health.findings}


def test_the_capacity_is_judged_on_the_images_that_the_constraint_is_on():
    """Half of the way, 2.77 of 5.55 nats, for 25: beyond need. C: its mean over the epoch against its last value."""
    seen, unseen = {"kl": 25.0, "capacity": 25.0}, {"reconstruction": 2.77, "kl": 30.0, "capacity": 25.0}
    train = seen | {"reconstruction": 2.77}
    assert list(look("lagrangian", False, train, unseen, 25.0)) == ["capacity_beyond_need"]
    assert list(look("l1", False, train, unseen, 25.0)) == ["kl_without_information"]
    lagging = train | {"kl": 22.0}
    assert "capacity_missed" in look("lagrangian", False, lagging, unseen, 25.0)
    assert "capacity_missed" not in look("lagrangian", False, lagging, unseen, 26.0)


def test_what_a_variant_holds_or_tells_apart_is_judged_by_it():
    """A reconstruction off its target, a KL off its C, dimensions that a discriminator sees hang together."""
    geco = SimpleNamespace(held=GECO.held, target=torch.tensor(80.0))
    (finding,) = GECO.diagnose(geco, {"reconstruction": 90.0, "target": 80.0})
    assert finding.evidence == "the reconstruction is 90 nats where its target is 80"
    assert "larger model.target" in finding.remedy
    assert not GECO.diagnose(geco, {"reconstruction": 80.4, "target": 80.0})
    control = SimpleNamespace(held=ControlVAE.held, capacity=torch.tensor(20.0))
    (finding,) = ControlVAE.diagnose(control, {"kl": 12.0, "capacity": 20.0})
    assert "model.integral" in finding.remedy
    levels = SimpleNamespace(layout=SimpleNamespace(levels=[SimpleNamespace(name=n) for n in ("top", "bottom")]))
    (finding,) = Hierarchical.diagnose(levels, {"kl_top": 0.03, "kl_bottom": 3.0})
    assert finding.code == "unused_level"
    assert finding.evidence == "kl_top is 0.03 nats: next to nothing of the images"
    assert not Hierarchical.diagnose(levels, {"kl_top": 0.3, "kl_bottom": 3.0})
    assert not Hierarchical.diagnose(levels, {"kl_top": 0.03, "kl_bottom": 0.03})  # a collapse
    (finding,) = FactorVAE.diagnose(None, {"discriminator_accuracy": 0.9})
    assert finding.code == "codes_not_factorised"
    assert not FactorVAE.diagnose(None, {"discriminator_accuracy": 0.55})


def test_no_model_is_judged_before_a_fifth_of_its_run():
    steps = {10: 200, 1000: 200, 2000: 400, 10**6: 1000, float("inf"): 1000}
    assert {total: judged_from(total) for total in steps} == steps


def test_the_callback_knows_of_labels():
    figures = {"reconstruction": 2.77, "kl": 0.1, "capacity": 2.0}
    assert "labels" in look(None, True, figures, figures, 2.0)["posterior_collapse"]
    assert "labels" not in look(None, False, figures, figures, 2.0)["posterior_collapse"]


@pytest.mark.parametrize(
    ("usage", "ill"), [(0.0, True), (0.002, True), (0.0999, True), (0.10, False), (0.5, False), (1.0, False)]
)
def test_a_codebook_of_which_less_than_a_tenth_is_used_has_collapsed(usage, ill):
    figures = {"usage": usage, "perplexity": 40.0}
    assert [finding.code for finding in diagnose_codebook(figures, "usage", "perplexity", 512, ANY_CODEBOOK)] == (
        ["codebook_collapse"] if ill else []
    )


def test_one_level_of_a_code_may_have_collapsed_where_the_others_have_not():
    figures = {"usage": 0.4, "usage_top": 0.027, "usage_bottom": 0.77}
    figures |= {"perplexity": 60.0, "perplexity_top": 4.3, "perplexity_bottom": 200.0}
    (finding,) = diagnose_codebook(figures, "usage", "perplexity", 512, ANY_CODEBOOK)
    assert finding.code == "codebook_collapse"
    assert finding.evidence.startswith("2.7% of 512 codes are in use at top (perplexity 4.3); healthy is")


def test_a_collapsed_codebook_says_how_far_and_what_helps():
    (finding,) = diagnose_codebook(
        {"usage": 0.05, "perplexity": 12.3}, "usage", "perplexity", 512, Remedy("more of this", "codebook.that")
    )
    assert all(word in finding.evidence for word in ("5.0%", "512", "12.3", "30%", "70%"))
    assert finding.remedy == "more of this, or fewer codes (codebook.that)"


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_pictures_of_one_colour_are_blank(level):
    images = torch.rand(16, 1, 8, 8)
    (finding,) = diagnose_output(torch.full((16, 1, 8, 8), level), images)
    assert finding.code == "blank_output"
    assert f"{images.std().item():.2g}" in finding.evidence
    assert "optimizer.lr" in finding.remedy


def test_faint_pictures_are_not_blank():
    images = torch.rand(16, 1, 8, 8)
    assert diagnose_output(0.5 + 0.05 * images, images) == []
    assert diagnose_output(images, images) == []
    images[:, :, 0] = torch.nan  # missing
    assert diagnose_output(0.5 + 0.05 * images.nan_to_num(), images) == []
    assert diagnose_output(0.5 + 0.005 * images, images) != []


def test_the_same_picture_for_every_image_is_not_called_blank():
    images = torch.rand(16, 1, 8, 8)
    assert diagnose_output(images.mean(0, keepdim=True).expand(16, -1, -1, -1) + images[:1], images) == []


def test_a_finding_reads_as_code_evidence_and_remedy():
    assert str(Finding("a", "b is 3", "do c")) == "a: b is 3. Remedy: do c."


@pytest.mark.parametrize(("unused", "ill"), [(0, False), (4, False), (5, True), (9, True)])
def test_a_mixture_that_does_without_half_of_its_components_is_found(unused, ill):
    weights = torch.tensor([0.009] * unused + [(1 - 0.009 * unused) / (10 - unused)] * (10 - unused))
    found = diagnose_mixture(weights)
    assert [finding.code for finding in found] == (["unused_components"] if ill else [])
    assert not ill or (f"{unused} of 10" in found[0].evidence and "prior.components" in found[0].remedy)


def test_the_mixture_of_a_model_in_training_is_looked_at(train, monkeypatch):
    monkeypatch.setattr("vaelab.training.callbacks.health.judged_from", lambda steps: 0)
    weights = torch.tensor([0.99, 0.01])
    monkeypatch.setattr("vaelab.nn.priors.GaussianMixture.weights", weights)
    result = train("prior=gmm", "prior.components=2", "trainer.max_epochs=1")
    assert result.code == 0, result.err
    assert "unused_components" in [finding["code"] for finding in result.summary["findings"]]
