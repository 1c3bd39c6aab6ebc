"""Compressed files: codes that come back as they were, of the size that their rate asks for; bad files are refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import vaelab
from vaelab.commands.trained import compress
from vaelab.core.errors import UserError
from vaelab.evaluation.metrics import formats
from vaelab.inference import entropy, packed

pytest.importorskip("constriction")

SKEWED = np.random.default_rng(0).choice(50, (400, 16), p=np.arange(1, 51) / 1275).astype(np.int32)


class Walk:
    """A prior by which a code is the one before it, or the class at first, with probability 0.9."""

    place = torch.zeros(())
    classes = 4
    labels = None

    def stepper(self, count, labels):
        assert count == entropy.BLOCK
        self.labels = labels
        return self

    def next(self, indices):
        assert torch.get_num_threads() == 1
        before = self.labels if indices is None else indices
        logits = torch.full((len(before), self.classes), 0.1 / 3).log()
        return logits.scatter(1, before[:, None], torch.tensor(0.9).log().expand(len(before), 1))


def walks(count: int):
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 4, count)
    codes = [labels]
    for _ in range(49):
        codes.append(
            np.where(generator.random(count) < 0.9, codes[-1], (codes[-1] + generator.integers(1, 4, count)) % 4)
        )
    return np.stack(codes[1:], 1).astype(np.int32), torch.from_numpy(labels)


def test_codes_by_frequency_come_back_at_their_entropy():
    words, bits = entropy.encode(entropy.by_frequency(SKEWED, 50, SKEWED.shape[1:]))
    assert len(words) <= 1.001 * bits / 8 + 8
    frequencies = np.bincount(SKEWED.ravel(), minlength=50) / SKEWED.size
    entropy_bits = -SKEWED.size * (frequencies * np.log2(frequencies)).sum()
    assert entropy_bits < bits < entropy_bits + 50 / 2 * np.log2(SKEWED.size) + 50  # what learning 50 frequencies costs
    found = np.zeros_like(SKEWED)
    entropy.decode(words, entropy.by_frequency(found, 50, found.shape[1:]))
    assert np.array_equal(found, SKEWED)


def test_each_level_has_frequencies_of_its_own():
    codes = np.tile(np.array([3, 7, 7], np.int32), (400, 1))
    one, two = (entropy.encode(entropy.by_frequency(codes, 50, levels))[1] for levels in ((3,), (1, 2)))
    assert two < 500 < one


@pytest.mark.parametrize("count", [1, 64, 150])
def test_codes_by_a_prior_come_back_at_its_rate(count, two_threads):
    codes, labels = walks(count)
    words, bits = entropy.encode(entropy.by_prior(codes, Walk(), labels))
    each = -0.9 * np.log2(0.9) - 0.1 * np.log2(0.1 / 3)
    assert bits == pytest.approx(each * codes.size, rel=0.5 / count**0.5)
    assert len(words) <= 1.001 * bits / 8 + 8
    found = np.zeros_like(codes)
    entropy.decode(words, entropy.by_prior(found, Walk(), labels))
    assert np.array_equal(found, codes)


# --- the file -----------------------------------------------------------------------------------

FILE = packed.Packed(
    packed.CODES, "0123456789abcdef", "0" * 16, 2, [3, 70_000], ["a/b.png", "ü\udcff.jpg"], 7, b"12345678"
)


def test_a_file_holds_what_was_written(tmp_path):
    packed.write(tmp_path / "a", FILE)
    assert packed.read(str(tmp_path / "a")) == FILE
    assert (tmp_path / "a").stat().st_size == sum(FILE.sizes)


def test_no_byte_can_be_changed_or_lost(tmp_path):
    packed.write(tmp_path / "a", FILE)
    content = (tmp_path / "a").read_bytes()
    for place in range(len(content)):
        for bad in (content[:place], content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]):
            (tmp_path / "b").write_bytes(bad)
            with pytest.raises(UserError, match="input="):
                packed.read(str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("count", "labels", "names"),
    [(2**32 - 1, b"", b""), (2, zlib.compress(bytes(10**7)), b""), (2, b"", zlib.compress(b"a\0b" + bytes(10**7)))],
)
def test_a_forged_header_is_refused(tmp_path, count, labels, names):
    """With the right checksum: names and labels beyond what there are images, and images beyond what memory holds."""
    fields = (packed.CODES, b"a" * 8, bytes(8), count, len(labels), len(names), 0)
    check = zlib.crc32(labels + names, zlib.crc32(packed.HEADER.pack(*fields, 0)))
    (tmp_path / "a").write_bytes(packed.HEADER.pack(*fields, check) + labels + names)
    if count > 2:
        assert packed.read(str(tmp_path / "a")).count == count
        return
    with pytest.raises(UserError, match="damaged"):
        packed.read(str(tmp_path / "a"))


# --- the commands -------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """Forty images of 8 x 8 pixels, of which some are alike, in two folders."""
    generator = np.random.default_rng(0)
    kinds = generator.integers(0, 256, (5, 8, 8), dtype=np.uint8)
    for i in range(40):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(kinds[generator.integers(5)]).save(path)
    return tmp_path / "photos"


def pixels(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): Image.open(path).tobytes() for path in sorted(folder.rglob("*.png"))}


@pytest.mark.parametrize(
    "arguments", [["model=vqvae"], ["model=vqvae", "condition=label", "codebook=fsq"]], ids=" ".join
)
def test_images_come_back_as_the_model_reconstructs_them(finished, command, photos, monkeypatch, arguments):
    run = finished(*arguments).run
    label = ["label=1"] if "condition=label" in arguments else []
    code, out, err = command("compress", f"run={run}", f"input={photos}", *label)
    assert code == 0, err
    assert "this model" in out
    assert "WebP, quality" in out
    with monkeypatch.context() as patch:
        patch.setattr("vaelab.inference.batches.batch_size", lambda shape: 7)
        code, out, err = command("decompress", f"run={run}", "out=again")
    assert code == 0, err
    assert command("encode", f"run={run}", f"input={photos}", *label)[0] == 0
    assert command("decode", f"run={run}", "out=decoded")[0] == 0
    assert pixels(Path("again")) == pixels(Path("decoded"))
    assert len(pixels(Path("again"))) == 40


@pytest.mark.slow
def test_another_process_reads_what_a_prior_has_coded(finished, command, photos):
    """With other threads; and the file is as long as the rate that is said of it, but for its header."""
    run = finished("model=vqvae").run
    small = ["prior.channels=8", "prior.layers=2", "prior.epochs=1", "device=cpu"]
    assert command("prior", f"run={run}", "prior=pixelcnn", *small)[0] == 0
    code, out, err = command("compress", f"run={run}", f"input={photos}", "prior=pixelcnn", "device=cpu")
    assert code == 0, err
    said = next(line for line in out.splitlines() if line.startswith("codes: "))
    size, _, rate = (int(part.replace(",", "")) for part in re.findall(r"[\d,]+(?= bytes| of them)", said))
    assert abs(size - rate) <= 0.01 * rate + 64
    for folder, threads in (("again", "1"), ("other", "2")):
        words = [sys.executable, "-m", "vaelab", "decompress", f"run={run}", f"out={folder}", "device=cpu"]
        root = str(Path(packed.__file__).parents[2])
        subprocess.run(words, check=True, env=os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": root})
    assert command("encode", f"run={run}", f"input={photos}", "device=cpu")[0] == 0
    assert command("decode", f"run={run}", "out=decoded", "device=cpu")[0] == 0
    assert pixels(Path("again")) == pixels(Path("other")) == pixels(Path("decoded"))


def test_no_other_file_is_written_over(finished, command, photos):
    run = finished("model=vqvae").run
    other = photos / "a" / "0.png"
    before = other.read_bytes()
    code, _, err = command("compress", f"run={run}", f"input={photos}", f"out={other}")
    assert code == 2
    assert "0.png: this file is there, and none of vaelab compress: name another" in err
    assert other.read_bytes() == before
    for _ in range(2):  # its own earlier one is
        assert command("compress", f"run={run}", f"input={photos}", "out=again.vaelab")[0] == 0


def test_the_prior_that_is_named_where_one_is_missing_is_one_that_can_be_fitted(finished, command, photos):
    run = finished("model=vqvae").run
    code, _, err = command("compress", f"run={run}", f"input={photos}", "prior=gmm")
    assert code == 2
    assert f"vaelab prior run={run} prior=pixelcnn fits one" in err


def test_a_label_that_is_missing_is_asked_for_with_a_command_for_this_run():
    told = SimpleNamespace(prior=SimpleNamespace(classes=10), conditional=False, by_class=False)
    with pytest.raises(UserError, match=r"vaelab prior run=outputs/mine prior=pixelcnn prior.labels=false fits one"):
        compress._needed(SimpleNamespace(model=told, folder=Path("outputs/mine")), "pixelcnn", None)


def test_names_cost_nothing_where_they_are_not_kept(finished, command, photos):
    run = finished("model=vqvae").run
    code, out, err = command("compress", f"run={run}", f"input={photos}", "names=false", "out=small.vaelab")
    assert code == 0, err
    rate = int(out.split("in the images before: ")[1].split(" bytes")[0].replace(",", ""))
    assert Path("small.vaelab").stat().st_size <= 1.01 * rate + 64
    assert command("decompress", f"run={run}", "input=small.vaelab")[0] == 0
    assert Path("decompressed/000039.png").is_file()


def refused(command, words: str, *arguments: str) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) <= 2


def test_what_does_not_fit_is_refused(finished, command, photos, tmp_path):
    run, other, vae = (finished(*a).run for a in (["model=vqvae"], ["model=vqvae", "seed=1"], ["model=vae"]))
    refused(command, "cross-entropy on grey pixels", "compress", f"run={vae}", f"input={photos}")
    refused(command, "no such file or folder", "compress", f"run={run}", "input=nothing")
    refused(command, "prior=pixels: the run has no", "compress", f"run={run}", f"input={photos}", "prior=pixels")
    assert command("compress", f"run={run}", f"input={photos}")[0] == 0
    refused(command, "by another model", "decompress", f"run={other}")
    refused(command, "by another model", "decompress", f"run={vae}")
    refused(command, "there is no such file", "decompress", f"run={run}", "input=none.vaelab")
    refused(command, "this is a folder", "decompress", f"run={run}", f"input={photos}")
    Path("images.vaelab").write_bytes(Path("images.vaelab").read_bytes()[:-4])
    refused(command, "damaged or cut off", "decompress", f"run={run}")
    assert not Path("decompressed").exists()


def test_other_codes_than_were_written_are_noticed(finished, command, photos, monkeypatch):
    """As by probabilities that another kind of machine rounds otherwise."""
    run = finished("model=vqvae").run
    assert command("compress", f"run={run}", f"input={photos}")[0] == 0
    steps = entropy.by_frequency

    def otherwise(codes, *rest):
        for place, probabilities in steps(codes, *rest):
            yield place, np.roll(probabilities, 1) + 0.001

    monkeypatch.setattr(entropy, "by_frequency", otherwise)
    refused(command, "not what was written", "decompress", f"run={run}")


def test_a_file_of_more_codes_than_memory_is_refused(finished, command, tmp_path):
    from vaelab.runs.priors import fingerprint

    run = finished("model=vqvae").run
    forged = packed.Packed(packed.CODES, fingerprint(vaelab.load(run)), "0" * 16, 2**32 - 1, [], [], 0, b"1234")
    packed.write(tmp_path / "images.vaelab", forged)
    refused(command, "MiB", "decompress", f"run={run}")


# --- beside JPEG and WebP -----------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_is_cut_into_the_images_that_it_was_laid_out_of(channels):
    images = torch.randint(0, 256, (7, channels, 6, 9)).float() / 255
    sheet, columns = formats._sheet(images)
    assert sheet.size == (27, 18)
    assert torch.allclose(formats._cut(torch.from_numpy(np.asarray(sheet, np.float32) / 255), images, columns), images)


def test_formats_take_no_more_bits_and_more_bits_are_better():
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.interpolate(
        torch.rand(9, 1, 4, 4, generator=generator), (32, 32), mode="bicubic"
    ).clamp(0, 1)
    cheap, dear = (formats.beside(images, images, rate)[1] for rate in (0.5, 2.0))
    assert float(cheap[1]) <= 0.5 < float(dear[1]) <= 2
    assert float(cheap[2]) < float(dear[2])
    assert formats.beside(images, images, 0.01)[1][0] == "JPEG, quality 1"
