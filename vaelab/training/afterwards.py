"""A prior that is fitted after a training, in the same command: `vaelab train model=vqvae prior=pixelcnn`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaelab.core.conf import CONF, target_names
from vaelab.core.config import target_of
from vaelab.core.errors import UserError
from vaelab.inference import fitting
from vaelab.runs import priors

if TYPE_CHECKING:
    import torch

    from vaelab.datasets.base import ImageData
    from vaelab.models import Model

log = logging.getLogger("vaelab")


def asked(config: dict[str, Any]) -> fitting.Asked | None:
    """What a training's config asks to be fitted afterwards, as `vaelab prior` would by itself; None for nothing."""
    import yaml

    node = config["prior"]
    if not node or "prior" in config["model"] or not getattr(target_of(node, "prior"), "afterwards", False):
        return None
    usual = yaml.safe_load((CONF / "prior.yaml").read_text())
    name = target_names().get(node["_target_"]) or str(node["_target_"]).rpartition(".")[2].lower()
    return fitting.Asked(name, node, usual["of"], usual["max_images"], usual["seed"])


def check(config: dict[str, Any], model: Model) -> None:
    """Raises UserError for a prior that does not fit the codes of a model that is about to be trained."""
    if wanted := asked(config):
        fitting.require(target_of(wanted.node, "prior"), wanted.name, model)


def fit(config: dict[str, Any], run: Path, model: Model, data: ImageData, device: torch.device) -> None:
    """Fits what is asked for to the best checkpoint of a finished run, and has the model draw from it.

    The run is complete by now, and a prior that cannot be fitted does not undo it.
    """
    wanted = asked(config)
    if wanted is None:
        return
    from vaelab.runs.trained import Trained

    try:
        trained = Trained(run, device=str(device), trust=True)
        trained.data = data
        model.draw_from(fitting.fit(trained, wanted))
    except UserError as error:
        log.warning("the prior was not fitted: %s\ntry again: %s", error, priors.command(run, wanted.name, "best"))
