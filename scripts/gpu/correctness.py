"""Stages of check.py that ask whether the lab does on a GPU what it does on a processor."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from work import ROOT, VAELAB, Work

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def tests(work: Work) -> None:
    """Runs the tests that only a GPU can pass."""
    if work.cpu:
        work.keep("left out", "they need a GPU")
        return
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-o", "addopts=--import-mode=importlib", "-n", "8"]
    done = work.run([*command, "-q", "--tb=short", "tests/test_gpu.py"], ROOT, threads=1)
    work.keep("pytest", {"code": done.code, "seconds": done.seconds, "said": done.said[-12000:]})


def variants(work: Work) -> None:
    """Takes every variant through its life in every precision, several at a time: scripts/gpu/life.py."""
    models = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))

    def one(model: str) -> None:
        folder = work.out / "runs" / model
        folder.mkdir(parents=True, exist_ok=True)
        precisions = PRECISIONS[:2] if work.cpu else PRECISIONS  # 16-mixed is of GPUs alone
        command = [sys.executable, str(ROOT / "scripts" / "gpu" / "life.py"), model, work.accelerator, *precisions]
        done = work.run(command, folder, threads=1)
        found = folder / "found.json"
        lives = json.loads(found.read_text()) if found.exists() else {}
        work.keep(model, lives | ({"ended": done.brief()} if done.code else {}))

    with ThreadPoolExecutor(work.jobs) as pool:
        list(pool.map(one, models[:2] if work.cpu else models))
    failed = {
        f"{model} {precision}": [name for name, step in life.items() if isinstance(step, dict) and step.get("code")]
        for model, lives in work.found.items()
        for precision, life in lives.items()
    }
    work.keep("failed", {case: names for case, names in failed.items() if names})


def devices(work: Work) -> None:
    """Trains with two processes, one per device, beside one process with the same batch."""
    count = torch.cuda.device_count()
    if count < 2 and not work.cpu:
        work.keep("left out", f"NCCL needs two devices, and there is {count}")
        return
    several = "ddp_cpu" if work.cpu else "ddp"
    common = ["model=vae", "schedule=constant", "trainer.max_epochs=3", "report=false"]
    cases: dict[str, list[str]] = {
        "one": [f"accelerator={work.accelerator}", "dataset.batch_size=64"],
        "two": [f"accelerator={several}", "trainer.devices=2", "dataset.batch_size=32"],
    }
    for name, chosen in cases.items():
        folder = work.out / "runs" / f"{name}-{int(time.time())}"
        done = work.run([*VAELAB, "train", *common, *chosen, f"run.dir={folder}"], threads=1)
        result: dict[str, Any] = done.brief()
        if (summary := folder / "summary.json").exists():
            saved = json.loads(summary.read_text())
            result |= {"processes": saved["processes"], "steps": saved["steps"]}
            result["val/elbo"] = saved["metrics"]["val/elbo"]
        work.keep(name, result)
