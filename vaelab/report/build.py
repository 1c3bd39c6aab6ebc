"""Makes all figures and the page of a run or a sweep into its folder."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vaelab import runs
from vaelab.core.config import build as made_of
from vaelab.core.config import check
from vaelab.core.errors import UserError
from vaelab.core.own import traceback_of
from vaelab.report import pictures
from vaelab.runs import Files, gate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vaelab.datasets.base import ImageData
    from vaelab.models import Model
    from vaelab.report.scene import Scene

IMAGES = 1000
"""Most images from which the explorer learns how much each dimension or code is used."""
log = logging.getLogger("vaelab")
UNSAID = {"format": "png", "own": {}}
"""The section of a run that began before there was one."""
KNOWN = {*pictures.COMMANDS, *(name for texts in pictures.CAPTIONS.values() for name in texts)}
"""Names of vaelab's own figures."""


class Drawing(NamedTuple):
    """How figures are drawn. formats: of their files; pages take the PNG, which is always there.

    own: config nodes of a user's own functions from a `Scene` to a figure of matplotlib, by the name of the file.
    """

    formats: tuple[str, ...] = ()
    own: dict[str, dict[str, Any]] = {}

    def save(self, figure: Figure, path: Path, about: str | None = None) -> None:
        """Saves a figure as a PNG at `path`, and beside it in the other formats."""
        from vaelab.figures import style

        for kind in dict.fromkeys(("png", *self.formats)):
            style.save(figure, path.with_suffix(f".{kind}"), about)

    def draw_own(self, scene: Scene, seed: int) -> Iterator[tuple[str, Figure]]:
        """Draws the user's own figures. One that fails is told, with the lines of its code, and the others go on."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from vaelab.core.randomness import seeded
        from vaelab.inference.batches import evaluating

        for name, node in self.own.items():
            try:
                with evaluating(scene.model), seeded(seed, scene.model.device):
                    figure = made_of(node | {"_partial_": True})(scene)
                if not isinstance(figure, Figure):
                    raise TypeError(
                        f"{node['_target_']} must return a matplotlib Figure, and gives {type(figure).__name__}"
                    )
            except Exception as error:
                lines = traceback_of(error) or f"{type(error).__name__}: {error}"
                log.warning(
                    "figures.own.%s could not be drawn\n%s", name, lines, exc_info=error if log.handlers else None
                )
                continue
            if not hasattr(figure.canvas, "buffer_rgba"):
                FigureCanvasAgg(figure)
            yield name, figure


PLAIN = Drawing()


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
    said = drawing_of(folder, trained.config, trust) if figures else PLAIN
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
        drawn = redraw(run, model, data, rows, drawing)
    elif figures:
        drawn = dict(gallery.draw_curves(run, rows))
        for name, figure in drawn.items():
            drawing.save(figure, Files(run).figure(name))
    shows = data.fields is None and data.shape[0] in (1, 3) and data.shape[1] > 1  # what the explorer can draw
    page.save(out, build(run, content if shows else None, sound=content is not None))
    return drawn


def of_sweep(sweep: Path, out: Path, figures: bool = True, formats: tuple[str, ...] = ()) -> None:
    """Draws the figures of a sweep, unless `figures` is False, and writes its page."""
    from vaelab.report import page
    from vaelab.report.sweep import build, draw

    if figures:
        draw(sweep, formats)
    page.save(out, build(sweep, out.parent))


def redraw(
    run: Path, model: Model, data: ImageData, rows: list[dict[str, float]], drawing: Drawing = PLAIN
) -> dict[str, Figure]:
    """Draws all figures of a run and saves them into its folder, the user's own last. rows: of metrics.csv.

    Each is saved as soon as it is drawn: those before one that fails are there. Where samples are drawn from a prior
    that was fitted afterwards, each says so in its file. What a former prior had a figure for, and this one has not,
    is removed.
    """
    from vaelab.report import discrete, gallery
    from vaelab.report.scene import FEW, SEED, Scene

    figures, fitted = {}, discrete.fitted(model)
    own = drawing.draw_own(Scene(model, data, FEW), SEED)
    for name, figure in chain(
        gallery.draw_curves(run, rows), gallery.draw_evaluated(run), gallery.draw(model, data), own
    ):
        drawing.save(figure, Files(run).figure(name), fitted and fitted.words)
        figures[name] = figure
    for name in gallery.FIGURES.keys() - figures.keys():
        Files(run).figure(name).unlink(missing_ok=True)
    return figures


# --- what a config says of figures ----------------------------------------------------------


def drawing_in(figures: dict[str, Any]) -> Drawing:
    """Reads the section of a config."""
    for name in figures["own"]:
        if not re.fullmatch(r"\w+", name):
            raise UserError(f"figures.own.{name}: it names a file: take letters, digits and _")
    kinds: str | list[str] = figures["format"] or []
    return Drawing(tuple(kinds) if isinstance(kinds, list) else (kinds,), dict(figures["own"]))


def drawing_of(folder: Path, config: dict[str, Any], trust: bool) -> Drawing:
    """Reads what a run's config says; the user's own figures only if they are trusted, and says which are not drawn."""
    drawing = drawing_in(config.get("figures") or UNSAID)
    refused = {} if trust else {n: d for n, node in drawing.own.items() if (d := next(gate.deeds(node), None))}
    for name, deed in refused.items():
        print(f"figures/{name}.png is left as it is: {Files(folder).config} {deed.does} for it; trust=true does so")
    return drawing._replace(own={name: node for name, node in drawing.own.items() if name not in refused})


def check_figures(figures: dict[str, Any]) -> None:
    """Raises UserError for a figure of one's own that has the name of another, or cannot be imported."""
    for name, node in drawing_in(figures).own.items():
        if name in KNOWN:
            raise UserError(f"figures.own.{name}: vaelab draws a figure of this name: choose another")
        check(node | {"_partial_": True}, f"figures.own.{name}")
