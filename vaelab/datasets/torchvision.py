"""The classic sets that torchvision can download: MNIST and its kin, CIFAR-10, SVHN.

torchvision only fetches. The files are read here, so that a broken one is named, no pickle can
execute anything, and data on the disk need no torchvision that fits the installed torch.
"""

from __future__ import annotations

import io
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vaelab.datasets.base import ImageData
from vaelab.datasets.sources import broken, find_files, import_torchvision
from vaelab.datasets.splits import TensorSplit


@dataclass(kw_only=True, eq=False)
class _Published(ImageData):
    """Base class of ten-class sets as published in files.

    root: the folder the files are in or go to. download: whether missing files may be fetched.
    """

    root: str
    download: bool

    names: ClassVar[str] = "0 1 2 3 4 5 6 7 8 9"
    """Names of the classes, separated by blanks."""

    @property
    def num_classes(self) -> int:
        return 10

    @property
    def class_names(self) -> list[str]:
        return self.names.split()


@dataclass(kw_only=True, eq=False)
class MNIST(_Published):
    """60,000 + 10,000 grey 28x28 handwritten digits (LeCun et al., 1998): `<root>/MNIST/raw/*-ubyte`."""

    def load(self) -> tuple[TensorSplit, TensorSplit]:
        """Reads the files. Raises UserError if one is missing, cut short or not in the idx format."""
        name = type(self).__name__
        parts = [f"{name}/raw/{part}-ubyte" for part in _IDX_PARTS]
        files = find_files(self.root, parts, self.download, lambda root: _fetch(name, root, {"train": True}))
        images, labels, test_images, test_labels = (read_idx(path) for path in files)
        return _idx_split(files[:2], images, labels), _idx_split(files[2:], test_images, test_labels)


_IDX_PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


class FashionMNIST(MNIST):
    """60,000 + 10,000 grey 28x28 pictures of clothes (Xiao et al., 2017): `<root>/FashionMNIST/raw/*-ubyte`."""

    names = "t-shirt trouser pullover dress coat sandal shirt sneaker bag boot"


class KMNIST(MNIST):
    """60,000 + 10,000 grey 28x28 cursive Kuzushiji (Clanuwat et al., 2018): `<root>/KMNIST/raw/*-ubyte`."""

    names = "o ki su tsu na ha ma ya re wo"


@dataclass(kw_only=True, eq=False)
class CIFAR10(_Published):
    """50,000 + 10,000 RGB 32x32 photographs (Krizhevsky, 2009): `<root>/cifar-10-batches-py/*`."""

    names = "airplane automobile bird cat deer dog frog horse ship truck"

    def load(self) -> tuple[TensorSplit, TensorSplit]:
        """Reads the files. Raises UserError if one is missing, cut short or holds anything but arrays and labels."""
        parts = [f"cifar-10-batches-py/{part}" for part in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")]
        files = find_files(self.root, parts, self.download, lambda root: _fetch("CIFAR10", root, {"train": True}))
        batches = [_read_cifar(path) for path in files]
        images, labels = (torch.cat(tensors) for tensors in zip(*batches[:-1], strict=True))
        return TensorSplit(images, labels), TensorSplit(*batches[-1])


@dataclass(kw_only=True, eq=False)
class SVHN(_Published):
    """73,257 + 26,032 RGB 32x32 house numbers (Netzer et al., 2011): `<root>/{train,test}_32x32.mat`."""

    def load(self) -> tuple[TensorSplit, TensorSplit]:
        """Reads the files. Raises UserError if one is missing or cannot be read as a .mat file."""
        parts = ["train_32x32.mat", "test_32x32.mat"]

        def fetch(root: Path) -> None:
            _fetch("SVHN", root, {"split": "train"})
            _fetch("SVHN", root, {"split": "test"})

        train, test = find_files(self.root, parts, self.download, fetch)
        return _read_svhn(train), _read_svhn(test)


def _fetch(name: str, root: Path, arguments: dict[str, Any]) -> None:
    getattr(import_torchvision(), name)(str(root), download=True, **arguments)


def read_idx(path: Path) -> Tensor:
    """Reads an uncompressed idx file of bytes, as published with MNIST, as uint8.

    Raises UserError if the header is of another kind or the length is not what it announces.
    """
    data = path.read_bytes()
    dims = data[3] if len(data) >= 4 and data[:3] == b"\0\0\x08" else 0
    if not dims or len(data) < 4 + 4 * dims:
        raise broken(path, "not an idx file of bytes")
    shape = struct.unpack_from(f">{dims}I", data, 4)
    expected = 4 + 4 * dims + int(np.prod(shape, dtype=np.int64))
    if len(data) != expected:
        raise broken(path, f"{len(data):,} bytes instead of {expected:,}; the file is cut short or damaged")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=4 + 4 * dims).view(shape)


def _idx_split(files: list[Path], images: Tensor, labels: Tensor) -> TensorSplit:
    if images.ndim != 3 or not len(images):
        raise broken(files[0], f"holds an array of shape {tuple(images.shape)}, not images")
    if labels.shape != images.shape[:1] or int(labels.max()) > 9:
        raise broken(files[1], f"does not hold a label from 0 to 9 for each of {len(images):,} images")
    return TensorSplit(images[:, None], labels.long())


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of numpy arrays and plain values: refuses a pickle that calls anything else."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        numpy_arrays = {"_reconstruct": np.empty(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}
        if module_name.startswith("numpy") and global_name in numpy_arrays:
            return numpy_arrays[global_name]
        if (module_name, global_name) == ("_codecs", "encode"):
            return super().find_class(module_name, global_name)
        raise pickle.UnpicklingError(f"it wants to call {module_name}.{global_name}")


def _read_cifar(path: Path) -> tuple[Tensor, Tensor]:
    """Reads one of CIFAR-10's batch files: images [N, 3, 32, 32] uint8 and labels [N] int64."""
    try:
        entry = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        images = torch.from_numpy(np.ascontiguousarray(entry["data"], dtype=np.uint8)).view(-1, 3, 32, 32)
        labels = torch.tensor(entry["labels"], dtype=torch.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise broken(path, f"not a CIFAR-10 batch, or cut short ({error})") from error
    if len(images) != len(labels):
        raise broken(path, f"{len(images):,} images but {len(labels):,} labels")
    return images, labels


def _read_svhn(path: Path) -> TensorSplit:
    """Reads one of SVHN's .mat files; its label 10 is the digit 0."""
    from scipy.io import loadmat

    try:
        entry = loadmat(path)
        images = torch.from_numpy(np.ascontiguousarray(entry["X"].transpose(3, 2, 0, 1)))
        labels = torch.from_numpy(entry["y"].astype(np.int64).reshape(-1) % 10)
        if images.dtype != torch.uint8 or images.shape[1:] != (3, 32, 32) or len(images) != len(labels):
            raise ValueError(f"X is {tuple(images.shape)} {images.dtype}, y is {tuple(labels.shape)}")
    except Exception as error:  # the parser raises whatever it meets: ValueError, zlib.error, TypeError, ...
        raise broken(path, f"not an SVHN file, or cut short ({error})") from error
    return TensorSplit(images, labels)
