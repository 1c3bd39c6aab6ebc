"""Asks torch, torchvision and the NVIDIA driver, each in a process of its own, what they find."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

IMPORT_SECONDS = 120
"""Most seconds for an import: it takes 2 to 5, and much longer from a cold network disk."""

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


def nvidia_driver() -> str | None:
    """Returns the first GPU and driver by nvidia-smi; None without an NVIDIA GPU."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return ", driver ".join(part.strip() for part in lines[0].split(",")[:2]) if not done.returncode and lines else None
