"""`vaelab compare`: figures of several runs side by side, ranked only where that means something."""

from __future__ import annotations

import difflib
import glob
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vaelab import command
from vaelab.errors import UserError

KEYS = ("runs", "split", "figures", "sort", "output")
SPLITS = ("test", "val", "train")
MAIN = (
    *("likelihood/elbo", "likelihood/log_p_hat", "likelihood/kl", "likelihood/reconstruction"),
    *("reconstruction/mse_mean", "latents/active", "codebook/perplexity"),
    *("disentanglement/mig", "disentanglement/dci_disentanglement", "labels/linear_probe_accuracy"),
    *("conditional/sample_accuracy", "samples/frechet", "anomaly/auroc_elbo"),
)
"""Figures that are shown by default, where runs have them."""
FLAGS_WITH_VALUE = {"--cfg", "-c", "--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"}


def main(arguments: list[str]) -> int:
    """Runs `vaelab compare` with these arguments. Returns the exit code."""
    if "-sc" in arguments or "--shell-completion" in arguments:
        return _complete(os.environ.get("COMP_LINE", ""))
    try:
        arguments = _for_hydra(arguments)
    except UserError as error:
        print(f"vaelab: {error}", file=sys.stderr)
        return 2
    return command.run("compare", job, arguments)


def _complete(line: str) -> int:
    """Answers the shell with this command's keys; where none fits, the shell itself completes a path."""
    word = line.rpartition(" ")[2]
    print(" ".join(f"{key}=" for key in KEYS[1:] if word and key.startswith(word)))
    return 0


def _for_hydra(arguments: list[str]) -> list[str]:
    """The arguments as Hydra's grammar has them: the paths become `runs=[…]`, each quoted."""
    if {"-m", "--multirun"} & set(arguments):
        raise UserError("compare reads runs that are there: leave out -m")
    paths, others = [], []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        key, equals, value = argument.partition("=")
        if argument.startswith("-") or before in FLAGS_WITH_VALUE:
            others.append(argument)
        elif key == "output" and value and value[0] not in "'\"":
            others.append(f"output={_quoted(value)}")
        elif key == "sort" and "," in value:
            raise UserError(f"{argument}: rows have one order: name one figure")
        elif key == "figures" and "," in value and value[0] != "[":
            others.append(f"figures=[{value}]")
        elif equals and (key in KEYS or (re.fullmatch(r"[+~]*[\w.]+", key) and not Path(argument).exists())):
            others.append(argument)
        else:
            paths.append(argument)
    if paths and any(argument.startswith("runs=") for argument in others):
        raise UserError("runs= is what the paths become: give the runs as paths only")
    return others + ([f"runs=[{','.join(map(_quoted, paths))}]"] if paths else [])


def _quoted(value: str) -> str:
    """A string of Hydra's grammar: quotes escaped, with the backslashes before them, and `${` as it is."""
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{text}'".replace("${", "\\${")


