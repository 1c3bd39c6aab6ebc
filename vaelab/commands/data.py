"""`vaelab data` writes a data set into one file that training can read where it lies, and checks such a file."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vaelab.commands import command
from vaelab.core.errors import UserError

USAGE = "it is `vaelab data prepare dataset=NAME out=FILE` or `vaelab data check FILE`; vaelab data --help says more"


def main(arguments: list[str]) -> int:
    """Runs `vaelab data` with these arguments. Returns the exit code."""
    word, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if word == "prepare":
        return command.single("data", lambda config: prepare(config, rest), rest)
    if word.startswith("-"):  # --help, --cfg job
        return command.single("data", lambda config: prepare(config, arguments), arguments)
    if word == "check" and len(rest) == 1 and not rest[0].startswith("-"):
        return _check(rest[0])
    print(f"vaelab: data: {USAGE}", file=sys.stderr)
    return 2


def prepare(config: Any, arguments: list[str]) -> None:
    """Hydra's job: checks what is asked, reads the data set once and writes the file.

    arguments: the command line's, which tell what the user set from what the config holds anyway.
    """
    from omegaconf import OmegaConf

    from vaelab.core.config import build, check

    if config.get("dataset") is None:
        raise UserError("dataset: this value must be given, as in dataset=folder dataset.root=photos")
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if unknown := sorted(plain.keys() - {"dataset", "out", "seed"}):
        raise UserError(f"{unknown[0]}: no such key; vaelab data prepare takes dataset=, its keys, and out=")
    out = Path(str(plain["out"])).expanduser()
    if out.exists():
        raise UserError(f"out={plain['out']} is there already, and is left as it is: name another file, or remove it")
    check(plain["dataset"], "dataset")
    source = _refuse_keys_of_training(plain["dataset"], arguments)
    data = build(plain["dataset"])
    splits = data.load()
    about = {
        "num_classes": data.num_classes,
        "class_names": data.class_names,
        "label_names": data.found.get("label_names"),
        "factors": data.factor_sizes,
        "binary": data.binary,
        "source": source,
    }
    _write(out, splits, about)
    count, (c, h, w) = [f"{len(split):,}" for split in splits], splits[0].shape
    print(f"{count[0]} images to train on (and to validate) and {count[1]} to test, each {c}x{h}x{w}: {_size(out)}")
    print(f"prepared: {out}\ntrain on it: vaelab train dataset=prepared {shlex.quote(f'dataset.root={out}')}")


def _refuse_keys_of_training(dataset: dict[str, Any], arguments: list[str]) -> dict[str, Any]:
    """Returns the keys of a data set's config that define its images: others are refused if given."""
    from dataclasses import fields

    from vaelab.datasets import ImageData

    shared = {field.name for field in fields(ImageData)}
    for argument in arguments:
        group, _, key = argument.partition("=")[0].lstrip("+~").partition(".")
        if group == "dataset" and key in shared:
            raise UserError(
                f"dataset.{key} is for training and would not be in the file: leave it out here, and give it to "
                "vaelab train dataset=prepared"
            )
    return {key: value for key, value in dataset.items() if key not in shared}


def _write(out: Path, splits: Any, about: dict[str, Any]) -> None:
    """Writes the file whole or not at all, with a progress bar if it takes long."""
    from tqdm import tqdm

    from vaelab import __version__
    from vaelab.datasets.files import FileSplit
    from vaelab.datasets.prepared.file import layout, write

    for split in splits:
        if isinstance(split, FileSplit):
            split.verify()  # checked before hours of decoding, not after
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        header = layout(splits[0].shape, splits, about | {"vaelab": __version__})
        with _temporary(out, header["size"]) as file:
            total = sum(map(len, splits))
            with tqdm(total=total, desc="preparing", unit="image", delay=2, leave=False, disable=None) as bar:
                for count in write(file, header, splits):
                    bar.update(count)
    except OSError as error:
        raise UserError(f"out={out}: it cannot be written ({error.strerror}): name another file") from error


@contextmanager
def _temporary(out: Path, size: int) -> Iterator[BinaryIO]:
    """Opens a file beside `out` that takes its place at the end, or is removed. One of a killed process is reused."""
    partial = out.with_name(out.name + ".tmp")
    with open(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        _lock(file, out, partial)
        try:
            file.truncate(0)
            free = shutil.disk_usage(partial.parent).free
            if size > free:
                raise UserError(f"out={out}: it needs {_mib(size)}, and {_mib(free)} are free: name another disk")
            yield file
            if out.exists():
                raise UserError(f"out={out} is there by now, and is left as it is: name another file")
            os.replace(partial, out)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _lock(file: BinaryIO, out: Path, partial: Path) -> None:
    """Raises UserError if another process writes the file or has just done so; the lock ends with this process."""
    try:
        import fcntl
    except ImportError:  # there is no fcntl on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), partial.stat()):
            return
    except (BlockingIOError, FileNotFoundError):
        pass
    raise UserError(f"out={out}: another process is writing it: wait for it, or name another file")


def _check(name: str) -> int:
    """Runs `vaelab data check`: reads all of a file. Returns the exit code."""
    from vaelab.datasets.prepared import PreparedSplit
    from vaelab.datasets.prepared.file import PARTS, read_header

    path = Path(name).expanduser()
    try:
        header = read_header(path)
        for part in PARTS:
            PreparedSplit(path, header, part).verify()
    except UserError as error:
        print(f"vaelab: {error}", file=sys.stderr)
        return 2
    counts = " and ".join(f"{header['parts'][part]['count']:,} {part}" for part in PARTS)
    print(f"{path}: {counts} images, {'x'.join(map(str, header['shape']))}, all as they were written")
    return 0


def _size(path: Path) -> str:
    return _mib(path.stat().st_size)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
