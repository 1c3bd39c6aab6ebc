"""Diagnoses of training from its curves and schedules. docs/doctor.md explains each code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vaelab.core.words import Finding

LEAST_POINTS = 5
"""Fewest epochs that a trend is judged from: with fewer, a line fits whatever happened."""
LAST_PART = 5
"""Divisor of a run's length: its last fifth shows whether it still improves."""
CLEAR = 5.0
"""Standard errors beyond which a trend is no noise. So many, because the best of all epochs is compared with the last,
and few epochs give a poor estimate of their noise. Among flat curves whose noise is 5 % of the gain, `overfitting` is
reported by chance for less than one in a thousand with 100 epochs, one in 300 with 20, one in 55 with 10."""
WORTH = 0.01
"""Fraction of what training gained that a change must reach to matter."""
RISE = 0.25
"""Fraction of what training gained that must be lost again for a run to be called diverging."""
SPIKE, SPIKE_SIZE = 10.0, 0.1
"""Limits of a spike: median deviations that a window lies above its neighbours by, and fraction of the gain."""
SPIKE_WINDOWS = 20
"""Fewest logging windows in which spikes are looked for: their spread must be known."""
SCHEDULE_SHORT = 0.05
"""Fraction of a schedule's range that may be missing at the end: a last step of many counts as the end. (The rows of
version 0.1 were means of windows, which lag a little behind.)"""
SCALARS = ("beta", "capacity", "gamma", "commitment_cost")
"""Scalars that a schedule may change and the objective depends on: losses under different values do not compare."""

STATUS = {
    "interrupted": ("stopped from outside after {epochs} epochs", "vaelab train resume=RUN continues it exactly"),
    "failed": ("{error}", "run.log has the traceback; mend the cause, then vaelab train resume=RUN"),
    "diverged": ("{error}", "a lower optimizer.lr, or trainer.gradient_clip_val=1, in a new run"),
    "trained": ("trained, but the test did not end", "vaelab train resume=RUN tests it"),
    "unfinished": (
        "there is no summary.json",
        "wait, if it is being trained; if it was killed, vaelab train resume=RUN",
    ),
}
"""Evidence and remedy for each status that is not `finished`."""


def diagnose_training(rows: list[dict[str, float]], summary: dict[str, Any]) -> list[Finding]:
    """Diagnoses how training ended, and what its curves show.

    rows: of metrics.csv, a dictionary of the filled cells each. summary: content of summary.json; empty if it was not
    written. The curve is that of what is minimised (`loss`); where that has a moving weight (model=capacity) or a
    term that moves by itself (the VQ-VAE), of -elbo or `reconstruction`. Only epochs since the last change of a
    schedule are compared with one another.
    """
    status = summary.get("status") or "unfinished"
    findings = []
    if status in STATUS:
        evidence, remedy = STATUS[status]
        error = (str(summary.get("error") or "").splitlines() or ["it left no reason"])[0]
        known = {"epochs": sum(any(name.startswith("train/") for name in row) for row in rows), "error": error}
        findings.append(Finding(f"run_{status}", evidence.format(**known), remedy))
    findings += _diagnose_spikes(rows)
    train, val = _curve(rows, "train"), _curve(rows, "val")
    findings += _diagnose_rise(rows, train) or _diagnose_overfitting(rows, train, val)
    if status == "finished" and not findings:
        findings += _diagnose_still_improving(rows, val if len(val) else train)
    return findings


def _objective(rows: list[dict[str, float]]) -> str:
    """Returns the name of the metric whose curve is judged."""
    names = {name.partition("/")[2] for row in rows for name in row}
    return "loss" if "beta" in names else "elbo" if "elbo" in names else "reconstruction"


def _curve(rows: list[dict[str, float]], part: str) -> np.ndarray:
    """Returns `part/objective` of the rows since the last change of a schedule, [n, 2]: step, value; least is best."""
    name = _objective(rows)
    key, sign = f"{part}/{name}", -1 if name == "elbo" else 1
    scalars = [f"{part}/{name}" for name in SCALARS]
    known = [row for row in rows if math.isfinite(row.get(key, math.nan))]
    settled: list[tuple[float, float]] = []
    for row in reversed(known):
        if any(not math.isclose(row.get(s, 0), known[-1].get(s, 0), rel_tol=1e-3) for s in scalars):
            break
        settled.append((row["step"], sign * row[key]))
    return np.array(settled[::-1]).reshape(-1, 2)


