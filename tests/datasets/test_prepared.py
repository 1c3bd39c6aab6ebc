import json
import os
import pickle
import subprocess
import sys
import zlib
from itertools import pairwise

import pytest
import torch

from vaelab.core.errors import UserError
from vaelab.datasets import Batch, Prepared, TensorSplit
from vaelab.datasets.loaders import IndexBatches, epoch_order
from vaelab.datasets.prepared import PreparedSplit, block_order
from vaelab.datasets.prepared.file import PREFIX, layout, read_header, write

SHAPE = (3, 5, 4)


def numbered(count, first=0):
    """Images of random bytes; the i-th has the label i % 7 and the factors (i, 2 i)."""
    images = torch.randint(256, (count, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(first))
    number = torch.arange(first, first + count)
    return TensorSplit(images, number % 7, torch.stack([number, 2 * number], 1))


@pytest.fixture
def splits():
    return numbered(300), numbered(20, 1000)


def prepare(path, splits, **about):
    factors = None if splits[0].factors is None else {"number": 1020, "double": 2040}
    header = layout(
        splits[0].shape,
        splits,
        {"num_classes": 7, "class_names": None, "factors": factors, "binary": False, "source": {}} | about,
    )
    with path.open("w+b") as file:
        assert sum(write(file, header, splits)) == sum(map(len, splits))
    return path


@pytest.fixture
def path(tmp_path, splits):
    return prepare(tmp_path / "images.vaelab", splits)


def prepared(path, common, **changes):
    # blocks of 10 images and a window of 40
    sizes = {"order": "blocks", "block": 10.5 * 60 / 2**20, "window": 40.5 * 60 / 2**20}
    return Prepared(**{"root": str(path)} | sizes | common | changes)


def ready(path, common, trainer, **changes):
    data = prepared(path, common, **changes)
    data.setup()
    data.trainer = trainer
    return data


def everything(split):
    return split.batch(torch.arange(len(split)))


# --- what is in the file --------------------------------------------------------------------------


def test_the_file_holds_each_image_with_its_own_label_and_factors(path, splits):
    for part, split in zip(("train", "test"), splits, strict=True):
        found = everything(PreparedSplit(path, read_header(path), part))
        by_number = found.factors[:, 0].argsort()
        wanted = everything(split)
        for one, other in zip(found[:3], wanted[:3], strict=True):
            assert one[by_number].equal(other)
            assert one.dtype == other.dtype


def test_training_images_lie_in_a_random_order_and_test_images_in_theirs(path):
    header = read_header(path)
    numbers = everything(PreparedSplit(path, header, "train")).factors[:, 0]
    neighbours = (numbers.diff().abs() == 1).sum()
    assert neighbours < 10  # 2 are expected of 299
    assert everything(PreparedSplit(path, header, "test")).factors[:, 0].equal(torch.arange(1000, 1020))


def test_the_same_images_make_the_same_file(path, splits, tmp_path):
    assert prepare(tmp_path / "again", splits).read_bytes() == path.read_bytes()


def test_images_without_labels(tmp_path, common):
    images = torch.zeros(30, 1, 4, 4, dtype=torch.uint8)
    file = prepare(tmp_path / "x", (TensorSplit(images), TensorSplit(images[:4])), num_classes=None)
    data = prepared(file, common, storage="stream")
    data.setup()
    assert data.num_classes is None
    assert data.train.batch(torch.arange(3))[1:4] == (None, None, None)


def test_what_is_known_of_the_classes(tmp_path, splits, common):
    names = [f"class {i}" for i in range(7)]
    sizes = {"number": 300, "double": 600}
    data = prepared(prepare(tmp_path / "x", splits, class_names=names, factors=sizes, binary=True), common)
    assert (data.num_classes, data.class_names, data.factor_sizes, data.binary) == (7, names, sizes, True)


# --- held and streamed ----------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["blocks", "random"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_streamed_batches_are_those_held_in_memory(path, common, trainer, order, num_workers):
    held = ready(path, common, trainer, storage="resident", order=order)
    streamed = ready(path, common, trainer, storage="stream", order=order, num_workers=num_workers)
    assert isinstance(held.train, TensorSplit)
    assert isinstance(streamed.train, PreparedSplit)
    for name in ("train", "val", "test"):
        trainer.training, trainer.testing = name == "train", name == "test"
        one, other = (list(getattr(data, f"{name}_dataloader")()) for data in (held, streamed))
        assert len(one) == len(other) > 0
        for batch, same in zip(one, other, strict=True):
            assert isinstance(same, Batch)
            seen = [data.on_after_batch_transfer(b, 0) for data, b in ((held, batch), (streamed, same))]
            assert all(a.equal(b) for a, b in zip(*(b[:3] for b in seen), strict=True))


def test_what_does_not_fit_is_streamed(path, common, monkeypatch):
    class Memory:
        available = 2 * 300 * 60 - 1

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    data = prepared(path, common)
    data.setup()
    assert isinstance(data.train, PreparedSplit)
    assert isinstance(data.test, TensorSplit)
    assert data.train.nbytes == 270 * 60
    with pytest.raises(UserError, match=r"dataset\.binarize=static"):
        prepared(path, common, binarize="static").setup()


def test_a_split_survives_pickling_after_it_was_read(path):
    split = PreparedSplit(path, read_header(path), "train").subset(torch.tensor([5, 40, 7]))
    batch = split.batch(torch.tensor([2, 0]))
    again = pickle.loads(pickle.dumps(split)).batch(torch.tensor([2, 0]))
    assert batch.images.equal(again.images)
    assert split.subset(torch.tensor([2])).batch(torch.tensor([0])).images.equal(batch.images[:1])
    assert split.nbytes == 3 * 60


def test_reading_ahead_asks_for_each_block_once_and_for_no_byte_more(path, monkeypatch):
    """A split of every second image, in blocks of 10 of them: 19 rows of the file."""
    split = PreparedSplit(path, read_header(path), "train").subset(torch.arange(0, 300, 2)).read_ahead(10, 4)
    split._open()
    asked = []

    class Map:
        def madvise(self, _, start, size):
            asked.append((start, size))

        def size(self):
            return split.header["size"]

    split._map = Map()
    for index in ([3, 9], [11, 4], [149], [0]):
        split.batch(torch.tensor(index))
    offset = split.header["parts"]["train"]["arrays"]["images"]["offset"]
    for (start, size), first in zip(asked, (0, 20, 280), strict=True):
        assert start % 4096 == 0
        assert offset + first * 60 - start in range(4096)
        assert start + size == offset + (first + 19) * 60
    for index in ([20], [30]):  # more than 4 blocks since: the first is asked for again
        split.batch(torch.tensor(index))
    split.batch(torch.tensor([0]))
    assert asked[-1] == asked[0]
    assert len(asked) == 6


# --- the order ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "block", "window"), [(1, 1, 1), (100, 7, 20), (1000, 64, 256), (999, 10, 1), (50, 9, 80)]
)
def test_block_order_is_a_permutation_and_a_function_of_its_arguments(size, block, window):
    order = block_order(size, block, window, seed=3, epoch=5)
    assert order.sort().values.equal(torch.arange(size))
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert order.equal(block_order(size, block, window, seed=3, epoch=5))
    assert before.equal(torch.get_rng_state())
    if size > 1:
        assert not order.equal(block_order(size, block, window, seed=3, epoch=6))
        assert not order.equal(block_order(size, block, window, seed=4, epoch=5))


