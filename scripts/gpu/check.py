"""Checks everything of the lab that needs a GPU, in one go: correctness, then speed. Writes one JSON file and a log.

    python scripts/gpu/check.py --out results                            random images in place of MNIST
    python scripts/gpu/check.py --out results --root PACK                where scripts/gpu/pack.py has written
    python scripts/gpu/check.py --out results --stages tests variants    some of it
    python scripts/gpu/check.py --out results --cpu                      a rehearsal, tiny, on the CPU

Stages: tests (`pytest -m gpu`), variants (each trains in three precisions, resumes, is evaluated, exported
and drawn), search (chunk sizes of the code search), training (the lab beside other loops), options (precision,
compilation, memory layout). A stage that fails or runs out of time leaves the others' results. No network is needed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "scripts" / "benchmarks"
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
VAELAB = [sys.executable, "-m", "vaelab"]
TIMED = ("ae", "vae", "beta", "capacity_lagrangian", "cvae", "vae_conv", "vqvae")


def environment(threads: int) -> dict[str, str]:
    paths = [str(ROOT), str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}


def vaelab(folder: Path, *arguments: str) -> dict[str, Any]:
    """Runs one command. Returns its exit code, seconds and, if it failed, the end of its output."""
    started = time.monotonic()
    done = subprocess.run(
        [*VAELAB, *arguments], cwd=folder, env=environment(1), capture_output=True, text=True, timeout=300
    )
    result: dict[str, Any] = {"code": done.returncode, "seconds": round(time.monotonic() - started, 1)}
    if done.returncode:
        result["said"] = (done.stdout + done.stderr)[-3000:]
    return result


# --- correctness ------------------------------------------------------------------------------


def tests(options: argparse.Namespace) -> Any:
    """Runs the tests that only a GPU can pass."""
    if options.cpu:
        return "left out: they need a GPU"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "6", "--tb=short", "tests/test_gpu.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment(1), capture_output=True, text=True, timeout=240)
    return {"code": done.returncode, "said": done.stdout[-12000:]}


def variant(folder: Path, model: str, precision: str, accelerator: str) -> dict[str, Any]:
    """Takes a variant through its life: trained twice and once with an interruption, evaluated, exported, drawn."""
    chosen = [f"model={model}", f"accelerator={accelerator}", f"trainer.precision={precision}", "dataset.batch_size=64"]
    chosen.append("schedule=constant")  # a schedule over a part of the run would differ in a shorter run
    long, short = (f"trainer.max_epochs={epochs}" for epochs in (4, 2))
    result: dict[str, Any] = {"train": vaelab(folder, "train", *chosen, long, "run.dir=whole")}
    result["again"] = vaelab(folder, "train", *chosen, long, "report=false", "run.dir=again")
    result["part"] = vaelab(folder, "train", *chosen, short, "report=false", "run.dir=part")
    result["resume"] = vaelab(folder, "train", "resume=part", long, "report=false")
    result["eval"] = vaelab(folder, "eval", "run=whole", "importance_samples=50")
    for command in ("export", "report", "reconstruct") if precision == PRECISIONS[0] else ():
        result[command] = vaelab(folder, command, "run=whole")
    states = {}
    for run in ("whole", "again", "part"):
        path = folder / run / "checkpoints" / "last.ckpt"
        if path.exists():
            saved = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
            states[run] = {name: value for name, value in saved.items() if torch.is_tensor(value)}
    for run in ("again", "part"):
        if {run, "whole"} <= states.keys():
            pairs = [(states["whole"][name].double(), value.double()) for name, value in states[run].items()]
            result[f"largest difference, {run}"] = max((a - b).abs().max().item() for a, b in pairs)
    summary = folder / "whole" / "summary.json"
    if summary.exists():
        result["metrics"] = {k: v for k, v in json.loads(summary.read_text())["metrics"].items() if "test/" in k}
    return result


def variants(options: argparse.Namespace) -> Any:
    """Checks every variant in every precision, several at a time."""
    models = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
    cases = [(models[0], PRECISIONS[0])] if options.cpu else itertools.product(models, PRECISIONS)

    def one(case: tuple[str, str]) -> tuple[str, Any]:
        folder = options.out / "runs" / "-".join(case)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return " ".join(case), variant(folder, *case, "cpu" if options.cpu else "gpu")
        except Exception:
            return " ".join(case), traceback.format_exc()[-2000:]

    with ThreadPoolExecutor(options.jobs) as pool:
        return dict(pool.map(one, cases))


# --- speed ------------------------------------------------------------------------------------


def search(options: argparse.Namespace) -> Any:
    """Measures the microseconds of the nearest-code search by the number of distances held at a time."""
    from vaelab.nn.quantizers import search as code_search

    device = "cpu" if options.cpu else "cuda"
    name = "SEARCH_ELEMENTS" if options.cpu else "SEARCH_ELEMENTS_GPU"
    sizes = [(2048, 64)] if options.cpu else [(8192, 512), (131_072, 512), (8192, 8192), (131_072, 8192)]
    result: dict[str, Any] = {}
    for rows, count in sizes:
        z, codes = torch.randn(rows, 64, device=device), torch.randn(count, 64, device=device)
        for power in (18, 20, 22, 24, 26, 28):
            setattr(code_search, name, 2**power)
            result[f"N={rows} K={count} 2^{power}"] = timed(lambda z=z, codes=codes: code_search.nearest_code(z, codes))
        result[f"N={rows} K={count} cdist"] = timed(lambda z=z, codes=codes: torch.cdist(z, codes).argmin(1))
    return result


def timed(function: Callable[[], Any], rounds: int = 7, calls: int = 20) -> float:
    """Measures the microseconds of a call, the median of several rounds."""
    from common import clock

    device, taken = "cuda" if torch.cuda.is_available() else "cpu", []
    for _ in range(rounds + 1):
        started = clock(device)
        for _ in range(calls):
            function()
        taken.append((clock(device) - started) / calls * 1e6)
    return round(sorted(taken[1:])[rounds // 2], 1)


def benchmark(name: str, options: argparse.Namespace, *arguments: str) -> Any:
    """Runs a script of scripts/benchmarks, and returns what it has saved, or printed if it saves nothing."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments, *(["--quick"] if options.cpu else [])]
    done = subprocess.run(
        command, cwd=options.out, env=environment(options.threads), capture_output=True, text=True, timeout=400
    )
    saved = BENCHMARKS / "results" / f"{name}.json"
    if done.returncode or options.cpu:
        return {"code": done.returncode, "said": (done.stdout + done.stderr)[-3000:]}
    return json.loads(saved.read_text())


