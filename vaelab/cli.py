"""The command line: a command word selects a module. Nothing heavy is imported here."""

from __future__ import annotations

import difflib
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vaelab import __version__
from vaelab.core.errors import Stopped

COMMANDS = {
    "train": ("vaelab.commands.train", "train a model, or sweep over many with -m"),
    "plan": ("vaelab.commands.plan", "the jobs of a sweep before they run: what they are, how long they take"),
    "eval": ("vaelab.commands.eval", "measure a trained model: likelihood, latents, samples, and more"),
    "compare": ("vaelab.commands.compare", "metrics of runs side by side, ranked where that means something"),
    "doctor": ("vaelab.commands.doctor", "is the installation sound, and what is wrong with a run (run=PATH)"),
    "prior": ("vaelab.commands.trained.prior", "fit a prior to the codes of a finished run, to sample it"),
    "sample": ("vaelab.commands.trained.sample", "draw images from a model's prior"),
    "reconstruct": ("vaelab.commands.trained.reconstruct", "images, what the model makes of them, and the difference"),
    "traverse": ("vaelab.commands.trained.traverse", "what each latent dimension changes in a picture"),
    "interpolate": ("vaelab.commands.trained.interpolate", "from one image to another through the latent space"),
    "encode": ("vaelab.commands.trained.encode", "codes of your own images, as codes.npz"),
    "decode": ("vaelab.commands.trained.decode", "images of codes"),
    "impute": ("vaelab.commands.trained.impute", "what is missing of a table or an array, filled in"),
    "score": ("vaelab.commands.trained.score", "which of your own images are unlike those of training"),
    "compress": ("vaelab.commands.trained.compress", "your own images as a small file, by a VQ-VAE or a VAE"),
    "decompress": ("vaelab.commands.trained.decompress", "images of such a file"),
    "export": ("vaelab.commands.trained.export", "weights as safetensors, encoder and decoder as ONNX"),
    "runs": ("vaelab.commands.runs", "the runs and sweeps on this disk: filter them, sort them, send them to W&B"),
    "watch": ("vaelab.commands.watch", "a run or a sweep that is training, live in the terminal"),
    "dashboard": ("vaelab.commands.dashboard", "a W&B workspace, a comparison and a report for the lab's metrics"),
    "report": ("vaelab.commands.report", "all figures of a run or a sweep, and report.html"),
    "new": ("vaelab.commands.new", "a start for a model, network, data set or metric of your own"),
    "explain": ("vaelab.commands.explain", "the ideas behind a VAE in figures and numbers"),
    "data": ("vaelab.commands.data", "prepare a data set that does not fit memory"),
    "bench": ("vaelab.commands.bench", "the cost of a training step on this machine, beside a bare loop"),
}

OF_TRAINING = ("train", "plan", "bench")
"""Commands that take all groups and keys of a training."""

HELP = """vaelab: a lab for variational autoencoders

usage: vaelab COMMAND [key=value ...]

commands:
{commands}

  vaelab COMMAND --help      what a command takes, and every key with its value
  vaelab --version           the installed version
  vaelab completion SHELL    tab completion: eval "$(vaelab completion bash)"; also zsh and fish

start here:
  vaelab train model=vqvae                        train on the embedded handwritten digits, half a minute
  vaelab train model=beta dataset=mnist           MNIST, downloaded to ./data
  vaelab train -m model=vae,beta,vqvae seed=0,1   a sweep
"""

YOUNG = 10_000
"""New containers after which Python looks for cycles that nothing uses. Its own 700 have it go through all that torch
and Lightning keep for good seven times while they are imported: 0.7 of the 4.5 s of a processor of a short training."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns the exit code: 0 done, 1 failed, 2 something to mend in what was asked."""
    gc.set_threshold(YOUNG)
    arguments = sys.argv[1:] if arguments is None else arguments
    word, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if word in ("--help", "-h", "help"):
        print(HELP.format(commands="\n".join(f"  {name:12} {what}" for name, (_, what) in COMMANDS.items())), end="")
        return 0
    if word == "--version":
        print(f"vaelab {__version__}")
        return 0
    if word == "completion":
        return _completion(rest)
    if word in ("-sc", "--shell-completion"):  # asked by the shell, which does not pass the command word
        return _complete(arguments)
    if word in ("_worker", "_job"):  # a further process of a distributed run, or a job of a sweep
        launch = importlib.import_module("vaelab.training.launch")
        if word == "_worker":
            launch.end(launch.worker(*rest))
        with _stopped_by_signals():
            return launch.child(*rest)
    if word not in COMMANDS:
        near = difflib.get_close_matches(word, COMMANDS, 1)
        hint = f"did you mean `vaelab {near[0]}`?" if near else "vaelab --help lists the commands"
        if "=" in word:
            hint = f"a command comes first: `vaelab train {word}`"
        print(f"vaelab: there is no command '{word}': {hint}", file=sys.stderr)
        return 2
    from vaelab.core.terminal import plain_output

    with plain_output(), _stopped_by_signals():
        return importlib.import_module(COMMANDS[word][0]).main(rest)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Has SIGTERM, and SIGHUP unless nohup has it ignored, end a command as Ctrl-C does: what is open is closed."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped(number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for name in names if signal.getsignal(number := getattr(signal, name)) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _completion(rest: list[str]) -> int:
    if rest in (["--help"], ["-h"]):
        print('usage: eval "$(vaelab completion bash)"; also zsh and fish')
        return 0
    if len(rest) != 1 or rest[0] not in ("bash", "zsh", "fish"):
        print("vaelab: completion takes one shell: bash, zsh or fish", file=sys.stderr)
        return 2
    return importlib.import_module(COMMANDS["train"][0]).main(["-sc", f"install={rest[0]}"])


def _complete(arguments: list[str]) -> int:
    """Answers the shell: a command word, or what Hydra knows about the rest of the line."""
    executable, _, line = os.environ.get("COMP_LINE", "").partition(" ")
    word, space, rest = line.lstrip().partition(" ")
    if not space:
        print(" ".join(name for name in COMMANDS if name.startswith(word)))
        return 0
    if word not in COMMANDS:
        return 0
    if word not in OF_TRAINING:
        print(" ".join(f"{key}=" for key in _keys(word) if key.startswith(rest.rpartition(" ")[2])))
        return 0
    os.environ["COMP_LINE"] = f"{executable} {rest}"
    return importlib.import_module(COMMANDS[word][0]).main(arguments)


def _keys(word: str) -> list[str]:
    """The keys of a command that takes none of a training's, and the groups that it chooses from."""
    import yaml

    from vaelab.core.conf import CONF

    keys = yaml.safe_load((CONF / f"{word}.yaml").read_text())
    chosen = [name for entry in keys["defaults"] if isinstance(entry, dict) for name in entry if " " not in name]
    groups = [name.rpartition("@")[2] for name in chosen]
    return [key for key in keys if key not in ("defaults", "hydra", "runs")] + groups
