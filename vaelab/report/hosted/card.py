"""Writes the model card of an exported run: README.md as the Hugging Face hub reads it."""

from __future__ import annotations

import math
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import yaml

from vaelab import runs
from vaelab.core.conf import target_names
from vaelab.core.metrics import metric
from vaelab.core.words import listed
from vaelab.report import pictures
from vaelab.report.run import again, evaluations, facts, final_metrics, verdicts
from vaelab.runs import Files

CARD, FIGURES = "README.md", "figures"
TASK = "unconditional-image-generation"
"""The hub's name for what such a model does."""
MAIN_FIGURES = ("reconstructions", "samples", "classes", "traversals", "latents", "codes", "curves")
"""Figures that a card shows, in this order, as far as the run has them."""
PLACE = r"^([^=]*\.root=|[^=]*=(?=.*[/\\~])|(?=.*[/\\~])).*$"
"""Pattern of an argument that names a folder or a file; its key is the group."""
DATED = ("started", "status")
"""What the page of a run says in its heading, and a card does not."""


def write(folder: Path, run: Path, about: dict[str, Any], address: str) -> None:
    """Writes README.md and its figures to a folder.

    about: the content of model.json. address: what `vaelab.load` takes to load the folder.
    """
    config, summary = runs.read_config(run), runs.read_summary(run)
    evaluated = [(e, shown) for e, shown in evaluations(run, summary) if e["checkpoint"]["epoch"] == _epoch(about)]
    shown = _copy_figures(run, folder / FIGURES)
    head = yaml.safe_dump(_front_matter(config, summary, about, evaluated), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{head}---",
        f"# {about['run']['name']}",
        f"A model of the class `{about['class']}` with the likelihood `{about['likelihood']}`, trained on "
        f"{about['run']['dataset']} with vaelab. The weights are those of its {about['run']['checkpoint']} checkpoint, "
        f"of epoch {about['run']['epoch']}.",
        _table(["", ""], [[name, value] for name, value in facts(run, config, summary) if name not in DATED]),
        "## Metrics",
        *_metrics(summary, evaluated),
        *_findings(run, summary, evaluated),
        *(["## Figures", *shown] if shown else []),
        "## How to load it",
        _loading(about, address),
        "## How it was trained",
        f"```\n{_without_places(again(config))}\n```",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items()) + ".",
    ]
    (folder / CARD).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _front_matter(
    config: dict[str, Any], summary: dict[str, Any], about: dict[str, Any], evaluated: list[Any]
) -> dict[str, Any]:
    """Returns what the hub reads: tags, library and metrics."""
    names = target_names()
    model, data = (names.get(config[part]["_target_"], config[part]["_target_"]) for part in ("model", "dataset"))
    metrics = [
        {"type": name, "value": value, "name": ", ".join(filter(None, (metric(name).label, metric(name).unit)))}
        for name, value in _tested(summary, about, evaluated).items()
    ]
    dataset = {"type": data, "name": about["run"]["dataset"], "split": "test"}
    results = [{"task": {"type": TASK}, "dataset": dataset, "metrics": metrics}] if metrics else []
    return {
        "library_name": "vaelab",
        **({} if about["columns"] else {"pipeline_tag": TASK}),
        "tags": list(dict.fromkeys(["vaelab", "variational-autoencoder", model, data])),
        "model-index": [{"name": about["run"]["name"], "results": results}],
    }


def _epoch(about: dict[str, Any]) -> int:
    return about["run"]["epoch"]


def _tested(summary: dict[str, Any], about: dict[str, Any], evaluated: list[Any]) -> dict[str, float]:
    """Returns metrics of the test images by these weights: those of training's end, the main ones of the evaluation."""
    found = {}
    if summary.get("best", {}).get("epoch") == _epoch(about):
        tested = {key[5:]: value for key, value in summary["metrics"].items() if key.startswith("test/")}
        found = {name: value for name, value in tested.items() if not metric(name).set}
    if evaluated:
        numbers = evaluated[0][0]["figures"]
        found |= {name: numbers[name] for name, *_ in evaluated[0][1]["main"]}
    return {name: value for name, value in found.items() if isinstance(value, int | float) and math.isfinite(value)}


def _metrics(summary: dict[str, Any], evaluated: list[Any]) -> list[str]:
    """Returns the tables of final metrics and of evaluations, with what they are of."""
    final = final_metrics(summary)
    rows = [[row["name"], *row["cells"], row["unit"]] for row in final["rows"]]
    texts = [_table(["", *final["parts"], "unit"], rows), " ".join(final["notes"])] if rows else []
    for _, shown in evaluated:
        texts += [shown["heading"], _table(["", "value", "± standard error"], [list(row) for row in shown["main"]])]
    return texts


def _findings(run: Path, summary: dict[str, Any], evaluated: list[Any]) -> list[str]:
    notices = verdicts(run, summary, [evaluation for evaluation, _ in evaluated])
    found = [f"- {notice['title']}: {' '.join(notice['lines'])}" for notice in notices if notice["kind"] == "warn"]
    return ["## What the checks found", "\n".join(found)] if found else []


def _copy_figures(run: Path, folder: Path) -> list[str]:
    """Copies the main figures of a run, and returns them as Markdown with their captions."""
    texts = {name: text for group in pictures.CAPTIONS.values() for name, text in group.items()}
    there = [name for name in MAIN_FIGURES if Files(run).figure(name).is_file()]
    folder.mkdir()
    for name in there:
        shutil.copyfile(Files(run).figure(name), folder / f"{name}.png")
    captions = {name: texts.get(name, (name, "")) for name in there}
    return [f"![{title}]({FIGURES}/{name}.png)\n\n{title}. {text}" for name, (title, text) in captions.items()]


def _loading(about: dict[str, Any], address: str) -> str:
    sizes = ", ".join(map(str, about["shape"]))
    low, high = about["pixel_range"]
    spread = "" if (low, high) == (0, 1) else f" * {high - low:g} - {-low:g}"
    drawn = f"torch.randn(4, {sizes})" if about["columns"] else f"torch.rand(4, {sizes}){spread}"
    given = f"images = {drawn}  # yours instead: {about['images']}"
    made = "made = model.reconstruct(images)"
    if about["conditional"]:
        classes, names = about["num_classes"], (about["model"].get("condition") or {}).get("names") or []
        what = f"numbers, {listed(names)}" if classes is None else f"classes, below {classes}"
        made = f"labels = model.in_turn(4)  # yours instead: {what}\n"
        made += "made = model.reconstruct(images, labels)"
    sampled = "samples = model.sample(16)" if about["samples"] else "# it has no prior to draw samples from"
    extra = "[hub]" if address.startswith("hf://") else ""
    return f"""```
pip install "vaelab{extra}"
```

```python
import torch
import vaelab

model = vaelab.load("{address}")
{given}
{made}
{sampled}
```

Nothing that the files name is run: no pickle is read, and only classes of vaelab and torch are built."""


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _without_places(command: str) -> str:
    """Returns a command with PATH in the place of every folder and file that it names."""
    words = [re.sub(PLACE, r"\1PATH", word, flags=re.DOTALL) for word in shlex.split(command)]
    return shlex.join(words)
