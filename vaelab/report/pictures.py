"""Headings, order and captions of the figures of a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from vaelab.report.page import Picture, picture

CAPTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Training": {
        "curves": (
            "Learning curves",
            "Train and validation metrics over time, nats per image: where validation turns away while train goes "
            "on, the model has begun to learn its training images by heart; the ELBO, where it is drawn, is at β = 1.",
        ),
        "schedule": (
            "Schedules",
            "What a schedule or a controller set, beside the KL that it steers: the KL should follow a capacity, and "
            "fall as β grows.",
        ),
        "kl_per_dim": (
            "KL per latent dimension",
            "Each row is a latent dimension, most used first, and its colour the nats per image that it carries as "
            "training goes on; rows that stay at zero are dimensions that the decoder does without.",
        ),
        "code_usage": (
            "Use of each code",
            "Each row is a code, most used at the end first, and its colour how often training images chose it as "
            "training goes on, where 1 is as often as if all were alike: white is never, so that codes that die turn "
            "white and those that a restart brings back have a colour again.",
        ),
    },
    "Reconstructions": {
        "reconstructions": (
            "Reconstructions",
            "Validation images, what the model makes of their codes, and the difference: what is missing or blurred is "
            "what the codes do not hold.",
        ),
        "errors": (
            "Reconstruction errors",
            "How the mean squared error per pixel is spread over the validation images: a long tail to the right is of "
            "images unlike the others.",
        ),
        "uncertainty": (
            "Uncertainty",
            "Validation images, the mean of what draws from their posteriors decode to, and the standard deviation: "
            "bright pixels are those that the code leaves open.",
        ),
    },
    "Samples": {
        "samples": (
            "Samples from the prior",
            "Images decoded from draws of the prior, N(0, I), all codes alike or a fitted one: they should be as clear "
            "and as varied as the data.",
        ),
        "real_and_generated": (
            "Real and generated",
            "Validation images beside draws from the prior: look for shapes that only one side has.",
        ),
        "classes": (
            "Samples of each class",
            "A row per label, and a draw of z per column, unless the prior is told the label: rows should differ in "
            "what they show, and columns in how.",
        ),
        "levels": (
            "Samples of each level",
            "A row has one draw of the named level and of those above it, and each picture its own of those below: "
            "what the pictures of a row share is what the upper level decides.",
        ),
    },
    "Fitted prior": {
        "temperatures": (
            "Samples by temperature",
            "A row per temperature, columns from the same noise: below 1 samples are more typical and vary less, above "
            "1 they vary more and break.",
        ),
        "nearest": (
            "Nearest training images",
            "Samples, and below each the training image that is nearest in pixels: distances far below that of "
            "images which the model has not seen are samples that it knows by heart.",
        ),
        "prior_loss": (
            "Loss of each position",
            "What the code at each position costs, given those before it in reading order, as a mean over validation "
            "images: positions where the loss is near zero follow from the others, and large losses are what the prior "
            "cannot foresee.",
        ),
    },
    "Latent space": {
        "traversals": (
            "Traversals",
            "A row per latent dimension, which moves from -3 to 3 standard deviations while all others stay as a "
            "validation image has them, whose own value is marked: what changes along a row is what the dimension "
            "stands for.",
        ),
        "manifold": (
            "The plane of codes",
            "What is decoded over the two latent dimensions, at values between which the prior has equal parts of its "
            "mass: neighbours should differ a little, and every picture be one that the data could have.",
        ),
        "interpolations": (
            "Interpolations",
            "From the code of a validation image to that of another, along a line and along an arc: in a good latent "
            "space each step between is an image, too.",
        ),
        "latents": (
            "Codes of the validation images",
            "A point per image in the two directions in which codes vary most, or z0 and z1 where there are no others, "
            "coloured by class or first factor where the data has them: groups that the model was not told of are "
            "structure that it found.",
        ),
        "dimensions": (
            "Latent dimensions",
            "The KL of each dimension over validation images, and its variance, between the images' means and within "
            "their posteriors: dimensions near zero carry nothing, and the two variances add up to about 1 where codes "
            "fill the prior.",
        ),
        "codes": (
            "Use of the codebook",
            "How often training images use each code: an even histogram is a codebook well spent, and codes that many "
            "images never use are dead.",
        ),
        "code_vectors": (
            "Map of the codes",
            "A mark per code vector in the two directions in which they vary most, coloured by how often training "
            "images choose it: hollow marks are never chosen, and where they lie apart from the others the encoder "
            "does not reach them.",
        ),
        "code_patches": (
            "What each code stands for",
            "For each of the most used codes, with its number, the mean of what is decoded where validation images "
            "have it, and around there: a sharp patch is a code with one meaning, a blurred one depends on its "
            "neighbours.",
        ),
        "code_maps": (
            "Maps of codes",
            "Validation images, what their codes decode to, and the maps of these, a colour per code: the same colour "
            "in several places of a map is the same code; a colour of another level's map is another code, unless both "
            "have one codebook.",
        ),
        "code_levels": (
            "Level by level",
            "Validation images, and what is decoded of their first levels of codes, the others zero: a row that is no "
            "better than the one above it carries little, unless the levels below it only make sense together.",
        ),
    },
    "Anomalies": {
        "roc": (
            "ROC curve",
            "For each score of vaelab eval, the share of other images that a threshold finds against the share of the "
            "own ones that it takes for such: a good score goes up steeply at the left, chance is the dotted line.",
        ),
    },
    "Data": {
        "data": (
            "Data",
            "Training images of each class as the model sees them, and how often each pixel value occurs, counted on a "
            "logarithmic scale.",
        ),
    },
    "Columns": {
        "marginals": (
            "Marginals",
            "How the values of each column are spread, training rows in grey and as many draws of p(x|z) p(z): where "
            "the line leaves the grey, the model has another distribution than the data.",
        ),
        "correlations": (
            "Correlations",
            "How each pair of columns goes together, in training rows and in draws: what the right matrix lacks, the "
            "model has not learned to hold together.",
        ),
    },
    "Sequences": {
        "lines": (
            "Lines",
            "Validation examples in grey with their reconstructions, a colour per channel, and draws below: what a "
            "reconstruction leaves out is what the code does not hold.",
        ),
    },
}
"""The title of each figure, and a sentence on how to read it, in the order of the page."""
OTHERS = "Made by commands"
COMMANDS = {
    "sample": ("Draws", "Images that vaelab sample drew."),
    "reconstruct": (
        "Reconstructed images",
        "Images, what the model makes of them, and the difference, by vaelab reconstruct.",
    ),
    "traverse": (
        "Traversal of an image",
        "One latent dimension a row, by vaelab traverse: the value at its start is marked.",
    ),
    "interpolate": ("Interpolation", "From one image's code to another's, by vaelab interpolate."),
}
"""Titles and captions of what a command has drawn last; any other picture goes by its file's name."""


