"""`vaelab score` tells which of the user's own images a trained model finds unlike those it was trained on."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from vaelab.commands import command
from vaelab.commands.trained import own_images, own_tables, viewing
from vaelab.core.errors import UserError
from vaelab.core.files import whole
from vaelab.core.types import AskedLabel, PositiveInt
from vaelab.core.words import counted

if TYPE_CHECKING:
    from torch import Tensor

    from vaelab.datasets.images import Found
    from vaelab.runs.trained import Trained

MEMORY = 8 * 2**20
"""Bytes of decoded pixels held at a time: what a processor's cache takes."""


@dataclass(frozen=True)
class Options(viewing.Opening):
    """The keys of conf/score.yaml, which explains them."""

    input: str
    out: str
    n: Annotated[int, Field(ge=1, le=64)]
    importance_samples: PositiveInt
    resize: bool
    label: AskedLabel | None


def main(arguments: list[str]) -> int:
    """Runs `vaelab score` with these arguments. Returns the exit code."""
    return command.single("score", job, arguments)


def job(config: Any) -> dict[str, Path]:
    """Hydra's job: checks what is asked, scores the images, writes table and picture. Returns their paths."""
    from vaelab.core.config import options

    asked = options(Options, config)
    out = Path(asked.out).expanduser()
    if out.suffix != ".csv" or out.is_dir():
        raise UserError(f"out={asked.out}: scores are written to a file that ends in .csv, as in out=scores.csv")
    viewing.destination(asked.out, Path(), "")
    if not Path(asked.input).expanduser().exists():
        raise UserError(f"input={asked.input}: there is no such file or folder")
    from vaelab.datasets import images
    from vaelab.evaluation.scores import scored

    trained = viewing.opened(asked)
    label, rows = viewing.label_of(trained, asked.label), trained.fields is not None
    if rows:
        found, labels = (table := own_tables.read(trained, asked.input, "input", label)).found, table.labels
    else:
        found = images.find(asked.input, trained.model.shape, "input", asked.resize, trained.bits)
        labels = own_images.labels_of(found, trained, label)
    given = labels if trained.model.conditional else None
    batches = _batches(trained, found, given)
    unit = None if rows else trained.pixel_range
    columns = scored(trained.model, batches, unit, asked.importance_samples, MEMORY, asked.seed)
    if not all(values.isfinite().all() for values in columns.values()):
        raise UserError(
            f"checkpoint={trained.checkpoint}: scores by this model are NaN or infinite: take the other one"
        )
    order = columns["score"].argsort(descending=True, stable=True)
    _write(out, [found.names[i] for i in order], {name: values[order] for name, values in columns.items()})
    for i in order[:3].tolist():
        print(f"  {columns['score'][i]:.2f}  {found.names[i]}")
    what = "-log_p_hat" if "log_p_hat" in columns else "-log p(x|z)"
    print(f"{counted(len(order), 'row' if rows else 'image')} by {what}, nats, the least typical first: {out}")
    if rows:
        return {"scores": out}
    picture = out.with_suffix(".png")
    _draw(picture, trained, found, given, columns["score"], order, asked.n)
    print(f"figure: {picture}")
    return {"scores": out, "figure": picture}


def _batches(trained: Trained, found: Found, labels: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Reads the images a batch at a time, as the model sees them."""
    import torch
    from tqdm import tqdm

    from vaelab.inference.batches import batch_size

    parts = torch.arange(len(found.names)).split(batch_size(trained.model.shape))
    for index in tqdm(parts, desc="scoring", unit="batch", delay=2, leave=False, disable=None):
        yield _read(trained, found, index), None if labels is None else labels[index].to(trained.model.device)


def _read(trained: Trained, found: Found, index: Tensor) -> Tensor:
    from vaelab.datasets.images import as_model_sees

    x = found.split.batch(index).images.to(trained.model.device)
    return as_model_sees(x, trained.pixel_range, trained.dataset["binarize"] != "none")


def _write(out: Path, names: list[str], columns: dict[str, Tensor]) -> None:
    """Writes a row per file, whole or not at all."""
    with whole(out) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *columns])
        writer.writerows(zip(names, *(values.tolist() for values in columns.values()), strict=True))


def _draw(
    path: Path, trained: Trained, found: Found, labels: Tensor | None, scores: Tensor, order: Tensor, count: int
) -> None:
    """Draws the most and the least typical images with their reconstructions."""
    from vaelab.figures import anomalies, style
    from vaelab.inference import coding

    groups = []
    for index in (order.flip(0)[:count], order[:count]):
        x, given = _read(trained, found, index), None if labels is None else labels[index].to(trained.model.device)
        made = coding.decode(trained.model, coding.codes(trained.model, x, given), given, trained.pixel_range)
        groups.append((trained.unit(x).cpu(), made, [f"{scores[i]:.1f}" for i in index]))
    style.save(anomalies.extremes(groups[0], groups[1]), path)
