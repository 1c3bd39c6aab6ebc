"""Helpers that the benchmarks share: interleaved timing, the machine, tables. Not a command."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
Row = dict[str, Any]
"""A row of a table. label; seconds, one per round, and ratios to the reference in the same rounds, where it is timed;
extra: further columns of the table, as text."""


def arguments(description: str, rounds: int) -> argparse.ArgumentParser:
    """Makes a parser with the options of all benchmarks. rounds: how many by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="measured rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: its own choice)")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to save the table (default: beside this)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing saved: only to see that it runs")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses the options and sets the number of threads, here and for processes started from here."""
    global RESULTS
    options = parser.parse_args()
    if options.results:
        RESULTS = options.results.resolve()
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    if options.quick:
        options.rounds = min(options.rounds, 2)
    if options.threads:
        torch.set_num_threads(options.threads)
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    return options


def clock(device: torch.device | str = "cpu") -> float:
    """Reads the clock, in seconds, once everything queued on the device is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def interleave(functions: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Calls every function once per round, in an order that rotates, and collects the seconds they return.

    A change of the machine's speed thus meets all of them. A further round at the start is dropped.
    """
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds + 1):
        start = i % len(names)
        for name in names[start:] + names[:start]:
            taken = functions[name]()
            if i > 0:
                seconds[name].append(taken)
    return seconds


def compare(seconds: dict[str, list[float]], reference: str, group: str = "") -> list[Row]:
    """Makes a row per name, with the ratios to `reference` within each round."""
    return [
        {
            "label": f"{group}: {name}" if group else name,
            "seconds": taken,
            "ratios": [a / b for a, b in zip(taken, seconds[reference], strict=True)],
            "reference": name == reference,
            "extra": {},
        }
        for name, taken in seconds.items()
    ]


def fresh_process(code: str, *arguments: str, returning: bool = False) -> str:
    """Runs Python code in a process of its own, which can import the benchmarks, and returns what it printed last.

    returning: whether it returns tensors' memory to the system at once, so that its peak is of what it holds.
    """
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    if returning:
        environment |= {f"MALLOC_{name}_THRESHOLD_": "65536" for name in ("MMAP", "TRIM")}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}\na process of the benchmark failed")
    return done.stdout.strip().splitlines()[-1]


def peak_memory(anew: bool = False) -> int:
    """Returns the peak resident bytes of this process; `anew` starts the peak again at what it holds now.

    ru_maxrss is the last resort: on Linux it starts at what the parent process held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        if anew:
            Path("/proc/self/clear_refs").write_text("5")
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine() -> dict[str, Any]:
    """Describes the machine and the versions that the numbers were measured with."""
    versions = {}
    for name in ("torch", "pytorch_lightning", "vector_quantize_pytorch", "pythae"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", ":/vaelab", ":/conf", ".", ":(exclude)results")
    return {
        "cpu": _cpu(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
        "commit": f"{commit} with changes" if changed else commit or None,
        "date": datetime.date.today().isoformat(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git(*command: str) -> str:
    try:
        return subprocess.run(["git", *command], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def save(name: str, rows: list[Row], notes: str, keep: bool) -> None:
    """Prints a table and, if `keep`, writes it to results/NAME.json; `notes` stand below it."""
    print(f"\n{as_markdown(store(name, rows, notes, keep))}\n", flush=True)


def store(name: str, rows: list[Row], notes: str, keep: bool) -> dict[str, Any]:
    """Writes a table, if `keep` or if a folder for it was named, and returns it."""
    result = {"machine": machine(), "notes": " ".join(notes.split()), "rows": rows}
    if keep or RESULTS != HERE / "results":
        RESULTS.mkdir(exist_ok=True)
        part = RESULTS / f"{name}.json.part"
        part.write_text(json.dumps(result, indent=1) + "\n")
        part.replace(RESULTS / f"{name}.json")
    return result


def markdown(name: str) -> str:
    """Returns the saved table `name` in Markdown."""
    return as_markdown(json.loads((RESULTS / f"{name}.json").read_text()))


def as_markdown(result: dict[str, Any]) -> str:
    rows = result["rows"]
    extra = list(dict.fromkeys(key for row in rows for key in row["extra"]))
    timed = any("seconds" in row for row in rows)
    head = ["", *(["median", "ratio (least – most)"] if timed else []), *extra]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        time_cells = [_time(row["seconds"]), _ratio(row)] if "seconds" in row else ["", ""]
        lines.append([row["label"], *(time_cells if timed else []), *(row["extra"].get(key, "") for key in extra)])
    about = result["machine"]
    where = ", ".join(f"{key} {value}" for key, value in about.items() if value is not None and key != "cpu")
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{table}\n\n{result['notes']} Measured on {about['cpu']}: {where}."


def _time(seconds: list[float]) -> str:
    value = statistics.median(seconds)
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def _ratio(row: Row) -> str:
    ratios = row["ratios"]
    if row["reference"]:
        return "1"
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} – {max(ratios):.3f})"
