"""Prints what each package that vaelab requires, and each extra, adds to an environment: packages and megabytes.

    python scripts/package_sizes.py

Counted are the files of the installed packages, without compiled Python; a package counts with all that it requires
and nothing else that is counted does. Those for NVIDIA's GPUs are counted apart.
"""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
GPU = re.compile(r"nvidia|triton|cuda")


def needed(names: list[str], found: set[str]) -> set[str]:
    """Adds installed packages, and what they require, to `found`."""
    for name in map(canonicalize_name, names):
        if name in found:
            continue
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        requirements = [Requirement(line) for line in lines]
        needed([r.name for r in requirements if not r.marker or r.marker.evaluate({"extra": ""})], found)
    return found


def megabytes(names: set[str]) -> float:
    paths = [file.locate() for name in names for file in metadata.files(name) or [] if file.suffix != ".pyc"]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    default = [Requirement(line).name for line in project["dependencies"]]
    everything = needed(default, set())
    gpu = {name for name in everything if GPU.match(name)}
    print(f"{'default install':32}{len(everything - gpu):4} packages {megabytes(everything - gpu):8.1f} MB")
    print(f"{'  for NVIDIA':32}{len(gpu):4} packages {megabytes(gpu):8.1f} MB")
    for name in default:
        own = everything - needed([other for other in default if other != name], set())
        print(f"{name:32}{len(own):4} packages {megabytes(own):8.1f} MB")
    for extra, lines in project["optional-dependencies"].items():
        if extra != "dev":
            own = needed([Requirement(line).name for line in lines], set()) - everything
            print(f"[{extra}]".ljust(32) + f"{len(own):4} packages {megabytes(own):8.1f} MB")


if __name__ == "__main__":
    main()
