"""Defines what W&B shows of the lab's runs: a workspace, a comparison of models, and a report to fill in.

A panel names nothing that no model logs: `tests/test_dashboard.py` trains each of them and looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vaelab.core.metrics import TRAINING

STEPS, EPOCHS, SECONDS = "trainer/global_step", "epoch", "_runtime"
"""Log keys that panels have on their x axis."""
MODEL = "model._target_"
"""The key of the config by which runs are grouped."""


class Lines(NamedTuple):
    """Metrics over `x`. smoothing: weight of what came before, 0 to 1. pattern: regex of further log keys."""

    title: str
    figures: tuple[str, ...]
    x: str = STEPS
    smoothing: float = 0.0
    pattern: str | None = None


class Points(NamedTuple):
    """A point per run: two of its final metrics against each other, coloured by a third."""

    title: str
    x: str
    y: str
    colour: str


class Bars(NamedTuple):
    """The mean of a final metric over the runs of each model."""

    title: str
    figure: str


class Pictures(NamedTuple):
    """Pictures that were logged while training; a slider goes through the steps."""

    title: str
    names: tuple[str, ...]


Panel = Lines | Points | Bars | Pictures
OTHERS = rf"^(val|train)/(?!({'|'.join(metric.name for metric in TRAINING)})$)"
"""Log keys of metrics that are not in the vocabulary: what a new variant logs."""
NOISY = 0.6
"""The smoothing of metrics that are means over a few batches; those of a whole epoch are drawn as they are."""


def _lines(group: str) -> tuple[Lines, ...]:
    """Returns a panel for each metric of a group of the vocabulary; those that were set go step by step."""
    return tuple(
        Lines(
            f"{metric.label}, {metric.unit}" if metric.unit else metric.label,
            (f"step/{metric.name}",) if metric.set else (f"val/{metric.name}", f"train/{metric.name}"),
        )
        for metric in TRAINING
        if metric.group == group
    )


SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Objective": (*_lines("Objective"), Lines("Loss, step by step", ("step/loss",), smoothing=NOISY)),
    "Rate and distortion": (
        Points("Rate and distortion of the last epoch", "val/kl", "val/reconstruction", "val/elbo"),
        *_lines("Rate and distortion"),
        Lines("KL of each latent dimension", ("histograms/kl_per_dim",)),
    ),
    "Schedules": (*_lines("Schedules"), Lines("Capacity and KL, nats", ("step/capacity", "step/kl"))),
    "Codebook": (
        *_lines("Codebook"),
        Lines("How often each code is chosen", ("histograms/code_counts",)),
    ),
    "Others": (Lines("What else is logged", (), pattern=OTHERS),),
    "Samples": (
        Pictures("Samples", ("pictures/samples", "pictures/classes")),
        Pictures("Reconstructions", ("pictures/reconstructions", "pictures/code_maps")),
        Pictures("Latent space", ("pictures/traversals", "pictures/latents", "pictures/dimensions", "pictures/codes")),
    ),
    "System": (
        Lines("Memory of the process, MB", ("system/proc.memory.rssMB",), SECONDS),
        Lines("Memory of the machine, %", ("system/memory_percent",), SECONDS),
        Lines("Threads", ("system/proc.cpu.threads",), SECONDS),
        Lines("GPU, %", ("system/gpu.0.gpu",), SECONDS),
        Lines("Memory of the GPU, %", ("system/gpu.0.memoryAllocated",), SECONDS),
    ),
}
"""Sections of the workspace, with their panels."""

COMPARISON: dict[str, tuple[Panel, ...]] = {
    "Models side by side": (
        Bars("ELBO on test images, nats per image", "test/elbo"),
        Bars("Reconstruction on test images, nats per image", "test/reconstruction"),
        Bars("KL on test images, nats per image", "test/kl"),
        Points("Rate and distortion on test images", "test/kl", "test/reconstruction", "test/elbo"),
    ),
    "While training": (
        Lines("ELBO, nats per image", ("val/elbo",), EPOCHS),
        Lines("Reconstruction, nats per image", ("val/reconstruction",), EPOCHS),
        Lines("KL, nats per image", ("val/kl",), EPOCHS),
    ),
    "Samples": SECTIONS["Samples"][:2],
}
"""Sections of the comparison: runs are grouped by model, and lines are means over a group."""

OPEN = ("Objective", "Rate and distortion", "Samples", *COMPARISON)
"""Sections that are unfolded at first."""

REPORT: tuple[str | tuple[Panel, ...], ...] = (
    "# Question",
    "What was to be found out, and what was expected?",
    "# Runs",
    "Data, models, what was varied, how many seeds: the command lines.",
    "# Result",
    "The answer in a sentence. ELBOs of different likelihoods, or of different images, do not compare.",
    COMPARISON["Models side by side"],
    "# Rate and distortion",
    "What the codes cost against what the reconstructions miss: lower left is better.",
    SECTIONS["Rate and distortion"][:3],
    "# How training went",
    COMPARISON["While training"],
    "# Samples",
    SECTIONS["Samples"],
    "# What this does not show",
    "Seeds that are missing, settings that were not tuned, metrics that were not measured.",
)
"""Blocks of the report: headings, texts and panels."""


def figures(panels: Sequence[Panel]) -> set[str]:
    """Returns all keys that panels read, those of their x axes too."""
    keys: set[str] = set()
    for panel in panels:
        match panel:
            case Lines(_, names, x, _, _):
                keys |= {*names, x}
            case Points(_, x, y, colour):
                keys |= {x, y, colour}
            case Bars(_, name):
                keys.add(name)
            case Pictures(_, names):
                keys |= set(names)
    return keys


def workspaces(entity: str, project: str, name: str) -> dict[str, Any]:
    """Returns `workspace` and `comparison` as objects of wandb_workspaces, which can be saved."""
    import wandb_workspaces.workspaces as ws

    columns = [f"summary:{figure}" for figure in ("val/elbo", "val/reconstruction", "val/kl")]
    settings = ws.WorkspaceSettings(x_axis=STEPS, max_runs=50, remove_legends_from_panels=False)
    return {
        "workspace": ws.Workspace(
            entity=entity,
            project=project,
            name=name,
            sections=_sections(SECTIONS, None),
            settings=settings,
            runset_settings=ws.RunsetSettings(pinned_columns=["run:displayName", *columns]),
        ),
        "comparison": ws.Workspace(
            entity=entity,
            project=project,
            name=f"{name}: models compared",
            sections=_sections(COMPARISON, MODEL),
            settings=settings,
            runset_settings=ws.RunsetSettings(groupby=[ws.Config(MODEL)]),
        ),
    }


def report(entity: str, project: str, name: str) -> Any:
    """Returns the report as an object of wandb_workspaces, which can be saved."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = []
    for block in REPORT:
        if isinstance(block, tuple):
            runs = wr.Runset(name="all runs", groupby=[f"config.{MODEL}"])  # runs of the report's own project
            blocks.append(wr.PanelGrid(runsets=[runs], panels=_placed([_panel(panel, MODEL) for panel in block])))
        elif block.startswith("# "):
            blocks.append(wr.H1(block[2:]))
        else:
            blocks.append(wr.P(block))
    return wr.Report(entity=entity, project=project, title=f"{name}: report", description="A template.", blocks=blocks)


