"""What holds of every codebook of conf/."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from tests.test_conf import composed, options
from vaelab.core.conf import CONF
from vaelab.core.config import build

NAMES = [name for name in options("codebook") if name != "none"]
SEVERAL = {"residual", "grouped"}
"""Codebooks of several levels: tests/test_several.py has what these choose."""
every = pytest.mark.parametrize("name", NAMES)


def made(name: str, *words: str) -> Any:
    torch.manual_seed(0)
    config = composed("model=vqvae", f"codebook={name}", *words)["model"]
    return build(config, shape=(1, 8, 8), num_classes=3).codebook.train()


def drawn(book: Any, seed: int = 0) -> torch.Tensor:
    return torch.randn(4, book.embedding_dim, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SEVERAL])
def test_the_code_is_the_nearest_in_the_space_of_the_codes_and_is_its_own_nearest(name):
    book = made(name)
    book.place(drawn(book, 1), None)
    z = drawn(book)
    out, codes = book(z), book.vectors.double()
    wanted = book.project(z.double()).movedim(1, -1).flatten(0, -2)
    assert torch.equal(out.chosen, torch.cdist(wanted, codes, compute_mode="donot_use_mm_for_euclid_dist").argmin(1))
    assert torch.equal(book.search(z), out.indices)
    assert torch.equal(
        book.lookup(book.choose(book.lookup(out.indices).movedim(1, -1).flatten(0, -2)).view(4, 4, 4)),
        book.lookup(out.indices),
    )


@every
@pytest.mark.parametrize("rotation", ["true", "false"])
def test_nothing_of_it_changes_under_autocast(name, rotation):
    book = made(name, f"codebook.rotation={rotation}")
    book.place(drawn(book, 1), None)
    z = 1 + 1e-3 * drawn(book)  # which bfloat16 cannot tell apart
    alone = [x.clone().requires_grad_() for x in (z, z)]
    expected, found = book(alone[0]), book.search(z)
    with torch.autocast("cpu", torch.bfloat16):
        out = book(alone[1])
        assert torch.equal(book.search(z), found)
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
    slope = torch.randn(expected.vectors.shape, generator=torch.Generator().manual_seed(2))
    gradients = [torch.autograd.grad(o.vectors, x, slope)[0] for o, x in zip((expected, out), alone, strict=True)]
    assert torch.equal(*gradients)


@every
def test_it_compiles_to_one_graph(name):
    torch._dynamo.reset()
    book = made(name, "codebook.rotation=true")
    whole = torch.compile(lambda z: tuple(book(z)), fullgraph=True, backend="eager")  # which alone 2.11 can return
    z = drawn(book).requires_grad_()
    one, other = book(z), whole(z)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@every
def test_what_it_advises_can_be_done(name):
    """The keys that a finding names are there to be set."""
    book = made(name)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=["model=vqvae", f"codebook={name}"])
    keys = [word.strip(",") for word in " ".join(book.remedy).split() if "." in word and "=" not in word]
    assert keys
    for key in keys:
        node: Any = config
        for part in key.split("."):
            assert part in node, key
            node = node[part]
