"""Runs commands through Hydra, and turns errors into one or two lines and an exit code."""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
from collections.abc import Callable
from errno import EACCES, ENOSPC, EPERM, EROFS
from pathlib import Path
from typing import Any

from vaelab.core.conf import CONF
from vaelab.core.errors import DivergenceError, MachineError, Stopped, UserError

PATHS = (
    "run",
    "run.dir",
    "sweep.dir",
    "root",
    "dataset.root",
    "ood.root",
    "bench.output",
    "plan.output",
    "input",
    "codes",
    "out",
    "image",
    "from",
    "to",
    "corners",
)
"""Keys whose values are paths."""


EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}
"""Extra of the package that each launcher needs."""
OF_SEARCH = ("optimize", "direction", "n_trials", "n_jobs", "pruning")
"""Keys of hydra/sweeper=optuna that are written without `hydra.sweeper.`"""


def of_search(argument: str) -> str:
    """Gives a search's key its full name; a list of metrics or directions needs no brackets."""
    key, equals, value = argument.partition("=")
    if key not in OF_SEARCH or not equals:
        return argument
    return f"hydra.sweeper.{key}=[{value}]" if "," in value and "[" not in value else f"hydra.sweeper.{argument}"


def quoted(argument: str) -> str:
    """Quotes a path for Hydra, whose grammar knows few of the characters that paths have."""
    key, _, value = argument.partition("=")
    if key not in PATHS or value == "null" or value.startswith(("'", '"')) or "${" in value:
        return argument
    if not value.strip():
        raise UserError(f"{key}= is empty: name a folder, or leave it out")
    return f"{key}={in_quotes(value)}"


def in_quotes(value: str) -> str:
    """Quotes a value so that Hydra takes it as it is."""
    return "'" + value.replace("'", "\\'") + "'"


def prior_named(argument: str) -> str:
    """`prior=NAME` of a command that takes a fitted prior by its name: Hydra would take an option of conf/prior."""
    key, equals, value = argument.partition("=")
    return f"prior={{name:{value or 'null'}}}" if key == "prior" and equals and not value.startswith("{") else argument


def as_text(value: str) -> str:
    """Writes a string in Hydra's grammar: quotes escaped, with the backslashes before them, and `${` as it is."""
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{text}'".replace("${", "\\${")


def file_to_write(key: str, path: Any) -> Path | None:
    """Returns the file that a key names, None for null. Raises UserError if it cannot be written."""
    if path is None:
        return None
    output = Path(str(path))
    place = output if output.exists() else output.parent
    if not output.parent.is_dir() or output.is_dir() or not os.access(place, os.W_OK):
        raise UserError(f"{key}={output}: must be a file that can be written, in a folder that exists")
    return output


def single(name: str, task: Callable[[Any], Any], arguments: list[str]) -> int:
    """Runs a command that takes one run and no sweep, its paths as the user's shell gives them."""
    if {"-m", "--multirun"} & set(arguments):
        print(f"vaelab: {name} looks at one run at a time: leave out -m", file=sys.stderr)
        return 2
    try:
        arguments = [quoted(argument) for argument in arguments]
    except UserError as error:
        print(f"vaelab: {error}", file=sys.stderr)
        return 2
    return run(name, task, arguments)


SWEEPING = {"-m", "--multirun", "sweep"}
"""Arguments that make a command a sweep."""


def check_folders(arguments: list[str]) -> None:
    """Raises UserError if a sweep is given one run's folder."""
    given = set(map(key_of, arguments))
    if SWEEPING & given and "run.dir" in given:
        raise UserError("run.dir= is one run's folder: with -m, name the sweep's with sweep.dir=")


def key_of(argument: str) -> str:
    """Returns the key of an argument, without the marks that add or remove it."""
    return argument.partition("=")[0].lstrip("+~")


TAKING_A_VALUE = {
    *("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"),
    *("-i", "--info", "--experimental-rerun"),
}
FLAGS = TAKING_A_VALUE | {
    *("-h", "--help", "--hydra-help", "--version", "-r", "--resolve", "-m", "--multirun", "-sc", "--shell-completion"),
}
"""Flags that go on to Hydra, which would print its own usage about any other."""


def _check_words(name: str, arguments: list[str]) -> None:
    """Raises UserError for arguments that are neither a flag nor key=value."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        flag, equals, value = argument.partition("=")
        if argument.startswith("-") and flag not in FLAGS:
            key = flag.lstrip("-").replace("-", "_")
            instead = f"; write {key}={value}" if equals and key else ""
            raise UserError(f"{argument}: no such flag{instead}\n  vaelab {name} --help says what there is")
        if argument[:1] not in ("-", "~") and not equals and before not in TAKING_A_VALUE:
            raise UserError(f"{argument}: write key=value, as in run={argument}")


def run(name: str, task: Callable[[Any], Any], arguments: list[str]) -> int:
    """Runs `task` on the config `name`.yaml composed with `arguments`. Returns the exit code."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        if not {"-sc", "--shell-completion"} & set(arguments):
            _check_words(name, arguments)
    except UserError as error:
        print(f"vaelab: {error}", file=sys.stderr)
        return 2
    failures: list[Exception] = []

    def guarded(config: Any) -> Any:
        try:
            return task(config)
        except Exception as error:  # raised below, since Hydra would print its own report
            failures.append(error)

    traceback_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
    sys_argv, sys.argv = sys.argv, [sys.argv[0], *_flags_first(arguments)]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here instead of Hydra's own report
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(guarded)()
        if failures:
            raise failures[0]
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if traceback_wanted:
            raise
        print(f"vaelab: {_message(error, name, arguments)}", file=sys.stderr)
        return 2
    except ValueError as error:
        if traceback_wanted or error in failures:
            raise
        print(f"vaelab: {error}", file=sys.stderr)  # an error of Hydra's, about its own flags
        return 2
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        return end_of_pipe()
    except OSError as error:
        begun = error in failures  # before the task, Hydra writes nothing but the run folder
        fault = begun and (name == "train" or error.errno not in (EACCES, EPERM, EROFS, ENOSPC))
        if traceback_wanted or fault or error.filename is None:
            raise
        problem, remedy = f"cannot write {error.filename} ({error.strerror})", "name another place"
        print(f"vaelab: {problem}: {remedy if begun else 'set run.dir to another folder'}", file=sys.stderr)
        return 2
    except (DivergenceError, MachineError) as error:
        if traceback_wanted:
            raise
        print(f"vaelab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vaelab: interrupted", file=sys.stderr)
        return 130
    except Stopped as stop:
        print(f"vaelab: ended by {signal.Signals(stop.number).name}", file=sys.stderr)
        return 128 + stop.number
    finally:
        sys.argv = sys_argv
        if not traceback_wanted:
            del os.environ["HYDRA_FULL_ERROR"]
    return 0


