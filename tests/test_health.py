import pytest
import torch

from vaelab.evaluation.diagnosis import diagnose_evaluation
from vaelab.health import Finding, diagnose_codebook, diagnose_latents, diagnose_output

HEALTHY = {"reconstruction": 80.0, "kl": 25.0}
BASELINE, PERFECT = 205.0, 60.0


def codes(changes, kl_per_dim=None, baseline=BASELINE, beta=1.0, perfect=PERFECT):
    """The codes of what is found in a healthy model with these changes."""
    return [finding.code for finding in diagnose_latents(HEALTHY | changes, kl_per_dim, baseline, perfect, beta)]


def found(changes, kl_per_dim=None, baseline=BASELINE, beta=1.0, perfect=PERFECT):
    (finding,) = diagnose_latents(HEALTHY | changes, kl_per_dim, baseline, perfect, beta)
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


@pytest.mark.parametrize("capacity", [None, 5.0])
def test_training_and_evaluation_say_the_same_of_a_collapse(capacity):
    figures = {"kl": 0.1, "reconstruction": 205.0} | ({} if capacity is None else {"capacity": capacity})
    told = diagnose_latents(figures, None, BASELINE, PERFECT, 1.0)[0]
    assert told.evidence == "KL is 0.1 nats: the codes say next to nothing of the images"
    assert diagnose_evaluation({"likelihood/kl": 0.1}, {"scheduled": {"capacity": capacity}}) == [told]


def test_a_posterior_that_says_little_has_not_collapsed():
    assert "posterior_collapse" not in codes({"kl": 0.51, "reconstruction": 204.0})


@pytest.mark.parametrize(("capacity", "collapsed"), [(0.0, False), (0.9, False), (5.0, True)])
def test_no_kl_is_no_collapse_while_the_capacity_is_none(capacity, collapsed):
    assert ("posterior_collapse" in codes({"kl": 0.1, "reconstruction": 204.9, "capacity": capacity})) == collapsed


def test_kl_that_buys_no_reconstruction_is_found():
    finding = found({"reconstruction": 200.0})
    assert finding.code == "kl_without_information"
    assert all(number in finding.evidence for number in ("25", "200", "205"))
    assert "model.constraint=lagrangian" in finding.remedy
    assert "model.gamma" in finding.remedy


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


@pytest.mark.parametrize(
    ("kl", "capacity", "missed"),
    [
        (25.0, 25.0, False),
        (26.0, 25.0, False),
        (23.0, 25.0, True),
        (27.0, 25.0, True),
        (2.4, 2.0, False),
        (2.6, 2.0, True),
    ],
)
def test_kl_off_its_capacity_is_found(kl, capacity, missed):
    assert ("capacity_missed" in codes({"kl": kl, "capacity": capacity})) == missed


def test_a_missed_capacity_says_both_numbers():
    finding = found({"kl": 30.0, "capacity": 25.0})
    assert "30" in finding.evidence
    assert "25" in finding.evidence
    assert "model.gamma" in finding.remedy
    assert "schedule.capacity.over" in finding.remedy


@pytest.mark.parametrize(
    ("usage", "ill"), [(0.0, True), (0.002, True), (0.0999, True), (0.10, False), (0.5, False), (1.0, False)]
)
def test_a_codebook_of_which_less_than_a_tenth_is_used_has_collapsed(usage, ill):
    assert [finding.code for finding in diagnose_codebook(usage, 40.0, 512)] == (["codebook_collapse"] if ill else [])


def test_a_collapsed_codebook_says_how_far_and_what_helps():
    (finding,) = diagnose_codebook(0.05, 12.3, 512)
    assert all(word in finding.evidence for word in ("5.0%", "512", "12.3", "30%", "70%"))
    assert all(
        word in finding.remedy for word in ("codebook=ema", "restart_after", "model.commitment_cost", "optimizer.lr")
    )


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
    assert diagnose_output(0.5 + 0.005 * images, images) != []


def test_the_same_picture_for_every_image_is_not_called_blank():
    images = torch.rand(16, 1, 8, 8)
    assert diagnose_output(images.mean(0, keepdim=True).expand(16, -1, -1, -1) + images[:1], images) == []


def test_a_finding_reads_as_code_evidence_and_remedy():
    assert str(Finding("a", "b is 3", "do c")) == "a: b is 3. Remedy: do c."
