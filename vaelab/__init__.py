"""A lab for variational autoencoders: train, compare and explain them from the command line and from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = [
    "Run", "bench", "compare", "doctor", "explain", "list_runs", "load", "new", "open", "plan", "prepare", "sweep",
    "train",
]  # fmt: skip

if TYPE_CHECKING:
    from vaelab.lab import Run, bench, compare, doctor, explain, list_runs, new, plan, prepare, sweep, train
    from vaelab.lab import open_run as open
    from vaelab.runs import load


def __getattr__(name: str) -> Any:
    """Imports a name of `__all__`, and what it needs, when it is first asked for."""
    if name == "load":
        from vaelab.runs import load

        return load
    if name in __all__:
        from vaelab import lab

        return getattr(lab, "open_run" if name == "open" else name)
    raise AttributeError(f"module 'vaelab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
