"""Kills training runs again and again, resumes them, and compares each with a run that was never interrupted.

    python scripts/torture.py                          # five minutes over all kinds of run
    python scripts/torture.py --minutes 60 --seed 1    # as long as asked
    python scripts/torture.py --kills 20 --only plateau --signals KILL,TERM

Half of the signals come after a random time, half at a random one of the run's own reads, writes and renames in its
folder, where records are at stake. A run is killed once or twice before it ends. Exact means: the
same last and best checkpoint in every tensor, counter and callback, the same metrics.csv, kl_per_dim.csv and
code_counts.csv, the same summary.json but for its clock. Writes kills.json beside what it keeps of the runs that
differ; exits with 1 if any does. Runs on Linux and macOS: every run is a fork of this process, which has imported
everything once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

COMMON = ["dataset=digits", "dataset.batch_size=128", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
KINDS: dict[str, list[str]] = {
    "cyclical": ["schedule=cyclical", "dataset.binarize=dynamic", "trainer.log_every_n_steps=1"],
    "plateau": ["lr_schedule=plateau", "lr_schedule.patience=0", "lr_schedule.threshold=5", "report=true"],
    "capacity": ["model=capacity", "schedule.capacity.over=0.5", "trainer.log_every_n_steps=3"],
    "hierarchical": ["model=hierarchical", "lr_schedule=cosine"],
    "vqvae": ["model=vqvae", "codebook=ema", "codebook.restart_after=3"],
    "averaged": ["averaging=ema", "trainer.val_check_interval=4"],
    "bf16": ["network=conv", "trainer.precision=bf16-mixed", "trainer.limit_train_batches=5"],
    "accumulation": ["network.norm=batch", "trainer.accumulate_grad_batches=3"],
    "midepoch": ["trainer.val_check_interval=5", "lr_schedule=plateau", "lr_schedule.patience=0"],
    "frequent": ["model=cvae", "checkpoint.every_steps=4", "dataset.val_size=0"],
}
"""Kinds of run, each with what has to survive in it."""


def main() -> int:
    arguments = _arguments()
    random.seed(arguments.seed)
    _import_everything()
    kinds = {name: KINDS[name] for name in arguments.only or KINDS}
    work = Path(tempfile.mkdtemp(prefix="torture-", dir=arguments.keep))
    os.chdir(work)
    twins = {name: _twin(name, options) for name, options in kinds.items()}
    ends = time.monotonic() + 60 * arguments.minutes
    tried: list[dict[str, Any]] = []
    while (arguments.kills is None or len(tried) < arguments.kills) and time.monotonic() < ends:
        name = list(kinds)[len(tried) % len(kinds)]
        attempt = _kill(name, kinds[name], twins[name], len(tried), arguments.signals)
        tried.append(attempt)
        if attempt["differs"]:
            print(f"{attempt['run']}: {attempt['at']}: {'; '.join(attempt['differs'])}", flush=True)
        else:
            shutil.rmtree(attempt["run"], ignore_errors=True)
        Path("kills.json").write_text(json.dumps(tried, indent=1))
    _report(tried)
    wrong = any(attempt["differs"] for attempt in tried)
    print(f"kept: {work}" if wrong else "nothing was lost")
    if not wrong and arguments.keep is None:
        shutil.rmtree(work)
    return int(wrong)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="how long to go on")
    parser.add_argument("--kills", type=int, help="how many runs to kill, if that is fewer")
    parser.add_argument("--only", nargs="*", choices=list(KINDS), help="kinds of run")
    parser.add_argument("--signals", type=lambda text: text.split(","), default=["KILL"], help="KILL,TERM,INT,HUP")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the runs that differ and kills.json")
    return parser.parse_args()


def _import_everything() -> None:
    """Imports what runs need, so that a fork begins at once."""
    import matplotlib.pyplot  # noqa: F401
    import torch

    import vaelab.cli
    import vaelab.commands.train
    import vaelab.datasets
    import vaelab.models
    import vaelab.report.build
    import vaelab.sweeps.sweep
    import vaelab.training.fit  # noqa: F401

    torch.set_num_threads(1)


def _twin(name: str, options: list[str]) -> dict[str, Any]:
    """Trains the run that is not interrupted. Returns its folder, its seconds and its number of file operations."""
    run, started = Path(f"{name}-whole"), time.monotonic()
    code = _wait(_fork(run, [*COMMON, "trainer.max_epochs=4", "report=false", *options, f"run.dir={run}"], count=True))
    if code:
        raise SystemExit(f"{name} cannot be trained:\n{_printed(run)}")
    return {"run": run, "seconds": time.monotonic() - started, "operations": int(Path(f"{run}.count").read_text())}


def _kill(name: str, options: list[str], twin: dict[str, Any], number: int, signals: list[str]) -> dict[str, Any]:
    """Trains a run, ends it once or twice, resumes it to its end. Returns what was done and what differs."""
    run, hits, at = Path(f"{name}-{number}"), 0, []
    fresh = [*COMMON, "trainer.max_epochs=4", "report=false", *options, f"run.dir={run}"]
    for _ in range(random.choice((1, 1, 2))):
        how = getattr(signal, f"SIG{random.choice(signals)}")
        arguments = [f"resume={run}"] if (run / "config.yaml").exists() else fresh
        if random.random() < 0.5:
            place = random.randrange(twin["operations"])
            code = _wait(_fork(run, arguments, kill_at=(place, how)))
            at.append(f"{how.name} at file operation {place}")
        else:
            seconds = random.uniform(0.1, 1.0) * twin["seconds"]
            process = _fork(run, arguments)
            time.sleep(seconds)
            os.kill(process, how)
            code = _wait(process)
            at.append(f"{how.name} after {seconds:.2f} s")
        if code == 0:
            break  # it came too late
        if code not in (-how, 128 + how):  # without a word only before Python hears of it
            differs = [f"{how.name} gave {code}: {_printed(run)[-300:]}"]
            return {"run": str(run), "kind": name, "hits": hits, "at": at, "differs": differs}
        hits += 1
        if _summary(run).get("status") == "finished":
            break  # it was at its report
    code = 0
    if (hits and _summary(run).get("status") != "finished") or not (run / "summary.json").exists():
        code = _wait(_fork(run, [f"resume={run}"] if (run / "config.yaml").exists() else fresh))
    differs = [f"resume gave {code}: {_printed(run)[-300:]}"] if code else _differences(run, twin["run"])
    return {"run": str(run), "kind": name, "hits": hits, "at": at, "differs": differs}


def _fork(
    run: Path,
    arguments: list[str],
    count: bool = False,
    kill_at: tuple[int, int] | None = None,
) -> int:
    """Starts `vaelab train` in a fork of this process. Returns its process id."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        out = os.open(f"{run}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        seen = _watch(run, kill_at)
        code = sys.modules["vaelab.cli"].main(["train", *arguments])
        if count:
            Path(f"{run}.count").write_text(str(len(seen)))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(run: Path, kill_at: tuple[int, int] | None) -> list[str]:
    """Lists the file operations in the run's folder as they begin; has one of them end this process instead."""
    seen: list[str] = []

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and f"{run}/" in f"{details[0]}/":
            seen.append(event)
            if kill_at and len(seen) == kill_at[0]:
                os.kill(os.getpid(), kill_at[1])

    sys.addaudithook(hook)
    return seen


