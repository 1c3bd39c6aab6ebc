"""What happens around the training steps: schedules, learning rates, warnings, pictures, the progress bar."""

from vaelab.callbacks.anneal import Anneal, LearningRate, Plateau
from vaelab.callbacks.checkpoint import EMA, LastOnException, RunCheckpoint, WholeFile
from vaelab.callbacks.health import Health
from vaelab.callbacks.pictures import Pictures
from vaelab.callbacks.progress import ProgressLine
from vaelab.callbacks.prune import Prune
from vaelab.callbacks.vectors import KLPerDimension

__all__ = [
    "EMA",
    "Anneal",
    "Health",
    "KLPerDimension",
    "LastOnException",
    "LearningRate",
    "Pictures",
    "Plateau",
    "ProgressLine",
    "Prune",
    "RunCheckpoint",
    "WholeFile",
]
