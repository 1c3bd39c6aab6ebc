"""`vaelab eval`: measures trained models and writes evaluation.json into their run folders."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaelab import runs
from vaelab.commands import command
from vaelab.commands.answers import OWN_KEYS
from vaelab.core.errors import UserError
from vaelab.runs import Files, SweepFiles, answers

if TYPE_CHECKING:
    from vaelab.evaluation.subject import Subject

SECTIONS = {
    "likelihood": "vaelab.evaluation.sections",
    "latents": "vaelab.evaluation.sections",
    "reconstruction": "vaelab.evaluation.sections",
    "lpips": "vaelab.evaluation.pretrained",
    "disentanglement": "vaelab.evaluation.judged",
    "labels": "vaelab.evaluation.judged",
    "codebook": "vaelab.evaluation.sections",
    "conditional": "vaelab.evaluation.judged",
    "samples": "vaelab.evaluation.judged",
    "inception": "vaelab.evaluation.pretrained",
    "anomaly": "vaelab.evaluation.sections",
}
"""The sections in their order, and where the function of each is."""
SEVERAL = "udr"
"""The section that is of several runs together: it is measured when each of them is."""
NEEDS = {"anomaly": "ood", "inception": "inception", "lpips": "lpips"}
"""Sections that are measured by themselves only where the user has set an option."""
SPLITS, CHECKPOINTS = ("test", "val", "train"), ("best", "last")
BOUNDS = {
    "importance_samples": (1, 10**6),
    "generated": (2, 10**6),
    "gap_images": (2, 10**6),
    "memory": (1, 10**6),
    "seed": (0, 2**32 - 1),
}
"""Integers among the options, and the least and the greatest that each can be."""
WEIGHTS = ("inception", "lpips")
"""Keys whose values are files of networks' weights."""
FLAGS = ("trust", "report")
"""Keys that are true or false."""
CHOICES = {"split", "sections", "ood", "prior", "metrics"}
KEYS = {"run", "checkpoint", "root", "device", *CHOICES, *WEIGHTS, *FLAGS, *BOUNDS}


def main(arguments: list[str]) -> int:
    """Runs `vaelab eval` with these arguments. Returns the exit code."""
    arguments = [for_hydra(argument) for argument in arguments]
    return command.single("eval", job, [command.prior_named(argument) for argument in arguments])


def for_hydra(argument: str) -> str:
    """Writes an argument that chooses an option of a group in Hydra's grammar."""
    key, equals, option = argument.partition("=")
    return next((f"{group}={option}" for group, own in OWN_KEYS.items() if equals and key == own), argument)


def job(config: Any) -> dict[str, Any] | None:
    """Hydra's job: checks what is asked, measures each run, prints its table and what could not be measured.

    Returns the evaluation of a single run.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    options: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    _check(options)
    options["prior"] = options["prior"]["name"]
    options["given"] = {o.lstrip("+").partition("=")[0] for o in HydraConfig.get().overrides.task}
    named = [Path(str(name)) for name in command.items(options["run"])]
    folders = list(chain.from_iterable(runs.jobs_of(n) if runs.is_sweep(n) else [runs.find(n)] for n in named))
    if len(folders) > 1:
        _evaluate_each(list(dict.fromkeys(folders)), options)
        return None
    if SEVERAL in (options["sections"] or []):
        raise UserError(f"sections: {SEVERAL} holds runs of several seeds against each other: give them, as run=SWEEP")
    evaluation, wrong = _evaluate(folders[0], options)
    _renew_sweeps(folders, options)
    if wrong:
        raise UserError("\n  ".join(wrong))
    return evaluation


def _evaluate(run: Path, options: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Evaluates a run. Returns the evaluation, and a line for each section that could not be measured but should be."""
    saved = runs.read_config(run)
    if other := options.get("ood"):
        options = options | {"ood": _find_other(other, options["given"], options["root"], saved["dataset"])}
    from vaelab.evaluation import measure, pretrained

    if "anomaly" in (options["sections"] or []) and not other and not saved["dataset"].get("leave_out"):
        raise UserError("sections: anomaly is measured with ood=, which is not given")
    subject, about = measure.prepare(run, saved, options)
    sections = _chosen(options | {"ood": subject.other}) | _own(options["metrics"])
    pretrained.check(subject, sections)
    evaluation, failed = measure.measure(run, subject, about, sections)
    if evaluation["protocols"]:
        print(f"evaluation: {Files(run).evaluation(options['split'], options['prior'])}")
        if "anomaly" in sections and options["split"] == "test" and not options["prior"]:
            _draw(run, saved)
        if options["report"]:
            _renew(run, subject, options)
    asked = [*(options["sections"] or []), *(section for section, key in NEEDS.items() if options.get(key))]
    return evaluation, [f"{name}: {why}" for name, why in evaluation["skipped"].items() if name in {*failed, *asked}]


