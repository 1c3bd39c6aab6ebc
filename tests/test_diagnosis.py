"""Each ailment is found in figures that have it, and not in healthy ones; thresholds are where they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vaelab.evaluation.diagnosis import diagnose_evaluation, diagnose_schedules, diagnose_training

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
    "conditional/chance": 0.1,
    "conditional/classifier_accuracy": 0.98,
    "conditional/sample_accuracy": 0.9,
    "conditional/label_in_z_accuracy": 0.2,
    "conditional/label_in_z_chance": 0.12,
    "conditional/latent_swap_ratio": 2.0,
    "samples/nearest_generated": 6.0,
    "samples/nearest_real": 6.2,
}
SUBJECT = {"log_likelihood_is": "a probability of binary images", "capacity": None, "images": 10_000}


def codes(figures, subject=SUBJECT, vectors=None):
    return [finding.code for finding in diagnose_evaluation(figures, vectors or {}, subject)]


def test_healthy_figures_and_no_figures_give_nothing():
    assert codes(HEALTHY) == []
    assert codes({}) == []
    assert codes(dict.fromkeys(HEALTHY, math.nan)) == []


JUST = 1e-6
BORDERS = [
    # figure, the border, on which side of it the ailment lies, code
    ("likelihood/kl", 0.5, -1, "posterior_collapse"),
    ("likelihood/kl", 0.5, -1, "z_ignored"),
    ("likelihood/effective_samples", 5.0, -1, "few_effective_samples"),
    ("likelihood/rate_empirical_bits", 0.7 * 9 * 49, -1, "rate_below_uniform"),
    ("latents/kl_index_code_mi", math.log(10_000) - 3, +1, "mutual_information_saturated"),
    ("latents/amortisation_gap", 2.5, +1, "amortisation_gap"),
    ("codebook/usage", 0.1, -1, "codebook_collapse"),
    ("codebook/usage", 0.3, -1, "codebook_sparse"),
    ("codebook/usage", 0.7, +1, "codebook_full"),
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
    assert codes(HEALTHY | {"latents/active": 3.0}, SUBJECT | {"capacity": 5.0}) == []  # closed on purpose
    (finding,) = diagnose_evaluation(
        HEALTHY | {"latents/active": 4.0}, {"latents/kl_per_dim": [0.0] * 16 + [1.0] * 4}, SUBJECT
    )
    assert "4 of 20" in finding.evidence
    assert "16 carry" in finding.evidence


def test_a_collapse_under_a_capacity_of_zero_is_meant():
    assert "posterior_collapse" not in codes({"likelihood/kl": 0.1}, SUBJECT | {"capacity": 0.5})
    assert "posterior_collapse" in codes({"likelihood/kl": 0.1}, SUBJECT | {"capacity": 25.0})


def test_collapse_is_not_told_twice():
    assert codes({"likelihood/kl": 0.1, "latents/active": 0.0, "latents/dimensions": 20.0}) == ["posterior_collapse"]


def test_codebook_verdicts_exclude_one_another():
    verdicts = [[c for c in codes(HEALTHY | {"codebook/usage": u}) if c.startswith("codebook")] for u in
                (0.05, 0.2, 0.3, 0.5, 0.7, 0.9)]  # fmt: skip
    assert verdicts == [["codebook_collapse"], ["codebook_sparse"], [], [], [], ["codebook_full"]]


def test_a_cross_entropy_is_called_no_density_where_log_p_hat_is_claimed():
    grey = SUBJECT | {"log_likelihood_is": "not a density: cross-entropy on grey pixels"}
    assert codes(HEALTHY, grey) == ["not_a_density"]
    assert codes({k: v for k, v in HEALTHY.items() if k != "likelihood/log_p_hat"}, grey) == []
    assert codes(HEALTHY, SUBJECT | {"log_likelihood_is": "a density on pixels"}) == []


def test_the_bound_of_the_mutual_information_is_of_the_images_it_was_measured_on():
    figures = HEALTHY | {"latents/kl_index_code_mi": 6.0}
    assert codes(figures | {"latents/images": 1000.0}) == ["mutual_information_saturated"]  # log 1000 = 6.9
    assert codes(figures, SUBJECT | {"images": 500}) == ["mutual_information_saturated"]
    assert codes(figures, {k: v for k, v in SUBJECT.items() if k != "images"}) == []


def test_a_small_amortisation_gap_beside_a_tiny_kl_is_no_ailment():
    assert codes(HEALTHY | {"likelihood/kl": 2.0, "latents/amortisation_gap": 0.9}) == []
    assert codes(HEALTHY | {"likelihood/kl": 2.0, "latents/amortisation_gap": 1.1}) == ["amortisation_gap"]


def test_a_judge_that_cannot_judge_finds_nothing_about_the_label():
    figures = HEALTHY | {"conditional/classifier_accuracy": 0.3, "conditional/sample_accuracy": 0.1}
    assert codes(figures) == ["weak_judge"]


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


@pytest.mark.parametrize("seed", range(20))
def test_a_converged_run_is_healthy(seed):
    assert found(rows_of(DECAY + noise(seed), DECAY + 2 + noise(seed + 100))) == []


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
    return [finding.code for finding in diagnose_schedules(rows, schedules, best_epoch)]


def test_schedules_that_did_not_end():
    assert scheduled(4.0) == []
    assert scheduled(3.81) == []  # 5 % of the range may be missing
    assert scheduled(3.79) == ["schedule_unfinished"]
    assert scheduled(3.0, schedules={"beta": {"value": 4.0}}) == []
    assert scheduled(3.0, schedules={}) == []
    falling = {"beta": {"start": 10.0, "end": 1.0}}
    assert scheduled(1.4, schedules=falling) == []
    assert scheduled(1.5, schedules=falling) == ["schedule_unfinished"]


def test_a_best_checkpoint_from_before_the_end_of_the_schedule():
    assert scheduled(4.0, best_epoch=50) == ["best_before_schedule"]
    assert scheduled(4.0, best_epoch=97) == []
    assert scheduled(4.0, best_epoch=100) == []
