"""What a training leaves to look at: every figure that applies, the KL per dimension, report.html."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import vaelab
from vaelab.datasets import TensorSplit
from vaelab.figures import style
from vaelab.models.base import Variant
from vaelab.report import continuous, discrete, gallery
from vaelab.report.scene import FEW, many
from vaelab.runs import read_config
from vaelab.runs.trained import Trained

ALL = {"curves", "reconstructions", "errors", "data"}
PRIOR = {"samples", "real_and_generated"}
CONTINUOUS = {"traversals", "interpolations", "latents"}
DISCRETE = {"codes", "code_maps", "code_vectors", "code_patches"}


def expected(run):
    """The figures that a run's model and settings give something to."""
    model, config = vaelab.load(run), read_config(run)
    found = ALL | (DISCRETE if model.layout.codes else CONTINUOUS)
    found |= PRIOR if model.prior is not None else set()
    found |= {"manifold"} if model.layout.dimensions == 2 else set()
    found |= {"kl_per_dim"} if (run / "kl_per_dim.csv").exists() else set()
    found |= {"code_usage"} if (run / "code_counts.csv").exists() else set()
    found |= {"uncertainty"} if model.blank().density else set()
    factorised = model.prior is not None and model.blank().factorised is not None
    found |= {"dimensions"} if factorised and model.blank().has_kl(model.require_prior()) else set()
    several = len(model.layout.levels) > 1
    found |= {"code_levels" if model.layout.codes else "levels"} if several else set()
    found |= {"classes"} if model.conditional and model.prior is not None else set()
    controlled = {"beta", "capacity"} & model.scalars.keys() and type(model).learn is not Variant.learn
    return found | ({"schedule"} if config["schedule"] or controlled else set())


def assert_drawn(run):
    """Every figure that the run has something for is there, and no other, each with something on it."""
    found = {path.stem for path in (run / "figures").glob("*.png")}
    assert found == expected(run)
    for name in found:
        with Image.open(run / "figures" / f"{name}.png") as image:
            assert min(image.size) > 100
            low, high = image.convert("L").getextrema()
            assert low < 200 < high, name  # something is drawn, on white
    assert "<html" in (run / "report.html").read_text()


def test_training_images_are_of_the_classes_that_there_are():
    """Of a thousand classes, of which the first may have no image among those at hand."""
    images, names = torch.rand(30, 1, 8, 8), [str(number) for number in range(1000)]
    known = SimpleNamespace(images=images, classes=torch.arange(970, 1000))
    scene: Any = SimpleNamespace(known=known, classes=names, unit=lambda x: x)
    labels = [text.get_text() for axes in gallery._data(scene).axes for text in (*axes.texts, *axes.get_yticklabels())]
    assert {"970", "989"} <= set(labels)
    assert "990" not in labels


@pytest.mark.slow
def test_a_run_leaves_all_its_figures_and_a_report(train):
    """Those of the other variants are looked at in `test_parts`."""
    result = train("model=vae", "report=true")
    assert result.code == 0, result.err
    assert "could not be made" not in result.out
    assert_drawn(result.run)
    assert f"report: {result.run}/report.html" in result.out


def test_without_a_report_nothing_is_drawn(train):
    result = train("model=vae", "report=false")
    assert not (result.run / "figures").exists()
    assert not (result.run / "report.html").exists()


def test_a_figure_that_cannot_be_drawn_does_not_undo_the_run(train, monkeypatch):
    def broken(scene):
        raise ZeroDivisionError("no such picture")

    monkeypatch.setitem(gallery.FIGURES, "samples", broken)
    result = train("model=vae", "report=true")
    assert result.code == 0
    assert result.summary["status"] == "finished"
    assert "no such picture" in result.out
    assert "vaelab report run=" in result.out
    assert "Traceback" not in result.out
    assert "ZeroDivisionError" in (result.run / "run.log").read_text()


