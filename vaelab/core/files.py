"""Files that are written whole or not at all, and read with an error that names what is damaged."""

from __future__ import annotations

import json
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vaelab.core.errors import UserError

NO_ARRAYS = (
    *(OSError, EOFError, KeyError, RuntimeError, SyntaxError, ValueError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What NumPy and `zipfile` raise for a file that holds no arrays, or damaged ones."""


def unreadable(error: Exception) -> str:
    """Says in a few words why NumPy could not read a file of arrays, given what it raised."""
    text = str(error).strip()
    if "pickled" in text:  # what begins otherwise than its own files
        return "it is no file of NumPy's"
    return "it holds Python objects" if "bject" in text else text.split("\n")[0][:150]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; that file takes the place of `path` at the end of the block.

    A reader thus finds the old file or the new one, never a part, whatever ends this process or the
    machine: the disk has the file before it takes its name. If the block raises, the old file stays. Two
    processes that write the same file do not meet.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def locked(path: Path | None) -> Iterator[None]:
    """Keeps other processes that lock the same file waiting until the block is left; without a file it does nothing."""
    if path is None:
        yield
        return
    with path.open("a") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except ImportError:  # there is no fcntl on Windows
            pass
        yield


def clear_partial(folder: Path) -> None:
    """Removes what processes that were killed while they wrote have left below a folder; no other may write there."""
    for path in folder.rglob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Reads a JSON object, empty if there is no such file. Raises UserError with the remedy if it is damaged."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one, too
        raise UserError(f"{path} is damaged, it is no JSON: {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged, it is no JSON object: {remedy}")
    return content


def damaged(path: Path, why: str, remedy: str) -> UserError:
    """Makes the error for a file whose content is not what it should be."""
    return UserError(f"{path} is damaged: {why}\n{remedy}")
