"""Checks what of an installation works: Python, packages, devices, data, disk, compiler, W&B.

torch and torchvision are imported in processes of their own, with a time limit: a crash in compiled code ends
those, not this one. Nothing here uses the network or shows a secret.
"""

from __future__ import annotations

import json
import netrc
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

IMPORT_SECONDS = 120
"""Most seconds for an import: it takes 2 to 5, and much longer from a cold network disk."""
LITTLE_DISK, TOO_LITTLE_DISK = 2 * 10**9, 10**8
"""Free bytes below which the disk is reported: a sweep's checkpoints fill the first, one run may not fit the second."""
NAMED = ("pytorch-lightning", "hydra-core", "omegaconf", "wandb")
"""Packages that are shown with their versions; all others that vaelab requires are checked, too."""
PAIR = "pip install -U torch torchvision (in one command, from one index: pip then takes a pair that fits)"

TORCH_PROBE = """
import json, warnings
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as caught:
    import torch
    from torch.backends import mps
    facts = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "gpus": []}
    facts |= {"mps_built": mps.is_built(), "mps": mps.is_available(), "threads": torch.get_num_threads()}
    facts["vectors"] = torch.backends.cpu.get_cpu_capability()
    facts["bf16"] = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    try:
        if torch.cuda.is_available():
            for i in range(torch.cuda.device_count()):
                torch.ones(1, device=f"cuda:{i}").add_(1).item()
                memory = torch.cuda.get_device_properties(i).total_memory
                facts["gpus"].append([torch.cuda.get_device_name(i), memory])
    except RuntimeError as error:
        facts["gpu_error"] = str(error).strip().splitlines()[0]
facts["warnings"] = [str(w.message).strip().splitlines()[0] for w in caught if "cuda" in str(w.message).lower()]
print("\\n" + json.dumps(facts))
"""
TORCHVISION_PROBE = """
import json, torch, torchvision
torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
print("\\n" + json.dumps({"version": torchvision.__version__}))
"""

