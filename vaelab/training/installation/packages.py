"""Checks Python, and the packages that vaelab requires, by their metadata and by what the probes say."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any, Literal, NamedTuple

NAMED = ("pytorch-lightning", "hydra-core", "omegaconf", "wandb")
"""Packages that are shown with their versions; all others that vaelab requires are checked, too."""
PAIR = "pip install -U torch torchvision (in one command, from one index: pip then takes a pair that fits)"


class Check(NamedTuple):
    """The result of a check: what was looked at, how it is, in one line, and what to do if it is a problem."""

    name: str
    state: Literal["ok", "note", "problem"]
    says: str
    remedy: str = ""


def check_python() -> Check:
    from packaging.specifiers import SpecifierSet

    says = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    try:
        wanted = str(metadata.metadata("vaelab").json.get("requires_python", ""))
    except metadata.PackageNotFoundError:
        wanted = ""
    if not SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        return Check("Python", "problem", says, f"vaelab needs Python {wanted}")
    return Check("Python", "ok", says)


def installed(name: str) -> str | None:
    """Returns the version of a package; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def required() -> dict[str, Any]:
    """Returns what vaelab requires, by name, as `packaging` requirements."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("vaelab") or []
    except metadata.PackageNotFoundError:  # run from a folder, not installed
        lines = ["torch", "torchvision", *NAMED]
    requirements = [Requirement(line) for line in lines]
    return {r.name: r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})}


def fits(requirement: Any, version: str) -> bool:
    return requirement.specifier.contains(version, prereleases=True)


def check_torch(facts: dict[str, Any]) -> Check:
    version, wanted = installed("torch"), required()["torch"]
    if version is None:
        return Check("torch", "problem", "not installed", PAIR)
    if "error" in facts:
        return Check("torch", "problem", f"{version} cannot be imported: {facts['error']}", f"reinstall it: {PAIR}")
    if not fits(wanted, version):
        return Check("torch", "problem", f"{version}, and vaelab needs {wanted}", PAIR)
    build = f"CUDA {facts['cuda']}" if facts["cuda"] else f"ROCm {facts['hip']}" if facts["hip"] else "the processor"
    return Check("torch", "ok", f"{facts['version']}, built for {build}")


def check_torchvision(vision: dict[str, Any]) -> Check:
    """Checks torchvision by its metadata, which name the torch it was built for, and by running its compiled part."""
    from packaging.requirements import Requirement

    version, torch = installed("torchvision"), installed("torch")
    if version is None:
        return Check("torchvision", "problem", "not installed", PAIR)
    wanted = next((r for r in map(Requirement, metadata.requires("torchvision") or []) if r.name == "torch"), None)
    if wanted and torch and not fits(wanted, torch):
        says = f"{version} is for torch{wanted.specifier}, and torch is {torch}"
        return Check("torchvision", "problem", says, PAIR)
    if "error" in vision:
        says = f"{version} does not work with torch {torch}: {vision['error']}"
        return Check("torchvision", "problem", says, PAIR)
    of = f" (is for torch{wanted.specifier})" if wanted and wanted.specifier else ""
    return Check("torchvision", "ok", f"{vision['version']}, its compiled part works with this torch{of}")


def check_packages() -> list[Check]:
    """Checks all other packages that vaelab requires: a line for those that are well, a line for each that is not."""
    problems, well = [], []
    for name, requirement in required().items():
        if name in ("torch", "torchvision"):
            continue
        version = installed(name)
        if version is None or not fits(requirement, version):
            says = (
                f"{name} is not installed" if version is None else f"{name} {version}, and vaelab needs {requirement}"
            )
            problems.append(Check("packages", "problem", says, f'pip install "{requirement}"'))
        elif name in NAMED:
            well.append(f"{name} {version}")
    return [*([Check("packages", "ok", ", ".join(well))] if well else []), *problems]
