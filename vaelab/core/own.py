"""What users bring themselves: modules and options in the working folder, and errors in their code."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
import traceback
from pathlib import Path

from vaelab.core.conf import CONF, PACKAGE

FOLDER = Path("conf")
"""Folder of a user's own options, in the working folder: FOLDER/model/mine.yaml is model=mine."""


def make_importable(target: str) -> None:
    """Has Python look for a module in the working folder, too, if it is nowhere else.

    The working folder comes last, and only for a module that a config names: a file there takes no library's place.
    target: dotted name of a class or function.
    """
    module, here = target.partition(".")[0], str(Path.cwd())
    if module.isidentifier() and module not in sys.modules and here not in sys.path and not _found(module):
        sys.path.append(here)
        importlib.invalidate_caches()


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def options_folder() -> Path | None:
    """Finds the folder of the user's own options: ./conf, if it has options of groups that vaelab knows."""
    if not FOLDER.is_dir() or FOLDER.resolve() == CONF.resolve():
        return None
    groups = [path.relative_to(CONF) for path in CONF.rglob("*") if path.is_dir()]
    return FOLDER.resolve() if any(any((FOLDER / group).glob("*.yaml")) for group in groups) else None


def traceback_of(error: BaseException) -> str | None:
    """Formats the lines of the user's own code that an error came through; None if it came through none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    if not frames:
        return None
    title = "Traceback through your code (all of it: HYDRA_FULL_ERROR=1, or run.log):\n"
    return "".join([title, *traceback.format_list(frames), *traceback.format_exception_only(error)]).rstrip()


def print_error(error: BaseException) -> None:
    """Prints the traceback of an error: the lines of the user's own code, or else all of it."""
    print(traceback_of(error) or "".join(traceback.format_exception(error)).rstrip(), file=sys.stderr)


def _is_own(file: str) -> bool:
    """Whether a file of code is neither vaelab's, nor an installed library's, nor Python's."""
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    path = Path(file)
    known = [PACKAGE, PACKAGE.parent / "hydra_plugins", *map(Path, libraries), Path(sys.prefix)]
    return path.is_file() and not any(path.is_relative_to(folder) for folder in known)