class Shown(NamedTuple):
    """A figure of a page, with its title and caption."""

    name: str
    title: str
    caption: str
    picture: Picture


def of_training_images(captions: Mapping[str, Mapping[str, tuple[str, str]]]) -> dict[str, dict[str, tuple[str, str]]]:
    """Returns the captions of a run without validation images: training images stand in the place of these."""

    def said(text: str) -> str:
        return text.replace("Validation images", "Training images").replace("validation image", "training image")

    told = {
        heading: {name: (said(title), said(caption)) for name, (title, caption) in texts.items()}
        for heading, texts in captions.items()
    }
    told["Training"]["curves"] = (
        "Learning curves",
        "Train metrics over time, nats per image: no images were held out for validation, so that they do not tell "
        "whether the model learns its images by heart; the test column above does.",
    )
    return told


def groups(figures: Path, captions: Mapping[str, Mapping[str, tuple[str, str]]]) -> list[tuple[str, list[Shown]]]:
    """Collects the pictures of a folder under their headings, in the order of `captions`, then all others."""
    paths = {path.stem: path for path in sorted(figures.glob("*.png")) if not path.name.startswith(".")}
    sections = []
    for heading, texts in captions.items():
        shown = [Shown(name, *text, picture(paths.pop(name))) for name, text in texts.items() if name in paths]
        if heading == "Latent space" and {"codes", "code_maps"} & {figure.name for figure in shown}:
            heading = "Codes"
        sections.append((heading, shown))
    others = [
        Shown(name, *COMMANDS.get(name, (name, f"figures/{path.name}.")), picture(path)) for name, path in paths.items()
    ]
    return [(heading, shown) for heading, shown in (*sections, (OTHERS, others)) if shown]