def job(config: Any) -> None:
    """Hydra's job: finds and reads the runs, prints what can be said of them, writes the file."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(config, resolve=True)
    output = _check(plain)
    from vaelab.evaluation import comparison

    split = plain["split"]
    rows, known, left_out = _gathered(plain["runs"], split)
    if not rows:
        raise UserError("none of these can be compared:\n" + "\n".join(f"  {n}: {why}" for n, why in left_out.items()))
    chosen = figures_shown(plain["figures"], known, split)
    if plain["sort"] is not None:
        rows = comparison.ordered(rows, _named(plain["sort"], known, "sort", split)[0])
    if output:
        _export(output, _content(rows, known if plain["figures"] in ("main", "all") else chosen, split, left_out))
    print(_report(rows, chosen, plain, left_out, shutil.get_terminal_size((100, 24)).columns))
    if output:
        print(f"written: {output}")


def answer(sweep: Path) -> str:
    """Writes sweep.csv and sweep.json into a sweep's folder: all figures of its configurations, over seeds.

    Returns the tables of the main ones; of validation images if the test was left out. Empty if no run is finished.
    """
    for split in ("test", "val", "train"):
        rows, known, left_out = _gathered([sweep], split)
        if rows and known:
            content = _content(rows, known, split, left_out)
            for name in ("sweep.csv", "sweep.json"):
                _export(sweep / name, content)
            asked = {"split": split, "figures": "main"}
            width = shutil.get_terminal_size((100, 24)).columns
            return _report(rows, figures_shown("main", known, split), asked, left_out, width)
    return ""


def _gathered(patterns: Sequence[Any], split: str) -> tuple[Any, list[str], dict[str, str]]:
    """The configurations of the runs that the paths stand for, their figures, and what is left out and why."""
    from vaelab.evaluation import comparison

    options = target_names()
    folders, files = _find(patterns)
    read = {}
    for path in folders:
        try:
            read[str(path)] = read_run(path, split, options)
        except UserError as damage:
            read[str(path)] = str(damage)
    left_out = {str(path): "a file, no run folder" for path in files}
    left_out |= {name: run for name, run in read.items() if isinstance(run, str)}
    rows, repeats = comparison.group(run for run in read.values() if not isinstance(run, str))
    left_out |= {run.name: f"repeats seed {run.seed} of {kept.name}" for run, kept in repeats}
    known = {name for row in rows for name in (*row.figures, *row.mixed)}
    return rows, sorted(known, key=lambda name: (*place(name), name)), left_out


def _export(path: Path, content: dict[str, Any]) -> None:
    """Writes what was compared, as the suffix says."""
    from vaelab.evaluation import tables

    _write(path, json.dumps(content, indent=2) if path.suffix == ".json" else tables.as_csv(content["configurations"]))


def _content(rows: Any, figures: list[str], split: str, left_out: dict[str, str]) -> dict[str, Any]:
    """What a JSON file holds."""
    from vaelab.evaluation import comparison, notes, tables

    labels = [key for keys in comparison.columns(rows) for key in keys]
    rankings = {figure: comparison.rank(rows, figure) for figure in figures}
    return {
        "split": split,
        "interval": "95 %, Student's t over seeds",
        "configurations": tables.records(rows, labels, figures, rankings),
        "not_ranked": notes.refusals({figure: figure for figure in figures}, rankings),
        "outdated": [run.name for row in rows for run in row.runs if run.outdated],
        "left_out": left_out,
    }


def _check(config: dict[str, Any]) -> Path | None:
    """Raises UserError for what can be told to be wrong before a run is read. Returns the file to write."""
    if unknown := sorted(config.keys() - set(KEYS)):
        raise UserError(f"{unknown[0]}: no such key; vaelab compare --cfg job prints all keys")
    runs, output = config["runs"], config["output"]
    for key, what in (("figures", "some, or main or all"), ("sort", "a figure")):
        if config[key] in ("", []):
            raise UserError(f"{key}={config[key]} is empty: name {what}")
    if isinstance(config["sort"], list):
        raise UserError(f"sort={config['sort']}: rows have one order: name one figure")
    if not isinstance(runs, list) or not runs:
        raise UserError("compare needs runs: vaelab compare PATH …, as in vaelab compare outputs/*/*-vae-digits")
    if config["split"] not in SPLITS:
        raise UserError(f"split={config['split']}: must be {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
    if output is None:
        return None
    path = Path(str(output))
    if path.suffix not in (".csv", ".json"):
        raise UserError(f"output={output}: name a file that ends in .csv or .json")
    if not path.parent.is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"output={output}: must be a file in a folder that exists and can be written to")
    return path


# --- runs -------------------------------------------------------------------------------------


def _find(patterns: Sequence[Any]) -> tuple[list[Path], list[Path]]:
    """The run folders that the paths stand for, each once, in order of their names; and the paths of files.

    A file is no reason to stop: `SWEEP/*` has multirun.yaml among its runs.
    """
    from vaelab import runs

    found: dict[Path, Path] = {}
    files = []
    for pattern in sorted(map(str, patterns)):
        path = Path(pattern)
        if pattern == "last" and not path.is_dir():
            folders = [runs.find("last")]
        elif path.is_dir():
            folders = list(_below(path))
        elif path.is_file():
            files.append(path)
            continue
        elif re.search(r"[*?[]", pattern):
            folders = [run for match in glob.glob(pattern, recursive=True) for run in _below(Path(match))]
        else:
            raise UserError(f"{pattern} does not exist: give a folder that vaelab train made, or one above it")
        if not folders:
            raise UserError(f"{pattern} is no run and contains none: give a folder that vaelab train made")
        for folder in map(os.path.abspath, folders):
            inside = folder.startswith(os.path.join(os.getcwd(), ""))
            found[Path(folder).resolve()] = Path(os.path.relpath(folder) if inside else folder)
    return sorted(found.values()), files


def _below(path: Path) -> Iterator[Path]:
    """The run folders in `path`, at any depth: it may be one itself."""
    for folder, subfolders, files in os.walk(path):
        if "summary.json" in files or {"config.yaml", "run.log"} <= set(files):
            subfolders.clear()  # nothing in a run is a run
            yield Path(folder)


def target_names() -> dict[str, str]:
    """Names that models, data sets and likelihoods have on the command line, by their `_target_`."""
    files = [path for group in ("model", "dataset", "likelihood") for path in (command.CONF / group).glob("*.yaml")]
    found = ((re.search(r"^_target_: (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE), path) for path in files)
    return {target[1]: path.stem for target, path in found if target}


def read_run(path: Path, split: str, options: dict[str, str]) -> Any:
    """What a comparison knows of a run (`compared.Run`), or in a few words why it is left out."""
    from vaelab import runs
    from vaelab.evaluation import compared

    summary = runs.read_json(path / "summary.json", "train the run again, or leave it out")
    if not summary:
        return "no summary.json: it is being trained, or was killed"
    status = summary.get("status")
    if status != "finished":
        error = str(summary.get("error") or "").strip().partition("\n")[0]
        return f"status={status} ({error})" if error else f"status={status}"
    measure = _measure(path, split)
    file = runs.evaluation_path(path, split)
    evaluation = runs.read_json(file, f"make it again with {measure}")
    if evaluation and evaluation.get("split") != split:
        raise UserError(f"{file} is of split={evaluation.get('split')}: make it again with {measure}")
    config = read_config(path / "config.yaml")
    try:
        run = compared.describe(str(path), config, summary, evaluation, split, options)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        damaged = f"{file.name} or summary.json" if evaluation else "summary.json"
        raise UserError(f"{path}: {damaged} is damaged ({error!r}): make it again, or leave the run out") from error
    outdated = ", as its evaluation is of an older checkpoint" * run.outdated
    return run if run.figures else f"no figures of split={split}{outdated}: {measure} makes them"


def read_config(path: Path) -> dict[str, Any]:
    """config.yaml, ten times as fast as `runs.read_config` reads it: there may be hundreds."""
    import yaml

    try:
        config = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged or missing: restore it, or remove the folder") from error
    if not isinstance(config, dict) or not {"run", "model", "dataset", "seed", "trainer"} <= config.keys():
        raise UserError(f"{path.parent} is no run of vaelab: its config.yaml is another program's")
    return config


# --- figures ----------------------------------------------------------------------------------


def place(figure: str) -> tuple[int, str]:
    """Where a figure stands: the main ones first."""
    return (MAIN.index(figure), "") if figure in MAIN else (len(MAIN), figure.partition("/")[0])


def figures_shown(wanted: Any, known: list[str], split: str) -> list[str]:
    """The figures to show, of those that runs have."""
    from vaelab.evaluation.rules import is_aside

    if wanted in ("main", "all"):
        shown = [name for name in known if not is_aside(name)]
        return [name for name in shown if wanted == "all" or name in MAIN] or shown or known
    names = wanted if isinstance(wanted, list) else [wanted]
    return list(dict.fromkeys(name for item in names for name in _named(item, known, "figures", split)))


def _named(item: Any, known: list[str], key: str, split: str) -> list[str]:
    """The figures that a name stands for: in full, its short title, as training logs it, or a section's name."""
    from vaelab.evaluation.compared import FROM_TRAINING
    from vaelab.evaluation.rules import is_aside
    from vaelab.evaluation.tables import titles

    item = str(item)
    logged = item.removeprefix(f"{split}/")
    full = FROM_TRAINING.get(logged, f"training/{logged}")
    short = {title: name for name, title in titles(known).items()}
    if found := next((name for name in (item, short.get(item), full) if name in known), None):
        return [found]
    if key == "figures" and (section := [n for n in known if n.startswith(f"{item}/") and not is_aside(n)]):
        return section
    near = difflib.get_close_matches(item, short, 3) or difflib.get_close_matches(item, known, 3)
    sections = ", ".join(dict.fromkeys(name.partition("/")[0] for name in known))
    hint = f"did you mean {', '.join(near)}?" if near else f"figures=all shows all; their sections are {sections}"
    raise UserError(f"{key}={item}: none of these runs has such a figure; {hint}")


