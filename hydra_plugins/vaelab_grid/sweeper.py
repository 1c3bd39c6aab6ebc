"""The sweeper of `vaelab train -m`: Hydra's own, which looks at all jobs before the first begins."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from vaelab.commands.answers import message
from vaelab.core.errors import UserError
from vaelab.runs.jobs import compose
from vaelab.sweeps.plan import numbered, resolved

SAID = 2
"""Most lines about jobs that cannot be trained."""


class GridSweeper(BasicSweeper):
    """Sweeper of all combinations. Raises UserError if none of the jobs could be trained; names those that cannot."""

    hydra_context: Any
    overrides: Any

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        if self.batch_index > 1:  # all jobs were looked at with the first batch
            return
        from vaelab.training.checks import check_options

        jobs = [job for part in self.overrides for job in part]
        reasons: dict[int, str] = {}
        for number, job in enumerate(tqdm(jobs, desc="composing", unit="job", delay=2, leave=False, disable=None)):
            config = compose(self.hydra_context.config_loader, self.config, number, job)
            try:
                check_options(resolved(config))
            except (UserError, OmegaConfBaseException) as error:
                reasons[number] = message(error, "train", list(job))
        lines = numbered(reasons, len(jobs))
        if len(lines) > SAID:
            lines[SAID - 1 :] = [f"{len(lines) - SAID + 1} other reasons for other jobs: vaelab plan -m … has them all"]
        if len(reasons) == len(jobs):
            raise UserError("\n".join(lines))
        for line in lines:
            print(f"warning: {line}", file=sys.stderr)
