"""`vaelab new` writes a start for a part of one's own: a module, its option, and its test."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vaelab.commands import command
from vaelab.core.conf import CONF
from vaelab.core.errors import UserError
from vaelab.core.files import write_text
from vaelab.core.own import FOLDER

STARTS = Path(__file__).parent / "starts"
NEXT = {
    "model": "vaelab train model={name}",
    "network": "vaelab train network={name}",
    "dataset": "vaelab train dataset={name}",
    "metric": "vaelab eval run=last metric={name}",
}
"""The kinds, each with the command that uses what is written."""


class Options(NamedTuple):
    """The keys of conf/new.yaml, which explains them."""

    kind: Literal["model", "network", "dataset", "metric"]
    name: str


def main(arguments: list[str]) -> int:
    """Runs `vaelab new` with these arguments. Returns the exit code."""
    words = [argument for argument in arguments if "=" not in argument and argument[0] != "-"]
    keys = dict(zip(words, ("kind", "name"), strict=False))
    return command.single("new", job, [f"{keys[a]}={a}" if a in keys else a for a in arguments])


def job(config: Any) -> list[Path]:
    """Hydra's job: checks the name, writes the files and says what to do with them. Returns their paths."""
    from vaelab.core.config import options

    if config.get("kind") is None or config.get("name") is None:
        raise UserError(f"say what and its name, as in `vaelab new model mine`: {', '.join(NEXT)}")
    asked = options(Options, config)
    _check(asked)
    start, name = STARTS / asked.kind, asked.name
    files = {
        Path(f"{name}.py"): start / "module.py",
        FOLDER / asked.kind / f"{name}.yaml": start / "option.yaml",
        Path(f"test_{name}.py"): start / "check.txt",
    }
    if there := [str(path) for path in files if path.exists()]:
        raise UserError(f"name={name}: {there[0]} is there already, and is left as it is: take another name")
    for path, source in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, _renamed(source.read_text(encoding="utf-8"), name))
        print(f"  {path}")
    print(f"try it:   {NEXT[asked.kind].format(name=name)}\ntest it:  pytest test_{name}.py")
    return [*files]


def _renamed(text: str, name: str) -> str:
    """Gives an example, which is called `mine`, its name; classes take it in capitals: deep_mine is DeepMine."""
    capitals = "".join(part.capitalize() for part in name.split("_"))
    return re.sub(r"\bMine\b", capitals, re.sub(r"\bmine\b", name, text))


def _check(asked: Options) -> None:
    """Raises UserError for a name that cannot be a module's, or is taken."""
    name = asked.name
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(
            f"name={name}: it names a Python module: lower case letters, digits and _, as in deep_{asked.kind}"
        )
    if (CONF / asked.kind / f"{name}.yaml").is_file():
        raise UserError(f"name={name}: {asked.kind}={name} is an option of vaelab: take another name")
    if not Path(f"{name}.py").exists() and importlib.util.find_spec(name) is not None:
        raise UserError(f"name={name}: there is an installed module of that name: take another")
