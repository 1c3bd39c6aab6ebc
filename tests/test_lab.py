"""The lab from Python: the run folder, the checks and the words are those of the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import vaelab
from vaelab.core.errors import UserError
from vaelab.lab import arguments, data

QUICK = {"max_epochs": 1, "report": False, "batch_size": 32, "accelerator": "cpu", "enable_progress_bar": False}
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (96, 8, 8), dtype=np.uint8)
LABELS = RANDOM.integers(0, 3, 96)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def trained(data=IMAGES, labels=None, **options):
    return vaelab.train(data, labels, **(QUICK | options))


def test_an_array_is_trained_on_and_what_comes_back_has_its_shape(capsys):
    run = trained(model="vae", latent_dim=3, lr=0.002)
    assert run.config["model"]["latent_dim"] == 3
    assert run.config["optimizer"]["lr"] == 0.002
    assert run.summary["status"] == "finished"
    codes = run.encode(IMAGES[:5])
    assert codes.shape == (5, 3)
    assert torch.equal(codes, run.encode(torch.from_numpy(IMAGES[:5, None])))
    assert torch.allclose(codes, run.encode(IMAGES[:5] / 255), atol=1e-5)
    assert torch.equal(run.reconstruct(IMAGES[:5]), run.decode(codes))
    samples = run.sample(4)
    assert samples.shape == (4, 1, 8, 8)
    assert 0 <= samples.min() <= samples.max() <= 1
    assert torch.allclose(samples[:2], run.sample(2))
    assert run.metrics[-1]["step"] == run.summary["steps"]
    assert "test/elbo" in run.final._repr_html_()


def test_the_run_is_that_of_the_command_line(train):
    run = trained(model="beta", beta=3, latent_dim=2, likelihood="continuous_bernoulli", seed=7)
    words = [w for w in run.config["run"]["overrides"] if not w.startswith("trainer.enable_progress_bar")]
    own = train(*words, "trainer.enable_progress_bar=false", small=False)
    assert own.code == 0, own.err
    assert (own.run / "metrics.csv").read_text() == (run.folder / "metrics.csv").read_text()


def test_another_process_opens_it_resumes_it_and_evaluates_it():
    first = trained()
    run = vaelab.open("last")
    assert run.folder.samefile(first.folder)
    assert vaelab.open(first).folder == first.folder
    assert run.resume(max_epochs=2).summary["epochs"] == 2
    metrics = run.evaluate(["likelihood"], importance_samples=4, gap_images=4)
    assert metrics["likelihood/elbo"] == run.evaluation["likelihood/elbo"]
    with pytest.raises(UserError, match="this run is finished"):
        run.resume()


class Pairs(Dataset):
    """A user's data set: pictures with labels, of which the names are known."""

    classes = ["a", "b", "c"]

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index >= 40:
            raise IndexError
        return torch.from_numpy(IMAGES[index]).float()[None] / 255, int(LABELS[index])


class Column:
    def __init__(self, names=None):
        self.names = names


