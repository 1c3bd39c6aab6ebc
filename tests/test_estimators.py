"""The gradient through the choice of a code: copied, or turned as the vector is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.test_conf import composed, options
from vaelab.core.config import build
from vaelab.nn.quantizers.estimators import rotated, straight_through

both = pytest.mark.parametrize("estimator", [straight_through, rotated])


def drawn(seed: int, dim: int = 5) -> Tensor:
    return torch.randn(3, dim, 4, 2, generator=torch.Generator().manual_seed(seed))


def gradient(estimator, z: Tensor, codes: Tensor, slope: Tensor) -> Tensor:
    """The gradient that z gets where the output's is `slope`."""
    z = z.clone().requires_grad_()
    return torch.autograd.grad(estimator(z, codes), z, slope)[0]


@both
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_output_is_the_code(estimator, size):
    codes = size * drawn(1)
    torch.testing.assert_close(estimator(drawn(0), codes), codes, rtol=1e-6, atol=1e-6)


def test_the_jacobian_of_the_straight_through_estimator_is_the_identity():
    z, codes = torch.randn(1, 4, 1, 1), torch.randn(1, 4, 1, 1)
    jacobian: Tensor = torch.autograd.functional.jacobian(lambda z: straight_through(z, codes), z)  # type: ignore[assignment]
    assert torch.equal(jacobian.view(4, 4), torch.eye(4))


def test_a_rotated_gradient_keeps_its_angle_to_the_vector_and_is_scaled_as_the_vector_was():
    z, codes, slope = (drawn(seed).double() for seed in range(3))
    found = gradient(rotated, z, codes, slope)
    ratio = codes.norm(dim=1) / z.norm(dim=1)
    torch.testing.assert_close(found.norm(dim=1), ratio * slope.norm(dim=1))
    angles = [torch.cosine_similarity(*pair, dim=1) for pair in ((found, z), (slope, codes))]
    torch.testing.assert_close(*angles)
    assert not torch.allclose(found, slope * ratio[:, None])  # it is turned, too


def test_the_jacobian_of_the_rotation_is_a_rotation_times_the_ratio_of_lengths():
    z, codes = drawn(0)[:1, :, :1, :1].double(), drawn(1)[:1, :, :1, :1].double()
    jacobian: Tensor = torch.autograd.functional.jacobian(lambda z: rotated(z, codes), z)  # type: ignore[assignment]
    turn = jacobian.view(5, 5) * (z.norm() / codes.norm())
    torch.testing.assert_close(turn @ turn.T, torch.eye(5).double())
    assert turn.det() == pytest.approx(1.0)
    fixed = torch.linalg.svd(torch.stack([z.flatten(), codes.flatten()])).Vh[2:]  # what stands on both stays
    torch.testing.assert_close(fixed @ turn, fixed)


def test_where_there_is_no_direction_the_gradient_is_copied():
    z, codes, slope = drawn(0), drawn(1), drawn(2)
    z[0], codes[1] = 0.0, 0.0
    found = gradient(rotated, z, codes, slope)
    assert torch.equal(found[:2], slope[:2])
    assert not torch.allclose(found[2], slope[2])


@pytest.mark.parametrize("off", [0.0, 1e-8, 1e-6, 1e-4, 1e-2])
def test_opposite_and_equal_vectors_keep_the_law(off):
    z, slope = drawn(0), drawn(2)
    for codes in (-2 * z + off * drawn(1), 2 * z + off * drawn(1)):
        found = gradient(rotated, z, codes, slope)
        expected = codes.norm(dim=1) / z.norm(dim=1) * slope.norm(dim=1)
        torch.testing.assert_close(found.norm(dim=1), expected, rtol=1e-5, atol=1e-5)


@both
def test_compiled_it_is_the_same(estimator):
    z, codes, slope = drawn(0), drawn(1), drawn(2)
    z[0] = 0.0
    whole = torch.compile(estimator, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient(whole, z, codes, slope), gradient(estimator, z, codes, slope))


@pytest.mark.parametrize("name", [name for name in options("codebook") if name != "none"])
def test_every_codebook_takes_both(name):
    """The choice, the output and the losses are the same; the gradient that reaches the encoder is not."""
    found = []
    for value in ("false", "true"):
        torch.manual_seed(0)
        model = build(
            composed("model=vqvae", f"codebook={name}", f"codebook.rotation={value}")["model"],
            shape=(1, 8, 8),
            num_classes=3,
        )
        book = model.codebook.train()
        assert book.rotation is (value == "true")
        z = drawn(0, book.embedding_dim).requires_grad_()
        out = book(z)
        found.append((out, torch.autograd.grad((out.vectors * drawn(1, book.embedding_dim)).sum(), z)[0]))
    (copied, straight), (turned, other) = found
    assert torch.equal(copied.indices, turned.indices)
    torch.testing.assert_close(copied.vectors, turned.vectors)
    torch.testing.assert_close(copied.commitment, turned.commitment)
    assert other.isfinite().all()
    assert not torch.allclose(straight, other)


def test_oracle_vector_quantize_pytorch_turns_gradients_alike():
    from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

    z, codes, slope = drawn(0), drawn(1), drawn(2)

    def theirs(z: Tensor, codes: Tensor) -> Tensor:
        return rotate_to(z.movedim(1, -1), codes.movedim(1, -1)).movedim(-1, 1)

    torch.testing.assert_close(theirs(z, codes), rotated(z, codes))
    torch.testing.assert_close(gradient(theirs, z, codes, slope), gradient(rotated, z, codes, slope))
