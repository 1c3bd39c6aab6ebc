"""Runs commands through Hydra, and turns errors into one or two lines and an exit code."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from errno import EACCES, ENOSPC, EPERM, EROFS
from pathlib import Path
from typing import Any

from vaelab.commands import answers
from vaelab.commands.answers import key_of
from vaelab.core import own
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
    "hub",
    "image",
    "from",
    "to",
    "corners",
    "inception",
    "lpips",
)
"""Keys whose values are paths."""
SWEPT = ("dataset.root",)
"""Those of them that a sweep may have several values of."""


def of_search(argument: str) -> str:
    """Gives a search's key its full name; a list of metrics or directions needs no brackets."""
    key, equals, value = argument.partition("=")
    if key not in answers.OF_SEARCH or not equals:
        return argument
    return f"hydra.sweeper.{key}=[{value}]" if "," in value and "[" not in value else f"hydra.sweeper.{argument}"


def quoted(argument: str, sweeping: bool = False) -> str:
    """Quotes a path for Hydra, whose grammar knows few of the characters that paths have.

    sweeping: whether a comma separates folders of images, unless there is one of that name.
    """
    key, _, value = argument.partition("=")
    if key not in PATHS or value == "null" or value.startswith(("'", '"')) or "${" in value:
        return argument
    if not value.strip():
        raise UserError(f"{key}= is empty: name a folder, or leave it out")
    several = sweeping and key in SWEPT and not Path(value).expanduser().exists()
    return f"{key}={','.join(map(in_quotes, value.split(',') if several else [value]))}"


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


def items(value: Any) -> list[Any]:
    """Returns the items of a list, which may still be the text that the shell gave; of any other value, itself."""
    if isinstance(value, str) and re.fullmatch(r"\[.*\]", value):
        parts = re.findall(r"""\s*('[^']*'|"[^"]*"|[^,]+)\s*(?:,|$)""", value[1:-1])
        return [part.strip().strip("'\"") for part in parts if part.strip()]
    return value if isinstance(value, list) else [value]


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


TRACEBACK = "HYDRA_FULL_ERROR"
"""Environment variable by which a user, with 1, asks for whole tracebacks."""
SWEEPING = {"-m", "--multirun", "sweep"}
"""Arguments that make a command a sweep."""


def sweeps(arguments: list[str]) -> bool:
    """Whether these arguments make a command a sweep."""
    return not SWEEPING.isdisjoint(map(key_of, arguments))


def check_folders(arguments: list[str]) -> None:
    """Raises UserError if a sweep is given one run's folder."""
    if sweeps(arguments) and "run.dir" in map(key_of, arguments):
        raise UserError("run.dir= is one run's folder: with -m, name the sweep's with sweep.dir=")


TAKING_A_VALUE = {
    *("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"),
    *("-i", "--info", "--experimental-rerun"),
}
SEVERAL = ("logger", "metric", "schedule", "experiment", "sweep")
"""Groups of which several options go together."""
FLAGS = TAKING_A_VALUE | {
    *("-h", "--help", "--hydra-help", "--version", "-r", "--resolve", "-m", "--multirun", "-sc", "--shell-completion"),
}
"""Flags that go on to Hydra, which would print its own usage about any other."""


def _check_words(name: str, arguments: list[str]) -> None:
    """Raises UserError for arguments that are neither a flag nor key=value."""
    for before, argument, after in zip(["", *arguments], arguments, [*arguments[1:], ""], strict=False):
        flag, equals, value = argument.partition("=")
        if argument.startswith("-") and flag not in FLAGS:
            key, value = flag.lstrip("-").replace("-", "_"), value if equals else after
            instead = f"; write {key}={value}" if key and value and "=" not in value and value[:1] != "-" else ""
            raise UserError(f"{argument}: no such flag{instead}\n  vaelab {name} --help says what there is")
        group = flag.lstrip("+~").partition("@")[0]
        if value.startswith("[") and group not in SEVERAL and (CONF / group).is_dir():
            in_sweep = f"; several are a sweep: -m {flag}={value.strip('[]')}" if name in answers.SWEEPING else ""
            raise UserError(f"{argument}: takes one option{in_sweep}")
        if argument[:1] not in ("-", "~") and not equals and before not in TAKING_A_VALUE:
            raise UserError(f"{argument}: write key=value, as in {answers.key_for(argument, name)}={argument}")


