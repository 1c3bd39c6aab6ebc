"""The gate between the files of a folder and what is built from them: a stranger's run folder executes nothing.

What a run folder, an export or a fitted prior names is built only if it stands on a closed list: classes of
vaelab's models, their parts and data sets, layers and optimisers of torch, and parts of the trainer by name, with
plain arguments. A class is looked up, since a name that begins with `vaelab.` can lead anywhere, as
vaelab.runs.os.system does; no other module is imported to find out what it would do.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

from vaelab.core.conf import CONF
from vaelab.core.errors import UserError
from vaelab.core.files import damaged
from vaelab.core.renames import upgrade
from vaelab.core.terminal import cut

OURS = ("vaelab.models", "vaelab.nn", "vaelab.datasets")
"""Packages of vaelab whose own classes may be built."""
TORCH = {"torch.nn": "torch.nn.modules", "torch.optim": "torch.optim"}
"""Modules of torch whose classes may be built, and where these must be defined."""
FUNCTIONS = "vaelab.nn.schedules"
"""The module whose functions may be called."""
NAMED = {
    "pytorch_lightning": {"Trainer"},
    "pytorch_lightning.callbacks": {
        *("DeviceStatsMonitor", "EMAWeightAveraging", "EarlyStopping", "GradientAccumulationScheduler"),
        *("LearningRateMonitor", "ModelCheckpoint", "ModelSummary", "RichModelSummary", "RichProgressBar"),
        *("StochasticWeightAveraging", "TQDMProgressBar", "Timer", "WeightAveraging"),
    },
    "pytorch_lightning.loggers": {"CSVLogger", "TensorBoardLogger", "WandbLogger"},
    "pytorch_lightning.plugins": {"DoublePrecision", "HalfPrecision", "MixedPrecision", "TorchSyncBatchNorm"},
    "pytorch_lightning.plugins.environments": {"LightningEnvironment", "SLURMEnvironment", "TorchElasticEnvironment"},
    "pytorch_lightning.profilers": {"AdvancedProfiler", "PassThroughProfiler", "PyTorchProfiler", "SimpleProfiler"},
    "pytorch_lightning.strategies": {"DDPStrategy", "FSDPStrategy", "ModelParallelStrategy", "SingleDeviceStrategy"},
    "vaelab.training.callbacks": {
        "Anneal",
        "EMA",
        "EarlyStopping",
        "Health",
        "KeepLast",
        "LearningRate",
        "Pictures",
        "Plateau",
    },
    "vaelab.training.fsdp": {"FullySharded"},
    "vaelab.training.loggers": {"MLflow", "TensorBoard", "WandB"},
}
"""Parts of a training that may be built, by the modules that they are named in."""
PLACES = {"path", "dir", "dirpath", "filename", "save_dir", "log_dir", "sub_dir", "root_dir", "uri"}
"""Arguments of the trainer's parts that say where they write: a folder's files may not give them."""
TRUST = "add trust=true if you trust its maker with all that it runs (docs/security.md)"
WIDTH = 120
"""Most characters that are shown of what would be done."""


class Deed(NamedTuple):
    """What building a config would do that is not on the list. key: where it stands. does: in words."""

    key: str
    does: str


def check(node: Any, key: str, path: Path, trust: bool) -> None:
    """Raises UserError if building a config node would do anything that is not on the list, unless it is trusted.

    key: where the node, which has to name a class, stands in the file at `path`.
    """
    if key and not (isinstance(node, dict) and isinstance(node.get("_target_"), str)):
        raise damaged(path, f"{key} names no class", "restore it, or remove the folder")
    if not trust and (deed := next(deeds(node, key), None)):
        raise refused(path, deed)


def refused(path: Path, deed: Deed) -> UserError:
    """Makes the error for a deed that the file at `path` asks for."""
    does = cut(" ".join(deed.does.split()), WIDTH)
    return UserError(f"{path}: {cut(deed.key, WIDTH)} {does}: a file may not ask for that by itself\n{TRUST}")


def deeds(node: Any, key: str = "") -> Iterator[Deed]:
    """Lists what building a config node would do that is not on the list."""
    if isinstance(node, list):
        for number, value in enumerate(node):
            yield from deeds(value, f"{key}[{number}]")
    elif isinstance(node, dict):
        if "_target_" in node and not listed(node["_target_"]):
            yield Deed(key, f"would run {node['_target_']}")
        for name, value in node.items():
            yield from _of_argument(node, name, value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, str) and "${" in node:
        yield Deed(key, f"would resolve {node}")


def _of_argument(node: dict[Any, Any], name: Any, value: Any, key: str) -> Iterator[Deed]:
    """Lists what an entry of a node would do; the entries with underscores are Hydra's own."""
    own = isinstance(name, str) and re.fullmatch(r"_.*_", name) and name != "_target_"
    if own and not (name == "_partial_" and isinstance(value, bool)):
        yield Deed(key, f"would change how {node.get('_target_', 'a part')} is built")
    elif name in PLACES and value is not None:
        yield Deed(key, f"would write to {value}")
    yield from deeds(value, key)


def listed(target: Any) -> bool:
    """Whether what a `_target_` names stands on the list."""
    if not isinstance(target, str) or not re.fullmatch(r"[A-Za-z][\w.]*", target, re.ASCII):
        return False
    module, _, name = target.rpartition(".")
    if module in NAMED:
        return name in NAMED[module]
    if name.startswith("_") or not (module in TORCH or _below(module, OURS)):  # so no other module is imported
        return False
    try:
        value = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return False
    defined = str(getattr(value, "__module__", ""))
    if isinstance(value, FunctionType):
        return defined == FUNCTIONS
    return isinstance(value, type) and _below(defined, (*OURS, *TORCH.values()))


def _below(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


# --- what a resumed run was started with ------------------------------------------------------


def check_overrides(overrides: Sequence[str], path: Path, trust: bool) -> None:
    """Raises UserError if arguments that the file at `path` keeps would do what is not on the list, unless trusted.

    They choose options of conf/ and give plain values; they are no flags, and set nothing of Hydra's. Raises
    UserError also for what are no arguments.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(f"{path} is damaged: run.overrides holds what is no key=value: start a new run") from error
    for override, text in zip(parsed, overrides, strict=True):
        name, value = override.key_or_group, override.value()
        if trust:
            continue
        if override.package is not None or re.match(r"hydra\b|defaults\b", name):
            raise refused(path, Deed("run.overrides", f"would set {text}"))
        choice = (CONF / name).is_dir() and not isinstance(value, dict) and not override.is_delete()
        chosen = value if isinstance(value, list) else [] if value is None else [value]
        if choice and not all(re.fullmatch(r"\w+", str(option)) for option in chosen):
            raise refused(path, Deed("run.overrides", f"would read {text}"))
        node: Any = value
        for part in reversed(name.split(".")):
            node = {part: node}
        check(upgrade(node), "", path, trust)


def check_config_dir(folder: str, path: Path, trust: bool) -> None:
    """Raises UserError for a folder of further configs that the file at `path` names, unless it is trusted."""
    if not trust:
        raise UserError(
            f"{path}: it was started with --config-dir {cut(folder, WIDTH)}, whose files may run anything: give that "
            f"flag again, or\n{TRUST}"
        )
