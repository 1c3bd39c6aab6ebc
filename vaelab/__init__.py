"""A lab for variational autoencoders: train, compare and explain them from one command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["load"]

if TYPE_CHECKING:
    from vaelab.runs import load


def __getattr__(name: str) -> Any:
    """Imports `load`, and torch with it, when it is first asked for."""
    if name == "load":
        from vaelab.runs import load

        return load
    raise AttributeError(f"module 'vaelab' has no attribute {name!r}")
