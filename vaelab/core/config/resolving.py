"""Computes the values of a composed config that are written in terms of others."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import OmegaConf

from vaelab.core.errors import UserError
from vaelab.core.renames import upgrade_run

SECRET = re.compile(r"KEY$|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
"""Pattern in the names of environment variables whose values are nobody else's business."""
SHORT = 8
"""Characters of a value that is too short to be a secret, and may stand in a config by chance."""


def _of_list(function: Callable[[Sequence[Any]], Any]) -> Callable[[Any], Any]:
    """Makes a function of lists of numbers give None for anything else, which the check refuses where it stands."""

    def computed(values: Any) -> Any:
        proper = isinstance(values, Sequence) and all(isinstance(value, int | float) for value in values)
        return function(values) if proper else None

    return computed


def _power(base: Any, exponent: Any) -> Any:
    """Computes a power of whole numbers; None for anything else, and for what is beyond all sizes."""
    proper = isinstance(base, int) and isinstance(exponent, int) and 0 <= exponent < 64
    return base**exponent if proper else None


# YAML computes sizes with these, as in ${product:${codebook.levels}} and ${power:2,${codebook.bits}}
OmegaConf.register_new_resolver("product", _of_list(math.prod), replace=True)
OmegaConf.register_new_resolver("length", _of_list(len), replace=True)
OmegaConf.register_new_resolver("power", _power, replace=True)


def resolved(config: Any) -> dict[str, Any]:
    """Returns a composed config as plain containers, with today's names of classes.

    Raises what OmegaConf does for `???`.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    _refuse_secrets(plain, "")
    return upgrade_run(plain)


def _refuse_secrets(node: Any, key: str) -> None:
    """Raises UserError if a secret of the environment stands in a config, which goes into files and reports."""
    if isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            _refuse_secrets(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, str):
        for name, value in os.environ.items():
            if len(value) >= SHORT and value in node and SECRET.search(name):
                raise UserError(
                    f"{key}: it holds the value of the environment variable {name}, which would stand in config.yaml "
                    "and the report: leave it out"
                )
