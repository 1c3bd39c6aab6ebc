"""Training from Python: the run folder, the checks and the figures are those of `vaelab train`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaelab.core.errors import UserError
from vaelab.lab import arguments
from vaelab.lab.run import Run

if TYPE_CHECKING:
    from vaelab.nn.modules import Maker


def train(
    data: Any = "digits",
    labels: Any = None,
    *,
    model: str | Mapping[str, Any] = "vae",
    test: Any = None,
    encoder: Maker | None = None,
    decoder: Maker | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Run:
    """Trains a model, writes its run folder, and returns the run, as `vaelab train` does.

    data: an array or a tensor, [N, D], [N, H, W] or [N, C, H, W], of 8 or 16 bits or of floats; a torch `Dataset`, or
    one of Hugging Face, whose items are images, pairs of an image and a label, or mappings; a data frame; a pair of
    arrays, or arrays by name (`x`, `labels`, `test_x`, `test_labels`); a folder of images; a file (.npy, .npz, .csv,
    .parquet, .vaelab); or the name of a data set (conf/dataset). What is in memory is kept in a file below outputs/
    arrays/, so that the run can be resumed and evaluated in another process. labels: [N], integers or names. test: what
    to test on, as `data`; taken out of `data` if None.
    model: a variant's name. encoder, decoder: modules of your own, or classes or functions that make them
    (`vaelab.nn.modules.Modules`). out: the run folder; a new one below outputs/ if None.
    options: any key of `vaelab train`, by its last name (`latent_dim=8`, `lr=1e-3`, `max_epochs=20`) or, where several
    sections have it, in a mapping of its section (`optimizer={"lr": 1e-3}`); groups by the name of an option
    (`likelihood="gaussian"`, `schedule="linear"`).
    Raises UserError for what is wrong with these, before any work, DivergenceError if a term becomes NaN or infinite.
    An interrupted training raises KeyboardInterrupt; `vaelab.open("last").resume()` goes on with it.
    """
    from vaelab.lab import data as sources

    given = sources.with_options(sources.options_of(data, labels, test), {"model": model} | options)
    parts = {name: part for name, part in {"encoder": encoder, "decoder": decoder}.items() if part is not None}
    if len(parts) == 1 or (parts and "network" in options):
        raise UserError("encoder=, decoder=: give both, and no network= beside them: they are the network")
    with _handed_over(parts) as words:
        words = [*arguments.of_training(given), *words, *arguments.of_command({"run.dir": out})]
        return Run(run(words), trust=True, parts=parts)


def run(words: list[str]) -> Path:
    """Trains as `vaelab train` with these arguments does, of one run. Returns the run folder."""
    from vaelab.commands import command
    from vaelab.commands import train as trainings

    return Path(command.invoke("train", trainings.job, trainings.for_hydra(words)))


@contextmanager
def _handed_over(parts: dict[str, Maker]) -> Iterator[list[str]]:
    """Hands parts of a network over to the models that are built meanwhile. Gives the arguments that choose them.

    A class or function that can be imported stands in the config by its name; any other part is known to this process.
    """
    if not parts:
        yield []
        return
    from vaelab.nn.modules import giving

    words = ["network=modules"]
    for role, part in parts.items():
        name = _name(part)
        words += [f"network.{role}._target_={name or 'vaelab.nn.modules.Given'}"]
        words += [] if name else [f"+network.{role}.role={role}"]
    with giving(**parts):
        yield words


def _name(part: Maker) -> str | None:
    """The dotted name by which a class or function can be imported in another process; None if it cannot."""
    module, name = getattr(part, "__module__", "__main__"), getattr(part, "__qualname__", "<")
    importable = (inspect.isclass(part) or inspect.isfunction(part)) and "<" not in name and module != "__main__"
    return f"{module}.{name}" if importable else None
