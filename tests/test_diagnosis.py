"""Each ailment is found in figures that have it, and not in healthy ones; thresholds are where they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vaelab.core.conf import CONF
from vaelab.evaluation.findings import curves
from vaelab.evaluation.findings.diagnosis import diagnose_evaluation, diagnose_schedules, diagnose_training, verdicts

HEALTHY = {
    "likelihood/elbo": -102.0,
    "likelihood/kl": 25.0,
    "likelihood/log_p_hat": -97.0,
    "likelihood/importance_samples": 500.0,
    "likelihood/effective_samples": 20.0,
    "likelihood/rate_uniform_bits": 9.0 * 49,
    "likelihood/rate_empirical_bits": 8.0 * 49,
    "latents/active": 20.0,
    "latents/dimensions": 20.0,
    "latents/kl_index_code_mi": 6.0,
    "latents/amortisation_gap": 1.5,
    "reconstruction/mse_mean": 0.02,
    "codebook/usage": 0.5,
    "codebook/perplexity": 200.0,
    "codebook/codes": 512.0,
    "codebook/drawn": 490_000.0,
    "conditional/chance": 0.1,
    "conditional/classifier_accuracy": 0.98,
    "conditional/sample_accuracy": 0.9,
    "conditional/label_in_z_accuracy": 0.2,
    "conditional/label_in_z_chance": 0.12,
    "conditional/latent_swap_ratio": 2.0,
    "samples/nearest_generated": 6.0,
    "samples/nearest_real": 6.2,
}
SUBJECT = {"log_likelihood_is": "a probability of binary images", "scheduled": {}, "images": 10_000}


def codes(figures, subject=SUBJECT):
    return [finding.code for finding in diagnose_evaluation(figures, subject)]


def test_healthy_figures_and_no_figures_give_nothing():
    assert codes(HEALTHY) == []
    assert codes({}) == []
    assert codes(dict.fromkeys(HEALTHY, math.nan)) == []


JUST = 1e-6
BORDERS = [
    # figure, the border, on which side of it the ailment lies, code
    ("likelihood/kl", 0.5, -1, "posterior_collapse"),
    ("likelihood/kl", 0.5, -1, "z_ignored"),
    ("likelihood/effective_samples", 1 / (0.2 + 1 / 500), -1, "few_effective_samples"),
    ("likelihood/rate_empirical_bits", 0.7 * 9 * 49, -1, "rate_below_uniform"),
    ("latents/kl_index_code_mi", 0.8 * math.log(10_000), +1, "mutual_information_saturated"),
    ("latents/amortisation_gap", 2.5, +1, "amortisation_gap"),
    ("codebook/usage", 0.1, -1, "codebook_collapse"),
    ("codebook/usage", 0.3, -1, "codebook_sparse"),
    ("conditional/classifier_accuracy", 0.55, -1, "weak_judge"),
    ("conditional/sample_accuracy", 0.1 + 0.2 * 0.88, -1, "label_ignored"),
    ("conditional/label_in_z_accuracy", 0.12 + 0.5 * 0.86, +1, "label_in_z"),
    ("conditional/latent_swap_ratio", 0.01, -1, "z_ignored"),
    ("samples/nearest_generated", 3.1, -1, "memorisation"),
]


@pytest.mark.parametrize(("name", "border", "side", "code"), BORDERS, ids=[f"{b[3]}-{b[0]}" for b in BORDERS])
def test_an_ailment_begins_at_its_border(name, border, side, code):
    assert code in codes(HEALTHY | {name: border + side * JUST})
    assert code not in codes(HEALTHY | {name: border - side * JUST})


def test_dead_dimensions_are_half_or_more():
    assert "dead_dimensions" in codes(HEALTHY | {"latents/active": 10.0})
    assert codes(HEALTHY | {"latents/active": 11.0}) == []
    assert (
        codes(HEALTHY | {"latents/active": 3.0}, SUBJECT | {"scheduled": {"capacity": 5.0}}) == []
    )  # closed on purpose
    (finding,) = diagnose_evaluation(HEALTHY | {"latents/active": 7.0}, SUBJECT)
    assert finding.evidence == "7 of 20 latent dimensions are active"


def test_a_collapse_under_a_capacity_of_zero_is_meant():
    assert "posterior_collapse" not in codes({"likelihood/kl": 0.1}, SUBJECT | {"scheduled": {"capacity": 0.5}})
    assert "posterior_collapse" in codes({"likelihood/kl": 0.1}, SUBJECT | {"scheduled": {"capacity": 25.0}})


def test_collapse_is_not_told_twice():
    assert codes({"likelihood/kl": 0.1, "latents/active": 0.0, "latents/dimensions": 20.0}) == ["posterior_collapse"]


def evidence(figures, code, subject=SUBJECT):
    return next(f.evidence for f in diagnose_evaluation(HEALTHY | figures, subject) if f.code == code)


def test_remedies_of_a_label_do_not_speak_against_those_of_an_empty_z():
    ill = {"conditional/sample_accuracy": 0.1, "conditional/label_in_z_accuracy": 0.9}
    assert {"label_ignored", "label_in_z"} <= set(codes(HEALTHY | ill))
    found = {f.code: f for f in diagnose_evaluation(HEALTHY | ill | {"likelihood/kl": 1e-7}, SUBJECT)}
    assert "label_in_z" not in found
    assert "larger beta" not in found["label_ignored"].remedy
    assert "more condition.dim" in found["label_ignored"].remedy  # a key of every model that is told a class
    assert "\ndim: " in (CONF / "condition/label.yaml").read_text()


def test_a_codebook_is_in_one_state():
    states = [[c for c in codes(HEALTHY | {"codebook/usage": u}) if c.startswith("codebook")] for u in
              (0.05, 0.2, 0.3, 0.5, 0.7, 0.9)]  # fmt: skip
    assert states == [["codebook_collapse"], ["codebook_sparse"], [], [], [], []]
    assert "20.0% of 512 codes are in use (perplexity 200)" in evidence({"codebook/usage": 0.2}, "codebook_sparse")
    levels = {f"codebook/{name}_{level}": 0.05 for name in ("usage", "perplexity") for level in ("top", "bottom")}
    words = evidence(levels | {"codebook/usage_bottom": 0.5}, "codebook_collapse")
    assert words.startswith("5.0% of 256 codes are in use at top (perplexity 0.05); healthy")  # 512 are of both


@pytest.mark.parametrize(
    "ill", [{"codebook/usage": 0.05}, {"codebook/usage": 0.2}, {"likelihood/rate_empirical_bits": 9.0}]
)
def test_what_helps_a_codebook_is_what_it_says_of_itself(ill):
    remedy = {"livelier": "more of this", "fewer": "codebook.that"}
    (finding,) = diagnose_evaluation(HEALTHY | ill, SUBJECT | {"remedy": remedy})
    assert all(word in finding.remedy for word in remedy.values())
    assert "codebook=ema" not in finding.remedy
    (finding,) = diagnose_evaluation(HEALTHY | ill, SUBJECT)  # of an older version
    assert "codebook=ema" in finding.remedy


@pytest.mark.parametrize(
    "ill", [{"codebook/usage": 0.05}, {"codebook/usage": 0.2}, {"likelihood/rate_empirical_bits": 9.0}]
)
def test_a_codebook_is_judged_from_ten_codes_drawn_for_each(ill):
    assert len(codes(HEALTHY | ill | {"codebook/drawn": 5120.0})) == 1
    assert codes(HEALTHY | ill | {"codebook/drawn": 5119.0}) == []
    assert codes({name: value for name, value in (HEALTHY | ill).items() if name != "codebook/drawn"}) == []


def test_a_cross_entropy_is_no_ailment():
    assert codes(HEALTHY, SUBJECT | {"log_likelihood_is": "not a density: cross-entropy on grey pixels"}) == []


def test_the_bias_that_few_effective_samples_tell():
    told = evidence({"likelihood/effective_samples": 2.0}, "few_effective_samples")
    assert told == (
        "2 of 500 importance samples carry the weight: log p_hat is too low by 0.25 nats or more"  # (1/2 - 1/500) / 2
    )
    few = {"likelihood/importance_samples": 4.0}
    assert "by 0.12 nats" in evidence(few | {"likelihood/effective_samples": 2.0}, "few_effective_samples")  # 1/2 - 1/4
    for all_alike in (1.0, 3.0, 4.0):  # with K draws that weigh alike nothing is known to be missing
        figures = {"likelihood/effective_samples": all_alike, "likelihood/importance_samples": all_alike}
        assert codes(HEALTHY | figures) == []


def test_a_fitted_posterior_above_the_bound_tells_what_is_missing():
    figures = {"likelihood/effective_samples": 2.0, "latents/amortisation_gap": 2.0}
    told = evidence(figures | {"likelihood/log_p_hat": -103.5}, "few_effective_samples")
    assert told.endswith(
        "; at least 3.5 are missing, since the ELBO of fitted posteriors is higher"
    )  # -102 + 2 + 103.5
    assert "missing" not in evidence(figures | {"likelihood/log_p_hat": -99.9}, "few_effective_samples")


def test_the_bound_of_the_mutual_information_is_of_the_images_it_was_measured_on():
    figures = HEALTHY | {"latents/kl_index_code_mi": 6.0}
    assert codes(figures | {"latents/images": 1000.0}) == ["mutual_information_saturated"]  # log 1000 = 6.9
    assert codes(figures, SUBJECT | {"images": 500}) == ["mutual_information_saturated"]
    assert codes(figures, {k: v for k, v in SUBJECT.items() if k != "images"}) == []


@pytest.mark.parametrize(("images", "mi"), [(2, 0.5), (15, 2.1), (100, 3.6), (1000, 5.5)])
def test_a_small_set_is_not_saturated_by_being_small(images, mi):
    figures = {"latents/images": float(images), "latents/kl_index_code_mi": mi}
    assert mi > math.log(images) - 3
    assert codes(HEALTHY | figures) == []
    assert codes(HEALTHY | figures | {"latents/kl_index_code_mi": 0.81 * math.log(images)}) != []


def test_a_huge_set_is_saturated_within_three_nats():
    huge = {"latents/images": 1e8}
    assert codes(HEALTHY | huge | {"latents/kl_index_code_mi": 15.3}) == []  # above 0.8 log N = 14.7
    assert codes(HEALTHY | huge | {"latents/kl_index_code_mi": 15.5}) == ["mutual_information_saturated"]


def test_codes_that_give_their_image_away_are_called_so_at_the_bound_alone():
    told = evidence({"latents/kl_index_code_mi": 7.6}, "mutual_information_saturated")
    assert told == (
        "index-code mutual information is 7.6 nats of at most log N = 9.21 for N = 10,000 images: "
        "more images would show more"
    )
    assert "gives its image away" in evidence({"latents/kl_index_code_mi": 8.8}, "mutual_information_saturated")


def test_a_small_amortisation_gap_beside_a_tiny_kl_is_no_ailment():
    assert codes(HEALTHY | {"likelihood/kl": 2.0, "latents/amortisation_gap": 0.9}) == []
    assert codes(HEALTHY | {"likelihood/kl": 2.0, "latents/amortisation_gap": 1.1}) == ["amortisation_gap"]


def test_a_judge_that_cannot_judge_finds_nothing_about_the_label():
    figures = HEALTHY | {"conditional/classifier_accuracy": 0.3, "conditional/sample_accuracy": 0.1}
    assert codes(figures) == ["weak_judge"]


ODD = [
    {"latents/images": -3.0},
    {"latents/images": 0.0},
    {"latents/images": 1.0, "latents/kl_index_code_mi": 1e-9},
    {"conditional/chance": 1.0, "conditional/classifier_accuracy": 1.0},
    {"likelihood/effective_samples": 0.0},
    {"likelihood/effective_samples": -1.0},
    {"likelihood/importance_samples": 0.0},
    {"codebook/codes": 0.0},
    {"conditional/label_in_z_chance": 0.99, "conditional/label_in_z_accuracy": 0.989},
]


@pytest.mark.parametrize("figures", ODD)
def test_odd_figures_are_not_judged(figures):
    assert codes(HEALTHY | figures) == []


def verdict(figures):
    return verdicts(figures, diagnose_evaluation(figures, SUBJECT))


def test_verdicts():
    assert verdict(HEALTHY) == {"codebook": "healthy", "label": "used", "z": "used"}
    assert verdict({}) == {}
    codebooks = {0.05: "collapse", 0.2: "sparse", 0.3: "healthy", 0.7: "healthy", 0.71: "full", 1.0: "full"}
    for usage, expected in codebooks.items():
        assert verdict(HEALTHY | {"codebook/usage": usage})["codebook"] == expected
        few = HEALTHY | {"codebook/usage": usage, "codebook/drawn": 5000.0}
        assert verdict(few)["codebook"] == "too few images to tell"
    ignored = HEALTHY | {"conditional/sample_accuracy": 0.1}
    assert verdict(ignored)["label"] == "ignored"
    for judge in ({"conditional/classifier_accuracy": 0.3}, {"conditional/chance": 0.98}, {"conditional/chance": 1.0}):
        assert verdict(ignored | judge)["label"] == "the judge cannot tell"
    assert verdict(HEALTHY | {"conditional/latent_swap_ratio": 0.0})["z"] == "ignored"


# --- curves ---------------------------------------------------------------------------------------

FINISHED = {"status": "finished"}
EPOCHS = 100


def noise(seed, size=EPOCHS, scale=0.05):
    return np.random.default_rng(seed).normal(0, scale, size)


def rows_of(train, val=None, beta=None):
    """Rows of metrics.csv of a VAE, an epoch each of 40 steps, with a window each."""
    beta = np.ones(len(train)) if beta is None else beta
    rows = []
    for i, value in enumerate(train):
        row = {"step": 40.0 * (i + 1), "epoch": float(i)}
        row |= {"train/loss": value, "step/loss": value, "train/beta": beta[i], "step/beta": beta[i]}
        if val is not None:
            row |= {"val/loss": val[i], "val/beta": beta[i]}
        rows.append(row)
    return rows


def found(rows, summary=FINISHED):
    return [finding.code for finding in diagnose_training(rows, summary)]


t = np.arange(EPOCHS)
DECAY = 100 + 50 * np.exp(-t / 6)
"""A loss that has converged long before the end."""


@pytest.mark.parametrize("scale", [0.05, 0.5, 5])
def test_a_converged_run_is_healthy(scale):
    """However noisy: what noise makes of a flat curve is no trend, but for less than one run in a thousand."""
    ill = [found(rows_of(DECAY + noise(i, scale=scale), DECAY + 2 + noise(i + 100, scale=scale))) for i in range(100)]
    assert sum(map(bool, ill)) <= 1


def test_the_error_of_a_smoothed_curve_is_what_its_differences_scatter_by():
    """Of a curve that bends: its own movement is no noise."""
    runs = [curves._smooth(DECAY + noise(seed, scale=2.0)) for seed in range(300)]
    apart = np.array([smooth[-1] - smooth[40] for smooth, _ in runs])
    assert np.mean([error for _, error in runs]) == pytest.approx(apart.std(), rel=0.15)
    assert np.mean([curves._noise(DECAY + noise(seed, scale=2.0)) for seed in range(300)]) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(("errors", "ill"), [(4.9, False), (5.1, True)])
def test_still_improving_begins_at_five_standard_errors(errors, ill):
    """A line with residuals that have no slope of their own, so that its error is known."""
    epoch = np.arange(20) - 9.5
    residual = 0.1 * np.tile([1.0, -1.0, -1.0, 1.0], 5)
    assert abs(residual @ epoch) < 1e-9
    error = 0.1 * math.sqrt(20 / 18 / (epoch @ epoch))
    curve = DECAY.copy()
    curve[-20:] = 100 - errors * error * epoch + residual
    findings = [f for f in diagnose_training(rows_of(curve, curve), FINISHED) if f.code == "still_improving"]
    assert len(findings) == ill
    if ill:
        assert f"fell by {errors * error * 19:.3g} nats" in findings[0].evidence
        assert f"± {error * 19:.2g}" in findings[0].evidence


def test_a_trend_of_several_errors_is_found():
    """A validation curve that loses 7 of its standard errors, in nearly all runs."""
    overfitted = 0
    for seed in range(40):
        train, val = DECAY + noise(seed, scale=0.01), DECAY + noise(seed + 100, scale=0.5)
        val[60:] += 7 * 0.5 * math.sqrt(2 / 10)
        overfitted += found(rows_of(train, val)) == ["overfitting"]
    assert overfitted > 35


def test_no_rows_and_few_rows_are_not_judged():
    assert found([]) == []
    assert found(rows_of(DECAY[:4], DECAY[:4])) == []


@pytest.mark.parametrize("seed", range(5))
def test_still_improving(seed):
    slow = 100 + 50 * np.exp(-t / 60)
    assert found(rows_of(slow + noise(seed), slow + noise(seed + 100))) == ["still_improving"]
    assert found(rows_of(slow + noise(seed))) == ["still_improving"]  # without validation, by the training curve
    assert found(rows_of(slow + noise(seed, scale=20), slow + noise(seed + 100, scale=20))) == []  # lost in noise


def test_an_improvement_that_does_not_matter_is_not_told():
    crawling = DECAY - 0.001 * t
    assert found(rows_of(crawling, crawling)) == []


def test_still_improving_is_said_of_finished_runs_alone():
    slow = 100 + 50 * np.exp(-t / 60)
    assert found(rows_of(slow, slow), {"status": "interrupted"}) == ["run_interrupted"]


@pytest.mark.parametrize("seed", range(5))
def test_overfitting(seed):
    worse = np.maximum(0, t - 40) * 0.1
    rows = rows_of(DECAY - worse + noise(seed), DECAY + worse + noise(seed + 100))
    (finding,) = diagnose_training(rows, FINISHED)
    assert finding.code == "overfitting"
    assert "of 100" in finding.evidence
    started = int(finding.evidence.partition("epoch ")[2].split()[0])
    assert 30 <= started <= 55
    # where both get worse, or validation stays, it is something else
    assert "overfitting" not in found(rows_of(DECAY + worse + noise(seed), DECAY + worse + noise(seed + 100)))
    assert found(rows_of(DECAY + 0.3 * worse + noise(seed), DECAY + 0.3 * worse + noise(seed + 100))) == []
    assert "overfitting" not in found(rows_of(DECAY - worse + noise(seed), DECAY + noise(seed + 100)))


def test_a_model_with_a_moving_weight_is_judged_by_its_elbo():
    worse = np.maximum(0, t - 40) * 0.1
    rows = rows_of(DECAY, DECAY)  # a loss that means nothing
    for row, a, b in zip(rows, DECAY - worse, DECAY + worse, strict=True):
        del row["train/beta"], row["val/beta"], row["step/beta"]
        row |= {"train/elbo": -a, "val/elbo": -b, "val/capacity": 25.0, "train/capacity": 25.0}
    assert found(rows) == ["overfitting"]


def test_a_loss_that_rises_again():
    assert found(rows_of(DECAY + np.maximum(0, t - 60) * 0.6, DECAY)) == ["loss_rising"]
    assert found(rows_of(DECAY + np.maximum(0, t - 60) * 0.02, DECAY)) == []


def test_a_terrible_first_epoch_hides_nothing():
    rising = DECAY + np.maximum(0, t - 60) * 0.6
    rising[0] = 1e14
    assert found(rows_of(rising, DECAY)) == ["loss_rising"]


def test_losses_under_different_betas_are_not_compared():
    beta = np.linspace(0, 4, EPOCHS)
    assert found(rows_of(DECAY + 30 * beta, DECAY + 30 * beta, beta)) == []
    assert found(rows_of(DECAY + 30 * beta, DECAY + 30 * beta)) == ["loss_rising"]


@pytest.mark.parametrize("seed", range(5))
def test_spikes(seed):
    spiked = DECAY + noise(seed)
    assert found(rows_of(spiked, DECAY)) == []
    spiked[70] += 30
    (finding,) = diagnose_training(rows_of(spiked, DECAY), FINISHED)
    assert finding.code == "loss_spikes"
    assert "step 2840" in finding.evidence
    assert " 1 of 100" in finding.evidence


@pytest.mark.parametrize(
    ("jump", "scale", "ill"), [(0.5, 0.01, False), (1.3, 0.01, True), (4, 1, False), (14, 1, True)]
)
def test_a_spike_stands_out_from_the_noise_and_matters(jump, scale, ill):
    """The gain is 9.4 nats, of which a spike is a tenth at least; the median deviation is 0.8 of the noise."""
    assert curves._gain(DECAY) == pytest.approx(9.4, rel=0.05)
    for seed in range(5):
        spiked = DECAY + noise(seed, scale=scale)
        spiked[70] = DECAY[70] + jump
        assert found(rows_of(spiked, DECAY)) == (["loss_spikes"] if ill else [])


def test_a_short_window_may_be_noisy():
    """The window at the end of an epoch can be one batch: its noise is no spike."""
    rng = np.random.default_rng(0)
    rows, step = [], 0
    for i in range(200):
        length = 1 if i % 10 == 9 else 50
        step += length
        rows.append({"step": float(step), "step/loss": 100 + rng.normal(0, 10 / math.sqrt(length)), "step/beta": 1.0})
    assert found(rows) == []


@pytest.mark.parametrize("status", ["interrupted", "failed", "diverged", "trained"])
def test_how_a_run_ended(status):
    (finding,) = diagnose_training([], {"status": status, "error": "no space left\nTraceback"})
    assert finding.code == f"run_{status}"
    assert "Traceback" not in finding.evidence
    if status in ("failed", "diverged"):
        assert finding.evidence == "no space left"
    assert found([], {}) == ["run_unfinished"]


# --- schedules ------------------------------------------------------------------------------------

RAMP = {"beta": {"start": 0.0, "end": 4.0, "over": 100, "unit": "epochs"}}


def scheduled(last, best_epoch=None, schedules=RAMP):
    beta = np.linspace(0, last, EPOCHS)
    rows = rows_of(DECAY, DECAY, beta)
    return [finding.code for finding in diagnose_schedules(rows, schedules)]


def test_schedules_that_did_not_end():
    assert scheduled(4.0) == []
    assert scheduled(3.81) == []  # 5 % of the range may be missing
    assert scheduled(3.79) == ["schedule_unfinished"]
    assert scheduled(3.0, schedules={"beta": {"value": 4.0}}) == []
    assert scheduled(3.0, schedules={}) == []
    falling = {"beta": {"start": 10.0, "end": 1.0}}
    assert scheduled(1.4, schedules=falling) == []
    assert scheduled(1.5, schedules=falling) == ["schedule_unfinished"]


def last_epoch_of(rows):
    """The rows without validation, as they are with dataset.val_size=0: a window ends with each epoch."""
    return [{k: v for k, v in row.items() if not k.startswith("val/")} for row in rows]


def test_the_end_of_a_schedule_is_not_the_mean_of_the_last_epoch():
    """One long epoch in which beta goes from 0 to 1: its mean is 0.5, its last window's 0.98, its end 1."""
    rows = last_epoch_of(rows_of(DECAY[:2], DECAY[:2], np.array([0.02, 0.98])))
    for row in rows:
        row |= {"epoch": 0.0, "train/beta": 0.5}
    ramp = {"beta": {"start": 0.0, "end": 1.0}}
    assert diagnose_schedules(rows, ramp) == []
    (finding,) = diagnose_schedules(rows, ramp, {"beta": 0.6})
    assert finding.evidence == "beta had reached 0.6 of 1 at the last step"
    rows[-1]["step/beta"] = 0.7
    assert "reached 0.7 of 1" in diagnose_schedules(rows, ramp)[0].evidence
    assert diagnose_schedules(rows, ramp, {"beta": 1.0}) == []
    assert diagnose_schedules(rows, {"beta": {"start": "a", "end": 1.0}}) == []
