"""Weights of networks that others have trained, from files that the user names: read, never downloaded or executed."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import torch
from torch import Tensor

from vaelab.core.errors import UserError


def read(path: str | Path, key: str) -> dict[str, Tensor]:
    """Reads a file of torch.save with tensors by name, to the processor. Raises UserError for any other.

    key: what the user knows the path as.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{key}={path}: there is no such file: name that of the network's weights")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{key}={path}: it is damaged, or holds more than tensors: give a file of weights") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{key}={path}: it holds no tensors by their names, as a network's state_dict does")
    return state


def fingerprint(path: str | Path) -> str:
    """A hash of a file's content, 16 hexadecimal digits."""
    return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()[:16]
