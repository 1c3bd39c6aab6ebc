"""What the terminal shows: the lab's messages, not the libraries' hints."""

from __future__ import annotations

import logging
import warnings

from tqdm import tqdm

NOISE = (
    ".*does not have many workers.*",
    ".*The number of training batches.*is smaller than the logging interval.*",
    ".*You defined a `validation_step` but have no `val_dataloader`.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Total length of `list` across ranks is zero.*",
    ".*isinstance\\(treespec, LeafSpec\\).*",
    ".*LeafSpec.*is deprecated.*",
    ".*no `val_dataloader`.*",
    ".*You have overridden `on_before_batch_transfer`.*",
    ".*your dataloader is not resumable.*",
)
"""Patterns of warnings that say nothing about the user's run."""

LOUD = (
    "pytorch_lightning",
    "pytorch_lightning.utilities.rank_zero",
    "lightning_fabric",
    "lightning.fabric",
    "torch.utils.cpp_extension",
)
"""Loggers whose hints and device listings are silenced."""


def quieten() -> None:
    """Silences hints and device listings that say nothing about the user's run."""
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.ERROR if name.startswith("torch.") else logging.WARNING)
    for message in NOISE:
        warnings.filterwarnings("ignore", message)


class Terminal(logging.Handler):
    """Prints messages above the progress bar; warnings are marked."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        tqdm.write(f"{mark}{record.getMessage()}")