class Hub(list):
    """Items as Hugging Face gives them."""

    column_names = ["image", "label"]
    features = {"image": Column(), "label": Column(["zero", "one", "two"])}


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (Pairs(), ["a", "b", "c"]),
        (TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS)), ["0", "1", "2"]),
        (TensorDataset(torch.from_numpy(IMAGES), torch.eye(3)[LABELS]), ["0", "1", "2"]),
        ([(image, "abc"[y]) for image, y in zip(IMAGES, LABELS, strict=True)], ["a", "b", "c"]),
        ((IMAGES, LABELS), ["0", "1", "2"]),
        ({"x": IMAGES, "labels": LABELS, "test_x": IMAGES[:9], "test_labels": LABELS[:9]}, ["0", "1", "2"]),
        (Hub({"image": i, "label": int(y)} for i, y in zip(IMAGES, LABELS, strict=True)), ["zero", "one", "two"]),
        ({"train": (IMAGES, LABELS), "test": (IMAGES[:9], LABELS[:9])}, ["0", "1", "2"]),
    ],
    ids=["Dataset", "TensorDataset", "one-hot", "names", "pair", "mapping", "Hugging Face", "DatasetDict"],
)
def test_labels_come_with_the_data(data, names):
    run = trained(data, model="cvae", latent_dim=2)
    assert run.trained.classes.names == names
    assert run.sample(5, names[1]).shape == (5, 1, 8, 8)
    assert torch.equal(run.sample(3, 1), run.sample(3, [names[1]] * 3))
    with pytest.raises(UserError, match="has to know the label"):
        run.encode(IMAGES[:2])
    with pytest.raises(UserError, match="2 for 3 examples"):
        run.encode(IMAGES[:3], [0, 1])


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (["one", "two"], {}, "data: item 0 is a text"),
        ([np.zeros((2, 2)), np.zeros((3, 3))], {}, r"item 1 is \[3, 3\], and item 0 \[2, 2\]"),
        ([[1, 2], [3]], {}, "no array"),
        (Hub([{"image": "a text"}]), {}, "data: item 0 is a text"),
        (Hub([]), {}, "data: it is empty"),
        ([(IMAGES[0], 1), (IMAGES[1], None)], {}, "item 1 has no label, and others have one"),
        ([(IMAGES[0], [[0, 1]])], {}, r"item 0: its label is \[1, 2\]: give one class or one vector"),
        ([(IMAGES[0], [0, 1]), (IMAGES[1], 1)], {}, r"item 1 has a label of \[\], and item 0 of \[2\]"),
        ([(IMAGES[0], {"boxes": 1})], {}, "item 0: its label is a dict"),
        (3, {}, "a int cannot be trained on"),
        (DataLoader(TensorDataset(torch.zeros(8, 1, 8, 8))), {}, r"gives batches: give its data set, loader\.dataset"),
        ({"y": IMAGES}, {}, "name one of them x"),
        ({"x": IMAGES, "label": np.zeros(96)}, {}, "holds label: known are x, labels"),
        ("nowhere/photos", {}, "no folder of images"),
        (IMAGES, {"labels": [1, 2]}, r"labels: \[2\] for 96 examples"),
        (IMAGES, {"test": IMAGES[:5] / np.float32(255)}, "test_x is float32 beside x, uint8"),
        (IMAGES, {"model": "vea"}, "did you mean vae"),
        (IMAGES, {"schedule": 4}, "schedule=4: it takes the name of an option"),
        (IMAGES, {"optimizer": torch.optim.Adam}, "optimizer=<class .*: it takes the name of an option"),
        (IMAGES, {"latent_dim": nn.Linear(2, 3)}, r"Linear\(in_features=2.* cannot stand in a config"),
        (IMAGES, {"latent_dimm": 3}, "latent_dim"),
        (IMAGES, {"latent_dim": 0}, "model.latent_dim=0"),
        (IMAGES, {"optimizer": {"lrr": 1}}, "did you mean optimizer.lr"),
        (IMAGES, {"seed": "a"}, "seed"),
        (IMAGES, {"batch_size": 0}, "dataset.batch_size=0"),
        (IMAGES, {"model": "ae", "beta": 3}, "beta"),
    ],
)
def test_what_cannot_be_is_refused_in_the_words_of_the_command_line(data, options, said):
    with pytest.raises(UserError, match=said) as error:
        trained(data, **options)
    assert len(str(error.value).splitlines()) <= 3