_IDX = tuple(
    f"raw/{part}-ubyte" for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
)
DATA_FILES = {
    "mnist": tuple(f"MNIST/{file}" for file in _IDX),
    "fashion_mnist": tuple(f"FashionMNIST/{file}" for file in _IDX),
    "kmnist": tuple(f"KMNIST/{file}" for file in _IDX),
    "cifar10": tuple(f"cifar-10-batches-py/{b}" for b in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")),
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
    "celeba": ("celeba/list_eval_partition.txt", "celeba/img_align_celeba/000001.jpg"),
    "dsprites": ("dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",),
    "shapes3d": ("3dshapes.h5",),
}
"""Files below dataset.root that each `dataset=` asks for. A test holds them against vaelab/datasets."""


class Check(NamedTuple):
    """The result of a check: what was looked at, how it is, in one line, and what to do if it is a problem."""

    name: str
    state: Literal["ok", "note", "problem"]
    says: str
    remedy: str = ""


def checks(root: Path | None, outputs: Path) -> list[Check]:
    """Makes all checks. root: the folder of data sets, None for ./data; outputs: where runs go."""
    with ThreadPoolExecutor() as pool:
        facts, vision = pool.map(run_python, (TORCH_PROBE, TORCHVISION_PROBE))
    return [
        check_python(),
        check_torch(facts),
        check_torchvision(vision),
        *check_packages(),
        check_processor(facts),
        check_gpu(facts, nvidia_driver()),
        *check_data(root),
        check_outputs(outputs),
        check_compiler(bool(facts.get("gpus"))),
        check_wandb(),
    ]


def run_python(code: str) -> dict[str, Any]:
    """Runs `code` in a fresh Python. Returns the JSON object on its last line, or {"error": why there is none}."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=IMPORT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no end after {IMPORT_SECONDS} seconds"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode < 0:
        return {"error": f"it crashed (signal {-done.returncode})"}
    lines = [line for line in done.stderr.splitlines() if line and not line.startswith(" ")]
    return {"error": lines[-1][:200] if lines else f"exit code {done.returncode}"}


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


def check_processor(facts: dict[str, Any]) -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if "error" in facts:
        return Check("processor", "note", f"{cores} cores; torch cannot say more")
    threads = facts["threads"]
    limited = " (OMP_NUM_THREADS)" if "OMP_NUM_THREADS" in os.environ else ""
    bf16 = "bfloat16" if facts["bf16"] else "no fast bfloat16: leave trainer.precision alone"
    says = f"{cores} cores, torch uses {threads}{limited}, {facts['vectors']}, {bf16}"
    if threads > cores:
        return Check("processor", "note", says, f"more threads than cores are slow: export OMP_NUM_THREADS={cores}")
    return Check("processor", "ok", says)


def nvidia_driver() -> str | None:
    """Returns the first GPU and driver by nvidia-smi; None without an NVIDIA GPU."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return ", driver ".join(part.strip() for part in lines[0].split(",")[:2]) if not done.returncode and lines else None


def check_gpu(facts: dict[str, Any], driver: str | None) -> Check:
    """Checks whether torch can use the GPU. driver: from `nvidia_driver`."""
    if "error" in facts:
        return Check("GPU", "note", f"{driver or 'not looked for'}; torch cannot say more")
    if "gpu_error" in facts:
        says = f"{driver or 'GPU'} fails with torch {facts['version']}: {facts['gpu_error']}"
        return Check("GPU", "problem", says, "a torch that knows this GPU: pytorch.org/get-started tells which")
    if facts["gpus"]:
        name, memory = facts["gpus"][0]
        number = driver.rpartition(", ")[2] if driver else "driver unknown"
        return Check("GPU", "ok", f"{len(facts['gpus'])} x {name}, {memory / 2**30:.0f} GiB, {number}")
    if facts["mps"]:
        return Check("GPU", "ok", "Apple GPU (accelerator=mps)")
    if facts["mps_built"] and platform.machine() == "arm64":
        return Check("GPU", "note", "Apple GPU, but this macOS is too old for it", "a newer macOS")
    if driver and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Check("GPU", "note", f"{driver}, hidden by CUDA_VISIBLE_DEVICES")
    if driver and not facts["cuda"]:
        says = f"{driver}, but torch {facts['version']} is built for the processor"
        return Check("GPU", "problem", says, "pytorch.org/get-started tells which pip install has CUDA")
    if driver:
        why = facts["warnings"][0] if facts["warnings"] else "it finds no device"
        says = f"{driver}, but torch, built for CUDA {facts['cuda']}, cannot use it: {why}"
        return Check(
            "GPU", "problem", says, "a newer driver, or a torch built for an older CUDA (pytorch.org/get-started)"
        )
    return Check("GPU", "ok", "none: runs train on the processor")


def check_data(named: Path | None) -> list[Check]:
    """Checks which data sets are below `named`, or ./data, by names alone: a damaged file is named when it is read.

    A folder that was named and does not exist is a problem; ./data need not exist.
    """
    root = named or Path("data")
    folder = root.expanduser()
    if named and not folder.is_dir():
        return [Check("data", "problem", f"{root} is no folder", "name the folder that the data sets are in")]
    if not folder.is_dir():
        says = f"{root} is no folder: sets that need files are downloaded there, or use root=PATH"
        return [Check("data", "note", says)]
    missing = {name: [f for f in files if not (folder / f).is_file()] for name, files in DATA_FILES.items()}
    whole = [name for name, files in missing.items() if not files]
    lines = [Check("data", "ok" if whole else "note", f"{root}: {', '.join(whole) or 'no data set that vaelab knows'}")]
    for name, files in missing.items():
        if 0 < len(files) < len(DATA_FILES[name]):
            says = f"{root}: {name} is not whole, {files[0]} is missing"
            lines.append(Check("data", "note", says, f"vaelab train dataset={name} fetches it; or put it there"))
    if "shapes3d" in whole and find_spec("h5py") is None:
        lines.append(Check("data", "problem", "shapes3d is there, but h5py is not", 'pip install "vaelab[shapes3d]"'))
    return lines


def check_outputs(outputs: Path) -> Check:
    """Checks whether runs can be written, and whether there is space."""
    place = outputs.absolute()
    while not place.exists():
        place = place.parent
    elsewhere = "set run.dir to a folder on another disk"
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        says = f"{outputs} cannot be written ({error.strerror})"
        return Check("outputs", "problem", says, "work in another folder, or set run.dir")
    says = f"{outputs}: {free / 1e9:.1f} GB free"
    if free < TOO_LITTLE_DISK:
        return Check("outputs", "problem", says, elsewhere)
    return (
        Check("outputs", "note", f"{says}: little for a sweep", elsewhere)
        if free < LITTLE_DISK
        else Check("outputs", "ok", says)
    )


def check_compiler(gpu: bool) -> Check:
    """Checks for what compile=true needs: a C++ compiler and Python's headers; on a GPU, Triton."""
    command = shlex.split(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))[0]
    if not shutil.which(command):
        return Check("compiler", "note", f"no {command}: compile=true does not work", "install it, or set CXX")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        says = f"{command}, but no Python.h: compile=true does not work"
        return Check("compiler", "note", says, "install Python's headers (python3-dev)")
    if gpu and find_spec("triton") is None:
        return Check("compiler", "note", f"{command}, but no Triton: no compile=true on the GPU", "pip install triton")
    return Check("compiler", "ok", f"{command} (for compile=true)")


def check_wandb() -> Check:
    """Checks whether there is a W&B key, and whether runs go offline; no key is looked at or shown."""
    if installed("wandb") is None:
        return Check("W&B", "note", "wandb is not installed: no logger=wandb")
    key = "a key in WANDB_API_KEY" if os.environ.get("WANDB_API_KEY") else None
    key = key or ("a key in netrc" if _netrc_has_key() else None)
    mode = os.environ.get("WANDB_MODE", "")
    switched = f"; WANDB_MODE={mode}" if mode in ("offline", "online", "disabled", "shared") else ""
    says = f"{key or 'no key'}{switched}; runs are offline unless logger.wandb.mode=online"
    if key is None:
        return Check("W&B", "ok", f"{says}, which needs one (wandb login)")
    return Check("W&B", "ok", says)


def _netrc_has_key() -> bool:
    """Whether netrc names a W&B host."""
    path = os.environ.get("NETRC")
    try:
        return any("wandb" in host for host in netrc.netrc(path).hosts)
    except (OSError, netrc.NetrcParseError):  # the error's message may hold a part of the file
        return False
