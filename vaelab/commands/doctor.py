"""`vaelab doctor` checks whether the installation is sound, and what is wrong with a run."""

from __future__ import annotations

import shlex
import shutil
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaelab.commands import command
from vaelab.core.errors import UserError
from vaelab.core.files import damaged, read_json
from vaelab.runs import Files

if TYPE_CHECKING:
    from vaelab.core.words import Finding

SPLITS = ("test", "val", "train")
"""Splits in order of preference: the evaluation of the first that was evaluated is looked at."""
CHECKPOINTS = ("best", "last")
AGAIN = "delete it, and run vaelab eval again"


def main(arguments: list[str]) -> int:
    """Runs `vaelab doctor` with these arguments. Returns the exit code."""
    for package, module in (("hydra-core", "hydra"), ("omegaconf", "omegaconf")):
        if find_spec(module) is None:
            print(f"vaelab: {package} is not installed, and no command works without it: pip install {package}")
            return 1
    problems: list[str] = []
    code = command.single("doctor", lambda config: job(config, problems), arguments)
    return code or int(bool(problems))


def job(config: Any, problems: list[str]) -> None:
    """Hydra's job: prints the findings; adds the names of an installation's problems to `problems`."""
    if unknown := sorted(set(config) - {"run", "root"}):
        raise UserError(f"{unknown[0]}: no such key; doctor takes run= and root=")
    for key in ("run", "root"):
        if config[key] == "":
            raise UserError(f"{key}= is empty: name a folder, or leave it out")
    if config.run is not None:
        if config.root is not None:
            raise UserError(f"root={config.root}: it is for the check of the installation; with run= leave it out")
        print(report(str(config.run)))
        return
    from vaelab.training.installation import checks

    found = checks(None if config.root is None else Path(str(config.root)), Path("outputs"))
    print("\n".join(_table([(f"{check.name:11} {check.state:7}", check.says, check.remedy) for check in found])))
    problems += [check.name for check in found if check.state == "problem"]
    print(f"\n{_count(len(problems), 'problem')}")


def report(run: str) -> str:
    """Returns the text about a run. Raises UserError if it is no run or its files cannot be read."""
    from vaelab import runs
    from vaelab.evaluation.findings.curves import LEAST_POINTS, diagnose_schedules, diagnose_training
    from vaelab.evaluation.findings.health import not_judged

    folder = runs.find(run)
    config, rows, summary = runs.read_config(folder), runs.read_metrics(folder), _read_summary(folder)
    parts = {key: _part(config, key, Files(folder).config) for key in ("run", "schedule", "trainer")}
    status, best, stored = summary.get("status"), summary["best"], _stored(summary, folder)
    place, evaluated = _evaluation(folder, best)
    curves = diagnose_training(rows, summary)
    if status == "finished":
        curves += diagnose_schedules(rows, parts["schedule"], summary["objective"])
    epochs = sum(any(name.startswith("train/") for name in row) for row in rows)
    if (epochs or status == "finished") and parts["trainer"].get("enable_checkpointing", True):
        curves += _diagnose_checkpoints(folder)
    found = stored or []
    again = sorted({f.code for f in found} & {f.code for f in evaluated})  # the evaluation is of the model that counts
    training = "while training, at its last look"
    training += f" (found again by the evaluation: {', '.join(again)})" if again else ""
    of_run = "curves in metrics.csv"
    of_run += f" (no trend is judged from {_plural(epochs, 'epoch')})" if epochs < LEAST_POINTS else ""
    if not Files(folder).metrics.is_file():
        of_run = "end of the run (metrics.csv is missing: no curve is judged)"
    by_source = {training: [f for f in found if f.code not in again], of_run: curves}
    by_source |= {place: evaluated} if place else {}
    name = shlex.quote(str(folder))
    lines = [f"{folder}: {parts['run'].get('name')}, {status or 'no summary.json'}, {_plural(epochs, 'epoch')}"]
    if stored is None:
        del by_source[training]
        lines += ["", "while training", *_table([("  not judged", not_judged(summary), "")])]
    for heading, findings in by_source.items():
        lines += ["", heading if findings or (again and heading == training) else f"{heading}: nothing found"]
        lines += _table([(f"  {f.code}", f.evidence, f.remedy.replace("=RUN", f"={name}")) for f in findings])
    if not place:
        whole = [other for other in CHECKPOINTS if not _lacks(folder, other)]
        taken = "" if "best" in whole else " checkpoint=last"
        more = f"`vaelab eval run={name}{taken}` adds likelihood, latent space, codebook and samples"
        lines += ["", f"no evaluation.json: {more if whole else 'nor a checkpoint to evaluate'}"]
    total = _count(sum(map(len, by_source.values())), "finding")
    return "\n".join([*lines, "", f"{total}; docs/doctor.md explains each" if any(by_source.values()) else total])