def _report(rows: Any, chosen: list[str], config: dict[str, Any], left_out: dict[str, str], width: int) -> str:
    """Everything that is printed: the tables, and the lines that say how to read them."""
    from vaelab.evaluation import comparison, notes, tables
    from vaelab.evaluation.rate_distortion import rate_distortion

    labels, also = comparison.columns(rows)
    names = tables.titles(chosen)
    rankings = {figure: comparison.rank(rows, figure) for figure in names}
    lines = [notes.heading(rows, config["split"]), "", tables.figures_table(rows, labels, names, rankings, width), ""]
    lines += notes.legend(rows, names, rankings) + notes.differing_too(also)
    lines += notes.mixed(rows, names) + notes.schedules(rows)
    if len(rows) > 1:
        lines += notes.refusals(names, rankings) + notes.objectives(rows, names, rankings)
        lines += notes.codes_beside_elbo(rows, names)
    for curve in rate_distortion(rows) if config["figures"] in ("main", "all") else []:
        lines += ["", tables.curve_heading(rows, curve), "", tables.curve_table(rows, curve, width)]
    lines += [""] + [f"left out: {name}: {why}" for name, why in sorted(left_out.items())]
    lines += notes.unevaluated(rows, lambda run: _measure(run, config["split"]))
    return "\n".join(notes.folded(lines, width)).rstrip()


def _measure(run: str | Path, split: str) -> str:
    """The command that evaluates a run."""
    return f"vaelab eval {shlex.quote(f'run={run}')}" + ("" if split == "test" else f" split={split}")


def _write(path: Path, text: str) -> None:
    """Writes the file whole or not at all."""
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_text(text.rstrip() + "\n", encoding="utf-8")
    os.replace(partial, path)
