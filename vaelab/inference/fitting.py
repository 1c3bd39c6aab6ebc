"""A prior fitted afterwards: the latents of many images, its fit, and what a prior of them is worth."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from vaelab import __version__, runs
from vaelab.core.config import build
from vaelab.core.errors import UserError
from vaelab.core.randomness import seed_of, seeded
from vaelab.core.words import counted, listed
from vaelab.inference.batches import batch_size, evaluating
from vaelab.nn.posteriors import Posterior
from vaelab.nn.priors import Latents
from vaelab.runs import priors

if TYPE_CHECKING:
    from vaelab.nn.priors import Prior
    from vaelab.runs.trained import Trained

BLOCK = 4096
"""Latents whose density is computed at a time."""
Of = Literal["means", "draws"]
"""What stands for an image: its code, which is the posterior's mean, or a draw of z ~ q(z|x)."""


class Asked(NamedTuple):
    """What is to be fitted. name: of the option of conf/prior. node: its config, checked. of: to what; None: draws,
    but codes where they have no distribution. max_images: of a split, at most. seed: of the fit and of every draw.
    """

    name: str
    node: dict[str, Any]
    of: Of | None
    max_images: int
    seed: int


class Encoded(NamedTuple):
    """`encode` of some images of a split, and their labels, [N] on the processor, or None."""

    posterior: Posterior
    labels: Tensor | None


class Worth(NamedTuple):
    """What the fitted prior is worth on images of a split.

    log_prob: mean log p(z) of what it is fitted to, nats; None of a prior without a density. gain: nats of ELBO over
    the model's own prior, by draws of q(z|x) that the fit has not seen, and gain_se its standard error over the
    images, None of one; None of a model without a bound.
    """

    images: int
    log_prob: float | None
    gain: float | None
    gain_se: float | None


# --- the latents ------------------------------------------------------------------------------


def encoded(trained: Trained, split: str, most: int, seed: int) -> Encoded:
    """Encodes at most `most` images of a split, with a progress bar.

    The images are drawn at random by the seed, as is what is random of them. Raises UserError for a split without
    images.
    """
    from tqdm import tqdm

    model, size = trained.model, len(trained.split(split))
    place = seed_of(seed, "fit", split)
    chosen = torch.randperm(size, generator=torch.Generator().manual_seed(place))[:most].sort().values
    parts, found, labels = chosen.split(batch_size(model.shape)), [], []
    with evaluating(model), seeded(place, model.device):
        for part in tqdm(parts, f"encoding {split}", unit="batch", delay=2, leave=False, disable=None):
            batch = trained.batch(split, part)
            found.append(model.encode(batch.images, batch.labels))
            labels += [] if batch.labels is None else [batch.labels.cpu()]
    return Encoded(Posterior.cat(found), torch.cat(labels) if labels else None)


@torch.no_grad()
def latents(codes: Posterior, of: Of | None, seed: int) -> Tensor:
    """What stands for each image, its code where `of` is None: [N, d] or [N, h, w]. seed: of the draws, one of each."""
    if of != "draws":
        return codes.code
    generator = torch.Generator().manual_seed(seed_of(seed, "draws"))
    return codes.rsample(torch.randn(codes.code.shape, generator=generator).to(codes.code.device))


@torch.no_grad()
def log_probs(prior: Prior, z: Tensor, labels: Tensor | None = None) -> Tensor:
    """log p(z) of latents, [N, d] or [N, h, w], nats: [N] of float64 on the processor. labels: [N], or None."""
    parts, given = z.split(BLOCK), [None] * len(z) if labels is None else labels.split(BLOCK)
    place = prior.place.device
    found = [prior.log_prob(part.to(place), y).double().cpu() for part, y in zip(parts, given, strict=False)]
    return torch.cat(found)


# --- the fit ----------------------------------------------------------------------------------


def check_fits(trained: Trained, asked: Asked) -> None:
    """Raises UserError for a prior that is of other latents than the model's, or draws of codes without any."""
    from vaelab.core.config import target_of

    model = trained.model
    require(target_of(asked.node, "prior"), asked.name, model)
    if asked.of == "draws" and not model.blank().density:
        raise UserError(f"of=draws: a code of {type(model).__name__} has no distribution to draw from: leave it out")


def require(kind: Any, name: str, model: Any) -> None:
    """Raises UserError for a class of priors that cannot be fitted to the codes of a model."""
    if not model.replaceable:
        raise UserError(
            f"prior={name}: {type(model).__name__} draws z given what is seen of an image, by a prior of its own: "
            "no other can stand in its place"
        )
    density, name_of_model = model.blank().density, type(model).__name__
    if kind.fits(model.layout, density):
        return
    if model.layout.spherical:
        raise UserError(f"prior={name}: the codes of {name_of_model} lie on a sphere, and it is of other vectors")
    if kind.discrete == (model.layout.codes is not None):
        why = f"it is made of posteriors q(z|x), and a code of {name_of_model} has no distribution"
    else:
        of, codes = ("indices of codes", "vectors") if kind.discrete else ("vectors of real numbers", "discrete")
        why = f"it is of {of}, and the codes of {name_of_model} are {codes}"
    fit = listed([f"prior={other}" for other in priors.fitting(model.layout, density)], "or")
    raise UserError(f"prior={name}: {why}: use {fit}")


