"""Data that `vaelab data prepare` has decoded: the file, and what trains from it."""

from vaelab.datasets.prepared.data import Prepared, PreparedSplit, block_order

__all__ = ["Prepared", "PreparedSplit", "block_order"]
