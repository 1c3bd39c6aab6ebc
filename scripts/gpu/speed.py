"""Stages of check.py that measure: the code search, training beside other loops, sweeps, what options gain."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from work import BENCHMARKS, VAELAB, Work

BATCH = 128
ADVISED = {"vae": ["model=vae"], "vae conv": ["model=vae", "network=conv"], "vqvae": ["model=vqvae"]}
MLP, CONV, CAPTURED = ["model=vae", "network=mlp"], ["model=vae", "network=conv"], "cuda_graph=true"
SWEPT = {
    f"MLP, {CAPTURED}": ([*MLP, CAPTURED], (32,)),
    f"conv, {CAPTURED}": ([*CONV, CAPTURED], (16,)),
    "MLP": (MLP, (32, 8, 128, 1)),
    "conv": (CONV, (16, 4)),
}
"""What the sweeps train, and how many jobs of it: what matters most comes first."""


def search(work: Work) -> None:
    """Measures the microseconds of the nearest-code search by the number of distances held at a time."""
    from vaelab.nn.quantizers import search as code_search

    device = "cpu" if work.cpu else "cuda"
    name = "SEARCH_ELEMENTS" if work.cpu else "SEARCH_ELEMENTS_GPU"
    held = getattr(code_search, name)
    sizes = [(2048, 64)] if work.cpu else [(8192, 512), (131_072, 512), (8192, 8192), (131_072, 8192)]
    for rows, count in sizes:
        z, codes = torch.randn(rows, 64, device=device), torch.randn(count, 64, device=device)
        taken = {}
        for power in (18, 20, 22, 24, 26, 28):
            setattr(code_search, name, 2**power)
            taken[f"2^{power}"] = timed(lambda z=z, codes=codes: code_search.nearest_code(z, codes))
        taken["cdist"] = timed(lambda z=z, codes=codes: torch.cdist(z, codes).argmin(1))
        work.keep(f"N={rows} K={count}", taken)
    setattr(code_search, name, held)


def timed(function: Callable[[], Any], rounds: int = 5, calls: int = 10) -> float:
    """Measures the microseconds of a call, the median of several rounds."""
    from common import clock

    device, taken = "cuda" if torch.cuda.is_available() else "cpu", []
    for _ in range(rounds + 1):
        started = clock(device)
        for _ in range(calls):
            function()
        taken.append((clock(device) - started) / calls * 1e6)
    return round(sorted(taken[1:])[rounds // 2], 1)


def benchmark(work: Work, name: str, *arguments: str) -> None:
    """Runs a script of scripts/benchmarks, and keeps the table that it has saved so far, also where it was cut off."""
    tables = work.out / "tables"
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--results", str(tables), *arguments]
    done = work.run([*command, *(["--quick"] if work.cpu else [])])
    if (saved := tables / f"{name}.json").exists():
        work.found |= json.loads(saved.read_text())
    work.keep("process", done.brief() | {"left out": [x for x in done.said.splitlines() if x.startswith("left out")]})


def training(work: Work) -> None:
    """Measures training with the lab beside a bare loop, a captured one and Lightning's defaults, and with options."""
    chosen = work.variants[:1] if work.cpu else work.variants
    size = ["--images", "30000", "--rounds", "3", "--accelerator", work.accelerator]
    added = ["--no-tutorial", "--with", *work.options]
    benchmark(work, "training", *size, *added, "--variants", *chosen)


def images(work: Work) -> None:
    """Measures images per second of every variant, beside a loop of the same model without Lightning."""
    benchmark(work, "variants", "--rounds", "4", "--accelerator", work.accelerator, "--steps", "40")


def sweeps(work: Work) -> None:
    """Measures sweeps of several widths by their launcher, beside as many jobs one after the other."""
    for name, (chosen, widths) in SWEPT.items():
        alone = sweep(work, chosen, "basic", 2)
        work.keep(f"{name}, one after the other", alone)
        for width in (min(widths),) if work.cpu else widths:
            if work.left() < (5 if work.cpu else 15):
                work.keep(f"{name}, {width} jobs", "left out: no time was left")
                continue
            result = sweep(work, chosen, work.launcher, width)
            if "ms per step and job" in result and "ms per step and job" in alone:
                gain = alone["ms per step and job"] / result["ms per step and job"]
                result["times as fast as one after the other (extrapolated)"] = round(gain, 2)
            work.keep(f"{name}, {width} jobs", result)