def _evaluate_each(folders: list[Path], options: dict[str, Any]) -> None:
    """Evaluates runs in turn, goes on where one cannot be evaluated, and prints a table of all.

    Raises UserError at the end with what went wrong; an error of the program is raised then, too.
    """
    from vaelab.evaluation import measure

    measured, problems, crash = {}, {}, None
    each = folders if options["sections"] != [SEVERAL] else []
    for number, folder in enumerate(each, 1):
        print(f"[{number}/{len(folders)}] {folder}", flush=True)
        try:
            measured[str(folder)], wrong = _evaluate(folder, options)
        except UserError as error:
            wrong = str(error).splitlines()
        except Exception as error:
            crash, wrong = crash or error, [f"{type(error).__name__}: {error}"]
        if wrong:
            problems[folder] = "\n  ".join(wrong)
            print(f"  {problems[folder]}\n", flush=True)
    ranked, unranked = _rank([Path(name) for name in measured] if each else folders, options)
    measured |= {str(folder): evaluation for folder, evaluation in ranked.items()}
    if measured:
        print(measure.side_by_side(measured, options["metrics"] or ()))
    _renew_sweeps(folders, options)
    if crash is not None:
        raise crash
    if problems or unranked:
        raise UserError("\n".join([*(f"{folder}: {why}" for folder, why in problems.items()), *unranked]))


def _rank(folders: list[Path], options: dict[str, Any]) -> tuple[dict[Path, dict[str, Any]], list[str]]:
    """Measures the agreement of seeds, if it is asked for or all sections are. Returns what `seeds.rank` does.

    Why runs have none is a mistake only where it was asked for.
    """
    asked = SEVERAL in (options["sections"] or [])
    if options["prior"] or not (asked or options["sections"] is None):
        return {}, []
    from vaelab.evaluation import seeds

    ranked, left_out = seeds.rank(folders, options["split"])
    return ranked, left_out if asked else []


def _draw(run: Path, saved: dict[str, Any]) -> None:
    """Draws the figures of an evaluation into the run's folder."""
    from vaelab.report import build, gallery

    drawing = build.drawing_in(saved.get("figures") or build.UNSAID)
    for name, figure in gallery.draw_evaluated(run):
        drawing.save(figure, Files(run).figure(name))
        print(f"figure: {Files(run).figure(name)}")


def _renew(run: Path, subject: Subject, options: dict[str, Any]) -> None:
    """Writes the page of the run anew, if it has one that shows this evaluation; its figures stay as they are."""
    from vaelab.report import build
    from vaelab.runs import priors

    page, best = Files(run).report, Files(run).checkpoint("best").is_file()
    if not page.is_file() or options["split"] != "test":
        return
    if (options["checkpoint"] == "best" or not best) and not options["prior"]:
        priors.stand_in(run, subject.model, options["checkpoint"])
        build.of_run(run, subject.model, subject.data, page, figures=False)
    else:  # the page's explorer is of the best checkpoint, and of the prior that a report takes
        given = options["device"], options["root"]
        build.of_folder(run, page, "best", *given, figures=False, trust=options["trust"])
    print(f"report: {page}")


def _renew_sweeps(folders: list[Path], options: dict[str, Any]) -> None:
    """Writes the pages of the runs' sweeps anew, where there are any, so that they show the evaluations."""
    from vaelab.report import build

    sweeps = dict.fromkeys(sweep for folder in folders if (sweep := runs.sweep_of(folder)))
    for page in (SweepFiles(sweep).report for sweep in sweeps):
        if options["report"] and options["split"] == "test" and page.is_file():
            build.of_sweep(page.parent, page, figures=False)
            print(f"report: {page}")


