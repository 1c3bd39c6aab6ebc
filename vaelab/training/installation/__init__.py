"""Checks what of an installation works: Python, packages, devices, data, disk, compiler, W&B.

torch and torchvision are imported in processes of their own, with a time limit: a crash in compiled code ends
those, not this one. Nothing here uses the network or shows a secret.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vaelab.training.installation import machine, packages
from vaelab.training.installation.packages import Check
from vaelab.training.installation.probes import TORCH_PROBE, TORCHVISION_PROBE, nvidia_driver, run_python


def checks(root: Path | None, outputs: Path) -> list[Check]:
    """Makes all checks. root: the folder of data sets, None for ./data; outputs: where runs go."""
    with ThreadPoolExecutor() as pool:
        facts, vision = pool.map(run_python, (TORCH_PROBE, TORCHVISION_PROBE))
    return [
        packages.check_python(),
        packages.check_torch(facts),
        packages.check_torchvision(vision),
        *packages.check_packages(),
        machine.check_processor(facts),
        machine.check_gpu(facts, nvidia_driver()),
        *machine.check_data(root),
        machine.check_outputs(outputs),
        machine.check_compiler(bool(facts.get("gpus"))),
        machine.check_wandb(),
    ]