def sweep(work: Work, chosen: list[str], launcher: str, width: int) -> dict[str, Any]:
    """Trains jobs that differ in their seed. Returns ms per step and job, images per second, peak memory."""
    steps, epochs = (4, 3) if work.cpu else (100, 4)
    width = min(width, 2) if launcher == "basic" else width  # one after the other: two tell of all
    folder = work.out / "sweeps" / f"{launcher}-{width}-{time.monotonic_ns()}"
    data = [
        "dataset=fake",
        "dataset._target_=lab.Noise",
        f"dataset.size={steps * BATCH}",
        f"dataset.batch_size={BATCH}",
    ]
    data += ["dataset.val_size=0", "test=false", "report=false", f"trainer.max_epochs={epochs}"]
    seeds = f"seed={','.join(map(str, range(width)))}"
    command = [*VAELAB, "train", "-m", *chosen, *data, seeds, f"accelerator={work.accelerator}"]
    command += [f"hydra/launcher={launcher}", f"sweep.dir={folder}", "trainer.enable_progress_bar=false"]
    started = work.start(command)
    rows, peak = watched(work, started.child.pid, folder, lambda: started.child.poll() is None)
    done = work.finish(started)
    result = done.brief() | {"jobs": len(rows), "peak memory, MiB": round(peak / 2**20)}
    seconds = per_epoch_and_job([times for times in rows.values() if len(times) == epochs])
    if done.code == 0 and seconds:
        result["ms per step and job"] = round(1e3 * seconds / steps, 4)
        result["images per second"] = round(steps * BATCH / seconds)
    return result


def watched(
    work: Work, process: int, folder: Path, running: Callable[[], bool]
) -> tuple[dict[Path, list[float]], float]:
    """Watches a sweep's folder. Returns when each job's epochs ended, and the most memory that was held meanwhile.

    The ends are those of rows in metrics.csv, whoever writes them: the launcher need not know that it is timed.
    """
    before, rows, peak, looked = held(work, None), {}, 0.0, 0.0
    while running() and work.left() > 0:
        now = time.monotonic()
        for file in folder.glob("*/metrics.csv"):
            ended = rows.setdefault(file, [])
            ended += [now] * (epochs_of(file) - len(ended))
        if now - looked > 0.2:  # asking the driver takes its time from those that launch
            peak, looked = max(peak, held(work, process) - before), now
        time.sleep(0.01)
    return rows, peak


def epochs_of(file: Path) -> int:
    """Counts the epochs that have ended by a job's metrics.csv."""
    head, *rows = file.read_text().splitlines() or [""]
    if "train/loss" not in head.split(","):
        return 0
    place = head.split(",").index("train/loss")
    return sum(1 for row in rows if len(cells := row.split(",")) > place and cells[place])


def per_epoch_and_job(jobs: list[list[float]]) -> float | None:
    """Returns the seconds of an epoch of one job: those in which epochs after the first were trained, by their number.

    jobs: when the epochs of each ended. Jobs that trained at the same time share their seconds.
    """
    spans = sorted((times[0], times[-1]) for times in jobs if len(times) > 1)
    covered, reached = 0.0, float("-inf")
    for start, end in spans:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    count = sum(len(times) - 1 for times in jobs)
    return covered / count if count else None


def held(work: Work, process: int | None) -> float:
    """Returns the bytes in use: of the whole device, or of a process and those that it has started."""
    if not work.cpu:
        free, total = torch.cuda.mem_get_info()
        return total - free
    try:
        family = [psutil.Process(process), *psutil.Process(process).children(recursive=True)] if process else []
        return sum(member.memory_info().rss for member in family)
    except psutil.NoSuchProcess:
        return 0.0


def advice(work: Work) -> None:
    """Measures, by `vaelab bench advise=true`, what options gain."""
    for name, chosen in list(ADVISED.items())[: 1 if work.cpu else None]:
        output = work.out / "advice.json"
        output.unlink(missing_ok=True)
        length = ["bench.steps=2", "bench.rounds=2"] if work.cpu else ["bench.steps=50", "bench.rounds=5"]
        command = [*VAELAB, "bench", "advise=true", *chosen, *length, "dataset=fake", "dataset._target_=lab.Noise"]
        command += ["dataset.size=30000", f"accelerator={work.accelerator}", f"bench.output={output}"]
        done = work.run(command)
        saved = json.loads(output.read_text()) if output.exists() else {}
        work.keep(name, done.brief() | saved)