def _find_other(other: dict[str, Any], given: set[str], root: str | None, own: dict[str, Any]) -> dict[str, Any]:
    """Says where the other data set lies, unless the user has: beside the run's own; nothing is downloaded.

    What the run's data have answered, such as the means and scales of columns, holds for the other, too.
    """
    other = other | {key: own[key] for key in answers.KEYS if key in own and other.get(key, "") is None}
    beside = {"root": root or own["root"]} if "ood.root" not in given and "download" in own else {}
    still = {} if "ood.download" in given else {"download": False}
    return other | beside | still if "download" in other else other


def _own(nodes: dict[str, Any] | None) -> dict[str, Any]:
    """Returns metrics of the user's own, by name, each a function of the subject that returns a section."""
    from vaelab.core.config import build, check
    from vaelab.evaluation.subject import Section

    nodes = nodes or {}
    if not isinstance(nodes, dict):
        raise UserError(f"metrics={nodes}: metric={nodes} measures a metric of your own (vaelab new metric NAME)")
    if "_target_" in nodes:
        raise UserError(f"metrics: in a metric's file a name stands first: NAME: {{_target_: {nodes['_target_']}, …}}")
    for name, node in nodes.items():
        if name in (*SECTIONS, SEVERAL):
            raise UserError(f"metrics.{name}: vaelab eval has a section of that name: take another")
        check(node, f"metrics.{name}", Callable[..., Section])
    return {name: build(node) for name, node in nodes.items()}


def _chosen(options: dict[str, Any]) -> dict[str, str]:
    """The sections to measure: those that were named, or all for which there is what they need from the user."""
    named, missing = options["sections"], {section for section, key in NEEDS.items() if not options.get(key)}
    return {s: m for s, m in SECTIONS.items() if (s in named if named else s not in missing)}


def _check(options: dict[str, Any]) -> None:
    """Raises UserError for a value that cannot be."""
    if unknown := sorted(options.keys() - KEYS):
        raise UserError(f"{unknown[0]}: no such key; vaelab eval --help lists them")
    if not command.items(options["run"]) or options["run"] is None:
        raise UserError(f"run={'null' if options['run'] is None else '[]'}: name a run folder, or take run=last")
    for key, known in (("split", SPLITS), ("checkpoint", CHECKPOINTS)):
        if options[key] not in known:
            raise UserError(f"{key}={options[key]}: must be {', '.join(known[:-1])} or {known[-1]}")
    if options["prior"].keys() != {"name"} or not isinstance(options["prior"]["name"], str | None):
        raise UserError(f"prior={options['prior'].get('name')}: must be the name of a fitted prior")
    sections = options["sections"]
    if sections is not None and (not isinstance(sections, list) or not sections):
        raise UserError(f"sections={sections}: must be a list of at least one, as in sections=[likelihood,latents]")
    if SEVERAL in (sections or []) and (prior := options["prior"]["name"]):
        raise UserError(f"sections: {SEVERAL} is of codes, which a prior does not change: leave out prior={prior}")
    for name in sections or []:
        if (key := NEEDS.get(name)) and not options.get(key) and name != "anomaly":
            raise UserError(f"sections: {name} is measured with {key}=, which is not given")
        if name not in (known := [*SECTIONS, SEVERAL]):
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"sections: there is no section {name}{hint}\n  they are {', '.join(known)}")
    for key in WEIGHTS:
        file = options[key]
        if file is not None and not Path(str(file)).expanduser().is_file():
            what = "this is a folder" if Path(str(file)).expanduser().is_dir() else "there is no such file"
            raise UserError(f"{key}={file}: {what}: name the file of the network's weights")
    for key in FLAGS:
        if not isinstance(options[key], bool):
            raise UserError(f"{key}={options[key]}: must be true or false")
    for key, (least, most) in BOUNDS.items():
        if not isinstance(options[key], int) or isinstance(options[key], bool) or not least <= options[key] <= most:
            raise UserError(f"{key}={options[key]}: must be an integer from {least} to {most}")