def test_modules_of_ones_own_are_given_as_objects_or_classes():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    decoder = nn.Linear(3, 64)
    before = decoder.weight.clone()
    run = trained(encoder=encoder, decoder=decoder, latent_dim=3)
    assert run.encode(IMAGES[:2]).shape == (2, 3)
    assert torch.equal(decoder.weight, before)  # the model has a copy
    assert not torch.equal(run.model.decoder.body[0].weight, before)
    run.evaluate(["likelihood"], importance_samples=4, gap_images=4)
    with pytest.raises(UserError, match=r"vaelab\.open\(RUN, encoder=…, decoder=…\)"):
        vaelab.open("last").model.eval()
    again = vaelab.open("last", encoder=encoder, decoder=decoder)
    assert torch.equal(again.encode(IMAGES[:2]), run.encode(IMAGES[:2]))

    def enlarged(inputs):
        return nn.Linear(inputs, 64)

    assert trained(encoder=encoder, decoder=enlarged, latent_dim=3).summary["status"] == "finished"
    with pytest.raises(UserError, match="the model takes 8 numbers"):
        trained(encoder=encoder, decoder=enlarged, latent_dim=4)


def test_both_halves_of_a_network_are_wanted_and_no_other():
    for given in ({"encoder": nn.Flatten()}, {"encoder": nn.Flatten(), "decoder": nn.Flatten(), "network": "conv"}):
        with pytest.raises(UserError, match="give both"):
            trained(**given)
    with pytest.raises(UserError, match=r"network\.encoder: what makes it wants x, and is told shape"):
        trained(encoder=lambda x: x.flatten(1), decoder=nn.Linear(3, 64))
    with pytest.raises(UserError, match="has a mask"):
        trained(np.ma.masked_less(IMAGES / 255, 0.1))


def test_a_job_of_a_sweep_that_is_refused_says_why():
    with pytest.raises(RuntimeError, match=r"1-vae-arrays: .*must be greater than 0"):
        vaelab.sweep(IMAGES, latent_dim=[2, -3], **QUICK)


def test_a_sweep_takes_lists():
    runs = vaelab.sweep(IMAGES, model=["vae", "beta"], seed=[0, 1], latent_dim=2, **QUICK, out="swept")
    assert [run.config["seed"] for run in runs] == [0, 1, 0, 1]
    rows = vaelab.compare(runs)
    assert len(rows) == 2
    assert "<table>" in rows._repr_html_()
    written = Path("swept/sweep.csv").stat().st_mtime_ns
    with pytest.raises(UserError, match=r"all jobs: model\.latent_dim=0: must be greater than 0"):
        vaelab.sweep(IMAGES, seed=[0, 1], latent_dim=0, **QUICK, out="swept")
    assert Path("swept/sweep.csv").stat().st_mtime_ns == written  # what was there before is no answer


def test_pictures_and_texts_are_returned():
    run = trained(latent_dim=2)
    assert run.traverse()._repr_png_().startswith(b"\x89PNG")
    assert run.interpolate(0, 1).path.is_file()
    assert set(run.figures) == {"traverse", "interpolate"}
    assert "run" in vaelab.doctor(run)
    assert run.fit_prior("gmm").sample(3).shape == (3, 1, 8, 8)


def test_rows_of_a_table_go_in_and_come_out(tmp_path):
    columns = {"height": RANDOM.normal(170, 10, 80), "town": RANDOM.choice(["Rome", "Oslo"], 80)}
    (tmp_path / "people.csv").write_text(
        "\n".join(["height,town", *(f"{h:.2f},{t}" for h, t in zip(*columns.values(), strict=True))])
    )
    run = trained("people.csv", likelihood="table", latent_dim=2)
    codes = run.encode(columns)
    assert codes.shape == (80, 2)
    few = [{"height": h, "town": t} for h, t in zip(columns["height"][:3], columns["town"][:3], strict=True)]
    assert torch.allclose(run.encode(few), codes[:3])
    rows = run.sample(50)
    assert [*rows[0]] == ["height", "town"]
    assert {row["town"] for row in rows} == {"Rome", "Oslo"}
    assert type(rows[0]["height"]) is float
    assert 100 < np.mean([row["height"] for row in rows]) < 240
    assert len(run.reconstruct(columns)) == 80
    with pytest.raises(UserError, match="no column town"):
        run.encode({"height": [170.0]})
    with pytest.raises(UserError, match="the run is of 2 columns: height, town"):
        run.encode(np.zeros((3, 4)))


