"""`vaelab bench`: the cost of a config's training step on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vaelab import command
from vaelab.errors import UserError


def main(arguments: list[str]) -> int:
    """Runs `vaelab bench` with these arguments. Returns the exit code."""
    if {"-m", "--multirun"} & set(arguments):
        print("vaelab: bench measures one config: leave out -m", file=sys.stderr)
        return 2
    return command.run("bench", job, arguments)


def job(config: Any) -> None:
    """Hydra's job: checks the config, measures, prints the table and writes the file."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict

    hydra: Any = HydraConfig.instance()
    with open_dict(config), TemporaryDirectory() as folder:
        config.run.dir, config.run.overrides, config.run.config_dir = folder, [], None
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        hydra.cfg = None  # or Lightning would rerun this command line in every process
        bench = plain.pop("bench")
        output = _check(bench, plain)
        from vaelab.train import check_run

        check_run(plain, Path(folder))
        from vaelab import timing

        figures = timing.measure(plain, Path(folder), bench["steps"], bench["rounds"])
    print(timing.table(figures))
    if output:
        output.write_text(json.dumps(figures, indent=2) + "\n")


def _check(bench: dict[str, Any], config: dict[str, Any]) -> Path | None:
    """Raises UserError for what bench cannot do. Returns the file to write."""
    for key in ("steps", "rounds"):
        if not isinstance(bench[key], int) or isinstance(bench[key], bool) or bench[key] < 2:
            raise UserError(f"bench.{key}={bench[key]}: must be an integer of 2 or more")
    if config["resume"] is not None:
        raise UserError("resume= is for vaelab train: bench keeps nothing")
    if bench["output"] is None:
        return None
    output = Path(str(bench["output"]))
    if not output.parent.is_dir() or output.is_dir():
        raise UserError(f"bench.output={output}: must be a file in a folder that exists")
    return output
