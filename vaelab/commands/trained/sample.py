"""`vaelab sample`: draws images from a model's prior."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from vaelab.commands import command
from vaelab.commands.trained import own_tables, viewing
from vaelab.core.errors import UserError
from vaelab.core.types import AskedLabel, NonNegativeFloat, PositiveInt
from vaelab.core.words import counted

if TYPE_CHECKING:
    from torch import Tensor

    from vaelab.models import Model
    from vaelab.runs.classes import Classes
    from vaelab.runs.trained import Trained

IN_A_FIGURE = 1024
"""Images that a figure can hold."""
UNKNOWN = "unknown"
"""The label of images of which a model that knows how is told nothing."""
CLASSES_IN_A_ROW = 20
"""Classes that are drawn one per column."""


@dataclass(frozen=True)
class Options(viewing.Options):
    """Keys of conf/sample.yaml."""

    n: Annotated[int, Field(ge=1, le=100_000)]
    label: AskedLabel | None
    temperature: NonNegativeFloat
    top_k: PositiveInt | None
    level: str | None
    class_folders: bool
    prior: dict[Literal["name"], str | None]

    @property
    def fitted(self) -> str | None:
        """The name of the fitted prior to draw from; None for the model's own."""
        return self.prior["name"]


def main(arguments: list[str]) -> int:
    """Runs `vaelab sample` with these arguments. Returns the exit code."""
    return command.single("sample", job, [command.prior_named(argument) for argument in arguments])


def job(config: Any) -> Path:
    """Hydra's job: checks what is asked, draws, writes, says where. Returns the path."""
    from vaelab.core.config import options

    asked = options(Options, config)
    kind = viewing.kind_of(asked.out)
    if kind == "figure" and asked.n > IN_A_FIGURE:
        raise UserError(
            f"n={asked.n}: a figure holds at most {IN_A_FIGURE:,} images: out=FOLDER/ or out=FILE.npz takes more"
        )
    if asked.class_folders:
        _check_folder(kind, str(asked.out), asked.label)
    trained = viewing.opened(asked, asked.fitted)
    asked = _checked(trained, replace(asked, prior={"name": asked.fitted or _only_fitted(trained)}))
    name = f"sample-{asked.fitted}" if asked.fitted else "sample"
    rows = viewing.of_rows(trained, asked, kind, name)
    path = rows or viewing.destination(asked.out, trained.folder, name)
    count, batches = _drawn(trained, asked)
    if rows:
        kind = "table"
        own_tables.write(path, _rows(trained, asked, list(batches)))
    elif kind == "figure":
        from vaelab.figures import style

        style.save(_drawing(trained, asked, list(batches)), path)
    else:
        labelled = ((images, None if asked.label == UNKNOWN else labels) for images, labels in batches)
        viewing.write_images(path, kind, count, labelled, _folders(trained.classes) if asked.class_folders else None)
    source = [f"drawn from {trained.model.require_prior().words}"] if asked.fitted else []
    rounded = f" (n={asked.n} is no multiple of the {trained.model.classes} classes)" if count != asked.n else ""
    words = [
        f"{counted(count, 'sample')} of {trained.config['run']['name']}{rounded}",
        *_classes(trained, asked, count),
    ]
    print(", ".join([*words, *_manner(asked), *source]))
    print(f"{kind}: {path}")
    return path


def _check_folder(kind: str, out: str, label: Any) -> None:
    """Raises UserError where class folders are no use: `out` is no folder, or the images have no class."""
    if kind != "folder":
        raise UserError(f"class_folders=true: it is for a folder of images: out=FOLDER/, not out={out}")
    if label == UNKNOWN:
        raise UserError(f"class_folders=true: images of label={UNKNOWN} have no class: leave one of the two out")


def _folders(classes: Classes) -> list[str]:
    """Returns a folder for each class: its name, or its number where a name would be no folder."""
    names = [classes.name(number) for number in range(classes.count)]
    plain = all(name and name[0] not in ". " and not set(name) & set('/\\:*?"<>|') for name in names)
    if plain and len({name.casefold() for name in names}) == len(names):
        return names
    return [f"{number:0{len(str(len(names) - 1))}}" for number in range(len(names))]


def _only_fitted(trained: Trained) -> str | None:
    """Takes the one prior that was fitted to a model whose own only stands in for it. Returns its name, or None."""
    from vaelab.runs import priors

    name, said = priors.stand_in(trained.folder, trained.model, trained.checkpoint)
    print(said, end="\n" * bool(said))
    return name


def _checked(trained: Trained, asked: Options) -> Options:
    """Returns what is asked. Raises UserError for what the model cannot do."""
    from vaelab.runs import priors

    model = trained.model
    name = type(model).__name__
    if model.prior is None:
        fit = priors.command(trained.folder, "gmm", trained.checkpoint)
        raise UserError(f"run: {name} has no prior to draw samples from\nfit one with {fit}, then add prior=gmm")
    if asked.class_folders and not model.by_class:
        instead = "condition=label" if model.told else "model=cvae"
        raise UserError(f"class_folders=true: {name} draws images of no class: leave it out, or train {instead}")
    _one_label(trained, asked)
    model.prior.check_sampling(asked.temperature, asked.top_k, name)
    if asked.level is not None:
        model.layout.span(asked.level)
        if not model.prior.stepwise:
            raise UserError(f"level={asked.level}: {model.prior.words} draws all levels at once: leave it out")
    return asked