class Frame:
    """What is taken for a data frame of pandas."""

    iloc = None

    def to_csv(self, index):
        return "a,b\n1,2\n"


@pytest.mark.parametrize("beside", [{"labels": [0]}, {"test": Frame()}])
def test_a_data_frame_takes_no_arrays_beside_it(beside):
    with pytest.raises(UserError, match="of a data frame, label= names the column"):
        trained(Frame(), **beside)


def test_pictures_with_a_palette_are_of_their_colours():
    colours = [Image.fromarray(np.full((8, 8, 3), (i, 255 - i, 0), np.uint8)) for i in range(20)]
    kept = data.options_of([picture.quantize(4) for picture in colours])
    assert np.array_equal(np.load(kept["dataset.root"]), np.stack([np.asarray(picture) for picture in colours]))


def test_names_may_stand_in_an_array_of_objects():
    names = np.array(["a", "b", "c"])[LABELS]
    kept = data.options_of(IMAGES, names.astype(object))
    assert kept == data.options_of(IMAGES, names)
    with pytest.raises(UserError, match="labels is a ndarray"):
        data.options_of(IMAGES, np.array([None, *names[1:]], dtype=object))


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (IMAGES[:2].astype(np.float32), "and floats are from 0, black, to 1, white"),
        (IMAGES[:2].astype(np.int64), "and floats are from 0, black, to 1, white"),
        (np.full((2, 8, 8), np.nan), "NaN or infinite"),
    ],
)
def test_pixels_out_of_range_are_refused_by_a_trained_run(x, said):
    run = trained(latent_dim=2)
    with pytest.raises(UserError, match=said):
        run.encode(x)


def test_codes_and_numbers_of_samples_that_cannot_be_are_refused():
    run = trained(model="vqvae", num_embeddings=8)
    codes = run.encode(IMAGES[:2])
    for wrong in (codes + 8, codes - 8, codes.float()):
        with pytest.raises(UserError, match="whole numbers from 0 to 7"):
            run.decode(wrong)
    for wrong in (0, -1, "x", 2.5):
        with pytest.raises(UserError, match="1 or more"):
            run.sample(wrong)


def test_keys_of_the_data_may_stand_in_a_mapping():
    run = trained("fake", dataset={"val_size": 0.25})
    assert run.config["dataset"]["_target_"].endswith("Fake")
    assert run.config["dataset"]["val_size"] == 0.25
    run = trained("fake", run={"dir": "elsewhere"}, trainer={"max_epochs": 1})
    assert (run.folder.name, run.config["trainer"]["max_epochs"]) == ("elsewhere", 1)
    assert trained(dataset={"val_size": 0.25}).config["dataset"]["root"].startswith("outputs/arrays")


def test_truth_values_of_a_data_frame_are_read_as_its_file_has_them(tmp_path):
    height, there = RANDOM.normal(170, 10, 80), RANDOM.random(80) > 0.5
    lines = ["height,there", *(f"{h:.2f},{t}" for h, t in zip(height, there, strict=True))]
    (tmp_path / "people.csv").write_text("\n".join(lines))
    run = trained("people.csv", likelihood="table", latent_dim=2)
    columns = {"height": height, "there": there}
    assert torch.allclose(run.encode(columns), run.encode({"height": height, "there": there.astype(str)}))
    assert len(run.reconstruct(columns)) == 80


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"), (None, "null"), (0.1, "0.1"), (np.int64(3), "3"), ("conv", "conv"), ("true", "'true'"),
        ("1e3", "'1e3'"), ([1, "a b"], "[1,'a b']"), ({"a": (1, 2)}, "{a:[1,2]}"), ("${x}", r"'\${x}'"),
    ],
)  # fmt: skip
def test_values_are_written_as_hydra_reads_them(value, text):
    assert arguments.written(value) == text