def test_block_order_made_in_pieces_is_what_it_would_be_as_a_whole():
    """Blocks in the order of `epoch_order`, each place later by the window times a uniform draw, then sorted."""
    size, block, window = 6001, 50, 500
    images = (epoch_order(121, 3, 5)[:, None] * block + torch.arange(block)).flatten()
    images = images[images < size]
    generator = torch.Generator().manual_seed(3 * 1_000_003 + 5 + 2**62)
    places = torch.arange(size) + window * torch.rand(size, dtype=torch.float64, generator=generator)
    assert block_order(size, block, window, 3, 5).equal(images[places.argsort()])


def test_block_order_keeps_to_its_window():
    """What is read between the first and the last image of a block: the block's own length and the window, no more."""
    size, block, window = 6000, 50, 500
    order = block_order(size, block, window, 0, 0)
    place = torch.empty_like(order)
    place[order] = torch.arange(size)
    spans = place.view(-1, block)
    assert (spans.amax(1) - spans.amin(1)).max() < block + window
    firsts = spans.amin(1).sort().values
    assert firsts.diff().max() < 3 * block  # blocks are begun evenly: no stall of a window's length


def test_block_order_mixes_the_blocks():
    """Batches of 100 come from nearly as many blocks as they could, at the start and the end of an epoch, too."""
    order = block_order(60_000, 100, 6400, 0, 0)
    blocks = [len(batch.div(100, rounding_mode="floor").unique()) for batch in order.split(100)]
    # the expected number of blocks among 100 images out of 64 to 65 blocks is 51
    assert min(blocks) > 8
    assert sum(blocks) / len(blocks) > 45