def fit(trained: Trained, asked: Asked) -> Prior:
    """Fits a prior to the codes of a run, writes it into the run folder and says what it is worth. Returns it.

    A fit that keeps how far it is goes on from there. Raises UserError for what cannot be fitted.
    """
    check_fits(trained, asked)
    asked = asked._replace(of=asked.of or ("draws" if trained.model.blank().density else "means"))
    codes = _codes(trained, asked)
    prior, how = _fitted(trained, asked, codes)
    worth = {split: _worth(trained, prior, found, asked) for split, found in codes.items()}
    about = _about(trained, asked) | {"worth": {split: found._asdict() for split, found in worth.items()}}
    path = priors.write(trained.folder, asked.name, prior, about)
    _report(trained, asked, prior, how, worth)
    print(f"prior: {path}")
    return prior


def _codes(trained: Trained, asked: Asked) -> dict[str, Encoded]:
    """The posteriors and labels of the training images, and of the validation images if there are any."""
    splits = ["train", *(["val"] if len(trained.data.val) else [])]
    found = {split: encoded(trained, split, asked.max_images, asked.seed) for split in splits}
    if not all(codes.posterior.code.isfinite().all() for codes in found.values()):
        raise UserError(f"checkpoint={trained.checkpoint}: codes of this model are NaN or infinite: train again")
    return found


def _fitted(trained: Trained, asked: Asked, codes: dict[str, Encoded]) -> tuple[Prior, str]:
    """The prior, fitted to the training images, and how that went."""
    about = _about(trained, asked)
    with seeded(seed_of(asked.seed, "start"), trained.model.device):
        prior = build(asked.node)(**about["arguments"])
        prior.belongs(trained.model.encode, trained.model.shape, trained.model.condition.in_turn(1))
        prior.start_from(trained.data.training_images)
    prior = prior.to(trained.model.device)
    parts = {
        name: Latents(latents(found.posterior, asked.of, asked.seed), found.labels) for name, found in codes.items()
    }
    kept = priors.Unfinished(trained.folder, asked.name, about | {"max_images": asked.max_images})
    if len(parts["train"].z) == 1:
        print("max_images: this fits the prior to 1 image, which tells it nothing of others")
    how = prior.fit(parts["train"].z, asked.seed, parts["train"].labels, parts.get("val"), kept)
    posterior = codes["train"].posterior
    what = "draws of q(z|x)" if asked.of == "draws" else "posterior means" if posterior.density else "codes"
    prior.words += f" fitted to the {what} of {counted(len(posterior), 'image')}"
    return prior.eval(), f"{how}, {kept.seconds:.1f} s"


def _worth(trained: Trained, prior: Prior, codes: Encoded, asked: Asked) -> Worth:
    own, gain, error, (posterior, labels) = trained.model.prior, None, None, codes
    if not prior.density:
        return Worth(len(posterior), None, None, None)
    if trained.model.bounded and own is not None:
        fresh = latents(posterior, "draws", asked.seed + 1)
        gains = log_probs(prior, fresh, labels) - log_probs(own, fresh, labels)
        gain = gains.mean().item()
        error = gains.std().item() / math.sqrt(len(gains)) if len(gains) > 1 else None
    fitted_to = latents(posterior, asked.of, asked.seed)
    return Worth(len(posterior), log_probs(prior, fitted_to, labels).mean().item(), gain, error)


def _about(trained: Trained, asked: Asked) -> dict[str, Any]:
    """What the file says beside its tensors: plain data."""
    point = runs.read_checkpoint(runs.checkpoint_path(trained.folder, trained.checkpoint))
    kind, model = build(asked.node).func, trained.model
    return {
        "vaelab": __version__,
        "node": asked.node,
        "arguments": kind.sizes(model.layout, model.num_classes),
        "model": priors.fingerprint(model),
        "checkpoint": {"name": trained.checkpoint, "epoch": point["epoch"] + 1, "step": point["global_step"]},
        "of": asked.of,
        "seed": asked.seed,
    }


def _report(trained: Trained, asked: Asked, prior: Prior, how: str, worth: dict[str, Worth]) -> None:
    """Prints what was fitted, to what, and its worth on training and validation images."""
    own = trained.model.prior
    print(f"{trained.config['run']['name']}, {trained.checkpoint} checkpoint: {prior.words}")
    print(how)
    if not prior.density:
        print("it has no density: samples can be drawn from it, and no bound is under it")
        return
    if prior.estimate:
        print(f"log p(z) is {prior.estimate}: at most log p(z) in expectation")
    print(f"{'nats per image':28}" + "".join(f"{split:>12}" for split in worth))
    given = "|y" * (prior.classes is not None)
    print(f"{f'mean log p(z{given})':28}" + "".join(f"{found.log_prob:12.3f}" for found in worth.values()))
    gains = [(found.gain, found.gain_se) for found in worth.values() if found.gain is not None]
    if gains and own is not None:
        print(f"{f'ELBO gained over {own.words}':28}" + "".join(f"{gain:12.3f}" for gain, _ in gains))
        errors = ["–" if error is None else f"{error:.3f}" for _, error in gains]
        print(f"{'  its standard error':28}" + "".join(f"{error:>12}" for error in errors))
    if "val" not in worth:
        print("the run has no validation images, on which a fit that is too close would show")
    if gains and gains[-1][0] < -2 * (gains[-1][1] or 0.0):
        draws = "of=draws fits it to draws of q(z|x), which an ELBO is about" if asked.of == "means" else ""
        print(f"for the ELBO it is worse than the model's own{': ' * bool(draws)}{draws}")


def next_commands(trained: Trained, name: str) -> str:
    """What to do with a fitted prior."""
    run = shlex.quote(f"run={Path(trained.folder)}")
    rest = f"{run} prior={name}" + ("" if trained.checkpoint == "best" else f" checkpoint={trained.checkpoint}")
    return f"next: vaelab sample {rest}; vaelab eval {rest}"
