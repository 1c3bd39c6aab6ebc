"""`vaelab bench` measures the cost of a config's training step on this machine."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vaelab.commands import command
from vaelab.core.errors import Stopped, UserError


def main(arguments: list[str]) -> int:
    """Runs `vaelab bench` with these arguments. Returns the exit code."""
    return command.single("bench", job, arguments)


def job(config: Any) -> dict[str, Any]:
    """Hydra's job: checks the config, measures, prints the table and writes the file. Returns the file's content."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    from vaelab.core.config import resolved

    hydra: Any = HydraConfig.instance()
    with open_dict(config), TemporaryDirectory() as folder:
        config.run.dir, config.run.overrides, config.run.config_dir = folder, [], None
        plain = resolved(config)
        hydra.cfg = None  # otherwise Lightning would rerun this command line in every process
        bench, advise = plain.pop("bench"), plain.pop("advise", None)
        output = _check(bench, advise, plain)
        from vaelab.training.checks import check_run

        check_run(plain, Path(folder))
        from vaelab.sweeps import advice, timing

        kind = advice if advise else timing
        try:
            figures = kind.measure(plain, Path(folder), bench["steps"], bench["rounds"])
        except SystemExit as stop:  # how Lightning ends after a KeyboardInterrupt, or a signal's
            if isinstance(stop, Stopped) and stop.number != signal.SIGINT:
                raise
            raise KeyboardInterrupt from None
    print(kind.table(figures))
    if output:
        output.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def _check(bench: Any, advise: Any, config: dict[str, Any]) -> Path | None:
    """Raises UserError for what bench cannot do. Returns the file to write."""
    if not isinstance(bench, dict) or set(bench) != {"steps", "rounds", "output"}:
        raise UserError("bench: it has bench.steps, bench.rounds and bench.output: leave all else out")
    if not isinstance(advise, bool):
        raise UserError(f"advise={advise}: must be true or false")
    for key in ("steps", "rounds"):
        if not isinstance(bench[key], int) or isinstance(bench[key], bool) or bench[key] < 2:
            raise UserError(f"bench.{key}={bench[key]}: must be an integer of 2 or more")
    if config["resume"] is not None:
        raise UserError("resume= is for vaelab train: bench keeps nothing")
    if loggers := [name for name, node in (config["logger"] or {}).items() if node]:
        raise UserError(f"logger={loggers[0]}: bench keeps nothing: leave it out")
    if config["trainer"]["accumulate_grad_batches"] != 1:
        raise UserError("trainer.accumulate_grad_batches: bench compares single steps: leave it out")
    return command.file_to_write("bench.output", bench["output"])
