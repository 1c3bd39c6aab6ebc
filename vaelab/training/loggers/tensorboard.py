"""The logger to TensorBoard."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from vaelab.core.errors import require


class TensorBoard(TensorBoardLogger):
    """A logger to TensorBoard event files in the run folder.

    run: the run folder.
    """

    def __init__(self, run: Path):
        super().__init__(run, name="tensorboard", version="")

    @staticmethod
    def require() -> None:
        """Raises UserError if TensorBoard is not installed."""
        require("tensorboard", "logger=tensorboard", "tensorboard")

    @rank_zero_only
    def log_picture(self, name: str, picture: Tensor, step: int) -> None:
        self.experiment.add_image(f"pictures/{name}", picture.numpy(), step, dataformats="HWC")

    @rank_zero_only
    def log_bars(self, name: str, values: Tensor, step: int) -> None:
        counts = values.double()
        index = [float(i) for i in range(len(counts))]
        self.experiment.add_histogram_raw(
            f"histograms/{name}",
            min=0.0,
            max=float(len(counts)),
            num=float(counts.sum()),
            sum=float((counts * counts.new_tensor(index)).sum()),
            sum_squares=float((counts * counts.new_tensor(index).square()).sum()),
            bucket_limits=[i + 0.5 for i in index],
            bucket_counts=counts.tolist(),
            global_step=step,
        )
