"""Callbacks around the training steps: schedules, learning rates, warnings, pictures, the progress bar."""

from vaelab.training.callbacks.anneal import Anneal, EarlyStopping, LearningRate, Plateau
from vaelab.training.callbacks.checkpoint import EMA, RunCheckpoint, WholeFile
from vaelab.training.callbacks.health import Health
from vaelab.training.callbacks.last import KeepLast
from vaelab.training.callbacks.pictures import Pictures
from vaelab.training.callbacks.progress import ProgressLine
from vaelab.training.callbacks.prune import Prune
from vaelab.training.callbacks.vectors import EpochVector

__all__ = [
    "EMA",
    "Anneal",
    "EarlyStopping",
    "EpochVector",
    "Health",
    "KeepLast",
    "LearningRate",
    "Pictures",
    "Plateau",
    "ProgressLine",
    "Prune",
    "RunCheckpoint",
    "WholeFile",
]
