"""Makes all figures and the page of a run or a sweep into its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaelab import runs
from vaelab.report import drawing as drawings
from vaelab.report.drawing import PLAIN, Drawing
from vaelab.runs import Files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vaelab.datasets.base import ImageData
    from vaelab.models import Model

IMAGES = 1000
"""Most images from which the explorer learns how much each dimension or code is used."""


def of_folder(
    folder: Path,
    out: Path,
    checkpoint: str = "best",
    device: str = "cpu",
    root: str | None = None,
    figures: bool = True,
    trust: bool = False,
    prior: str | None = None,
    formats: tuple[str, ...] = (),
    own: dict[str, Any] | None = None,
) -> None:
    """Draws the figures and writes the page of a run folder that has a checkpoint, as `of_run` does.

    prior: one that was fitted to the run, from which samples are drawn; None for the model's own, or the one that was
    fitted to a model whose own only stands in for it. formats, own: of figures, beside what the run's config says.
    """
    from vaelab.runs import priors
    from vaelab.runs.trained import Trained

    trained = Trained(folder, checkpoint, device, root, prior, trust)
    if prior is None:
        taken = priors.stand_in(trained.folder, trained.model, trained.checkpoint)
        if figures and taken.words and Files(trained.folder).fitted:
            print(taken.words)
    said = drawings.of_run(folder, trained.config, trust) if figures else PLAIN
    drawing = Drawing(formats or said.formats, said.own | (own or {}))
    of_run(folder, trained.model, trained.data, out, figures, drawing)


def of_run(
    run: Path,
    model: Model,
    data: ImageData,
    out: Path,
    figures: bool = True,
    drawing: Drawing = PLAIN,
) -> dict[str, Figure]:
    """Draws the figures of a run, unless `figures` is False, and writes its page. Returns what was drawn.

    model, data: the run's, the data set up. A model with NaN or infinite numbers gets its learning curves alone.
    """
    from vaelab.report import explorer, gallery, page
    from vaelab.report.run import build

    shown = data.sample_batch(IMAGES, model.device)
    content = explorer.payload(model, shown.images, shown.labels, data.pixel_range, data.class_names)
    drawn, rows = {}, runs.read_metrics(run)
    if figures and content is not None:
        drawn = gallery.redraw(run, model, data, rows, drawing)
    elif figures:
        drawn = dict(gallery.draw_curves(run, rows))
        for name, figure in drawn.items():
            drawing.save(figure, Files(run).figure(name))
    shows = data.fields is None and data.shape[0] in (1, 3)  # what the explorer can draw
    page.save(out, build(run, content if shows else None, sound=content is not None))
    return drawn


def of_sweep(sweep: Path, out: Path, figures: bool = True, formats: tuple[str, ...] = ()) -> None:
    """Draws the figures of a sweep, unless `figures` is False, and writes its page."""
    from vaelab.report import page
    from vaelab.report.sweep import build, draw

    if figures:
        draw(sweep, formats)
    page.save(out, build(sweep, out.parent))