def invoke(name: str, task: Callable[[Any], Any], arguments: list[str]) -> Any:
    """Runs `task` on the config `name`.yaml composed with `arguments`, and returns what it returns, of one run.

    What it raises is raised, UserError for arguments that make no config.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if not {"-sc", "--shell-completion"} & set(arguments):
        _check_words(name, arguments)
    failures: list[Exception] = []
    results: list[Any] = []

    def guarded(config: Any) -> Any:
        try:
            results.append(task(config))
            return results[-1]
        except Exception as error:  # raised below, since Hydra would print its own report
            failures.append(error)

    folder = own.options_folder()
    if folder and not {"--config-dir", "-cd"} & {argument.partition("=")[0] for argument in arguments}:
        arguments = ["--config-dir", str(folder), *arguments]
    former, sys_argv, sys.argv = os.environ.get(TRACEBACK), sys.argv, [sys.argv[0], *_flags_first(arguments)]
    os.environ[TRACEBACK] = "1"  # exceptions come here instead of Hydra's own report
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(guarded)()
        if failures:
            raise failures[0]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(answers.message(error, name, arguments)) from error
    except (OSError, UserError):
        raise
    except ValueError as error:
        raise error if error in failures else UserError(str(error)) from error  # an error of Hydra's, about its flags
    except Exception as error:
        place = getattr(error, "problem_mark", None)  # of YAML
        if error not in failures and place is not None:
            raise UserError(f"{place.name}, line {place.line + 1}: no YAML: {getattr(error, 'problem', '')}") from error
        if error in failures or not answers.raised_by_hydra(error):
            raise
        text = answers.message(error, name, arguments)
        raise UserError(f"these arguments make no config: {text}") from error
    finally:
        sys.argv = sys_argv
        if former is None:
            del os.environ[TRACEBACK]
        else:
            os.environ[TRACEBACK] = former
    return results[-1] if results else None


def run(name: str, task: Callable[[Any], Any], arguments: list[str]) -> int:
    """Runs `task` on the config `name`.yaml composed with `arguments`. Returns the exit code."""
    traceback_wanted, begun = os.environ.get(TRACEBACK) == "1", False

    def noted(config: Any) -> Any:
        nonlocal begun
        begun = True
        return task(config)

    try:
        invoke(name, noted, arguments)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        return end_of_pipe()
    except (UserError, DivergenceError, MachineError) as error:
        if traceback_wanted:
            raise
        print(f"vaelab: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except Exception as error:
        if traceback_wanted:
            raise
        problem = _of_files(error, name, begun) if isinstance(error, OSError) else None
        lines = f"vaelab: {problem}" if problem else own.traceback_of(error)
        if lines is None:
            raise
        print(lines, file=sys.stderr)
        return 2 if problem else 1
    except KeyboardInterrupt:
        print("vaelab: interrupted", file=sys.stderr)
        return 130
    except Stopped as stop:
        print(f"vaelab: ended by {signal.Signals(stop.number).name}", file=sys.stderr)
        return 128 + stop.number
    return 0


def _of_files(error: OSError, name: str, begun: bool) -> str | None:
    """Words an error about a file that is the user's to mend; None for any other.

    begun: whether the task had begun; before, Hydra writes nothing but the run folder.
    """
    if error.filename is None or (begun and (name == "train" or error.errno not in (EACCES, EPERM, EROFS, ENOSPC))):
        return None
    closed = begun and _closed(error.filename)
    remedy = "change its owner or its rights" if closed else "name another place"
    problem = f"cannot {'read' if closed else 'write'} {error.filename} ({error.strerror})"
    return f"{problem}: {remedy if begun else 'set run.dir to another folder'}"


def _closed(path: str) -> bool:
    """Whether a file is there, or may be there for all that can be seen, and cannot be read."""
    seen = os.path.exists(path) or not os.access(os.path.dirname(path) or ".", os.X_OK)
    return seen and not os.access(path, os.R_OK)


def end_of_pipe() -> int:
    """Discards what is still printed. Returns the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _flags_first(arguments: list[str]) -> list[str]:
    """Puts flags before key=value and ~key: argparse does not take them mixed."""
    if "-sc" in arguments or "--shell-completion" in arguments:
        return arguments
    values = [a for a in arguments if a.startswith("~") or ("=" in a and not a.startswith("-"))]
    return [a for a in arguments if a not in values] + values
