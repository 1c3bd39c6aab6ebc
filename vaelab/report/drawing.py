"""What is drawn of a run beside the gallery's figures, and as which files: the section `figures` of a config."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vaelab.core.config import build, check
from vaelab.core.errors import UserError
from vaelab.core.own import traceback_of
from vaelab.core.randomness import seeded
from vaelab.inference.batches import evaluating
from vaelab.report import pictures
from vaelab.runs import Files, gate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vaelab.report.scene import Scene

log = logging.getLogger("vaelab")
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

        for name, node in self.own.items():
            try:
                with evaluating(scene.model), seeded(seed, scene.model.device):
                    figure = build(node | {"_partial_": True})(scene)
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


def of_config(figures: dict[str, Any]) -> Drawing:
    """Reads the section of a config."""
    for name in figures["own"]:
        if not re.fullmatch(r"\w+", name):
            raise UserError(f"figures.own.{name}: it names a file: take letters, digits and _")
    kinds = figures["format"]
    return Drawing(tuple(kinds) if isinstance(kinds, list) else (kinds,), dict(figures["own"]))


def of_run(folder: Path, config: dict[str, Any], trust: bool) -> Drawing:
    """Reads what a run's config says; the user's own figures only if they are trusted, and says which are not drawn."""
    figures = config.get("figures") or {"format": "png", "own": {}}
    drawing = of_config(figures)
    refused = {} if trust else {n: d for n, node in drawing.own.items() if (d := next(gate.deeds(node), None))}
    for name, deed in refused.items():
        print(f"figures/{name}.png is left as it is: {Files(folder).config} {deed.does} for it; trust=true does so")
    return drawing._replace(own={name: node for name, node in drawing.own.items() if name not in refused})


def check_figures(figures: dict[str, Any]) -> None:
    """Raises UserError for a figure of one's own that has the name of another, or cannot be imported."""
    for name, node in of_config(figures).own.items():
        if name in KNOWN:
            raise UserError(f"figures.own.{name}: vaelab draws a figure of this name: choose another")
        check(node | {"_partial_": True}, f"figures.own.{name}")