def _one_label(trained: Trained, asked: Options) -> Tensor | None:
    """Returns the one label that is asked for, [1] or [1, A]. Raises UserError for one that the model does not know.

    None where none is asked for, `all` of them, or nothing is to be told.
    """
    model = trained.model
    if asked.label == UNKNOWN and model.told and model.condition.null is None:
        raise UserError(f"label={UNKNOWN}: the model was always told one: train with condition.drop=0.1, say")
    words = [*["all"] * model.by_class, *[UNKNOWN] * (model.told and model.condition.null is not None)]
    try:
        return None if asked.label in words else viewing.label_of(trained, asked.label)
    except UserError as error:
        if UNKNOWN not in words:
            raise
        raise UserError(f"{error}, or {UNKNOWN}") from error


def _drawn(trained: Trained, asked: Options) -> tuple[int, Iterator[tuple[Tensor, Tensor | None]]]:
    """How many images there will be, and batches of them, or of the codes of rows, with their labels."""
    import torch

    from vaelab.inference import coding
    from vaelab.nn.conditions import for_all

    model = trained.model
    classes, one = model.classes if asked.label == "all" else 1, _one_label(trained, asked)
    each = -(-asked.n // classes)
    in_turn = model.in_turn(each)

    def labels(group: int) -> Tensor | None:
        if in_turn is None or asked.label is None:
            return in_turn
        if asked.label == UNKNOWN:
            assert model.condition.null is not None
            return torch.full_like(in_turn, model.condition.null)
        return torch.full((each,), group) if one is None else for_all(one, each)

    def drawn(wanted: Tensor | None) -> Iterable[Tensor]:
        codes = coding.draws(model, each, asked.seed, asked.temperature, wanted, asked.top_k)
        if asked.level is None:
            return codes
        above, columns = model.layout.span(asked.level).start, _columns(model, asked, each)
        return coding.share_rows(model.require_prior(), torch.cat(list(codes)), above, columns).split(coding.BLOCK)

    def batches() -> Iterator[tuple[Tensor, Tensor | None]]:
        for group in range(classes):  # each class from the same draws of z, or of the noise that z is made of
            wanted, start = labels(group), 0
            for codes in drawn(wanted):
                given = None if wanted is None else wanted[start : start + len(codes)]
                start += len(codes)
                yield codes if trained.fields else coding.decode(model, codes, given, trained.pixel_range), given

    return each * classes, batches()


def _rows(trained: Trained, asked: Options, batches: list[tuple[Tensor, Tensor | None]]) -> dict[str, Any]:
    """Draws a row of p(x|z) for each code: a table of means would vary too little."""
    import torch

    from vaelab.core.randomness import seeded
    from vaelab.inference import coding

    with seeded(asked.seed, trained.model.device), torch.no_grad():
        rows = [
            trained.model.likelihood.sample(raw).cpu()
            for codes, labels in batches
            for raw in coding.raw(trained.model, codes, labels)
        ]
    labels = [given for _, given in batches if given is not None and asked.label != UNKNOWN]
    return own_tables.columns(trained, torch.cat(rows), torch.cat(labels) if labels else None)


def _drawing(trained: Trained, asked: Options, batches: list[tuple[Tensor, Tensor | None]]) -> Any:
    import torch

    from vaelab.figures import images as figures

    model = trained.model
    images = torch.cat([images for images, _ in batches])
    of, one = "" if asked.label is None else " of each class", _one_label(trained, asked)
    if asked.label == UNKNOWN:
        of = f" of no {'class' if model.by_class else 'label'} that was told"
    elif one is not None:
        of = f" of {viewing.words_of(trained, one)}"
    words = [f"{trained.config['run']['name']}: samples{of}", *_manner(asked)]
    title = ", ".join([*words, *([f"prior {asked.fitted}"] if asked.fitted else [])])
    if asked.label == "all":
        names = [trained.classes.name(k) for k in range(model.classes)]
        return figures.classes(images.unflatten(0, (model.classes, -1)), names, title)
    return figures.samples(images, _columns(model, asked, len(images)), title)


def _manner(asked: Options) -> list[str]:
    """How the draws were made other than by default, in words."""
    temperature = [f"temperature {asked.temperature:g}"] if asked.temperature != 1 else []
    return [*temperature, *([f"of the {asked.top_k} most probable codes"] if asked.top_k else [])]


def _columns(model: Model, asked: Options, count: int) -> int:
    """How many of `count` images stand in a row."""
    if asked.label == "all":
        return count
    in_turn = model.by_class and asked.label is None and model.classes <= CLASSES_IN_A_ROW
    return model.classes if in_turn else max(8, round(count**0.5))


def _classes(trained: Trained, asked: Options, count: int) -> list[str]:
    """Which labels the samples are of, in words; nothing of a model that is not told any."""
    model, one = trained.model, _one_label(trained, asked)
    if not model.told:
        return []
    if asked.label == UNKNOWN:
        return [f"told no {'class' if model.by_class else 'label'}"]
    if one is not None:
        return [f"as {viewing.words_of(trained, one)}"]
    if not model.by_class:
        return ["of labels as the data have them"]
    if asked.label is None:
        return [f"classes {trained.classes.words} in turn"]
    each = count // model.classes
    same = f"{each} draws of z" if model.require_prior().classes is None else "noise"
    return [f"{each} of each class", f"from the same {same}"]