def test_what_fits_a_window_is_shuffled_as_a_whole():
    order = block_order(1000, 10, 1000, 0, 0)
    assert (order.view(10, 100).float().mean(1) - 499.5).abs().max() < 5 * 289 / 10


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_image_comes_once_whatever_the_number_of_processes(path, common, trainer, world_size):
    trainer.world_size = world_size
    seen = []
    for rank in range(world_size):
        trainer.global_rank = rank
        data = ready(path, common, trainer, storage="stream")
        seen.append([batch.factors[:, 0] for batch in data.train_dataloader()])
    assert len({len(batches) for batches in seen}) == 1
    every = torch.cat([torch.cat(batches) for batches in seen])
    assert every.sort().values.equal(everything(data.train).factors[:, 0].sort().values)


def test_a_resumed_epoch_goes_on_where_it_stopped_and_epochs_differ(path, common, trainer):
    loader = ready(path, common, trainer, storage="stream").train_dataloader()
    whole = [batch.factors for batch in loader]
    progress = trainer.fit_loop.epoch_loop.batch_progress
    progress.is_last_batch, progress.current.processed = False, 5
    assert torch.cat([batch.factors for batch in loader]).equal(torch.cat(whole[5:]))
    progress.is_last_batch, trainer.current_epoch = True, 1
    assert not torch.cat([batch.factors for batch in loader]).equal(torch.cat(whole))


def test_the_order_is_that_of_the_blocks(path, common, trainer):
    data = ready(path, common, trainer, storage="stream")
    batches = IndexBatches(lambda: (block_order(270, 10, 40, 0, 0), 0), 270, 16)
    for (index, *_), batch in zip(batches, data.train_dataloader(), strict=True):
        assert data.train.batch(index).images.equal(batch.images)


# --- bad files ------------------------------------------------------------------------------------


def cut(content):
    return content[:-1]


def longer(content):
    return content + b"x"


def in_the_header(content):
    return content[:60] + b"#" + content[61:]


def another_version(content):
    return content[:8] + (2).to_bytes(4, "little") + content[12:]


def text_mode(content):
    return content.replace(b"\r\n", b"\n")


def a_huge_header(content):
    return content[:16] + (2**62).to_bytes(8, "little") + content[24:]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "bytes, not"),
        (longer, "bytes, not"),
        (in_the_header, "header is damaged"),
        (a_huge_header, "header is damaged"),
        (another_version, "format 2"),
        (text_mode, "no prepared file"),
        (lambda _: b"", "no prepared file"),
        (lambda content: content[:30], "header is damaged"),
    ],
)
def test_a_bad_file_is_told_before_training(path, common, damage, says):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=says) as error:
        prepared(path, common).setup()
    assert "images.vaelab" in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize("what", ["images", "labels", "factors"])
def test_a_flipped_bit_is_found_by_whoever_reads_all(path, common, what):
    header = read_header(path)
    place = header["parts"]["train"]["arrays"][what]
    content = bytearray(path.read_bytes())
    content[place["offset"] + place["bytes"] - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"the {what} of its train part"):
        prepared(path, common, storage="resident").setup()
    with pytest.raises(UserError, match=f"the {what} of its train part"):
        PreparedSplit(path, header, "train").verify()
    PreparedSplit(path, header, "test").verify()
    prepared(path, common, storage="stream").setup()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_is_cut_while_it_is_read(path, common, trainer, num_workers):
    """In this process or in a worker, it is one line, and no page of a worker's tracebacks."""
    batches = iter(ready(path, common, trainer, storage="stream", num_workers=num_workers).train_dataloader())
    next(batches)
    with path.open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(UserError) as error:
        list(batches)
    assert str(error.value).startswith(f"{path} was changed while it was read")
    assert "\n" not in str(error.value)


