"""`vaelab interpolate` goes from one image to another through the latent space, or between four."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from vaelab.commands import command
from vaelab.commands.trained import viewing
from vaelab.core.errors import UserError
from vaelab.core.types import AskedLabel

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from vaelab.runs.trained import Trained

MODES = {"both": ["linear", "spherical"], "linear": ["linear"], "spherical": ["spherical"]}


@dataclass(frozen=True)
class Options(viewing.Options):
    """The keys of conf/interpolate.yaml; `from` is no name in Python, and `start` here."""

    start: Any
    to: Any
    steps: Annotated[int, Field(ge=2, le=101)]
    mode: Literal["both", "linear", "spherical"]
    corners: Any
    label: AskedLabel | None
    resize: bool


def main(arguments: list[str]) -> int:
    """Runs `vaelab interpolate` with these arguments. Returns the exit code."""
    return command.single("interpolate", job, arguments)


def job(config: Any) -> Path:
    """Hydra's job: checks what is asked, walks between the codes, draws, and says which images. Returns the path."""
    asked = _options(config)
    viewing.check_figure(asked.out)
    wanted = _wanted(asked)
    trained = viewing.opened(asked)
    viewing.require_pictures(trained, "interpolate")
    trained.model.layout.require_axes(type(trained.model).__name__, "interpolate")
    label = viewing.label_of(trained, asked.label)
    path = viewing.destination(asked.out, trained.folder, "interpolate")

    import torch

    from vaelab.figures import style
    from vaelab.inference import coding, paths

    chosen = [viewing.choose(trained, asked.split, [item], key, label, asked.resize) for key, item in wanted]
    codes = torch.cat([coding.codes(trained.model, one.images, one.labels) for one in chosen])
    labels = chosen[0].labels if label is None else label
    labels = labels if trained.model.conditional else None
    style.save(_drawing(trained, asked, torch.cat([one.images for one in chosen]), codes, labels), path)
    for number, one in enumerate(chosen):
        _, used = paths.usage(trained.model, one.images, one.labels)
        kl = f", KL {used.values.sum():.2f} nats" if used.word == "KL" else ""
        apart = f", {_apart(codes[0], codes[number])}" if number else ""
        print(f"{one.names[0]}{kl}, |z| {codes[number].norm():.2f}{apart}")
    if labels is not None:
        print(f"decoded as {viewing.words_of(trained, labels)} throughout; label= chooses another")
    print(f"figure: {path}")
    return path


def _options(config: Any) -> Options:
    from omegaconf import OmegaConf

    from vaelab.core.config import options

    given: Any = OmegaConf.to_container(config, resolve=True)
    return options(Options, OmegaConf.create(given | {"start": given.pop("from")}))


def _wanted(asked: Options) -> list[tuple[str, int | str]]:
    """Returns the images to go between, each with the key that names it. Raises UserError if that is impossible."""
    if asked.corners is None:
        return [("from", viewing.one_image(asked.start, "from")), ("to", viewing.one_image(asked.to, "to"))]
    four = viewing.images_named(asked.corners, "corners")
    if len(four) != 4:
        raise UserError(f"corners={asked.corners}: four images are wanted, as in corners=[0,1,2,3]")
    return [("corners", item) for item in four]


def _drawing(trained: Trained, asked: Options, images: Tensor, codes: Tensor, labels: Tensor | None) -> Any:
    """Draws the paths between two images and their codes, [2, d], or the grid between four, [4, d]."""
    import torch

    from vaelab.figures import walks
    from vaelab.inference import coding, paths

    model, pixel_range = trained.model, trained.pixel_range
    if len(codes) == 4:
        grid = paths.between_four(codes, asked.steps)
        return walks.between_four(
            coding.decode(model, grid.flatten(0, 1), labels, pixel_range).unflatten(0, grid.shape[:2])
        )
    modes, ends = MODES[asked.mode], trained.unit(images).cpu()
    rows = [
        paths.interpolate(model, codes[0], codes[1], asked.steps, mode == "spherical", labels, pixel_range)
        for mode in modes
    ]
    return walks.interpolations(torch.stack([torch.cat([ends[:1], row, ends[1:]]) for row in rows]), modes)


def _apart(a: Tensor, b: Tensor) -> str:
    """Words the distance and angle between codes."""
    import torch

    angle = torch.rad2deg(torch.cosine_similarity(a, b, 0).clamp(-1, 1).acos())
    return f"{(a - b).norm():.2f} and {angle:.0f}° from the first"
