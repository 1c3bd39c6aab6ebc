"""Every pair of a model, a network, a likelihood, a data set and a precision trains, or is refused with its reason."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import combinations, product
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image

from tests.conftest import smaller
from tests.test_conf import named, options
from vaelab.cli import main
from vaelab.core.conf import CONF
from vaelab.training.options import Trainer

TRIES = 2
"""Refused rows after which a pair counts as one that cannot be."""
DRAWN = 20
"""Rows of which one is tried."""
SMALL = {
    "fake": ["dataset.size=100", "dataset.image_shape=[1,8,8]"],
    "sprites": ["dataset.train_size=100", "dataset.val_size=10", "dataset.test_size=10"],
    "folder": ["dataset.root=photos", "dataset.channels=3"],
    "prepared": ["dataset.root=photos.vaelab"],
    "arrays": ["dataset.root=x.npz", "dataset.layout=ncl"],
    "table": ["dataset.root=x.csv"],
}
"""Words that make a data set small, or say where it is."""


DOWNLOADED = ("dataset=fake", "dataset.size=100", "dataset.image_shape=[3,64,64]")
"""Words for fake images that stand for those which would be downloaded; of their sizes only networks know."""


def words_of(dataset: str) -> tuple[str, ...]:
    """The words that choose a data set."""
    if "download:" in (CONF / "dataset" / f"{dataset}.yaml").read_text():
        return DOWNLOADED
    return f"dataset={dataset}", *SMALL.get(dataset, [])


def of_their_own(group: str) -> list[str]:
    """Options that are more than other values for another option of the group, as resnet is for conv."""
    return [name for name in options(group) if "_target_: " in (CONF / group / f"{name}.yaml").read_text()]


def axes() -> list[list[tuple[str, ...]]]:
    """What there is to choose from, as words of the command line."""
    precisions = get_args(get_args(get_type_hints(Trainer)["precision"])[0])
    found = [
        *([named(group, option) for option in of_their_own(group)] for group in ("model", "network", "likelihood")),
        list(dict.fromkeys(map(words_of, options("dataset")))),
        [(f"trainer.precision={precision}",) for precision in precisions],
    ]
    return [[words for words in axis if words != ("likelihood=table",)] for axis in found]  # of one data set alone


def images(root: Path) -> None:
    for name, i in product(("cat", "dog"), range(40)):
        (root / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name / f"{i}.png")


def pairs_of(row: dict[int, tuple[str, ...]]) -> set[Any]:
    """Pairs of choices, each with its axis, in a row of such choices."""
    return set(combinations(sorted(row.items()), 2))


@pytest.mark.slow
def test_every_pair_trains_or_is_refused_with_its_reason(train, tmp_path):
    """Rows are drawn, each with a pair that no trained row has had, until there is none but those always refused.

    Of several rows with such a pair, the one is tried from which most newly trained pairs are to be expected: each
    refusal that such a pair was in, whatever its reason, makes the next less likely to be none.
    """
    images(tmp_path / "photos")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((80, 2, 16)), labels=np.arange(80) % 2)
    (tmp_path / "x.csv").write_text("a,b,c\n" + "1.5,0,red\n2.5,1,blue\n4,0,blue\n" * 20)
    assert (
        main(["data", "prepare", "dataset=folder", "dataset.root=photos", "dataset.channels=3", "out=photos.vaelab"])
        == 0
    )
    chosen, dice = axes(), random.Random(0)
    pairs = [((a, x), (b, y)) for a, b in combinations(range(len(chosen)), 2) for x, y in product(chosen[a], chosen[b])]
    trained: set[Any] = set()
    refusals: Counter[Any] = Counter()
    rows, refused = 0, {}

    def worth(row: dict[int, tuple[str, ...]]) -> float:
        new = pairs_of(row) - trained
        return len(new) * math.prod(1 / (1 + refusals[pair] / 2) for pair in new)

    for pair in pairs:
        for _ in range(TRIES):
            if pair in trained:
                break
            drawn = [{a: dice.choice(values) for a, values in enumerate(chosen)} | dict(pair) for _ in range(DRAWN)]
            row = max(drawn, key=worth)
            line = [word for words in row.values() for word in words]
            line += smaller(line)
            result = train(
                *line,
                "dataset.batch_size=16",
                "trainer.max_steps=2",
                "test=false",
                "trainer.accelerator=cpu",
                small=False,
            )
            if result.code == 0:
                assert result.summary["status"] == "finished"
                trained |= pairs_of(row)
                rows += 1
            else:
                assert result.code == 2, (line, result.err)
                said = [text for text in result.err.splitlines() if text.startswith("vaelab: ")]
                assert len(said) == 1, (line, result.err)
                refused[" ".join(line)] = said[0]
                refusals.update(pairs_of(row))
    assert {choice for pair in trained for choice in pair} == {choice for pair in pairs for choice in pair}
    print(
        f"{len(pairs)} pairs, {len(trained)} trained in {rows} rows, {len(refused)} rows refused",
        *sorted(set(refused.values())),
        sep="\n",
    )
