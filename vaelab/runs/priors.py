"""Priors that were fitted afterwards: each a file in the run folder, which knows the weights it was fitted to."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vaelab.core.errors import UserError
from vaelab.core.files import damaged, whole
from vaelab.core.words import listed
from vaelab.runs.layout import Files

if TYPE_CHECKING:
    from torch import nn

    from vaelab.models import Model
    from vaelab.nn.layouts import Layout
    from vaelab.nn.priors import Prior

KEY, FORMAT = "vaelab", "vaelab-prior-1"
"""The file's entry with all that is no tensor, as JSON, and its version."""


def fingerprint(module: nn.Module) -> str:
    """A hash of all that a module's state holds: of other weights it is another one."""
    import torch

    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode())
        is_tensor = isinstance(value, torch.Tensor)
        flat = value.detach().cpu().reshape(-1) if is_tensor else None
        found.update(repr(value).encode() if flat is None else flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def command(run: Path, name: str, checkpoint: str) -> str:
    """The command that fits a prior to a run."""
    words = f"vaelab prior {shlex.quote(f'run={run}')} prior={name}"
    return words if checkpoint == "best" else f"{words} checkpoint={checkpoint}"


def fitting(layout: Layout, density: bool) -> list[str]:
    """The names of the priors that can be fitted afterwards to latents of this layout; see `Prior.fits`."""
    from omegaconf import OmegaConf

    from vaelab.core.conf import CONF
    from vaelab.core.config import target_of

    found = []
    for path in sorted((CONF / "prior").glob("*.yaml")):
        node: Any = OmegaConf.to_container(OmegaConf.load(path))
        if node and (fits := getattr(target_of(node, "prior"), "fits", None)) and fits(layout, density):
            found.append(path.stem)
    return found


class Unfinished:
    """Keeps how far the fit of a prior is in the run folder, for the same command to go on from.

    run: the run folder. name: of the prior. fit: all that the fit depends on, plain data; what another one has left is
    not gone on from.
    """

    def __init__(self, run: Path, name: str, fit: dict[str, Any]):
        self.path, self.fit = Files(run).unfinished_prior(name), json.dumps(fit, sort_keys=True)
        self.started, self.before = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        """How long the fit has taken, with what was before an interruption."""
        return self.before + time.monotonic() - self.started

    def load(self) -> dict[str, Any]:
        """What was saved last by this very fit; {} if there is nothing, or it is damaged."""
        import torch

        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return {}
        except Exception:  # torch has many for a damaged file
            print(f"{self.path} is damaged: the fit begins anew")
            return {}
        if not isinstance(saved, dict) or saved.get("fit") != self.fit:
            print(f"{self.path} is of a fit with other settings: this one begins anew")
            return {}
        self.before = saved.get("seconds", 0.0)
        return saved["state"]

    def save(self, state: dict[str, Any]) -> None:
        """Puts plain data and tensors in the place of what was saved before, whole or not at all."""
        import torch

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole(self.path) as partial:
            torch.save({"fit": self.fit, "state": state, "seconds": self.seconds}, partial)


class Taken(NamedTuple):
    """The prior that a model draws from. name: of one that was fitted, or None. words: a line to say of it, or ""."""

    name: str | None
    words: str


def stand_in(run: Path, model: Model, checkpoint: str) -> Taken:
    """Has a model draw from the one prior that was fitted to it, if its own only stands where that belongs."""
    if model.prior is None or not model.prior.placeholder:
        return Taken(None, "")
    known, own = fitted_to(run, model), f"the prior of {type(model).__name__} is {model.prior.words}"
    if len(known) == 1:
        model.draw_from(read(run, known[0], model, checkpoint).eval())
        return Taken(known[0], f"prior={known[0]} is taken, the one that was fitted to this checkpoint")
    if known:
        choice = " or ".join(f"prior={name}" for name in known)
        return Taken(None, f"{own}, for none of those that were fitted to its codes is taken by itself: add {choice}")
    left = Files(run).fitted  # `prior=` says of each which it is
    unfit = f"; {listed(left)} cannot be taken: damaged, or fitted to other weights" if left else ""
    name = (left or fitting(model.layout, model.blank().density))[0]
    return Taken(None, f"{own}, which is like no image: {command(run, name, checkpoint)} fits one to its codes{unfit}")


def write(run: Path, name: str, prior: Prior, about: dict[str, Any]) -> Path:
    """Writes a fitted prior, whole or not at all, in the place of an earlier one and its evaluations.

    about: plain data: `node`, the config that the class is built from; `arguments` that are given then; `model`, the
    fingerprint of the model; `checkpoint`, and how it was fitted. Returns the file's path.
    """
    from safetensors.torch import save_file

    path, text = Files(run).prior(name), json.dumps({"format": FORMAT, "words": prior.words} | about)
    tensors = {key: value.cpu().clone().contiguous() for key, value in prior.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        save_file(tensors, partial, metadata={KEY: text})
    for old in path.parent.glob("evaluation*"):
        old.unlink()
    Files(run).unfinished_prior(name).unlink(missing_ok=True)
    return path


def fitted_to(run: Path, model: Model) -> list[str]:
    """The names of the priors that were fitted to the codes of `model`; damaged files are left out."""
    found, own = [], fingerprint(model)
    for name in Files(run).fitted:
        with suppress(UserError):
            found += [name] if _content(Files(run).prior(name), "")[0]["model"] == own else []
    return found


def read(run: Path, name: str, model: Model, checkpoint: str, trust: bool = False) -> Prior:
    """A prior that was fitted to the codes of `model`, on its device.

    model: as the `checkpoint` has it. The file may be anyone's: no pickle is read, and unless it is trusted, only what
    stands on the list of `vaelab.runs.gate` is built. Raises UserError if there is no such prior, if its file is
    damaged, or if it was fitted to other weights.
    """
    again = f"fit it again: {command(run, name, checkpoint)}"
    path = Files(run).prior(name)
    if name not in Files(run).fitted:
        possible, known = fitting(model.layout, model.blank().density), Files(run).fitted
        if name not in possible and known:
            remedy = f"take {' or '.join(f'prior={one}' for one in known)}"
        elif possible:
            remedy = f"{command(run, name if name in possible else possible[0], checkpoint)} fits one"
        else:
            remedy = "none can be fitted to its latents"
        raise UserError(f"prior={name}: the run has {_listed(run)}\n{remedy}; without prior= the model's own is used")
    about, tensors = _content(path, again)
    if about["model"] != fingerprint(model):
        point = about["checkpoint"]
        raise UserError(
            f"prior={name}: it was fitted to the {point['name']} checkpoint of epoch {point['epoch']}, whose weights "
            f"are not those of the {checkpoint} one\n{again}"
        )
    prior = _built(path, about, tensors, model, again, trust)
    prior.words = about["words"]
    return prior.to(model.device)


def _listed(run: Path) -> str:
    names = Files(run).fitted
    return f"no such fitted prior, but {' and '.join(names)}" if names else "no fitted prior yet"


def _content(path: Path, again: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the file says, and its tensors. Raises UserError for what is damaged or of another program."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY, "")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        about = json.loads(text)
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, "it is no fitted prior", again) from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise damaged(path, "it is of another version of vaelab", again)
    needed = {"node": dict, "arguments": dict, "model": str, "words": str, "checkpoint": dict}
    if not all(isinstance(about.get(key), kind) for key, kind in needed.items()):
        raise damaged(path, "something is missing in it", again)
    return about, tensors


def _built(path: Path, about: dict[str, Any], tensors: dict[str, Any], model: Model, again: str, trust: bool) -> Prior:
    from vaelab.core.config import build, check
    from vaelab.core.renames import upgrade
    from vaelab.runs import gate

    node = upgrade(about["node"])
    if "_target_" not in node:
        raise damaged(path, "it names no prior", again)
    gate.check(node, "prior", path, trust)
    check(node, "prior")
    try:
        prior = build(node)(**about["arguments"])
        prior.belongs(model.encode, model.shape, model.condition.in_turn(1))
        prior.load_state_dict(tensors)
    except (RuntimeError, TypeError, ValueError) as error:
        raise damaged(path, "its tensors are of another prior than it says", again) from error
    return prior
