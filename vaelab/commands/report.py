"""`vaelab report` redraws the figures of a run or a sweep, and writes report.html into its folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

from vaelab.commands import command
from vaelab.core.errors import UserError
from vaelab.runs import Files
from vaelab.training.options import Format, Node


class Figures(TypedDict):
    """Whether figures are drawn, as which files, and which of the user's own; null for what the run's config says."""

    draw: bool
    format: Format | list[Format] | None
    own: dict[str, Node]


class Options(NamedTuple):
    """The keys of conf/report.yaml."""

    run: str
    checkpoint: Literal["best", "last"]
    root: str | None
    device: str
    figures: bool | dict[str, Any]
    out: str | None
    trust: bool
    prior: dict[Literal["name"], str | None]


def main(arguments: list[str]) -> int:
    """Runs `vaelab report` with these arguments. Returns the exit code."""
    return command.single("report", job, [command.prior_named(argument) for argument in arguments])


def job(config: Any) -> Path:
    """Hydra's job: checks what is asked, draws, writes the page, prints where it is, and returns that."""
    from vaelab import runs
    from vaelab.core.config import check_keys, options
    from vaelab.report import build, page

    asked = options(Options, config)
    said: dict[str, Any] = asked.figures if isinstance(asked.figures, dict) else {"draw": asked.figures}
    check_keys(Figures, said, "figures")
    figures = {"draw": True, "format": None, "own": {}} | said
    kinds = figures["format"] or ()
    formats = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if figures["own"]:
        build.check_figures(figures)
    folder = Path(asked.run)
    several = asked.run != "last" and runs.is_sweep(folder)
    folder = folder if several else runs.find(asked.run)
    out = _place(asked.out, folder)
    if several:
        if asked.prior["name"] is not None:
            raise UserError(f"prior={asked.prior['name']}: {folder} is a sweep: name one of its runs")
        build.of_sweep(folder, out, figures["draw"], formats)
    elif Files(folder).saved:
        given = asked.checkpoint, asked.device, asked.root, figures["draw"], asked.trust, asked.prior["name"]
        build.of_folder(folder, out, *given, formats, figures["own"])
    else:
        from vaelab.report import run

        print(f"{folder} has no checkpoint: its figures are left as they are")
        page.save(out, run.build(folder, None))
    print(f"report: {out}")
    return out


def _place(out: str | None, folder: Path) -> Path:
    """Returns the path of the page. Raises UserError if it cannot be written there."""
    path = Files(folder).report if out is None else Path(out)
    key = f"out={path}"
    if path.suffix not in (".html", ".htm"):
        raise UserError(f"{key}: name a file that ends in .html")
    if not path.parent.is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{key}: must be a file in a folder that exists and can be written to")
    return path