def _noise(values: np.ndarray) -> float:
    """Estimates the deviation around a smooth curve, from second differences of the later half, [n] -> scalar."""
    late = values[len(values) // 2 :] if len(values) >= 2 * LEAST_POINTS else values
    return float(np.diff(late, 2).std() / math.sqrt(6)) if len(late) > 2 else math.inf


def _smooth(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Averages over a tenth of the points, three at least, [n] -> [n - width + 1]; and the error of differences."""
    width = max(3, len(values) // 10)
    return np.convolve(values, np.ones(width) / width, "valid"), _noise(values) * math.sqrt(2 / width)


def _gain(values: np.ndarray) -> float:
    """Computes what training gained, [n] -> scalar: from the level that a tenth of the values lie above, to the least.

    Not from the first value: a bad start can be worse by any order of magnitude.
    """
    return float(np.quantile(values, 0.9) - values.min())


def _label(rows: list[dict[str, float]], part: str) -> str:
    name = _objective(rows)
    return f"-{part}/{name}" if name == "elbo" else f"{part}/{name}"


def _diagnose_rise(rows: list[dict[str, float]], train: np.ndarray) -> list[Finding]:
    """Diagnoses a training objective that is getting worse."""
    if len(train) < LEAST_POINTS:
        return []
    values = train[:, 1]
    smooth, error = _smooth(values)
    lost, gained = smooth[-1] - smooth.min(), _gain(values)
    if lost <= max(RISE * gained, CLEAR * error, WORTH * abs(smooth.min())):
        return []
    evidence = f"{_label(rows, 'train')} rose by {lost:.3g} nats from its least, {smooth.min():.4g}, to the end"
    return [Finding("loss_rising", evidence, "a lower optimizer.lr, or trainer.gradient_clip_val=1")]


def _diagnose_spikes(rows: list[dict[str, float]]) -> list[Finding]:
    """Diagnoses windows of the training objective far above their neighbours; short ones are noisier and weigh less."""
    windows = _curve(rows, "step")
    if len(windows) < SPIKE_WINDOWS:
        return []
    steps, values = windows.T
    length = np.diff(steps, prepend=2 * steps[0] - steps[1])
    if length.min() <= 0:  # there is no row of training
        return []
    around = np.stack([np.roll(values, shift) for shift in (-3, -2, -1, 1, 2, 3)])[:, 3:-3]
    above = (values[3:-3] - np.median(around, 0)) * np.sqrt(length[3:-3] / length.max())
    limit = max(SPIKE * np.median(np.abs(above)), SPIKE_SIZE * _gain(values))
    spikes = np.flatnonzero(above > limit)
    if not len(spikes):
        return []
    worst = spikes[above[spikes].argmax()]
    evidence = (
        f"{_label(rows, 'step')} jumped in {len(spikes)} of {len(values)} windows, most at step "
        f"{steps[3 + worst]:.0f}, by {above[worst]:.3g} nats"
    )
    return [Finding("loss_spikes", evidence, "trainer.gradient_clip_val=1, or a lower optimizer.lr")]


def _diagnose_overfitting(rows: list[dict[str, float]], train: np.ndarray, val: np.ndarray) -> list[Finding]:
    """Diagnoses a validation objective that worsens while its gap to the training objective grows."""
    at = dict(train.tolist())
    both = np.array([(value, at[step]) for step, value in val if step in at]).reshape(-1, 2)
    if len(both) < LEAST_POINTS:
        return []
    (smooth, error), (gap, _) = _smooth(both[:, 0]), _smooth(both[:, 0] - both[:, 1])
    best = int(smooth.argmin())
    lost, gained = smooth[-1] - smooth[best], _gain(both[:, 0])
    if lost <= max(WORTH * gained, CLEAR * error) or gap[-1] - gap[best] < lost / 2:
        return []
    epochs = sum(f"val/{_objective(rows)}" in row for row in rows)
    evidence = (
        f"{_label(rows, 'val')} rose by {lost:.3g} nats since about epoch {epochs - len(smooth) + best} of {epochs}, "
        f"its distance to train from {gap[best]:.3g} to {gap[-1]:.3g}"
    )
    remedy = "checkpoints/best is from about then; for a better one more data, a smaller network, or optimizer=adamw"
    return [Finding("overfitting", evidence, remedy)]


def _diagnose_still_improving(rows: list[dict[str, float]], curve: np.ndarray) -> list[Finding]:
    """Diagnoses a line through the last fifth that falls beyond doubt, and by an amount that matters."""
    if len(curve) < LEAST_POINTS:
        return []
    last = curve[-max(LEAST_POINTS, len(curve) // LAST_PART) :, 1]
    epoch = np.arange(len(last)) - (len(last) - 1) / 2
    slope = (epoch @ last) / (epoch @ epoch)
    residual = last - last.mean() - slope * epoch
    error = math.sqrt(residual @ residual / (len(last) - 2) / (epoch @ epoch))
    fall, gained = -slope * (len(last) - 1), _gain(curve[:, 1])
    if -slope <= CLEAR * error or fall <= WORTH * gained:
        return []
    part = "val" if any("val/loss" in row for row in rows) else "train"
    evidence = (
        f"{_label(rows, part)} fell by {fall:.3g} nats over the last {len(last)} epochs "
        f"(± {error * (len(last) - 1):.2g})"
    )
    return [Finding("still_improving", evidence, "train longer: vaelab train resume=RUN trainer.max_epochs=MORE")]


def diagnose_schedules(
    rows: list[dict[str, float]], schedules: dict[str, Any], ended: dict[str, Any] | None = None
) -> list[Finding]:
    """Diagnoses schedules that did not reach their ends.

    rows: of metrics.csv. schedules: `schedule` of the run's config; those without `start` and `end` are not judged.
    ended: values of the model's scalars at the end of training, as `objective` of summary.json has them.

    The value at the end of an epoch is that of validation; without it, of the last logging window. `train/...` is the
    mean of the epoch, during which a schedule may have gone far.
    """
    findings = []
    for name, schedule in schedules.items():
        start, end = (schedule.get(key) if isinstance(schedule, dict) else None for key in ("start", "end"))
        key = next((k for k in (f"val/{name}", f"step/{name}") if any(k in row for row in rows)), "")
        at = [row[key] for row in rows if key in row]
        if not isinstance(start, int | float) or not isinstance(end, int | float) or start == end or not at:
            continue
        last = (ended or {}).get(name)
        reached = last if isinstance(last, int | float) else at[-1]
        missing = SCHEDULE_SHORT * abs(end - start)
        if abs(end - reached) > missing:
            remedy = f"train longer (trainer.max_epochs), or shorten it (schedule.{name}.over)"
            findings.append(
                Finding(
                    "schedule_unfinished", f"{name} had reached {reached:.4g} of {end:.4g} at the last step", remedy
                )
            )
    return findings
