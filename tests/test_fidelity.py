"""Measures of a picture's fidelity: against torchmetrics, and against what follows from their definitions."""

import pytest
import torch
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from vaelab.evaluation.metrics import fidelity


def pair(*shape: int, noise: float = 0.2):
    """Smooth originals, and copies with noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(shape[0], shape[1], 6, 6, generator=generator)
    originals = torch.nn.functional.interpolate(coarse, shape[2:], mode="bicubic").clamp(0, 1)
    return (originals + noise * torch.randn(shape, generator=generator)).clamp(0, 1), originals


@pytest.mark.parametrize("shape", [(4, 1, 28, 28), (3, 3, 8, 17), (2, 3, 65, 64)])
@pytest.mark.parametrize("noise", [0.02, 0.2, 3.0])
def test_psnr_and_ssim_are_those_of_torchmetrics(shape, noise):
    pictures, originals = pair(*shape, noise=noise)
    per_image = {"data_range": 1.0, "reduction": "none"}
    known = structural_similarity_index_measure(pictures, originals, **per_image)
    assert torch.allclose(fidelity.ssim(pictures, originals), known, atol=1e-5)
    known = peak_signal_noise_ratio(pictures, originals, **per_image, dim=(1, 2, 3))
    assert torch.allclose(fidelity.psnr(pictures, originals), known, atol=1e-4)


@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_ms_ssim_is_that_of_torchmetrics(noise):
    pictures, originals = pair(2, 3, 176, 191, noise=noise)
    known = multiscale_structural_similarity_index_measure(pictures, originals, data_range=1.0, reduction="none")
    assert torch.allclose(fidelity.ms_ssim(pictures, originals), known, atol=1e-5)


def test_a_contradiction_has_no_ms_ssim():
    """Negative similarities count as 0: a power of them would be NaN."""
    _, originals = pair(1, 1, 161, 161, noise=0.0)
    assert fidelity.ssim(1 - originals, originals) < 0.5
    assert fidelity.ms_ssim(1 - originals, originals) == 0


def test_equal_pictures_are_as_faithful_as_can_be():
    _, originals = pair(2, 3, 161, 161)
    assert torch.allclose(fidelity.ssim(originals, originals), torch.ones(2))
    assert torch.allclose(fidelity.ms_ssim(originals, originals), torch.ones(2))
    assert torch.allclose(fidelity.psnr(originals, originals), torch.full((2,), 100.0))


def test_an_error_of_a_tenth_everywhere_is_20_decibels():
    assert fidelity.psnr(torch.full((1, 3, 4, 4), 0.6), torch.full((1, 3, 4, 4), 0.5)).item() == pytest.approx(
        20, abs=1e-4
    )


@pytest.mark.parametrize(("measure", "size"), [(fidelity.ssim, 5), (fidelity.ms_ssim, 160)])
def test_pictures_smaller_than_the_window_are_refused(measure, size):
    with pytest.raises(ValueError, match=f"at least {size + 1} x {size + 1} pixels: these have {size} x 200"):
        measure(torch.zeros(1, 1, size, 200), torch.zeros(1, 1, size, 200))


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((1, 5, 64), {"psnr"}),
        ((1, 28, 28), {"psnr", "ssim"}),
        ((3, 160, 200), {"psnr", "ssim"}),
        ((3, 161, 161), {"psnr", "ssim", "ms_ssim"}),
    ],
)
def test_pictures_are_measured_by_what_their_size_allows(shape, names):
    from vaelab.evaluation.sections import _similarities

    assert _similarities(shape).keys() == names
