"""Holds runs that differ in their seed alone against each other, by the codes that their evaluations kept."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vaelab import runs
from vaelab.core.conf import target_names
from vaelab.core.metrics import DEAD_DIMENSION
from vaelab.evaluation import measure
from vaelab.evaluation.comparison.compared import flat_settings
from vaelab.evaluation.metrics.disentanglement.udr import PENALTY, lasso, spearman, udr
from vaelab.evaluation.metrics.latents import ACTIVE_VARIANCE
from vaelab.evaluation.subject import Section

ROWS = 10_000
"""Most images whose codes are held against each other."""
NO_PAIR = "udr: no two of these runs differ in their seed alone"
SAME = ("checkpoint", "images", "seed", "split")
"""Keys of evaluation.json in which runs must agree, with the config, for their codes to be of the same images."""


def rank(folders: Sequence[Path], split: str) -> tuple[dict[Path, dict[str, Any]], list[str]]:
    """Measures the UDR of each run among those of other seeds, and writes it into its evaluation as the section udr.

    Of several runs of a seed the last counts. Returns the evaluations, and a line for each setting that has none: why.
    """
    groups: dict[str, dict[int, Path]] = {}
    for folder in folders:
        key, seed = _setting(folder, split)
        groups.setdefault(key, {})[seed] = folder
    several = [list(seeds.values()) for seeds in groups.values() if len(seeds) > 1]
    ranked, left_out = {}, [] if several else [NO_PAIR]
    for members in several:
        without = [folder for folder in members if not _has_codes(folder, split)]
        if without:
            which = f"{without[0]}{f' and {len(without) - 1} more' * (len(without) > 1)}"
            left_out.append(f"{which}: udr takes the codes that latents keeps: sections=[latents,udr] measures both")
        else:
            ranked |= _ranked(members, split)
    return ranked, left_out


def _setting(folder: Path, split: str) -> tuple[str, int]:
    """Returns what must be the same for codes to be compared, and the run's seed."""
    config, evaluation = runs.read_config(folder), runs.read_evaluation(folder, split)
    about = {name: evaluation.get(name) for name in SAME}
    about["checkpoint"] = (about["checkpoint"] or {}).get("name")
    return json.dumps([flat_settings(config, target_names()), about], sort_keys=True, default=str), config["seed"]


def _has_codes(folder: Path, split: str) -> bool:
    kept = runs.read_evaluation(folder, split).get("arrays", {}).get("latents", [])
    return "posterior_mean" in kept and runs.Files(folder).per_image(split).is_file()


def _ranked(folders: Sequence[Path], split: str) -> dict[Path, dict[str, Any]]:
    """Measures runs of the same images, and writes their evaluations. Returns these."""
    started = time.monotonic()
    evaluations = [runs.read_evaluation(folder, split) for folder in folders]
    codes = [measure.read_arrays(runs.Files(folder).per_image(split))["posterior_mean"] for folder in folders]
    chosen = np.sort(np.random.default_rng(0).permutation(len(codes[0]))[:ROWS])
    codes, masks = [z[chosen] for z in codes], [_informative(evaluation["vectors"]) for evaluation in evaluations]
    scores = {kind.__name__: udr(codes, masks, kind) for kind in (lasso, spearman)}
    by_kl = all("latents/kl_per_dim" in evaluation["vectors"] for evaluation in evaluations)
    protocol = (
        f"UDR (Duan et al. 2020): median over {len(folders) - 1} other seeds of how far single dimensions of the "
        f"posterior means of {len(chosen):,} images correspond; informative dimensions: "
        + (f"KL above {DEAD_DIMENSION} nats" if by_kl else f"variance of the means above {ACTIVE_VARIANCE}")
        + f"; lasso: penalty {PENALTY}, weights divided by {1 - PENALTY}; spearman: rank correlation."
    )
    for i, (folder, evaluation) in enumerate(zip(folders, evaluations, strict=True)):
        figures = {name: float(values[i]) for name, values in scores.items()}
        measure.replace(evaluation, "udr", Section(figures, protocol), runs.Files(folder).per_image(split))
        evaluation["seconds"]["udr"] = round((time.monotonic() - started) / len(folders), 2)
        runs.write_evaluation(folder, evaluation)
    return dict(zip(folders, evaluations, strict=True))


def _informative(vectors: dict[str, list[float]]) -> np.ndarray:
    """Tells the dimensions that a model uses, [d]: by their KL; where it has no parts, by the variance of the means."""
    if "latents/kl_per_dim" in vectors:
        return np.array(vectors["latents/kl_per_dim"]) > DEAD_DIMENSION
    return np.array(vectors["latents/variance_of_means"]) > ACTIVE_VARIANCE