def content(thing: Any) -> dict[str, Any]:
    """Returns a workspace or a report as plain JSON, with the same ids every time."""
    made = thing._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return _named(made, "vaelab")


def _named(node: Any, place: str) -> Any:
    """Replaces random ids in JSON by ids that say where a thing stands."""
    if isinstance(node, list):
        return [_named(item, f"{place}-{i}") for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    random = {"__id__"} | ({"id"} if "runFeed" in node else set())
    return {key: place if key in random else _named(value, f"{place}-{key}") for key, value in node.items()}


def _sections(sections: dict[str, tuple[Panel, ...]], grouped: str | None) -> list[Any]:
    import wandb_workspaces.workspaces as ws

    return [
        ws.Section(
            name=name,
            panels=[_panel(panel, grouped) for panel in panels],
            is_open=name in OPEN,
            layout_settings=ws.SectionLayoutSettings(columns=3, rows=1 if len(panels) <= 3 else 2),
        )
        for name, panels in sections.items()
    ]


def _panel(panel: Panel, grouped: str | None) -> Any:
    import wandb_workspaces.reports.v2 as wr

    group = {"groupby": wr.Config(grouped), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"} if grouped else {}
    match panel:
        case Lines(title, names, x, smoothing, pattern):
            more: dict[str, Any] = {"metric_regex": pattern} if pattern else {}
            if smoothing:
                more |= {"smoothing_type": "exponential", "smoothing_factor": smoothing}
            return wr.LinePlot(title=title, x=x, y=list(names), **more, **group)
        case Points(title, x, y, colour):
            x_of, y_of, z_of = (wr.SummaryMetric(name) for name in (x, y, colour))
            return wr.ScatterPlot(title=title, x=x_of, y=y_of, z=z_of)
        case Bars(title, name):
            return wr.BarPlot(title=title, metrics=[name], orientation="h", **group)
        case Pictures(title, names):
            return wr.MediaBrowser(title=title, media_keys=list(names), num_columns=1)


def _placed(panels: list[Any]) -> list[Any]:
    """Places the panels of a report, three in a row of 24 units."""
    import wandb_workspaces.reports.v2 as wr

    for i, panel in enumerate(panels):
        panel.layout = wr.Layout(x=8 * (i % 3), y=6 * (i // 3), w=8, h=6)
    return panels
