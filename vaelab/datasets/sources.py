"""Where a data set's files are and how they get there; which images are set aside for testing; factors."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from vaelab.core.errors import UserError

TEST_SEED = 20_191_218
"""Seed that chooses the test images of sets published without a test split; no run may change it."""
TIMEOUT = 30.0
"""Seconds without an answer after which a download is given up."""


def find_files(root: str, names: Sequence[str], download: bool, fetch: Callable[[Path], object]) -> list[Path]:
    """Finds `names` below `root`; if any is missing and `download` allows it, `fetch(root)` brings them.

    Raises UserError, naming the missing files, if they are absent and cannot be fetched.
    """
    folder = Path(root).expanduser()
    paths = [folder / name for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing and download:
        _download(root, missing, fetch)
        missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"dataset.root={root}: no {_listed(missing)}\n"
            "set dataset.root to the folder that holds it, or dataset.download=true to fetch it"
        )
    return paths


def _download(root: str, missing: list[Path], fetch: Callable[[Path], object]) -> None:
    folder = Path(root).expanduser()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fetch(folder)
    except (OSError, RuntimeError, HTTPException, ImportError) as error:
        raise UserError(
            f"dataset.root={root}: no {_listed(missing)}, and the download failed ({_reason(error)})\n"
            "put it there yourself, set dataset.root to the folder that holds it, or try again with a network"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: BaseException) -> str:
    """Returns the last line of an error's message: torchvision puts the cause below a list of mirrors."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__


def _listed(paths: list[Path]) -> str:
    here = paths[0].parent
    names = [path.name if path.parent == here else str(path) for path in paths[1:]]
    return f"{paths[0]}" + (f" (also {', '.join(names)})" if names else "")


def fetch_url(url: str, target: Path) -> None:
    """Downloads `url` to `target`, which appears only once it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(url, str(target))


def broken(path: Path, reason: object) -> UserError:
    """Makes the error for a data file that is there but cannot be used."""
    return UserError(f"{path}: {_first_line(reason)}\ndelete it and fetch it anew (dataset.download=true)")


def _first_line(reason: object) -> str:
    lines = str(reason).strip().splitlines()
    return lines[0][:200] if lines else type(reason).__name__


def import_torchvision() -> ModuleType:
    """Imports `torchvision.datasets`. Raises UserError if its compiled part does not fit the installed torch."""
    try:
        import torchvision.datasets
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise UserError(
            f"torchvision, needed for the download, cannot be imported: {_first_line(error)}\n"
            "install the one that matches your torch: pip install -U torch torchvision"
        ) from error
    return torchvision.datasets


def hold_out(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sets `count` images aside, the same ones every time and in every class's proportion.

    labels: [N] int64; all zero if there are no classes. Returns the indices kept and those set
    aside, both int64 and ascending.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(TEST_SEED))
    by_class = order[labels[order].argsort(stable=True)]
    sizes = labels.bincount()
    class_of = labels[by_class]
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[class_of]
    picked = by_class[((rank + 0.5) / sizes[class_of].double()).argsort(stable=True)]
    return picked[count:].sort().values, picked[:count].sort().values


def count_aside(source: str, total: int, test_size: float, remedy: str, what: str = "images") -> int:
    """Computes how many of a user's own images are set aside for testing. Raises UserError if too few are left.

    test_size: a count if 1 or more, a fraction below 1. source: the key that names the images. remedy: how test images
    are given. what: the word for them.
    """
    count = round(test_size * total) if test_size < 1 else int(test_size)
    if count < 1 or total - count < 2:
        raise UserError(
            f"{source}: {total} {what} are too few to set aside dataset.test_size={test_size} of them for testing\n"
            f"add {what}, change dataset.test_size, or {remedy}"
        )
    return count


def take_test(total: int, test_size: int) -> tuple[Tensor, Tensor]:
    """Sets test images aside in a set without classes. Raises UserError if nothing would be left to train on."""
    if test_size >= total:
        raise UserError(f"dataset.test_size={test_size}: there are only {total} images to take them from")
    return hold_out(torch.zeros(total, dtype=torch.int64), test_size)


def indices_to_factors(index: Tensor, sizes: Mapping[str, int]) -> Tensor:
    """Returns the factors, [B, F] int64, of images at `index`, [B], of a cartesian product; the last varies fastest."""
    values = []
    for size in reversed(list(sizes.values())):
        values.append(index % size)
        index = index.div(size, rounding_mode="floor")
    return torch.stack(values[::-1], dim=1)
