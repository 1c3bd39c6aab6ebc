"""`vaelab prior`: fits a prior to the codes of a finished run."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vaelab.commands import command
from vaelab.commands.trained import viewing
from vaelab.core.errors import UserError
from vaelab.core.types import PositiveInt

if TYPE_CHECKING:
    from vaelab.nn.posteriors import Posterior
    from vaelab.nn.priors import Prior
    from vaelab.runs.trained import Trained


@dataclass(frozen=True)
class Options(viewing.Opening):
    """Keys of conf/prior.yaml."""

    prior: dict[str, Any] | None
    of: Literal["means", "draws"] | None
    max_images: PositiveInt


class Worth(NamedTuple):
    """What the fitted prior is worth on images of a split.

    log_prob: mean log p(z) of what it is fitted to, nats. gain: nats of ELBO over the model's own prior, by draws of
    q(z|x) that the fit has not seen; None of a model without a bound.
    """

    images: int
    log_prob: float
    gain: float | None


def main(arguments: list[str]) -> int:
    """Runs `vaelab prior` with these arguments. Returns the exit code."""
    return command.single("prior", job, arguments)


def job(config: Any) -> None:
    """Hydra's job: checks what is asked, encodes, fits, writes the prior and says what it is worth."""
    from hydra.core.hydra_config import HydraConfig

    from vaelab.core.config import options
    from vaelab.runs import priors

    asked = options(Options, config)
    name = HydraConfig.get().runtime.choices["prior"]
    _check(asked.prior, name)
    trained = _opened(asked)
    of = asked.of or ("draws" if trained.model.blank().density else "means")
    asked = replace(asked, checkpoint=trained.checkpoint, of=of)
    codes = _codes(trained, asked)
    started = time.monotonic()
    prior, how = _fitted(trained, asked, codes["train"])
    took = time.monotonic() - started
    worth = {split: _worth(trained, prior, found, asked) for split, found in codes.items()}
    path = priors.write(trained.folder, name, prior, _about(trained, asked, worth))
    _report(trained, asked, prior, f"{how}, {took:.1f} s", worth)
    print(f"prior: {path}")
    print(_next(trained, asked, name))


def _check(node: dict[str, Any] | None, name: str) -> None:
    """Raises UserError for a prior that is not fitted afterwards, or for values that it cannot have."""
    from vaelab.core.config import check, target_of

    if not node or not getattr(target_of(node, "prior"), "afterwards", False):
        raise UserError(
            f"prior={name}: this is not fitted afterwards, but chosen for a training: vaelab train prior={name}\n"
            "prior=gmm fits a mixture of Gaussians"
        )
    check(node, "prior")


def _opened(asked: Options) -> Trained:
    """The run, whose codes are vectors that a prior can be fitted to."""
    trained = viewing.opened(asked)
    model = trained.model
    if model.layout.dimensions is None:
        raise UserError(
            f"run: the codes of {type(model).__name__} are discrete, and these priors are of vectors of real numbers: "
            "use a run of model=vae or model=ae"
        )
    if asked.of == "draws" and not model.blank().density:
        raise UserError(f"of=draws: a code of {type(model).__name__} has no distribution to draw from: leave it out")
    return trained


def _codes(trained: Trained, asked: Options) -> dict[str, Posterior]:
    """The posteriors of the training images, and of the validation images if there are any."""
    from vaelab.inference import fitting

    splits = ["train", *(["val"] if len(trained.data.val) else [])]
    found = {split: fitting.posterior(trained, split, asked.max_images, asked.seed) for split in splits}
    if not all(codes.code.isfinite().all() for codes in found.values()):
        raise UserError(f"checkpoint={asked.checkpoint}: codes of this model are NaN or infinite: train again")
    return found


def _fitted(trained: Trained, asked: Options, codes: Posterior) -> tuple[Prior, str]:
    """The prior, fitted to the training images, and how that went."""
    from vaelab.core.config import build
    from vaelab.inference import fitting

    prior = build(asked.prior)(**_arguments(trained))
    how = prior.fit(fitting.latents(codes, asked.of, asked.seed), asked.seed)
    what = "draws of q(z|x)" if asked.of == "draws" else "posterior means" if codes.density else "codes"
    prior.words += f" fitted to the {what} of {len(codes):,} images"
    return prior.eval(), how


def _arguments(trained: Trained) -> dict[str, Any]:
    """What the run says of the prior."""
    return {"latent_dim": trained.model.layout.dimensions}


def _worth(trained: Trained, prior: Prior, codes: Posterior, asked: Options) -> Worth:
    from vaelab.inference import fitting

    own, gain = trained.model.prior, None
    if trained.model.bounded and own is not None:
        fresh = fitting.latents(codes, "draws", asked.seed + 1)
        gain = fitting.mean_log_prob(prior, fresh) - fitting.mean_log_prob(own, fresh)
    return Worth(len(codes), fitting.mean_log_prob(prior, fitting.latents(codes, asked.of, asked.seed)), gain)


def _about(trained: Trained, asked: Options, worth: dict[str, Worth]) -> dict[str, Any]:
    """What the file says beside its tensors: plain data."""
    from vaelab import __version__, runs
    from vaelab.runs.priors import fingerprint

    point = runs.read_checkpoint(runs.checkpoint_path(trained.folder, asked.checkpoint))
    return {
        "vaelab": __version__,
        "node": asked.prior,
        "arguments": _arguments(trained),
        "model": fingerprint(trained.model),
        "checkpoint": {"name": asked.checkpoint, "epoch": point["epoch"] + 1, "step": point["global_step"]},
        "of": asked.of,
        "seed": asked.seed,
        "worth": {split: found._asdict() for split, found in worth.items()},
    }


def _report(trained: Trained, asked: Options, prior: Prior, how: str, worth: dict[str, Worth]) -> None:
    """Prints what was fitted, to what, and its worth on training and validation images."""
    print(f"{trained.config['run']['name']}, {asked.checkpoint} checkpoint: {prior.words}")
    print(how)
    print(f"{'nats per image':28}" + "".join(f"{split:>12}" for split in worth))
    print(f"{'mean log p(z)':28}" + "".join(f"{found.log_prob:12.3f}" for found in worth.values()))
    gains = [found.gain for found in worth.values() if found.gain is not None]
    if gains and trained.model.prior is not None:
        print(f"{f'ELBO gained over {trained.model.prior.words}':28}" + "".join(f"{gain:12.3f}" for gain in gains))
    if "val" not in worth:
        print("the run has no validation images, on which a fit that is too close would show")
    if gains and gains[-1] < 0:
        draws = "of=draws fits it to draws of q(z|x), which an ELBO is about" if asked.of == "means" else ""
        print(f"for the ELBO it is worse than the model's own{': ' * bool(draws)}{draws}")


def _next(trained: Trained, asked: Options, name: str) -> str:
    """What to do with the prior now."""
    import shlex

    run = shlex.quote(f"run={Path(trained.folder)}")
    rest = f"{run} prior={name}" + ("" if asked.checkpoint == "best" else f" checkpoint={asked.checkpoint}")
    return f"next: vaelab sample {rest}; vaelab eval {rest}"
