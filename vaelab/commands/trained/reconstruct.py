"""`vaelab reconstruct` shows images, a model's reconstructions of them, and how far apart the two are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaelab.commands import command
from vaelab.commands.trained import own_tables, viewing
from vaelab.core.errors import UserError
from vaelab.core.types import AskedLabel, PositiveInt

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from vaelab.runs.trained import Trained

IN_A_FIGURE = 256
"""Most images of a figure, which shows each three times."""
BATCH = 256
"""Images of the split that are read together."""


@dataclass(frozen=True)
class Options(viewing.Options):
    """The keys of conf/reconstruct.yaml."""

    n: PositiveInt
    image: Any
    label: AskedLabel | None
    resize: bool


def main(arguments: list[str]) -> int:
    """Runs `vaelab reconstruct` with these arguments. Returns the exit code."""
    return command.single("reconstruct", job, arguments)


def job(config: Any) -> Path:
    """Hydra's job: checks what is asked, reconstructs, writes, prints the errors. Returns the path."""
    import torch

    from vaelab.core.config import options

    asked = options(Options, config)
    kind = viewing.kind_of(asked.out)
    wanted = None if asked.image is None else viewing.images_named(asked.image, "image")
    _check(asked, kind, wanted)
    trained = viewing.opened(asked)
    label = viewing.label_of(trained, asked.label)
    if rows := viewing.of_rows(trained, asked, kind, "reconstruct"):
        return _rows(trained, asked, rows)
    path = viewing.destination(asked.out, trained.folder, "reconstruct")
    count, batches = _chosen(trained, asked, wanted, label)
    errors: list[Tensor] = []
    made = _made(trained, batches, errors)
    if kind == "figure":
        from vaelab.figures import images as figures
        from vaelab.figures import style

        originals, images, _ = zip(*made, strict=True)
        style.save(figures.reconstructions(torch.cat(originals), torch.cat(images)), path)
    else:
        viewing.write_images(path, kind, count, ((images, labels) for _, images, labels in made))
    mse = torch.cat(errors)
    statistics = {"mean": mse.mean(), "median": mse.quantile(0.5), "least": mse.min(), "greatest": mse.max()}
    print(f"mean squared error per pixel, black 0 and white 1, of {count:,} image{'s'[: count > 1]}")
    print("  ".join([f"  {name} {value:.5f}" for name, value in statistics.items()][: None if count > 1 else 1]))
    print(f"{kind}: {path}")
    return path


def _rows(trained: Trained, asked: Options, path: Path) -> Path:
    """Writes the mean row of each row's code; says the error of the standardised numbers. Returns the path."""
    import torch

    from vaelab.inference import coding

    if asked.image is not None:
        raise UserError("image=: the run is of a table, which has rows: leave it out, or use vaelab encode and decode")
    index = viewing.spread(trained, asked.split, asked.n)
    batch, model = trained.batch(asked.split, index), trained.model
    with torch.no_grad():
        raws = coding.raw(model, coding.codes(model, batch.images, batch.labels), batch.labels)
        made = torch.cat([model.likelihood.mean(raw).cpu() for raw in raws])
    own_tables.write(path, own_tables.columns(trained, made, batch.labels))
    error = (made - batch.images.cpu()).square().nanmean().item()
    print(f"mean squared error per number, as the model sees it, of {len(index):,} rows: {error:.5f}")
    print(f"table: {path}")
    return path


def _check(asked: Options, kind: str, wanted: list[int | str] | None) -> None:
    """Raises UserError for options that do not go together."""
    count, key = (asked.n, "n") if wanted is None else (len(wanted), "image")
    if kind == "figure" and count > IN_A_FIGURE:
        raise UserError(
            f"{key}: {count:,} images, and a figure holds {IN_A_FIGURE}: out=FOLDER/ or out=FILE.npz takes more"
        )
    if asked.label is not None and not any(isinstance(item, str) for item in wanted or []):
        raise UserError(f"label={asked.label}: it is the class of image files; images of the split have their own")


def _chosen(
    trained: Trained, asked: Options, wanted: list[int | str] | None, label: Tensor | None
) -> tuple[int, Iterable[Any]]:
    """Returns how many images there are, and batches of them, as the model sees them, with labels."""
    if wanted is None:
        index = viewing.spread(trained, asked.split, asked.n)
        return len(index), (trained.batch(asked.split, part) for part in index.split(BATCH))
    chosen = viewing.choose(trained, asked.split, wanted, "image", label, asked.resize)
    return len(wanted), [chosen]


def _made(
    trained: Trained, batches: Iterable[Any], errors: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yields originals and reconstructions as unit images, and labels; the error of each image goes to `errors`."""
    from vaelab.inference import coding

    model = trained.model
    for batch in batches:
        codes = coding.codes(model, batch.images, batch.labels)
        originals = trained.unit(batch.images).cpu()
        images = coding.decode(model, codes, batch.labels, trained.pixel_range)
        errors.append((images - originals).square().flatten(1).mean(1))
        yield originals, images, batch.labels
