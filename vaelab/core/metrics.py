"""The vocabulary of metrics: what each number is called, counted in and drawn as. Declared here, once.

A metric is a number, a figure is a picture. Metrics of training are logged as `part/name` (`val/kl`), those
of an evaluation as `section/name` (`latents/active`). What a variant logs beyond these names is known by its
name alone, and shown like any other: progress line, tables, reports, dashboards and search read this table
and take what they do not find there as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Literal, NamedTuple

NATS = "nats per image"
SQUARED = "squared distance, sum per image"
Better = Literal["max", "min", ""]

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE, GREY = "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#767676"
"""Colours of Okabe & Ito, which people with any colour vision can tell apart."""


class Metric(NamedTuple):
    """A metric: its name, in what unit it is counted, which end is better, and how it is shown.

    name: its log key without the part, or a pattern of names. label: in words, for titles and axes.
    unit: empty for a plain number. better: which end is. group: the section of a dashboard that it stands
    in, empty for none. colour: that of its lines, None for any. evaluated: its name in an evaluation, where it is the
    same quantity. set: whether it was set, not measured. brief: whether the progress line shows it. main: whether
    tables show it unasked. title: a short name for a column.
    """

    name: str
    label: str
    unit: str = ""
    better: Better = ""
    group: str = ""
    colour: str | None = None
    evaluated: str | None = None
    set: bool = False
    brief: bool = False
    main: bool = False
    title: str | None = None


TRAINING = (
    Metric("loss", "Loss", NATS, "min", "Objective", BLACK, brief=True),
    Metric("elbo", "ELBO", NATS, "max", "Objective", BLACK, "likelihood/elbo"),
    Metric(
        "reconstruction", "Reconstruction, −log p(x|z)", NATS, "min", "Rate and distortion", BLUE,
        "likelihood/reconstruction", brief=True,
    ),
    Metric("kl", "KL(q(z|x) ‖ p(z))", NATS, "min", "Rate and distortion", VERMILION, "likelihood/kl", brief=True),
    Metric("bound", "Importance-weighted bound", NATS, "max", brief=True),
    Metric("kl_index_code_mi", "KL, mutual information with the image", NATS),
    Metric("kl_total_correlation", "KL, total correlation", NATS, "min", brief=True),
    Metric("kl_dimension_wise", "KL, dimension-wise", NATS, "min"),
    Metric("total_correlation", "Total correlation, by the discriminator", NATS, "min", brief=True),
    Metric("discriminator", "Discriminator's loss", "nats per draw"),
    Metric("discriminator_accuracy", "Discriminator's accuracy", "fraction of the draws"),
    Metric("mmd", "Squared discrepancy of q(z) from p(z)", "", "min", brief=True),
    Metric("covariance_off_diagonal", "Squares of the covariance off its diagonal", "", "min"),
    Metric("covariance_diagonal", "Squares of the variances less 1", "", "min"),
    Metric("constrained", "Objective with what the gap costs", NATS, "min"),
    Metric("classification", "Classification, −log q(y|x)", NATS, "min"),
    Metric("accuracy", "Accuracy of q(y|x)", "fraction of the images", "max", brief=True),
    Metric("beta", "β, weight of the KL", group="Schedules", colour=GREEN, set=True, brief=True),
    Metric("capacity", "Capacity C", NATS, group="Schedules", colour=BLACK, set=True, brief=True),
    Metric("capacity_gap", "Gap: KL − capacity", NATS, group="Schedules", colour=PURPLE),
    Metric("target", "Target of the reconstruction", NATS, set=True),
    Metric("target_gap", "Gap: reconstruction − target", NATS, colour=PURPLE, brief=True),
    Metric("multiplier", "Multiplier of the constraint", group="Schedules", set=True),
    Metric("gamma", "γ, bound or weight of the constraint", set=True),
    Metric("alpha", "α, weight of the mutual information", set=True),
    Metric("weight", "λ, weight of the discrepancy", set=True),
    Metric("off_diagonal", "Weight of the squares off the diagonal", set=True),
    Metric("diagonal", "Weight of the squares on the diagonal", set=True),
    Metric("rate", "Growth of β", "1/nats per step", set=True),
    Metric("penalty", "Weight of the constraint's quadratic", "1/nats", set=True),
    Metric("multiplier_rate", "Growth of the multiplier", "1/nats per step", set=True),
    Metric("vq", "Vector quantisation", SQUARED, "min", "Codebook", VERMILION, brief=True),
    Metric("commitment", "Commitment, unweighted", SQUARED, "min", "Codebook", ORANGE),
    Metric("commitment_cost", "Weight of the commitment", set=True),
    Metric(
        "perplexity", "Perplexity of the codes", "codes", "max", "Codebook", GREEN, "codebook/perplexity", brief=True
    ),
    Metric("codebook_usage", "Codes in use", "fraction of the codes", "max", "Codebook", PURPLE, "codebook/usage"),
    Metric("lr", "Learning rate", group="Schedules", set=True),
)  # fmt: skip
"""Metrics that training logs, in the order in which they are shown."""

EVALUATION = (
    Metric("likelihood/elbo", "ELBO", NATS, "max", main=True),
    Metric("likelihood/log_p_hat", "Importance-weighted bound", NATS, "max", main=True),
    Metric("likelihood/kl", "KL", NATS, main=True),
    Metric("likelihood/reconstruction", "Reconstruction", NATS, "min", main=True),
    Metric("reconstruction/mse_mean", "Squared error, mean", "per pixel", "min", main=True, title="mse"),
    Metric("latents/active", "Active dimensions", "dimensions", main=True),
    Metric("codebook/perplexity", "Perplexity of the codes", "codes", main=True),
    Metric("disentanglement/mig", "Mutual information gap", better="max", main=True),
    Metric("disentanglement/dci_disentanglement", "DCI disentanglement", better="max", main=True, title="dci"),
    Metric("udr/lasso", "Agreement with other seeds, by Lasso", better="max", main=True, title="udr"),
    Metric("udr/spearman", "Agreement with other seeds, by rank correlation", better="max", title="udr_spearman"),
    Metric("labels/linear_probe_accuracy", "Linear probe's accuracy", better="max", main=True),
    Metric("conditional/sample_accuracy", "Samples of the class asked for", better="max", main=True),
    Metric("samples/frechet", "Fréchet distance", better="min", main=True),
    Metric("anomaly/auroc_elbo", "Area under the ROC curve of −ELBO", better="max", main=True),
    Metric("*_se", "Standard error"),
    Metric("*_real", "Value for real images"),
    Metric("likelihood/bits_per_dim", "Bits per dimension", "bits", "min"),
    Metric("likelihood/rate", "Rate, −log p(z)", NATS),
    Metric("likelihood/total", "Rate and distortion", NATS, "min"),
    Metric("reconstruction/*mse_mean", "Squared error, mean", "per pixel", "min"),
    Metric("reconstruction/*mse_median", "Squared error, median", "per pixel", "min"),
    Metric("reconstruction/psnr_mean", "Peak signal-to-noise ratio, mean", "dB", "max", title="psnr"),
    Metric("reconstruction/psnr_median", "Peak signal-to-noise ratio, median", "dB", "max"),
    Metric("reconstruction/ssim_mean", "Structural similarity, mean", better="max", title="ssim"),
    Metric("reconstruction/ssim_median", "Structural similarity, median", better="max"),
    Metric("reconstruction/ms_ssim_mean", "Structural similarity over scales, mean", better="max"),
    Metric("reconstruction/ms_ssim_median", "Structural similarity over scales, median", better="max"),
    Metric("disentanglement/*", "Disentanglement", better="max"),
    Metric("labels/*_accuracy", "Accuracy", better="max"),
    Metric("inception/fid", "Fréchet Inception distance", better="min", title="fid"),
    Metric("inception/rfid", "Fréchet Inception distance of reconstructions", better="min", title="rfid"),
    Metric("lpips/mean", "Learned perceptual distance, mean", better="min", title="lpips"),
    Metric("lpips/median", "Learned perceptual distance, median", better="min"),
    Metric("samples/precision", "Precision", better="max"),
    Metric("samples/recall", "Recall", better="max"),
    Metric("anomaly/auroc_*", "Area under the ROC curve", better="max"),
)
"""Metrics of an evaluation, by section; the first pattern that fits a name counts."""

PER_LEVEL = ("kl", "perplexity", "codebook_usage")
"""Metrics that a model of several levels has of each, too, as name_level."""
_BY_NAME = {metric.name: metric for metric in TRAINING}
PARTS = ("step", "train", "val", "test", "training")
"""First parts of the log keys of training."""

DEAD_DIMENSION = 0.01
"""KL of a latent dimension, in nats, below which the model does not use it."""


def metric(key: str) -> Metric:
    """Looks up a metric by its name or log key; an unknown one gets its name in words as label."""
    part, _, name = key.rpartition("/")
    if part not in PARTS and part:
        known = next((known for known in EVALUATION if fnmatch(key, known.name)), None)
        return known or Metric(key, _words(name))
    if name in _BY_NAME:
        return _BY_NAME[name]
    for part in PER_LEVEL:
        if name.startswith(f"{part}_"):
            whole, level = _BY_NAME[part], name.removeprefix(f"{part}_").replace("_", " ")
            label = "KL" if part == "kl" else whole.label
            return Metric(name, f"{label}, {level}", whole.unit, group=whole.group)
    return Metric(name, _words(name), brief=True)


def constants(cells: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the names of metrics that were set, and not measured, and are the same in each part: no news for a table.

    cells: what a table shows of each metric, a cell per part.
    """
    return [name for name, row in cells.items() if metric(name).set and len(set(row)) == 1]


def _words(name: str) -> str:
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def in_order(names: list[str]) -> list[str]:
    """Sorts names of training's metrics in the order of `TRAINING`, those that it does not know last."""
    order = {metric.name: place for place, metric in enumerate(TRAINING)}
    return sorted(names, key=lambda name: order.get(name.rpartition("/")[2], len(order)))


MAIN = tuple(metric.name for metric in EVALUATION if metric.main)
"""Names of the metrics of an evaluation that tables show unasked."""
