"""Table of names that have changed since earlier versions: read by whoever loads a config, an export or a checkpoint.

A class that moves leaves a line here, so that old runs, exports and users' YAML load.
"""

from __future__ import annotations

from typing import Any

MODULES = {
    # in version 0.1: where it is now
    "vaelab.callbacks": "vaelab.training.callbacks",
    "vaelab.fsdp": "vaelab.training.fsdp",
    "vaelab.likelihoods": "vaelab.nn.likelihoods",
    "vaelab.loggers": "vaelab.training.loggers",
    "vaelab.networks": "vaelab.nn.networks",
    "vaelab.quantizers": "vaelab.nn.quantizers",
    "vaelab.schedules": "vaelab.nn.schedules",
    "vaelab.sweeps.Sweep": "vaelab.sweeps.sweep.Sweep",
}
"""Today's name of each module, or of a single name in one, that has moved."""

LATER_PARTS = ("posterior", "prior", "condition")
"""Config groups of model parts that version 0.1 did not have."""
_GAUSSIAN = {
    "posterior": {"_target_": "vaelab.nn.posteriors.Diagonal", "_partial_": True},
    "prior": {"_target_": "vaelab.nn.priors.StandardNormal", "_partial_": True},
    "condition": {},
}
PARTS: dict[str, dict[str, Any]] = {
    "vaelab.models.AE": {"condition": {}},
    "vaelab.models.VAE": _GAUSSIAN,
    "vaelab.models.BetaVAE": _GAUSSIAN,
    "vaelab.models.CapacityVAE": _GAUSSIAN,
    "vaelab.models.CVAE": _GAUSSIAN
    | {"condition": {"_target_": "vaelab.nn.conditions.Label", "_partial_": True, "dim": "label_dim"}},
    "vaelab.models.VQVAE": {"condition": {}},
}
"""Parts that models of version 0.1 had without a key for them. `dim` names the key that holds its value."""

DEFAULTS = {"vaelab.models.VQVAE": {"commitment_cost": 0.25}}
"""Defaults of model options that are others today: runs that began with them go on with them."""

NETWORKS = {f"vaelab.nn.networks.{name}" for name in ("MLP", "Conv", "Conv1d")}
"""Networks that had `batch_norm: true` where they have `norm: batch` today."""

TENSORS = {"embedding.weight": "condition.embedding.weight"}
"""Today's names of renamed tensors in a model's state: a conditional VAE's label vectors became a part."""


def target(name: str) -> str:
    """Returns today's name of a class or function that a config selects."""
    for old, new in MODULES.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def upgrade(node: Any) -> Any:
    """Returns a config, or a part of one, with today's names of classes: plain containers in and out."""
    if isinstance(node, list):
        return [upgrade(item) for item in node]
    if not isinstance(node, dict):
        return node
    upgraded = {key: upgrade(value) for key, value in node.items()}
    if isinstance(upgraded.get("_target_"), str):
        upgraded["_target_"] = target(upgraded["_target_"])
    if "batch_norm" in upgraded and str(upgraded.get("_target_")) in NETWORKS:
        upgraded["norm"] = "batch" if upgraded.pop("batch_norm") else "none"
    return upgraded


def upgrade_run(config: dict[str, Any]) -> dict[str, Any]:
    """Turns the config of a run of any version into one of today's: names of classes, and parts that are new."""
    config = upgrade(config)
    model = config.get("model")
    if not isinstance(model, dict):
        return config
    for name, part in PARTS.get(str(model.get("_target_")), {}).items():
        if name not in model:
            part = dict(part)
            if isinstance(part.get("dim"), str):
                part["dim"] = model.get(part["dim"])
            model[name] = part
            config.setdefault(name, part)
    for name in LATER_PARTS:
        config.setdefault(name, {})
    config.setdefault("augment", {})
    if isinstance(config.get("dataset"), dict):
        config["dataset"] = {"leave_out": None, "balance": False, "labelled": None} | config["dataset"]
    config.setdefault("lr_factor", {"encoder": 1.0, "decoder": 1.0})
    config.setdefault("cuda_graph", False)
    config.setdefault("matmul_precision", "highest")
    return config


def former_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of a run, by key, that have a value which was the default when it may have begun."""
    model = config["model"]
    known = DEFAULTS.get(target(str(model.get("_target_"))), {})
    return {f"model.{name}": value for name, value in known.items() if model.get(name) == value}


def upgrade_tensors(state: dict[str, Any]) -> dict[str, Any]:
    """Returns a model's state with today's names of tensors."""
    return {TENSORS.get(name, name): value for name, value in state.items()}