def _read_summary(folder: Path) -> dict[str, Any]:
    """Reads summary.json, with `best` and `objective` as objects. Raises UserError if it is damaged."""
    from vaelab import runs

    path = Files(folder).summary
    summary = read_json(path, runs.RESTORE)
    summary |= {key: _part(summary, key, path) for key in ("best", "objective")}
    if not isinstance(summary.get("status", ""), str):
        raise damaged(path, "'status' is no text", runs.RESTORE)
    if not isinstance(summary["best"].get("epoch", 0), int | None):
        raise damaged(path, "the epoch of 'best' is no number", runs.RESTORE)
    return summary


def _lacks(folder: Path, name: str) -> str:
    """Returns what is wrong with the file of checkpoint `name`: missing, empty, or nothing."""
    path = Files(folder).checkpoint(name)
    return "missing" if not path.is_file() else "" if path.stat().st_size else "empty"


def _diagnose_checkpoints(folder: Path) -> list[Finding]:
    """Diagnoses best.ckpt and last.ckpt that are missing or empty."""
    from vaelab.core.words import Finding

    lacking = {name: lacks for name in CHECKPOINTS if (lacks := _lacks(folder, name))}
    if not lacking:
        return []
    remedies = {
        "best": "vaelab eval run=RUN checkpoint=last takes the other",
        "last": "the run cannot be resumed; the best checkpoint is there, and vaelab eval takes it",
    }
    evidence = ", ".join(f"checkpoints/{name}.ckpt is {lacks}" for name, lacks in lacking.items())
    remedy = remedies[next(iter(lacking))] if len(lacking) == 1 else "train again: there are no weights left"
    return [Finding("checkpoint_missing", evidence, remedy)]


def _stored(summary: dict[str, Any], folder: Path) -> list[Finding] | None:
    """Reads the findings that training wrote into summary.json; None if it was not judged."""
    from vaelab import runs
    from vaelab.core.words import Finding
    from vaelab.evaluation.findings.health import findings_of

    if (stored := findings_of(summary)) is None:
        return None
    broken = damaged(Files(folder).summary, "its findings are no findings", runs.RESTORE)
    try:
        findings = [Finding(**finding) for finding in stored]
    except TypeError as error:
        raise broken from error
    if not all(isinstance(text, str) for finding in findings for text in finding):
        raise broken
    return findings


def _evaluation(folder: Path, best: dict[str, Any]) -> tuple[str | None, list[Finding]]:
    """Returns what was evaluated and its findings; None and none without an evaluation."""
    from vaelab.core.words import Finding
    from vaelab.evaluation.findings.diagnosis import diagnose_evaluation

    path = next((path for split in SPLITS if (path := Files(folder).evaluation(split)).is_file()), None)
    if path is None:
        return None, []
    evaluation = read_json(path, AGAIN)
    if "figures" not in evaluation:
        raise damaged(path, "it has no metrics", AGAIN)
    figures, subject, checkpoint = (_part(evaluation, key, path) for key in ("figures", "subject", "checkpoint"))
    try:
        findings = diagnose_evaluation(figures, {"images": evaluation.get("images")} | subject)
    except (TypeError, OverflowError) as error:
        raise damaged(path, "a metric is no number", AGAIN) from error
    name, epoch = checkpoint.get("name"), checkpoint.get("epoch")
    if name == "best" and best.get("epoch") not in (None, epoch):
        evidence = f"{path.name} is of epoch {epoch}, and the best checkpoint is now of epoch {best['epoch']}"
        findings.insert(0, Finding("evaluation_outdated", evidence, "vaelab eval run=RUN"))
    return f"{path.name}: {evaluation.get('split')} images, {name} checkpoint, epoch {epoch}", findings


def _part(content: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """Returns an object within a JSON object; empty if missing or null. Raises UserError if it is anything else."""
    part = {} if content.get(key) is None else content[key]
    if not isinstance(part, dict):
        from vaelab import runs

        raise damaged(path, f"'{key}' is no object", AGAIN if path.name.startswith("evaluation") else runs.RESTORE)
    return part


def _table(rows: list[tuple[str, str, str]]) -> list[str]:
    """Formats lines of a heading, its text and, below, the remedy if any, aligned and as wide as the terminal."""
    width, indent = shutil.get_terminal_size((120, 24)).columns, max((len(name) for name, _, _ in rows), default=0) + 2
    lines = []
    for name, says, remedy in rows:
        for first, text in ((name, says), ("", f"remedy: {remedy}" if remedy else "")):
            head, rest = f"{first:{indent}}", " " * indent
            lines += textwrap.wrap(
                text, max(width, indent + 40), initial_indent=head, subsequent_indent=rest,
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
    return lines


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _count(count: int, what: str) -> str:
    return _plural(count, what) if count else f"no {what}"