def rows(run, name="kl_per_dim"):
    with (run / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_kl_per_dimension_of_every_epoch_is_kept(train):
    result = train("model=vae", "model.latent_dim=3", "trainer.max_epochs=3")
    table = rows(result.run)
    assert [row["epoch"] for row in table] == ["0.0", "1.0", "2.0"]
    last = [float(table[-1][str(d)]) for d in range(3)]
    assert last == pytest.approx(result.summary["kl_per_dim"]["train"])
    for row, kl in zip(table, result.series("train/kl"), strict=True):
        assert sum(float(row[str(d)]) for d in range(3)) == pytest.approx(kl, rel=1e-5)


def test_the_use_of_every_code_is_kept_by_epoch(train):
    result = train("model=vqvae", "model.num_embeddings=24", "trainer.max_epochs=3")
    table, positions = rows(result.run, "code_counts"), vaelab.load(result.run).layout.shape
    assert [row["epoch"] for row in table] == ["0.0", "1.0", "2.0"]
    for row, usage, perplexity in zip(
        table, result.series("train/codebook_usage"), result.series("train/perplexity"), strict=True
    ):
        counts = torch.tensor([float(row[str(k)]) for k in range(24)]).double()
        assert counts.sum().item() == pytest.approx(positions[0] * positions[1])
        assert (counts > 0).double().mean().item() == pytest.approx(usage)
        assert torch.special.entr(counts / counts.sum()).sum().exp().item() == pytest.approx(perplexity, rel=1e-5)


@pytest.mark.parametrize("words", ["model=vqvae2", "model=vqvae codebook=residual", "model=vqvae codebook=grouped"])
def test_the_use_of_every_code_is_kept_by_level(train, words):
    from vaelab.runs import read_vectors

    result = train(*words.split(), "model.num_embeddings=24", "trainer.max_epochs=3")
    table, layout = rows(result.run, "code_counts"), vaelab.load(result.run).layout
    assert list(table[0])[2:] == [f"{level.name}_{k}" for level in layout.levels for k in range(24)]
    epochs, counts = read_vectors(result.run, "code_counts")
    assert epochs == [0, 1, 2]
    for level, size in zip(layout.levels, layout.sizes, strict=True):
        usage = result.series(f"train/codebook_usage_{level.name}")
        assert [sum(row) for row in counts[level.name]] == pytest.approx([size] * 3)
        assert [sum(x > 0 for x in row) / 24 for row in counts[level.name]] == pytest.approx(usage)
        shares = torch.tensor(counts[level.name]).double() / size
        perplexity = torch.special.entr(shares).sum(1).exp().tolist()
        assert perplexity == pytest.approx(result.series(f"train/perplexity_{level.name}"), rel=1e-5)


@pytest.mark.parametrize(("model", "name"), [("vae", "kl_per_dim"), ("vqvae", "code_counts")])
def test_a_resumed_run_goes_on_with_its_vectors(train, model, name):
    whole = train(f"model={model}", "trainer.max_epochs=4")
    part = train(f"model={model}", "trainer.max_epochs=2")
    train(f"resume={part.run}", "trainer.max_epochs=4")
    assert len(rows(whole.run, name)) == 4
    assert rows(part.run, name) == rows(whole.run, name)


def test_a_model_has_only_the_vectors_that_it_measures(train):
    run = train("model=ae").run
    assert not (run / "kl_per_dim.csv").exists()
    assert not (run / "code_counts.csv").exists()


def test_a_vector_of_too_many_components_is_not_kept(tmp_path):
    from vaelab.training.callbacks import EpochVector
    from vaelab.training.callbacks.vectors import MOST
    from vaelab.training.loggers import MetricsFile

    trainer = SimpleNamespace(current_epoch=0, global_step=1)
    for size in (MOST + 1, MOST):
        callback = EpochVector("code_counts", MetricsFile(tmp_path / f"{size}.csv", None))
        model = SimpleNamespace(epoch_vectors={"train": {"code_counts": torch.ones(size)}})
        callback.on_train_epoch_end(trainer, model)
    assert [path.name for path in tmp_path.iterdir()] == [f"{MOST}.csv"]


def test_drawing_leaves_noise_and_mode_as_they_were(finished):
    trained = Trained(finished("model=cvae").run)
    trained.model.train()
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    assert [name for name, _ in gallery.draw(trained.model, trained.data, 8, ["samples", "uncertainty", "classes"])]
    assert torch.equal(torch.rand(5), expected)
    assert trained.model.training


def test_figures_are_the_same_every_time(finished):
    trained = Trained(finished("model=vae").run)

    def drawn():
        return {n: style.rendered(f) for n, f in gallery.draw(trained.model, trained.data, 8)}

    once, again = drawn(), drawn()
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.slow
def test_loggers_get_the_figures(train, tmp_path):
    result = train("model=vae", "logger=tensorboard", "report=true", "callbacks.pictures.every_n_epochs=1")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / result.run / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    tags = {tag.removeprefix("pictures/") for tag in events.Tags()["images"]}
    assert tags == expected(result.run)
    assert len(events.Images("pictures/samples")) == 3  # two epochs, and the end
    assert len(events.Images("pictures/errors")) == 1
    assert json.loads((result.run / "summary.json").read_text())["status"] == "finished"


def test_interpolations_stand_between_the_images_themselves(finished, monkeypatch):
    trained = Trained(finished("model=vae").run)
    given = []
    monkeypatch.setattr(continuous.walks, "interpolations", lambda images, names: given.append((images, names)) or 1)
    assert dict(gallery.draw(trained.model, trained.data, 8, ["interpolations"]))
    rows, names = given[0]
    few = trained.data.sample_batch(8, trained.model.device)
    assert rows.shape[:2] == (6, continuous.STEPS + 2)
    assert names == ["linear", "spherical"] * 3
    for pair, ends in enumerate(continuous._pairs(few.labels, 8)):
        for row in rows[2 * pair : 2 * pair + 2]:
            assert torch.equal(row[0], trained.unit(few.images[ends[0]]))
            assert torch.equal(row[-1], trained.unit(few.images[ends[1]]))
            made = trained.unit(trained.model.reconstruct(few.images[list(ends)], None))
            torch.testing.assert_close(row[1], made[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(row[-2], made[1], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vae", "vqvae"])
def test_pictures_change_nothing_of_a_training(train, model):
    """Nor does one that cannot be drawn: weights, figures and the state of the noise are those without them."""
    plain = train(f"model={model}", "dataset.binarize=dynamic")
    drawn = train(f"model={model}", "dataset.binarize=dynamic", *EVERY_EPOCH)
    weights = [load_state(result.run) for result in (plain, drawn)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert plain.series("val/loss") == drawn.series("val/loss")


EVERY_EPOCH = ["logger=tensorboard", "callbacks.pictures.every_n_epochs=1"]


def load_state(run):
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if torch.is_tensor(value)}


def test_a_picture_that_cannot_be_drawn_does_not_stop_the_training(train, monkeypatch):
    def broken(scene):
        raise ZeroDivisionError("no such picture")

    plain = train("model=vae")
    monkeypatch.setitem(gallery.FIGURES, "samples", broken)
    result = train("model=vae", *EVERY_EPOCH)
    assert result.code == 0
    assert "pictures of epoch 2 could not be drawn (no such picture)" in result.out + result.err
    left, right = load_state(plain.run), load_state(result.run)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_between_two_figures_everything_is_as_it_was(finished):
    trained = Trained(finished("model=vae").run)
    trained.model.train()
    with torch.enable_grad():
        for _ in gallery.draw(trained.model, trained.data, 8, ["samples", "latents"]):
            assert trained.model.training
            assert torch.is_grad_enabled()


def test_figures_before_one_that_fails_are_kept(train, monkeypatch):
    def broken(scene):
        raise ZeroDivisionError("no such picture")

    monkeypatch.setitem(gallery.FIGURES, "samples", broken)
    result = train("model=vae", "report=true")
    assert {"curves", "reconstructions"} <= {path.stem for path in (result.run / "figures").glob("*.png")}


class Set:
    """A data set of these training images with these labels, whose batches are noted."""

    def __init__(self, images, labels, num_classes):
        self.train = self.val = TensorSplit(images, labels)
        self.shape, self.class_names, self.pixel_range = self.train.shape, list("abcd")[:num_classes], (0.0, 1.0)

    def as_model_sees(self, batch):
        return batch._replace(images=batch.images / 255)


def test_a_class_with_few_images_is_in_the_figure_of_the_data(monkeypatch):
    labels = torch.tensor([0] * 10 + [1] * 3 + [3])
    images = (labels * 60).to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    given = []
    monkeypatch.setattr(gallery.images, "data", lambda *arrays: given.append(arrays))
    gallery.FIGURES["data"](gallery.Scene(SimpleNamespace(device=torch.device("cpu")), Set(images, labels, 4), 8))
    shown, histograms, names = given[0]
    assert names == ["a", "b", "d"]
    assert histograms.sum(1).tolist() == [10 * 64, 3 * 64, 64]
    levels = (shown[:, :, 0, 0, 0] * 255).round().int().tolist()
    assert levels == [[0] * 8, [60] * 3 + [255] * 5, [180] + [255] * 7]  # white where there is none


@pytest.mark.parametrize(("shape", "count"), [((1, 28, 28), 2000), ((3, 64, 64), 2000), ((3, 256, 256), 341)])
def test_large_images_are_looked_at_in_smaller_numbers(shape, count):
    assert many(shape) == count
    assert many((3, 2048, 2048)) == FEW


@pytest.mark.parametrize(("classes", "names"), [(3, ["0", "1", "2"]), (40, ["class"])])
def test_many_classes_are_named_on_their_colour_bar(finished, monkeypatch, classes, names):
    trained = Trained(finished("model=vae", f"dataset.classes={classes}", "dataset.size=480").run)
    given = []
    monkeypatch.setattr(gallery.latents, "scatter", lambda *arguments: given.append(arguments))
    list(gallery.draw(trained.model, trained.data, 8, ["latents"]))
    assert given[0][-1] == names


def test_two_dimensions_are_drawn_as_they_are(finished, monkeypatch):
    trained, given = Trained(finished("model=vae", "model.latent_dim=2").run), []
    monkeypatch.setattr(gallery.latents, "scatter", lambda *arguments: given.append(arguments))
    list(gallery.draw(trained.model, trained.data, 8, ["latents"]))
    points, _, axes, *_ = given[0]
    scene = gallery.Scene(trained.model, trained.data, 8)
    assert torch.equal(points, scene.codes)
    assert axes == (trained.model.layout.axis(0), trained.model.layout.axis(1))


def test_codes_are_counted_over_training_images(finished, monkeypatch):
    trained, given = Trained(finished("model=vqvae").run), []
    monkeypatch.setattr(gallery.latents, "codebook", lambda *arguments: given.append(arguments))
    list(gallery.draw(trained.model, trained.data, 8, ["codes"]))
    counts, _, of = given[0]
    assert int(counts.sum()) == len(trained.data.train) * trained.model.layout.shape[0] * trained.model.layout.shape[1]
    assert of == f"{len(trained.data.train)} training images"


@pytest.mark.parametrize(("model", "patches"), [("vqvae", 3), ("vqvae2", 6)])
def test_each_level_has_patches_of_its_own_most_used_codes(finished, monkeypatch, model, patches):
    trained, given = Trained(finished(f"model={model}").run), []
    monkeypatch.setattr(discrete, "PATCHES", patches)
    monkeypatch.setattr(discrete.codebooks, "patches", lambda *arguments: given.append(arguments))
    list(gallery.draw(trained.model, trained.data, 8, ["code_patches"]))
    ((pictures, codes, title),) = given
    scene = gallery.Scene(trained.model, trained.data, 8)
    used = []
    for level, maps in zip(trained.model.layout.levels, trained.model.layout.split(scene.codes), strict=True):
        counts = maps.flatten().bincount()
        assert counts[codes[level.name]].tolist() == [n for n in counts.sort(descending=True).values[:3].tolist() if n]
        tall = -(-trained.data.shape[1] // level.shape[0])
        assert pictures[level.name].shape[2] == 3 * tall
        used.append(len(maps.unique()))
    shown = f"{min(3, used[0])} most used of {used[0]} codes" if len(used) == 1 else "3 most used codes of each level"
    assert f"over {len(scene.codes)} images" in title
    assert title.endswith(f"the {shown}")


def test_an_epoch_that_is_cut_short_has_its_own_kl_per_dimension(train, monkeypatch):
    """As with trainer.max_time: the epoch's figures are closed after the callbacks' turn."""
    from vaelab.training.callbacks import Health

    def stop(self, trainer, *rest):
        trainer.should_stop = trainer.global_step >= 4  # of three steps an epoch

    monkeypatch.setattr(Health, "on_train_batch_end", stop, raising=False)
    result = train("model=vae", "model.latent_dim=3", "trainer.max_epochs=3")
    table, kl = rows(result.run), result.series("train/kl")
    assert [row["epoch"] for row in table] == [row["epoch"] for row in result.rows("train/kl")] == ["0.0", "1.0"]
    for row, whole in zip(table, kl, strict=True):
        assert sum(float(row[str(d)]) for d in range(3)) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "pairs"),
    [
        (None, [(0, 1), (2, 3), (4, 5)]),
        ([1, 1, 2, 2, 3], [(0, 2), (1, 3)]),
        ([4, 4, 4], [(0, 1)]),
        ([0, 0, 1, 0, 0, 1, 0, 1], [(0, 2), (1, 5), (3, 7)]),
        ([0], []),
    ],
)
def test_images_are_paired_across_classes(labels, pairs):
    given = None if labels is None else torch.tensor(labels)
    assert continuous._pairs(given, 8 if labels is None else len(labels)) == pairs


def test_a_model_of_nan_is_named_in_a_line(finished, capsys):
    from vaelab.cli import main

    run = finished("model=vae").run
    path = run / "checkpoints" / "best.ckpt"
    saved = torch.load(path, weights_only=True)
    for weights in saved["state_dict"].values():
        weights.fill_(float("nan"))
    torch.save(saved, path)
    capsys.readouterr()
    assert main(["reconstruct", f"run={run}"]) == 2
    assert "try checkpoint=last" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["vae", "ae"])
def test_the_plane_of_two_dimensions_is_of_the_prior_s_quantiles(finished, monkeypatch, model):
    """Of an autoencoder's codes, which have no prior, of a normal with their mean and deviation."""
    trained, given = Trained(finished(f"model={model}", "model.latent_dim=2").run), []
    monkeypatch.setattr(continuous.walks, "manifold", lambda *arrays: given.append(arrays) or "figure")
    list(gallery.draw(trained.model, trained.data, 8, ["manifold"]))
    images, values, axes, title = given[0]
    assert axes == ("z0", "z1")
    inside = torch.special.ndtr(values).diff()
    assert inside == pytest.approx(torch.full_like(inside, 1 / len(values)), rel=1e-4)
    assert values.sum() == pytest.approx(0, abs=1e-5)
    scene = gallery.Scene(trained.model, trained.data, 8)
    centre, width = (0.0, 1.0) if model == "vae" else (scene.codes.mean(0), scene.codes.std(0, unbiased=False))
    z = centre + width * torch.tensor([[values[11], values[2]]])  # the second dimension goes from row to row
    expected = trained.unit(trained.model.likelihood.mean(trained.model.decode(z)))
    torch.testing.assert_close(images[2, 11], expected[0].detach())
    assert ("N(0, 1)" in title) == (model == "vae")
    larger = Trained(finished(f"model={model}").run)
    assert not list(gallery.draw(larger.model, larger.data, 8, ["manifold"]))
