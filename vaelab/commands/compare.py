"""`vaelab compare` shows metrics of several runs side by side, ranked only where that means something."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from vaelab.commands import command
from vaelab.core.errors import UserError

KEYS = ("runs", "split", "figures", "sort", "output")
SPLITS = ("test", "val", "train")


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
    """Writes the arguments in Hydra's grammar: the paths become `runs=[…]`, each quoted."""
    if {"-m", "--multirun"} & set(arguments):
        raise UserError("compare reads runs that are there: leave out -m")
    paths, others = [], []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        key, equals, value = argument.partition("=")
        if argument.startswith("-") or before in command.TAKING_A_VALUE:
            others.append(argument)
        elif key == "output" and value and value[0] not in "'\"":
            others.append(f"output={command.as_text(value)}")
        elif key == "sort" and "," in value:
            raise UserError(f"{argument}: rows have one order: name one metric")
        elif key == "figures" and "," in value and value[0] != "[":
            others.append(f"figures=[{value}]")
        elif equals and (key in KEYS or (re.fullmatch(r"[+~]*[\w.]+", key) and not Path(argument).exists())):
            others.append(argument)
        else:
            paths.append(argument)
    if paths and any(argument.startswith("runs=") for argument in others):
        raise UserError("runs= is what the paths become: give the runs as paths only")
    return others + ([f"runs=[{','.join(map(command.as_text, paths))}]"] if paths else [])


def job(config: Any) -> dict[str, Any]:
    """Hydra's job: finds and reads the runs, prints the comparison, writes the file. Returns the file's content."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(config, resolve=True)
    output = _check(plain)
    from vaelab.evaluation.comparison import configurations, outcome, selection, sources

    split = plain["split"]
    rows, known, left_out = sources.gather(plain["runs"], split)
    if not rows:
        raise UserError("none of these can be compared:\n" + "\n".join(f"  {n}: {why}" for n, why in left_out.items()))
    chosen = selection.figures_shown(plain["figures"], known, split)
    if plain["sort"] is not None:
        rows = configurations.ordered(rows, selection.named(plain["sort"], known, "sort", split)[0])
    names = known if plain["figures"] in ("main", "all") else chosen
    content = outcome.content(rows, names, split, left_out)
    if output:
        outcome.export(output, content)
    print(outcome.text(rows, chosen, plain, left_out, shutil.get_terminal_size((100, 24)).columns))
    if output:
        print(f"written: {output}")
    return content


def _check(config: dict[str, Any]) -> Path | None:
    """Raises UserError for mistakes that show before a run is read. Returns the file to write."""
    if unknown := sorted(config.keys() - set(KEYS)):
        raise UserError(f"{unknown[0]}: no such key; vaelab compare --cfg job prints all keys")
    runs, output = config["runs"], config["output"]
    for key, what in (("figures", "some, or main or all"), ("sort", "a metric")):
        if config[key] in ("", []):
            raise UserError(f"{key}={config[key]} is empty: name {what}")
    if isinstance(config["sort"], list):
        raise UserError(f"sort={config['sort']}: rows have one order: name one metric")
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