def training(options: argparse.Namespace) -> Any:
    """Measures training with the lab beside a bare loop, a captured one and Lightning's defaults."""
    data = ["--root", str(options.root)] if options.root else []
    rounds = [] if options.cpu else ["--rounds", "4"]
    chosen = ["vae"] if options.cpu else options.variants
    accelerator = "cpu" if options.cpu else "gpu"
    return benchmark("training", options, *data, *rounds, "--accelerator", accelerator, "--variants", *chosen)


def options_of_training(options: argparse.Namespace) -> Any:
    """Measures, by `vaelab bench`, the options that pay on a GPU."""
    data = ["dataset=mnist", f"dataset.root={options.root}"] if options.root else []
    cases = {
        "float32": [],
        "bf16": ["trainer.precision=bf16-mixed"],
        "bf16, channels last": ["trainer.precision=bf16-mixed", "channels_last=true"],
        "compile": ["compile=true"],
        "bf16, compile": ["trainer.precision=bf16-mixed", "compile=true"],
    }
    models = {"vae": ["model=vae"], "vae conv": ["model=vae", "network=conv"], "vqvae": ["model=vqvae"]}
    result: dict[str, Any] = {}
    for (model, chosen), (case, more) in itertools.product(models.items(), cases.items()):
        if options.cpu and case != "float32":
            continue
        output = options.out / "bench.json"
        steps = ["bench.steps=2", "bench.rounds=2"] if options.cpu else ["bench.steps=100", "bench.rounds=5"]
        device = f"accelerator={'cpu' if options.cpu else 'gpu'}"
        arguments = [*chosen, *more, *data, device, *steps, f"bench.output={output}"]
        done = vaelab(options.out, "bench", *arguments)
        result[f"{model}, {case}"] = done | (json.loads(output.read_text()) if not done["code"] else {})
        (options.out / "options.json").write_text(json.dumps(result, indent=1))  # kept if the run is cut off
    return result


STAGES: dict[str, Callable[[argparse.Namespace], Any]] = {
    "tests": tests,
    "variants": variants,
    "search": search,
    "training": training,
    "options": options_of_training,
}


def about() -> dict[str, Any]:
    from common import machine

    memory = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    return machine() | {"gpu_memory": memory, "cuda": torch.version.cuda}


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for results.json and the runs")
    parser.add_argument("--root", type=Path, help="where pack.py wrote, or where MNIST lies")
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=list(STAGES), metavar="NAME")
    parser.add_argument(
        "--variants", nargs="*", default=list(TIMED), metavar="NAME", help="variants that training measures"
    )
    parser.add_argument("--jobs", type=int, default=16, help="variants at a time (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=4, help="threads of the timed programs (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="a rehearsal on the CPU, with tiny sizes")
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.root:
        options.root = options.root.resolve()
        if (packed := options.root / "mnist.tar.xz").exists() and not (options.root / "MNIST").exists():
            with tarfile.open(packed) as archive:
                archive.extractall(options.root, filter="data")
    if not options.cpu and not torch.cuda.is_available():
        parser.error("torch sees no GPU: --cpu rehearses without one")
    sys.path[:0] = [str(ROOT), str(BENCHMARKS)]
    report: dict[str, Any] = {"about": about()}
    for stage in options.stages:
        started = time.monotonic()
        try:
            report[stage] = STAGES[stage](options)
        except Exception:
            report[stage] = {"failed": traceback.format_exc()[-3000:]}
        report[f"{stage}, seconds"] = round(time.monotonic() - started, 1)
        partial = options.out / "results.json.part"
        partial.write_text(json.dumps(report, indent=1) + "\n")
        partial.replace(options.out / "results.json")
        print(f"{stage}: {report[f'{stage}, seconds']} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