def end_of_pipe() -> int:
    """Discards what is still printed. Returns the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _flags_first(arguments: list[str]) -> list[str]:
    """Puts flags before key=value: argparse does not take them mixed."""
    if "-sc" in arguments or "--shell-completion" in arguments:
        return arguments
    values = [a for a in arguments if "=" in a and not a.startswith("-")]
    return [a for a in arguments if a not in values] + values


def _message(error: Exception, name: str, arguments: list[str]) -> str:
    """Words an error for the user: the key, what is wrong, the remedy."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import MissingMandatoryValue

    text = str(error)
    if isinstance(error, UserError):
        return text
    if found := re.search(r"Ambiguous value for argument '([^'=]*)=([^']*)'", text):
        return (
            f"{found[1]}={found[2]}: several values are a sweep: vaelab {name} -m …, or write [{found[2]}] for a list"
        )
    if isinstance(error, MissingConfigException) and (found := re.search(r"Could not find '([^']*)'", text)):
        group, _, option = found[1].rpartition("/")
        listed = text.partition("Available options")[2].partition("Config search path")[0].splitlines()[1:]
        options = [o.strip() for o in listed if o.strip() and not o.strip().startswith("_")]
        if group == "hydra/launcher" and option in EXTRAS:
            return f'{group}={option} needs another package: pip install "vaelab[{EXTRAS[option]}]"'
        if not group or not options:
            return f"there is no config '{found[1]}'"
        return f"{group}={option}: no such option{_near(option, options)}\n  {group}= takes {', '.join(options)}"
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: write key=value, and quote values with special characters"
    if found := re.search(r"Could not override '([^']*)'", text):
        key = found[1]
        if key.startswith("hydra.sweeper.") and key.rpartition(".")[2] in OF_SEARCH:
            return f"{key.rpartition('.')[2]}= is for a search: add hydra/sweeper=optuna, with -m"
        hint = _elsewhere(key) or _near(key, [known for known in _keys(name, arguments) if known != key])
        return f"{key}: no such key{hint}\n  vaelab {name} --cfg job prints all keys"
    if isinstance(error, MissingMandatoryValue):
        key = getattr(error, "full_key", None) or text.rpartition(": ")[2]
        return f"{key}: this value must be given: {key}=…"
    lines = [line.strip() for line in text.strip().splitlines()]
    if lines[0].startswith("Error merging override ") and len(lines) > 1:
        return f"{lines[0].removeprefix('Error merging override ')}: {lines[1]}"
    return lines[0]


def _near(word: str, known: list[str]) -> str:
    parent = word.rpartition(".")[0]
    siblings = [k for k in known if parent and k.rpartition(".")[0] == parent]  # a shared parent makes no keys alike
    last = difflib.get_close_matches(word.rpartition(".")[2], [k.rpartition(".")[2] for k in siblings], 1, 0.6)
    near = [f"{parent}.{last[0]}"] if last else difflib.get_close_matches(word, known, 1, 0.65)
    return f"; did you mean {near[0]}?" if near else ""


def _elsewhere(key: str) -> str:
    """Names the options of the key's group that have such a key: model.beta is one of model=beta."""
    import yaml

    group, _, rest = key.partition(".")
    first = rest.partition(".")[0]
    files = sorted((CONF / group).glob("*.yaml")) if first else []
    having = [f"{group}={p.stem}" for p in files if first in (yaml.safe_load(p.read_text()) or {})]
    return f"; it belongs to {' and '.join(having)}" if having else ""


def _keys(name: str, arguments: list[str]) -> list[str]:
    """Returns all keys and groups of the config, composed from the arguments that choose an option of a group."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig

    groups = sorted(p.name for p in CONF.iterdir() if p.is_dir())
    chosen = [a for a in arguments if a.partition("=")[0] in groups and "," not in a]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(name, overrides=chosen)
    except HydraException:
        return groups

    def walk(node: Any, prefix: str) -> list[str]:
        keys = []
        for key in node:
            keys.append(f"{prefix}{key}")
            value = node._get_node(key)
            if isinstance(value, DictConfig) and not value._is_interpolation() and not value._is_none():
                keys += walk(value, f"{prefix}{key}.")
        return keys

    return walk(config, "") + [group for group in groups if group in config]
