"""`vaelab report`: redraws the figures of a run or a sweep, and writes report.html into its folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vaelab import command
from vaelab.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = 1000
"""Images, at most, that tell the explorer how much each dimension or code is used."""


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
    from vaelab.page import swept

    asked = options(Options, config)
    folder = Path(asked.run)
    several = asked.run != "last" and swept.is_sweep(folder)
    folder = folder if several else runs.find(asked.run)
    out = _place(asked.out, folder)
    if several:
        of_sweep(folder, out, asked.figures)
    elif any(folder.glob("checkpoints/*.ckpt")):
        of_folder(folder, out, asked.checkpoint, asked.device, asked.root, asked.figures)
    else:
        from vaelab.page import run

        print(f"{folder} has no checkpoint: its figures are left as they are")
        page.save(out, run.build(folder, None))
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


def of_folder(
    folder: Path,
    out: Path,
    checkpoint: str = "best",
    device: str = "cpu",
    root: str | None = None,
    figures: bool = True,
) -> None:
    """`of_run` of a run folder that has a checkpoint."""
    from vaelab.trained import Trained

    trained = Trained(folder, checkpoint, device, root)
    of_run(folder, trained.model, trained.data, out, figures)


def of_run(run: Path, model: Any, data: Any, out: Path, figures: bool = True) -> dict[str, Figure]:
    """Draws the figures of a run, unless those that are there serve, and writes its page. Returns what was drawn.

    model, data: the run's, the data set up. Of a model with NaN or infinite numbers, its learning curves alone.
    """
    from vaelab import gallery, page, runs
    from vaelab.figures import style
    from vaelab.page import explorer
    from vaelab.page.run import build

    shown = data.sample_batch(IMAGES, model.device)
    content = explorer.payload(model, shown.images, shown.labels, data.pixel_range)
    drawn, rows = {}, runs.read_metrics(run)
    if figures and content is not None:
        drawn = gallery.redraw(run, model, data, rows)
    elif figures:
        drawn = dict(gallery.draw_curves(rows, run / "kl_per_dim.csv"))
        for name, figure in drawn.items():
            style.save(figure, run / "figures" / f"{name}.png")
    page.save(out, build(run, content, sound=content is not None))
    return drawn


def of_sweep(sweep: Path, out: Path, figures: bool = True) -> None:
    """Draws the figures of a sweep, unless those that are there serve, and writes its page."""
    from vaelab import page
    from vaelab.page.sweep import build, draw

    if figures:
        draw(sweep)
    page.save(out, build(sweep, out.parent))
