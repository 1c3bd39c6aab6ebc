"""Checks what a run finds around it: processor, GPU, data, disk, compiler, W&B."""

from __future__ import annotations

import netrc
import os
import platform
import shlex
import shutil
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vaelab.training.installation.packages import Check, installed

LITTLE_DISK, TOO_LITTLE_DISK = 2 * 10**9, 10**8
"""Free bytes below which the disk is reported: a sweep's checkpoints fill the first, one run may not fit the second."""

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
