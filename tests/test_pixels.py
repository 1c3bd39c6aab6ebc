import pytest
import torch
from PIL import Image

from vaelab.figures.pixels import MIN_TILE, grid, pairs, save_png


def tiles(picture, size, gap=2):
    """Pictures of a grid, [rows, columns, size, size, 3]."""
    step = size + gap
    inner = picture[gap:, gap:]
    return inner.unfold(0, size, step).unfold(1, size, step).permute(0, 1, 3, 4, 2)


def flat(levels, size=48, channels=1):
    """One picture of a single level each, [N, C, size, size]."""
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, channels, size, size)


def test_pictures_stand_row_by_row():
    levels = [0.0, 0.2, 0.4, 0.6, 0.8, 0.9]
    picture = grid(flat(levels), columns=3)
    assert picture.shape == (2 * 50 + 2, 3 * 50 + 2, 3)
    assert picture.dtype == torch.uint8
    assert tiles(picture, 48)[..., 0, 0, 0].tolist() == [[0, 51, 102], [153, 204, 230]]


def test_every_pixel_has_its_place():
    image = torch.rand(1, 1, 50, 60)
    picture = grid(image, columns=1, gap=3)
    assert picture.shape == (56, 66, 3)
    assert torch.equal(picture[3:-3, 3:-3, 0], (image[0, 0] * 255).round().to(torch.uint8))


def test_gaps_and_missing_pictures_are_white():
    picture = grid(flat([0.0, 0.0, 0.0]), columns=2)
    white = (picture == 255).all(2)
    assert white[:2].all()
    assert white[-2:].all()
    assert white[:, :2].all()
    assert white[:, -2:].all()
    assert white[50:52].all()
    assert white[:, 50:52].all()
    assert white[52:, 52:].all()
    assert (~white).sum() == 3 * 48 * 48


@pytest.mark.parametrize(("size", "factor"), [(8, 6), (28, 2), (47, 2), (48, 1), (64, 1)])
def test_small_pictures_are_enlarged_by_whole_factors(size, factor):
    image = torch.rand(1, 1, size, size)
    tile = grid(image, columns=1)[2:-2, 2:-2, 0]
    assert tile.shape == (size * factor, size * factor)
    assert len(tile) >= MIN_TILE
    expected = (image[0, 0] * 255).round().to(torch.uint8)
    for i in range(factor):
        assert torch.equal(tile[i::factor, factor - 1 - i :: factor], expected)


def test_oblong_pictures_keep_their_proportions():
    assert grid(torch.rand(1, 1, 9, 13), columns=1, gap=0).shape == (54, 78, 3)


def test_grey_is_grey_and_colours_keep_their_channels():
    grey = grid(flat([0.5]), columns=1)[2:-2, 2:-2]
    assert (grey == 128).all()
    colour = torch.tensor([1.0, 0.0, 0.4]).view(1, 3, 1, 1).expand(1, 3, 48, 48)
    assert (grid(colour, columns=1)[2:-2, 2:-2] == torch.tensor([255, 0, 102])).all()


def test_values_beyond_the_range_are_clipped():
    picture = grid(flat([-3.0, 7.0]), columns=2)
    assert tiles(picture, 48)[0, :, 0, 0, 0].tolist() == [0, 255]


def test_pictures_may_carry_gradients_and_any_precision():
    assert torch.equal(grid(flat([0.25, 0.5]).bfloat16(), 2), grid(flat([0.25, 0.5]).clone().requires_grad_(), 2))


def test_reconstructions_stand_below_their_originals():
    images, made = flat([0.0, 0.1, 0.2, 0.3]), flat([0.6, 0.7, 0.8, 0.9])
    levels = tiles(pairs(images, made, columns=2), 48)[..., 0, 0, 0]
    expected = torch.tensor([[0.0, 0.1], [0.6, 0.7], [0.2, 0.3], [0.8, 0.9]]).mul(255).round()
    assert torch.equal(levels.float(), expected)


def test_pairs_leave_out_an_unfinished_row():
    picture = pairs(flat([0.0, 0.1, 0.2]), flat([0.6, 0.7, 0.8]), columns=2)
    assert len(tiles(picture, 48)) == 2


def test_a_few_pictures_still_make_pairs():
    picture = pairs(flat([0.0, 0.1, 0.2]), flat([0.6, 0.7, 0.8]), columns=8)
    assert (picture[..., 0] == 153).sum() == 48 * 48


def test_png_files_keep_every_pixel(tmp_path):
    picture = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8)
    path = tmp_path / "new" / "folder" / "picture.png"
    save_png(picture, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert torch.equal(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(20, 30, 3), picture)