def test_a_key_is_found_by_its_last_name():
    known = ["seed", "model.beta", "model.size", "likelihood.size", "a.width", "b.width"]
    found = arguments.of_training({"beta": 1, "seed": 2, "size": 3, "b.width": 4}, known=known)
    assert found == ["model.beta=1", "seed=2", "model.size=3", "b.width=4"]
    assert arguments.of_training({"schedule": {"beta": 1}, "model.beta": 2}, known=known) == [
        "++schedule.beta=1",
        "model.beta=2",
    ]
    with pytest.raises(UserError, match=r"width: a\.width or b\.width\?"):
        arguments.of_training({"width": 1}, known=known)


@pytest.mark.parametrize(
    ("used", "unused"),
    [
        ("import vaelab; vaelab.train; vaelab.open", ["torch", "hydra", "pytorch_lightning", "matplotlib"]),
        (
            "from vaelab.nn import likelihoods, modules, networks, posteriors, priors, quantizers, schedules\n"
            "from vaelab.evaluation.metrics import disentanglement, latents, likelihood, samples",
            ["hydra", "omegaconf", "pytorch_lightning", "wandb", "matplotlib"],
        ),
    ],
)
def test_it_imports_no_more_than_it_uses(used, unused):
    code = f"import sys\n{used}\nfound = set({unused}) & set(sys.modules)\nassert not found, found"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_folder_is_prepared_and_runs_are_listed(tmp_path):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for i, image in enumerate(IMAGES[:30]):
        Image.fromarray(image).save(tmp_path / f"photos/{i}.png")
    run = trained(vaelab.prepare("photos", "photos.vaelab", channels=1))
    assert run.config["dataset"]["root"] == "photos.vaelab"
    assert [found.folder for found in vaelab.list_runs()] == [run.folder]
    assert vaelab.new("metric", "mine_too")[0].is_file()


def test_jobs_are_planned():
    rows = vaelab.plan(seed=[0, 1], max_epochs=1, plan={"steps": 0})
    assert len(rows) == 2


def test_parts_stand_in_a_bare_loop():
    """As docs/python.md shows it."""
    from vaelab.nn.likelihoods import GaussianLearned
    from vaelab.nn.quantizers import Chosen, EMACodebook

    encoder, decoder = nn.Conv2d(1, 4, 4, 4), nn.ConvTranspose2d(4, 1, 4, 4)
    quantizer = EMACodebook(num_embeddings=8, embedding_dim=4, restart_after=100, decay=0.9, epsilon=1e-5)
    likelihood = GaussianLearned(sigma=1.0)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), *likelihood.parameters()], lr=0.01)
    x = torch.from_numpy(IMAGES[:, None]).float() / 255
    losses = []
    for _ in range(30):
        features = encoder(x)
        if quantizer.unplaced:
            quantizer.place(features, None)
        found = quantizer(features)
        loss = -likelihood.log_prob(decoder(found.vectors), x).mean() + 0.25 * found.commitment.mean()
        loss.backward()
        quantizer.learn([Chosen(found.rows, found.chosen, None, len(x))])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 10


def test_a_notebook_shows_the_message_of_a_refusal_alone():
    assert UserError("model.beta=-1: no")._render_traceback_() == ["UserError: model.beta=-1: no"]


def test_arrays_of_one_shape_and_other_values_are_other_data_and_keep_their_units():
    x = RANDOM.normal(5, 2, (80, 6)).astype(np.float32)
    run, other = (trained(values, latent_dim=2, likelihood="gaussian_learned") for values in (x, x[::-1]))
    assert run.config["dataset"]["root"] != other.config["dataset"]["root"]
    made = run.reconstruct(x)
    assert made.shape == x.shape
    assert abs(made.mean().item() - x.mean()) < 1
