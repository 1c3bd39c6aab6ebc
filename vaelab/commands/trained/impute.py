"""`vaelab impute` fills in what is missing of a table or of arrays, by a model that was trained with it missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from vaelab.commands import command
from vaelab.commands.trained import own_tables, viewing
from vaelab.core.errors import UserError
from vaelab.core.types import AskedLabel, Seed

if TYPE_CHECKING:
    from torch import Tensor

    from vaelab.runs.trained import Trained


class Options(NamedTuple):
    """The keys of conf/impute.yaml, which explains them."""

    run: str
    checkpoint: Literal["best", "last"]
    device: str
    input: str
    out: str
    label: AskedLabel | None
    draws: Annotated[int, Field(ge=1, le=10**6)]
    seed: Seed
    trust: bool


def main(arguments: list[str]) -> int:
    """Runs `vaelab impute` with these arguments. Returns the exit code."""
    return command.single("impute", job, arguments)


def job(config: Any) -> None:
    """Hydra's job: checks what is asked, fills in, writes the file and says how much was missing."""
    from vaelab.core.config import options

    asked = options(Options, config)
    if not Path(asked.input).expanduser().is_file():
        raise UserError(f"input={asked.input}: there is no such file")
    from vaelab.runs.trained import Trained

    trained = Trained(asked.run, asked.checkpoint, asked.device, trust=asked.trust)
    if not trained.model.likelihood.missing:
        raise UserError(
            f"run={asked.run}: it was trained on whole examples: train with dataset=table or arrays and "
            "dataset.missing=mask"
        )
    label = viewing.label_of(trained, asked.label)
    missing, total = (_table if trained.fields is not None else _array)(trained, asked, label)
    print(f"{missing:,} of {total:,} values filled in by {trained.folder} ({trained.checkpoint} checkpoint)")
    print(f"filled in: {asked.out}")


def _table(trained: Trained, asked: Options, label: Tensor | None) -> tuple[int, int]:
    """Fills a CSV in; what was there, and columns that the run does not know, stay as they are."""
    import numpy as np

    from vaelab.datasets.own.table import absent
    from vaelab.inference import imputation

    if not own_tables.is_table(asked.out):
        raise UserError(f"out={asked.out}: name a file that ends in .csv")
    rows = own_tables.read(trained, asked.input, "input", label)
    filled = own_tables.columns(
        trained, imputation.impute(trained.model, rows.x, rows.labels, asked.draws, asked.seed), None
    )
    table, missing, total = dict(rows.cells), 0, 0
    for name, made in filled.items():
        holes = absent(table[name])
        missing, total = missing + int(holes.sum()), total + len(holes)
        if table[name].dtype.kind == "f" and made.dtype.kind not in "US":
            table[name] = np.where(holes, made, table[name])
        else:
            table[name] = np.where(holes, made.astype(object), table[name].astype(object))
    own_tables.write(Path(asked.out).expanduser(), table)
    return missing, total


def _array(trained: Trained, asked: Options, label: Tensor | None) -> tuple[int, int]:
    """Fills an array in, an .npy file."""
    import numpy as np

    from vaelab.core.config import build
    from vaelab.core.files import whole
    from vaelab.inference import imputation
    from vaelab.nn.conditions import for_all

    out = Path(asked.out).expanduser()
    if out.suffix != ".npy":
        raise UserError(f"out={asked.out}: name a file that ends in .npy")
    data: Any = build(trained.dataset | {"root": asked.input})
    seen, array = data.images_of(trained.model.shape, "input")
    labels = None if label is None else for_all(label, len(seen))
    if trained.model.conditional and labels is None:
        raise UserError(f"label: the model takes one: give {trained.model.condition.example}, say, for all of the file")
    filled = imputation.impute(trained.model, seen, labels, asked.draws, asked.seed)
    holes = np.isnan(array)
    with whole(out) as partial, partial.open("wb") as file:
        np.save(file, np.where(holes, data.values_of(filled), array))
    return int(holes.sum()), holes.size
