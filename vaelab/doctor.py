"""`vaelab doctor`: is the installation sound, and what ails a run?"""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaelab import command
from vaelab.errors import UserError

if TYPE_CHECKING:
    from vaelab.health import Finding

EVALUATIONS = ("evaluation.json", "evaluation-val.json", "evaluation-train.json")
"""What vaelab eval writes; the first that is there is looked at."""


def main(arguments: list[str]) -> int:
    """Runs `vaelab doctor` with these arguments. Returns the exit code."""
    for package, module in (("hydra-core", "hydra"), ("omegaconf", "omegaconf")):
        if find_spec(module) is None:
            print(f"vaelab: {package} is not installed, and no command works without it: pip install {package}")
            return 1
    if {"-m", "--multirun"} & set(arguments):
        print("vaelab: doctor looks at one run: leave out -m", file=sys.stderr)
        return 2
    from vaelab.train import quoted

    problems: list[str] = []
    try:
        arguments = [quoted(argument) for argument in arguments]
    except UserError as error:
        print(f"vaelab: {error}", file=sys.stderr)
        return 2
    code = command.run("doctor", lambda config: job(config, problems), arguments)
    return code or int(bool(problems))


def job(config: Any, problems: list[str]) -> None:
    """Hydra's job: prints what is found; adds the names of an installation's problems to `problems`."""
    if unknown := sorted(set(config) - {"run", "root"}):
        raise UserError(f"{unknown[0]}: no such key; doctor takes run= and root=")
    for key in ("run", "root"):
        if config[key] == "":
            raise UserError(f"{key}= is empty: name a folder, or leave it out")
    if config.run is not None:
        print(report(str(config.run)))
        return
    from vaelab.installation import checks

    found = checks(Path(str(config.root)), Path("outputs"))
    print("\n".join(_table([(f"{check.name:11} {check.state:7}", check.says, check.remedy) for check in found])))
    problems += [check.name for check in found if check.state == "problem"]
    print(f"\n{_count(len(problems), 'problem')}")


def report(run: str) -> str:
    """What there is to say about a run. Raises UserError if it is no run or its files cannot be read."""
    from vaelab import runs
    from vaelab.evaluation.diagnosis import diagnose_schedules, diagnose_training

    folder = _find(run)
    config, rows, summary = runs.read_config(folder), read_metrics(folder), _read_json(folder / "summary.json")
    status, best = summary.get("status"), _part(summary, "best", folder / "summary.json")
    place, evaluated = _evaluation(folder, best)
    curves = diagnose_training(rows, summary)
    if status == "finished":
        curves += diagnose_schedules(rows, config.get("schedule") or {}, best.get("epoch"))
    repeated = {finding.code for finding in evaluated}  # the evaluation is of the model that counts
    found = {
        "while training, at its last look": [f for f in _stored(summary, folder) if f.code not in repeated],
        "curves in metrics.csv": curves,
    }
    found |= {place: evaluated} if place else {}
    epochs = sum(any(name.startswith("train/") for name in row) for row in rows)
    name = shlex.quote(str(folder))
    lines = [f"{folder}: {config['run'].get('name')}, {status or 'no summary.json'}, {_plural(epochs, 'epoch')}"]
    for heading, findings in found.items():
        lines += ["", heading if findings else f"{heading}: nothing found"]
        lines += _table([(f"  {f.code}", f.evidence, f.remedy.replace("=RUN", f"={name}")) for f in findings])
    if not place:
        checkpoint = any(folder.glob("checkpoints/*.ckpt"))
        more = f"`vaelab eval run={name}` adds likelihood, latent space, codebook and samples"
        lines += ["", f"no evaluation.json: {more if checkpoint else 'nor a checkpoint to evaluate'}"]
    total = _count(sum(map(len, found.values())), "finding")
    return "\n".join([*lines, "", f"{total}; docs/doctor.md explains each" if any(found.values()) else total])


def _find(run: str) -> Path:
    """The folder of a run. Raises UserError; for a sweep's folder one that names a run of it."""
    from vaelab import runs

    folder = Path(run)
    jobs = [] if run == "last" or (folder / "config.yaml").exists() else sorted(folder.glob("*/config.yaml"))
    if jobs:
        raise UserError(f"run={run} is a folder of {_plural(len(jobs), 'run')}: give one of them, run={jobs[0].parent}")
    return runs.find(run)


def _stored(summary: dict[str, Any], folder: Path) -> list[Finding]:
    """The findings that training wrote into summary.json."""
    from vaelab.health import Finding

    try:
        return [Finding(**finding) for finding in summary.get("findings", [])]
    except TypeError as error:
        raise _damaged(folder / "summary.json", "its findings are no findings") from error


def _evaluation(folder: Path, best: dict[str, Any]) -> tuple[str | None, list[Finding]]:
    """What was evaluated and its findings; None and none without an evaluation."""
    from vaelab.evaluation.diagnosis import diagnose_evaluation
    from vaelab.health import Finding

    path = next((folder / name for name in EVALUATIONS if (folder / name).is_file()), None)
    if path is None:
        return None, []
    evaluation = _read_json(path)
    parts = (_part(evaluation, key, path) for key in ("figures", "vectors", "subject", "checkpoint"))
    figures, vectors, subject, checkpoint = parts
    try:
        findings = diagnose_evaluation(figures, vectors, {"images": evaluation.get("images")} | subject)
    except TypeError as error:
        raise _damaged(path, "a figure is no number") from error
    name, epoch = checkpoint.get("name"), checkpoint.get("epoch")
    if name == "best" and best.get("epoch") not in (None, epoch):
        evidence = f"{path.name} is of epoch {epoch}, and the best checkpoint is now of epoch {best['epoch']}"
        findings.insert(0, Finding("evaluation_outdated", evidence, "vaelab eval run=RUN"))
    return f"{path.name}: {evaluation.get('split')} images, {name} checkpoint, epoch {epoch}", findings


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Rows of metrics.csv with their filled cells; none if there is no such file. Raises UserError if it is damaged."""
    path = run / "metrics.csv"
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error
    names, rows = lines[0] if lines else [], []
    if "step" not in names:
        raise _damaged(path, "it has no column 'step'")
    for number, cells in enumerate(lines[1:], 2):
        try:
            rows.append({name: float(cell) for name, cell in zip(names, cells, strict=True) if cell})
            rows[-1]["step"]
        except (ValueError, KeyError) as error:
            raise _damaged(path, f"line {number} is cut short or no row of numbers") from error
    return rows


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file. Raises UserError if it is damaged."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also of the encoding
        raise _damaged(path, f"no JSON ({error})") from error
    if not isinstance(content, dict):
        raise _damaged(path, "no JSON object")
    return content


def _part(content: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """An object within a JSON object; empty if it is missing or null. Raises UserError if it is anything else."""
    part = {} if content.get(key) is None else content[key]
    if not isinstance(part, dict):
        raise _damaged(path, f"'{key}' is no object")
    return part


def _damaged(path: Path, why: str) -> UserError:
    remedy = "vaelab eval writes it anew" if path.name in EVALUATIONS else "restore it, or train again"
    return UserError(f"{path} is damaged: {why}\n{remedy}")


def _table(rows: list[tuple[str, str, str]]) -> list[str]:
    """Lines of a heading, what is said and, below, the remedy if there is one, aligned and as wide as the terminal."""
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