def _wait(process: int) -> int:
    """Waits for a process, for two minutes at most. Returns its exit code, negative for a signal."""
    for _ in range(2400):
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return 124


def _differences(run: Path, twin: Path) -> list[str]:
    """Lists what differs between two finished runs."""
    import torch

    found = []
    for name in ("last", "best"):
        one, two = (torch.load(f / "checkpoints" / f"{name}.ckpt", weights_only=True) for f in (run, twin))
        found += [f"{name}.ckpt {place}" for place in _unequal(one, two, run.name, twin.name)]
    for name in ("metrics.csv", "kl_per_dim.csv", "code_counts.csv"):
        texts = [(f / name).read_text() if (f / name).exists() else "" for f in (run, twin)]
        if texts[0] != texts[1]:
            found.append(f"{name}: {' against '.join(str(text.count(chr(10))) for text in texts)} lines")
    one, two = (_summary(f) for f in (run, twin))
    return found + [f"summary.json {place}" for place in _unequal(one, two, run.name, twin.name)]


def _summary(run: Path) -> dict[str, Any]:
    path = run / "summary.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    return {key: value for key, value in content.items() if key not in ("seconds", "error")}


def _unequal(one: Any, two: Any, here: str, there: str, place: str = "") -> list[str]:
    """Lists the places where two nested containers differ; paths in one folder are those in the other."""
    import torch

    if isinstance(one, dict) and isinstance(two, dict):
        one, two = ({str(k).replace(here, there): v for k, v in part.items()} for part in (one, two))
        keys = [*one, *(key for key in two if key not in one)]
        none: Any = object()
        return [p for k in keys for p in _unequal(one.get(k, none), two.get(k, none), here, there, f"{place}.{k}")]
    if isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        return [
            p
            for i, pair in enumerate(zip(one, two, strict=True))
            for p in _unequal(*pair, here, there, f"{place}[{i}]")
        ]
    if torch.is_tensor(one) and torch.is_tensor(two):
        return [] if torch.equal(one, two) else [place]
    if isinstance(one, str) and isinstance(two, str):
        one, two = one.replace(here, there), two.replace(here, there)
    return [] if one == two or (one != one and two != two) else [f"{place} ({one!r:.40} against {two!r:.40})"]


def _printed(run: Path) -> str:
    return Path(f"{run}.txt").read_text()


def _report(tried: list[dict[str, Any]]) -> None:
    """Prints a row per kind of run."""
    print(f"\n{'kind':14}{'runs':>6}{'kills':>7}{'exact':>7}")
    for name in dict.fromkeys(attempt["kind"] for attempt in tried):
        of = [attempt for attempt in tried if attempt["kind"] == name]
        exact = sum(not attempt["differs"] for attempt in of)
        print(f"{name:14}{len(of):>6}{sum(attempt['hits'] for attempt in of):>7}{exact:>7}")
    kills = Counter(word.split()[0] for attempt in tried for word in attempt["at"][: attempt["hits"]])
    print(f"{sum(kills.values())} kills that hit: " + ", ".join(f"{number} {name}" for name, number in kills.items()))


if __name__ == "__main__":
    sys.exit(main())
