"""What a logger may do beside taking metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class PictureLogger(Protocol):
    """A logger that also takes pictures and bars."""

    def log_picture(self, name: str, picture: Tensor, step: int) -> None:
        """Logs a picture, [H, W, 3] uint8."""
        ...

    def log_bars(self, name: str, values: Tensor, step: int) -> None:
        """Logs values as bars, one each, [n]."""
        ...


@runtime_checkable
class RunLogger(Protocol):
    """A logger that also keeps files of the finished run."""

    def log_run(self, run: Path) -> None:
        """Keeps files of a run folder that is complete, its report included."""
        ...