def test_a_file_that_is_cut_between_two_epochs(path):
    split = PreparedSplit(path, read_header(path), "train")
    path.write_bytes(b"")
    with pytest.raises(UserError, match="changed while it was read"):
        split.batch(torch.arange(3))


@pytest.mark.slow
def test_a_file_that_is_removed_is_read_to_the_end_and_then_named(path):
    split = PreparedSplit(path, read_header(path), "train")
    before = split.batch(torch.arange(3)).images
    path.unlink()
    assert split.batch(torch.arange(3)).images.equal(before)
    with pytest.raises(UserError, match=r"images\.vaelab: No such file"):
        pickle.loads(pickle.dumps(split)).batch(torch.arange(3))


def test_a_missing_file_and_a_folder(tmp_path, common):
    for root, says in ((tmp_path / "no.vaelab", "vaelab data prepare"), (tmp_path, "dataset=folder")):
        with pytest.raises(UserError, match=says) as error:
            prepared(root, common).setup()
        assert f"dataset.root={root}" in str(error.value)


def test_the_format_is_the_one_that_is_described(path):
    """Read by hand, as another program would."""
    content = path.read_bytes()
    magic, version, checksum, length = PREFIX.unpack(content[:24])
    header = json.loads(content[24 : 24 + length])
    assert (magic, version, checksum) == (b"VAELAB\r\n", 1, zlib.crc32(content[24 : 24 + length]))
    places = [place for part in header["parts"].values() for place in part["arrays"].values()]
    assert all(place["offset"] % 4096 == 0 for place in places)
    assert all(a["offset"] + a["bytes"] <= b["offset"] for a, b in pairwise(places))
    assert 24 + length <= places[0]["offset"]
    labels = header["parts"]["test"]["arrays"]["labels"]
    found = torch.frombuffer(bytearray(content[labels["offset"] :][: labels["bytes"]]), dtype=torch.int64)
    assert found.equal(torch.arange(1000, 1020) % 7)


# --- memory ---------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from pathlib import Path
import vaelab.training.callbacks, vaelab.datasets, vaelab.training.fit, vaelab.models
from vaelab.cli import main

def train(*arguments):
    own = ["model=ae", "network.hidden_dims=[4]", "model.latent_dim=2", "likelihood=gaussian", "dataset=prepared"]
    own += ["dataset.root=big.vaelab", "dataset.batch_size=512", "dataset.window=4", "dataset.num_workers=1"]
    own += ["trainer.max_epochs=1", "accelerator=cpu", "test=false", "report=false"]
    return main(["train", *own, *arguments])

assert train("trainer.max_steps=2", "run.dir=first", "dataset.storage=stream") == 0  # makes what is made once
status = Path("/proc/self/status").read_text().splitlines()
held = 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (held + 230 * 2**20, resource.RLIM_INFINITY))
assert train("run.dir=streamed", "dataset.storage=stream") == 0
try:
    train("run.dir=held", "dataset.storage=resident")
except (MemoryError, RuntimeError) as error:
    print(f"refused: {type(error).__name__} {error}")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what a process holds as RLIMIT_DATA")
def test_training_from_a_file_larger_than_what_the_process_may_hold(tmp_path):
    """310 MiB of images, 230 MiB to spare: streaming sees all of them; holding them is refused its memory.

    The limit is on what the process and its worker allocate, of which training takes 50 to 160 MiB and every thread's
    stack 8; pages of the mapped file are the system's, which takes them back when it needs them.
    """
    image = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8)
    count = 310 * 2**20 // image.numel()
    prepare(tmp_path / "big.vaelab", (TensorSplit(image.expand(count, -1, -1, -1)), TensorSplit(image)))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "refused: " in done.stdout
    assert "alloc" in done.stdout or "MemoryError" in done.stdout
    summary = json.loads((tmp_path / "streamed" / "summary.json").read_text())
    assert summary["steps"] == -(-round(0.9 * count) // 512)
