"""The pictures of a page: their headings and order, and how each is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from vaelab.page import Picture, picture

CAPTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Training": {
        "curves": (
            "Learning curves",
            "Train and validation figures over time, nats per image: where validation turns away while train goes "
            "on, the model has begun to learn its training images by heart.",
        ),
        "schedule": (
            "Schedules",
            "What was scheduled beside the KL that it steers: the KL should follow a capacity, and fall as β grows.",
        ),
        "kl_per_dim": (
            "KL per latent dimension",
            "Each row is a latent dimension, most used first, and its colour the nats per image that it carries as "
            "training goes on; rows that stay at zero are dimensions that the decoder does without.",
        ),
    },
    "Reconstructions": {
        "reconstructions": (
            "Reconstructions",
            "Images that the model was not trained on beside what it makes of their codes: what is missing or "
            "blurred is what the codes do not hold.",
        ),
        "errors": (
            "Reconstruction errors",
            "How the squared error per pixel is spread over images: a long tail to the right is of images unlike "
            "the others.",
        ),
        "uncertainty": (
            "Uncertainty",
            "An image, the mean of what draws from its posterior decode to, and their standard deviation: bright "
            "pixels are those that the code leaves open.",
        ),
    },
    "Samples": {
        "samples": (
            "Samples from the prior",
            "Images decoded from codes that no image gave: they should be as clear and as varied as the data.",
        ),
        "real_and_generated": (
            "Real and generated",
            "Real images beside drawn ones: look for strokes and shapes that only one side has.",
        ),
        "classes": (
            "Samples of each class",
            "A row per label, drawn given that label: rows should differ in what they show, and vary within.",
        ),
    },
    "Latent space": {
        "traversals": (
            "Traversals",
            "A row per latent dimension, which moves from left to right while all others stay: what changes along "
            "a row is what the dimension stands for.",
        ),
        "interpolations": (
            "Interpolations",
            "From the code of one image to that of another: in a good latent space each step between is an image, too.",
        ),
        "latents": (
            "Codes of the test images",
            "A point per image, coloured by class or factor where the data has them: groups that the model was not "
            "told of are structure that it found.",
        ),
        "dimensions": (
            "Latent dimensions",
            "The KL of each dimension, and how its variance is split between images and noise: dimensions near zero "
            "carry nothing, and the two variances add up to about 1 where codes fill the prior.",
        ),
        "codes": (
            "Use of the codebook",
            "How often each code is used: an even histogram is a codebook well spent, codes that are never used are "
            "dead.",
        ),
        "code_maps": (
            "Maps of codes",
            "An image, its map of code indices, a colour per index, and what it decodes to: the same colour in "
            "several places is the same local pattern.",
        ),
    },
    "Data": {
        "data": (
            "Data",
            "Images of each class as the model sees them, and how often each pixel value occurs, counted on a "
            "logarithmic scale.",
        ),
    },
}
"""The title of each figure, and a sentence on how to read it, in the order of the page."""
OTHERS = "Made by commands"


class Shown(NamedTuple):
    """A figure of a page."""

    name: str
    title: str
    caption: str
    picture: Picture


def groups(figures: Path, captions: Mapping[str, Mapping[str, tuple[str, str]]]) -> list[tuple[str, list[Shown]]]:
    """The pictures of a folder under their headings, in the order of `captions`, then all others."""
    paths = {path.stem: path for path in sorted(figures.glob("*.png")) if not path.name.startswith(".")}
    found = []
    for heading, texts in captions.items():
        own = [Shown(name, *text, picture(paths.pop(name))) for name, text in texts.items() if name in paths]
        if heading == "Latent space" and {"codes", "code_maps"} & {figure.name for figure in own}:
            heading = "Codes"
        found.append((heading, own))
    others = [Shown(name, name, f"figures/{path.name}.", picture(path)) for name, path in paths.items()]
    return [(heading, own) for heading, own in (*found, (OTHERS, others)) if own]
