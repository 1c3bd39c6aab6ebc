"""Packs what a bare machine with a GPU lacks, so that scripts/gpu/check.py runs there without a network.

    python scripts/gpu/pack.py FOLDER                         wheels for the machine's Python
    python scripts/gpu/pack.py FOLDER --root data             and MNIST, as torchvision lays it out

The machine is taken to have torch, Lightning, scikit-learn, matplotlib, jinja2, safetensors, psutil and
tqdm (`--packages` names others that it lacks). There:

    export PYTHONPATH=FOLDER/site && python scripts/gpu/check.py --root FOLDER --out RESULTS
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

LACKING = (
    "hydra-core==1.3.*",
    "omegaconf==2.3.*",
    "antlr4-python3-runtime==4.9.*",
    "pydantic>=2.7",
    "typing-extensions",
    "typing-inspection",
    "greenlet>=3",
    "rich>=13",
    "zuko>=1.4",
)
MNIST = "MNIST/raw"


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    if subprocess.run(command).returncode:
        raise SystemExit(f"failed: {' '.join(command)}")


def packages(names: list[str], version: str, site: Path) -> None:
    """Unpacks wheels for Python `version` on 64-bit Linux into `site`; what is published as source only is built."""
    with tempfile.TemporaryDirectory() as folder:
        platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("2014", "_2_17", "_2_28")]
        for name in names:
            if name.startswith("antlr4"):
                pip("wheel", "--no-deps", "--wheel-dir", folder, name)  # pure Python, published as source alone
            else:
                target = ["--no-deps", "--only-binary=:all:", f"--python-version={version}", *platforms]
                pip("download", *target, "--dest", folder, name)
        pydantic = next(Path(folder).glob("pydantic-*.whl"), None)
        if pydantic is not None:  # pydantic needs one exact version of its core
            with zipfile.ZipFile(pydantic) as wheel:
                metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
                lines = wheel.read(metadata).decode().splitlines()
            core = next(line for line in lines if line.startswith("Requires-Dist: pydantic-core"))
            target = ["--no-deps", "--only-binary=:all:", f"--python-version={version}", *platforms]
            pip("download", *target, "--dest", folder, core.partition(": ")[2], "annotated-types")
        for wheel in sorted(Path(folder).glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
            print(wheel.name)


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--python", default="3.12", metavar="VERSION", help="Python of the machine (default: %(default)s)"
    )
    parser.add_argument("--packages", nargs="*", default=list(LACKING), metavar="NAME", help="packages that it lacks")
    parser.add_argument("--root", type=Path, help="where MNIST lies, to take it along")
    options = parser.parse_args()
    packages(options.packages, options.python, options.folder / "site")
    if options.root:
        with tarfile.open(options.folder / "mnist.tar.xz", "w:xz") as archive:
            archive.add(options.root / MNIST, MNIST)
    return 0


if __name__ == "__main__":
    sys.exit(main())
