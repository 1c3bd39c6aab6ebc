import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vaelab.core.errors import UserError
from vaelab.datasets import Folder
from vaelab.datasets.files import FileSplit
from vaelab.datasets.loaders import IndexBatches, streaming_loader


def write(path, colour=(0, 0, 0), size=(12, 10), **options):
    """An image of one colour; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def folder(root, common, **changes):
    return Folder(**{"root": str(root), "size": None, "channels": 3, "test_size": 0.2} | common | changes)


@pytest.fixture
def classed(tmp_path):
    for part, count in (("train", 8), ("test", 3)):
        for label, (name, suffix) in enumerate((("ant", "png"), ("bee", "jpg"), ("cat", "webp"))):
            for i in range(count):
                write(tmp_path / part / name / f"{i}.{suffix}", (80 * label, 0, 0))
    return tmp_path


def test_train_and_test_with_classes(classed, common):
    data = folder(classed, common)
    assert data.num_classes == 3
    data.setup()
    assert data.shape == (3, 10, 12)
    assert (len(data.train) + len(data.val), len(data.test)) == (24, 9)
    for split in (data.train, data.test):
        red = split.images[:, 0].float().mean((1, 2))
        assert (red - 80 * split.labels).abs().max() < 4


def test_a_test_class_keeps_the_label_it_has_in_training(classed, common):
    for path in (classed / "test" / "ant").iterdir():
        path.unlink()
    (classed / "test" / "ant").rmdir()
    assert set(folder(classed, common).load()[1].labels.tolist()) == {1, 2}


def test_class_folders_alone_are_split_in_proportion(tmp_path, common):
    for name, count in (("b", 20), ("a", 10)):
        for i in range(count):
            write(tmp_path / name / f"{i}.png")
    train, test = folder(tmp_path, common).load()
    assert train.labels.bincount().tolist() == [8, 16]
    assert test.labels.bincount().tolist() == [2, 4]
    assert not set(train.files) & set(test.files)


@pytest.mark.parametrize("part", ["", "train"])
def test_without_classes(tmp_path, common, part):
    for i in range(10):
        write(tmp_path / part / f"{i}.PNG")
    (tmp_path / part / "notes.txt").write_text("not an image")
    (tmp_path / part / ".hidden.png").write_text("not an image either")
    data = folder(tmp_path, common)
    train, test = data.load()
    assert (len(train), len(test)) == (8, 2)
    assert train.labels is None
    assert data.num_classes is None


@pytest.mark.parametrize(("size", "shape"), [(6, (1, 6, 6)), ((4, 7), (1, 4, 7)), ([4, 7], (1, 4, 7))])
def test_size_and_channels(classed, common, size, shape):
    train, _ = folder(classed, common, size=size, channels=1).load()
    assert train.shape == shape
    assert train.batch(torch.arange(3)).images.shape == (3, *shape)
    assert train.nbytes == 24 * shape[1] * shape[2]


def test_resizing_keeps_the_middle_and_the_aspect(tmp_path):
    array = np.zeros((10, 30, 3), dtype=np.uint8)
    array[:, 10:20] = 200
    Image.fromarray(array).save(tmp_path / "a.png")
    split = FileSplit([str(tmp_path / "a.png")], None, (5, 5), 3)
    assert split.batch(torch.tensor([0])).images.unique().tolist() == [200]


def test_downscaling_averages(tmp_path):
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))
    Image.fromarray(stripes).save(tmp_path / "a.png")
    images = FileSplit([str(tmp_path / "a.png")], None, (8, 8), 1).batch(torch.tensor([0])).images
    assert images.float().sub(127.5).abs().max() < 5


def test_a_large_jpeg_is_the_same_as_decoded_in_full(tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 255, 800).astype(np.uint8), (600, 800))
    Image.fromarray(ramp).save(tmp_path / "a.jpg", quality=95)
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")
    pair = FileSplit([str(tmp_path / "a.jpg"), str(tmp_path / "a.png")], None, (16, 16), 1)
    jpg, png = pair.batch(torch.arange(2)).images.int()
    assert (jpg - png).abs().max() <= 2


def test_crop_cuts_the_middle(tmp_path):
    array = np.zeros((20, 16, 3), dtype=np.uint8)
    array[6:14, 4:12] = 99
    Image.fromarray(array).save(tmp_path / "a.png")
    images = FileSplit([str(tmp_path / "a.png")], None, (4, 4), 3, crop=8).batch(torch.tensor([0])).images
    assert images.unique().tolist() == [99]


def test_exif_orientation_is_followed(tmp_path, common):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn a quarter to the right
    array = np.zeros((8, 16, 3), dtype=np.uint8)
    array[:, :8] = 255
    for i in range(5):
        Image.fromarray(array).save(tmp_path / f"{i}.jpg", exif=exif, quality=95)
    train, _ = folder(tmp_path, common).load()
    image = train.batch(torch.tensor([0])).images[0]
    assert image.shape == (3, 16, 8)
    assert image[:, :7].min() > 240
    assert image[:, 9:].max() < 15


def test_other_kinds_of_pixels(tmp_path):
    Image.fromarray(np.full((4, 4), 200 * 257, dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (4, 4), (200, 200, 200, 255)).save(tmp_path / "alpha.png")
    Image.new("P", (4, 4), 0).save(tmp_path / "palette.png")
    Image.new("CMYK", (4, 4), (0, 0, 0, 0)).save(tmp_path / "print.jpg")
    files = [str(tmp_path / name) for name in ("deep.png", "alpha.png", "palette.png", "print.jpg")]
    for channels in (1, 3):
        images = FileSplit(files, None, (4, 4), channels).batch(torch.arange(4)).images
        assert images[:, 0, 0, 0].tolist() == [200, 200, 0, 255]


def test_a_split_works_in_worker_processes_and_threads(tmp_path, monkeypatch):
    files = [str(write(tmp_path / f"{i:03}.png", (i, i, i))) for i in range(100)]
    split = pickle.loads(pickle.dumps(FileSplit(files, torch.arange(100), (10, 12), 3)))
    batches = IndexBatches(lambda: (torch.arange(100).flip(0), 0), 100, 50)
    streamed = torch.cat([batch.images for batch in streaming_loader(split, batches, 1, pin_memory=False)])
    assert streamed[:, 0, 0, 0].tolist() == list(range(99, -1, -1))
    monkeypatch.setattr("vaelab.datasets.files.SMALL", 0)
    monkeypatch.setattr("vaelab.datasets.files.THREADS", 3)
    assert split.batch(torch.arange(100).flip(0)).images.equal(streamed)


# --- bad input ------------------------------------------------------------------------------------


def refused(data, *words):
    with pytest.raises(UserError) as error:
        data.setup()
    assert len(str(error.value).splitlines()) <= 2
    for word in words:
        assert str(word) in str(error.value)


def test_a_missing_folder(tmp_path, common):
    refused(folder(tmp_path / "nowhere", common), "dataset.root", tmp_path / "nowhere")


def test_a_file_instead_of_a_folder(tmp_path, common):
    refused(folder(write(tmp_path / "a.png"), common), "dataset.root", "not a folder")


@pytest.mark.parametrize("part", ["", "train", "train/ant"])
def test_an_empty_folder(tmp_path, common, part):
    (tmp_path / part).mkdir(parents=True, exist_ok=True)
    refused(folder(tmp_path, common), tmp_path / part, "no images")


def corrupt(path, how):
    if how == "text":
        path.write_text("this is no image")
    elif how == "empty":
        path.write_bytes(b"")
    else:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3])
    return path


@pytest.mark.parametrize("storage", ["auto", "stream"])
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("how", ["text", "empty", "truncated"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_one_corrupt_image_is_named_before_training(tmp_path, common, suffix, how, threads, storage, monkeypatch):
    monkeypatch.setattr("vaelab.datasets.files.SMALL", 0)
    monkeypatch.setattr("vaelab.datasets.files.THREADS", threads)
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    for i in range(50):
        Image.fromarray(noise).save(tmp_path / f"{i:02}.{suffix}")
    bad = corrupt(tmp_path / f"37.{suffix}", how)
    refused(folder(tmp_path, common, storage=storage, size=24), bad, "remove it")


def test_a_file_that_vanishes_is_named(classed, common):
    train, _ = folder(classed, common).load()
    Path(train.files[5]).unlink()
    with pytest.raises(UserError, match=train.files[5]):
        train.batch(torch.arange(8))


@pytest.mark.parametrize("storage", ["auto", "stream"])
def test_images_of_different_sizes_ask_for_a_size(classed, common, storage):
    odd = write(classed / "train" / "bee" / "9.png", size=(13, 10))
    refused(folder(classed, common, storage=storage), odd, "10x13", "10x12", "dataset.size")
    folder(classed, common, storage=storage, size=8).setup()


@pytest.mark.parametrize(("count", "test_size"), [(1, 0.2), (2, 0.2), (4, 0.1), (5, 4)])
def test_too_few_images_to_split(tmp_path, common, count, test_size):
    for i in range(count):
        write(tmp_path / f"{i}.png")
    refused(folder(tmp_path, common, test_size=test_size), "too few", "dataset.test_size")


def test_a_class_that_is_only_in_test(classed, common):
    write(classed / "test" / "dog" / "0.png")
    refused(folder(classed, common), classed / "test" / "dog")


def test_classes_in_train_but_not_in_test(classed, common):
    for path in (classed / "test").rglob("*.*"):
        path.rename(classed / "test" / f"{path.parent.name}{path.name}")
    for name in ("ant", "bee", "cat"):
        (classed / "test" / name).rmdir()
    refused(folder(classed, common), "class folders")


def test_test_without_train(classed, common):
    (classed / "train").rename(classed / "training")
    refused(folder(classed, common), "no folder `train`")


def test_images_beside_class_folders(classed, common):
    write(classed / "train" / "stray.png")
    refused(folder(classed, common), "side by side")


@pytest.mark.parametrize(("bits", "warned"), [(10, True), (12, True), (16, False)])
def test_a_camera_s_bits_in_sixteen_are_told(tmp_path, caplog, monkeypatch, bits, warned):
    from vaelab.datasets.files import warn_if_dark

    monkeypatch.setattr(logging.getLogger("vaelab"), "propagate", True)
    pixels = np.linspace(0, 2**bits - 1, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    warn_if_dark([str(tmp_path / "a.png")], "dataset.root=photos")
    said = caplog.text
    assert ("dataset.root=photos" in said) == warned
    assert (f"times {2 ** (16 - bits)}" in said) == warned
