"""Data sets, one file per family. Importing this imports no data library: `load` does."""

from vaelab.core.batch import Batch
from vaelab.datasets.base import ImageData
from vaelab.datasets.celeba import CelebA
from vaelab.datasets.digits import Digits
from vaelab.datasets.dsprites import DSprites
from vaelab.datasets.fake import Fake
from vaelab.datasets.own.arrays import Arrays
from vaelab.datasets.own.folder import Folder
from vaelab.datasets.own.table import Table
from vaelab.datasets.prepared import Prepared
from vaelab.datasets.shapes3d import Shapes3D
from vaelab.datasets.splits import Split, TensorSplit
from vaelab.datasets.sprites import Sprites
from vaelab.datasets.torchvision import CIFAR10, KMNIST, MNIST, SVHN, FashionMNIST

__all__ = [
    "CIFAR10",
    "KMNIST",
    "MNIST",
    "SVHN",
    "Arrays",
    "Batch",
    "CelebA",
    "DSprites",
    "Digits",
    "Fake",
    "FashionMNIST",
    "Folder",
    "ImageData",
    "Prepared",
    "Shapes3D",
    "Split",
    "Sprites",
    "Table",
    "TensorSplit",
]
