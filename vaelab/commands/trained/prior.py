"""`vaelab prior`: fits a prior to the codes of a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vaelab.commands import command
from vaelab.commands.trained import viewing
from vaelab.core.errors import UserError
from vaelab.core.types import PositiveInt
from vaelab.runs import Files


@dataclass(frozen=True)
class Options(viewing.Opening):
    """Keys of conf/prior.yaml."""

    prior: dict[str, Any] | None
    of: Literal["means", "draws"] | None
    max_images: PositiveInt


def main(arguments: list[str]) -> int:
    """Runs `vaelab prior` with these arguments. Returns the exit code."""
    return command.single("prior", job, arguments)


def job(config: Any) -> None:
    """Hydra's job: checks what is asked, encodes, fits, writes the prior and says what it is worth."""
    from hydra.core.hydra_config import HydraConfig

    from vaelab.core.config import options

    asked = options(Options, config)
    name = HydraConfig.get().runtime.choices["prior"]
    node = _checked(asked.prior, name)
    trained = viewing.opened(asked)
    from vaelab.inference import fitting

    try:
        fitting.fit(trained, fitting.Asked(name, node, asked.of, asked.max_images, asked.seed))
    except KeyboardInterrupt:
        if Files(trained.folder).unfinished_prior(name).is_file():
            print("the same command goes on after the last whole epoch")
        raise
    print(fitting.next_commands(trained, name))


def _checked(node: dict[str, Any] | None, name: str) -> dict[str, Any]:
    """The config of a prior that is fitted afterwards. Raises UserError for another, or for values that cannot be."""
    from vaelab.core.config import check, target_of

    if not node or not getattr(target_of(node, "prior"), "afterwards", False):
        raise UserError(
            f"prior={name}: this is not fitted afterwards, but chosen for a training: vaelab train prior={name}\n"
            "prior=gmm fits a mixture of Gaussians, prior=flow a flow, prior=pixelcnn a PixelCNN to discrete codes, say"
        )
    check(node, "prior")
    return node
