"""`vaelab report`: redraws the figures of a run or a sweep, and writes report.html into its folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vaelab import command
from vaelab.errors import UserError

if TYPE_CHECKING:
    from vaelab.trained import Trained

IMAGES = 1000
"""Test images, at most, that tell the explorer how much each dimension or code is used."""


class Options(NamedTuple):
    """The keys of conf/report.yaml."""

    run: str
    checkpoint: Literal["best", "last"]
    root: str | None
    device: str
    figures: bool
    out: str | None


def main(arguments: list[str]) -> int:
    """Runs `vaelab report` with these arguments. Returns the exit code."""
    return command.single("report", job, arguments)


def job(config: Any) -> None:
    """Hydra's job: checks what is asked, draws, writes the page and prints where it is."""
    from vaelab import page, runs
    from vaelab.config import options
    from vaelab.page import sweep

    asked = options(Options, config)
    folder = Path(asked.run)
    several = asked.run != "last" and sweep.is_sweep(folder)
    folder = folder if several else runs.find(asked.run)
    out = _place(asked.out, folder)
    text = _of_sweep(folder, asked.figures, out) if several else _of_run(folder, asked)
    page.save(out, text)
    print(f"report: {out}")


def _place(out: str | None, folder: Path) -> Path:
    """Where the page goes. Raises UserError if it cannot."""
    path = folder / "report.html" if out is None else Path(out)
    key = f"out={path}"
    if path.suffix not in (".html", ".htm"):
        raise UserError(f"{key}: name a file that ends in .html")
    if not path.parent.is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{key}: must be a file in a folder that exists and can be written to")
    return path


def _of_sweep(folder: Path, figures: bool, out: Path) -> str:
    from vaelab.page import sweep

    if figures:
        sweep.draw(folder)
    return sweep.build(folder, out.parent)


def _of_run(folder: Path, asked: Options) -> str:
    """The page of a run; of one without a checkpoint, with the figures that are there."""
    from vaelab.page import run

    if not any(folder.glob("checkpoints/*.ckpt")):
        print(f"{folder} has no checkpoint: its figures are left as they are")
        return run.build(folder, None)
    from vaelab.trained import Trained

    trained = Trained(folder, asked.checkpoint, asked.device, asked.root)
    if asked.figures:
        from vaelab import gallery

        gallery.redraw(trained)
    return run.build(folder, explored(trained))


def explored(trained: Trained) -> dict[str, Any] | None:
    """What the page's explorer shows of a trained run."""
    import torch

    try:
        from vaelab.page import explorer
    except ImportError:  # until it is there
        return None

    part = "test" if len(trained.data.test) else "train"
    batch = trained.batch(part, torch.arange(min(IMAGES, len(trained.split(part)))))
    return explorer.payload(trained.model, batch.images, batch.labels, trained.pixel_range)
