"""`vaelab sample`, `reconstruct`, `traverse` and `interpolate`: what they write, print and refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vaelab
from vaelab.cli import main
from vaelab.commands.trained.sample import _folders
from vaelab.figures import walks
from vaelab.figures.pixels import save_png
from vaelab.inference import coding, paths
from vaelab.report import gallery
from vaelab.runs.classes import Classes
from vaelab.runs.trained import Trained

COMMANDS = ("sample", "reconstruct", "traverse", "interpolate")


@pytest.fixture
def run(finished, capsys):
    """Trains a small run: `run("cvae")` is its folder; `run.command("sample", …)` runs a command on the last one."""

    def make(name: str, *arguments: str) -> Path:
        result = finished(f"model={name}", "trainer.max_epochs=1", "dataset.classes=3", *arguments)
        make.folder = result.run
        return result.run

    def command(word: str, *arguments: str):
        given = [] if any(a.startswith("run=") for a in arguments) else [f"run={make.folder}"]
        code = main([word, *given, *arguments])
        return code, *capsys.readouterr()

    make.command = command
    return make


def refused(result, *says: str) -> None:
    code, _, err = result
    assert code == 2
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2
    assert not [part for part in says if part not in err], err


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


# --- what is written --------------------------------------------------------------------------


def test_images_are_not_mixed_with_other_files(run, tmp_path):
    folder = run("vae")
    refused(run.command("sample", f"out={folder}/checkpoints"), "this folder is not empty")
    (tmp_path / "new").mkdir()
    assert run.command("sample", "out=new", "n=3")[0] == 0
    assert len(list(Path("new").iterdir())) == 3
    refused(run.command("sample", "out=new", "n=3"), "out=new: this folder is not empty")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no folder in which nothing can be made")
def test_a_folder_that_cannot_be_made_is_named(run):
    run("vae")
    refused(run.command("sample", "out=/proc/nowhere", "n=3"), "out=/proc/nowhere: it cannot be made")


@pytest.mark.parametrize("word", COMMANDS)
def test_a_figure_goes_into_the_run_folder_or_where_out_says(run, word):
    folder = run("vae")
    code, out, err = run.command(word)
    assert code == 0, err
    path = folder / "figures" / f"{word}.png"
    assert str(path) in out
    assert min(size(path)) > 50
    assert run.command(word, "out=a/b.svg")[0] == 0
    assert Path("a/b.svg").read_text().lstrip().startswith("<?xml")


def test_arrays_are_the_models_samples_with_their_labels(run):
    folder = run("cvae")
    code, _, err = run.command("sample", "n=300", "seed=5", "out=made.npz")
    assert code == 0, err
    with np.load("made.npz") as made:
        images, labels = made["images"], made["labels"]
    assert (images.shape, images.dtype) == ((300, 8, 8, 1), np.uint8)
    assert labels.tolist() == [i % 3 for i in range(300)]
    expected = coding.sample(vaelab.load(folder), 300, torch.from_numpy(labels), (0.0, 1.0), 5)
    assert np.abs(images[..., 0] / 255 - expected[:, 0].numpy()).max() < 0.51 / 255


def test_a_folder_holds_a_png_per_image_and_is_not_mixed_with_another(run):
    run("cvae")
    assert run.command("sample", "n=4", "label=2", "out=made/")[0] == 0
    names = sorted(path.name for path in Path("made").iterdir())
    assert names == [f"00000{i}-2.png" for i in range(4)]
    with Image.open("made/000000-2.png") as image:
        assert (image.size, image.mode) == ((8, 8), "L")
    refused(run.command("sample", "n=2", "out=made"), "out=made")


def test_class_folders_are_a_balanced_set_to_train_on(run, train):
    run("cvae")
    assert run.command("sample", "n=60", "out=made/", "class_folders=true")[0] == 0
    assert {path.name: len(list(path.iterdir())) for path in Path("made").iterdir()} == {"0": 20, "1": 20, "2": 20}
    assert Path("made/1/000001.png").is_file()
    again = train("dataset=folder", "dataset.root=made", "dataset.channels=1", "trainer.max_epochs=1", small=False)
    assert again.code == 0, again.err
    assert again.summary["data"]["class_names"] == ["0", "1", "2"]
    refused(run.command("sample", "n=6", "out=made/", "class_folders=true"), "out=made")
    refused(run.command("sample", "n=6", "out=x.npz", "class_folders=true"), "class_folders")
    refused(run.command("sample", "n=6", "class_folders=true"), "class_folders")


def test_class_folders_need_classes(run):
    run("vae")
    refused(run.command("sample", "n=6", "out=made/", "class_folders=true"), "class_folders")


def test_a_class_whose_name_is_no_folder_has_its_number():
    assert _folders(Classes(2, ["cat", "dog"])) == ["cat", "dog"]
    assert _folders(Classes(2, ["a/b", "c"])) == ["0", "1"]
    assert _folders(Classes(11, [".."] + 10 * ["x"])) == [f"{number:02}" for number in range(11)]
    assert _folders(Classes(2, ["A", "a"])) == ["0", "1"]  # one folder on some systems


def test_all_classes_are_drawn_from_the_same_codes(run):
    folder = run("cvae")
    code, out, _ = run.command("sample", "n=7", "label=all", "out=made.npz")
    assert code == 0
    assert "9 samples" in out
    with np.load("made.npz") as made:
        images, labels = made["images"], made["labels"]
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    expected = coding.sample(vaelab.load(folder), 3, torch.tensor([1]), (0.0, 1.0), 0)
    assert np.abs(images[3:6, ..., 0] / 255 - expected[:, 0].numpy()).max() < 0.51 / 255


def test_reconstructions_keep_their_order_and_labels_and_the_error_is_theirs(run):
    trained = Trained(run("cvae"), device="cpu")
    code, out, err = run.command("reconstruct", "n=1000", "out=made.npz")
    assert code == 0, err
    batch = trained.batch("test", torch.arange(len(trained.split("test"))))
    expected = trained.model.reconstruct(batch.images, batch.labels)
    with np.load("made.npz") as made:
        assert np.abs(made["images"][..., 0] / 255 - expected[:, 0].numpy()).max() < 0.51 / 255
        assert made["labels"].tolist() == batch.labels.tolist()
    mse = (expected - batch.images).square().flatten(1).mean(1)
    assert f"mean {mse.mean():.5f}  " in out
    assert f"median {mse.quantile(0.5):.5f}  " in out


@pytest.mark.parametrize("model", ["vae", "ae", "vqvae"])
def test_images_are_chosen_by_index_or_file(run, model):
    trained = Trained(run(model), device="cpu")
    picture = trained.split("test").batch(torch.tensor([2])).images[0, 0]
    save_png(picture, Path("a photo.png"))
    results = [run.command("reconstruct", f"image={wanted}")[1] for wanted in ("2", "a photo.png", "[0]")]
    assert results[0] == results[1] != results[2]


def test_names_in_a_list_may_be_in_quotes_and_hold_commas(run):
    run("vae")
    save_png(torch.zeros(8, 8, dtype=torch.uint8), Path("one, two.png"))
    for quote in "'\"":
        code, out, err = run.command("reconstruct", f"image=[{quote}one, two.png{quote}, 3]")
        assert code == 0, err
        assert "of 2 images" in out


def test_a_file_needs_no_data(run, monkeypatch):
    run("vae")
    save_png(torch.zeros(8, 8, dtype=torch.uint8), Path("black.png"))
    monkeypatch.setattr(Trained, "data", property(lambda self: pytest.fail("the data was read")))
    assert run.command("reconstruct", "image=black.png")[0] == 0
    assert run.command("interpolate", "from=black.png", "to=black.png")[0] == 0
    assert run.command("sample")[0] == 0


def test_a_traversal_says_how_much_each_dimension_holds(run):
    trained = Trained(run("vae", "model.latent_dim=22"), device="cpu")
    code, out, err = run.command("traverse", "steps=3")
    assert code == 0, err
    batch = trained.batch("test", torch.arange(len(trained.split("test"))))
    dims, used = paths.usage(trained.model, batch.images, batch.labels)
    rows = [line.split() for line in out.splitlines() if len(line.split()) == 3 and line.split()[0].isdigit()]
    assert [int(row[0]) for row in rows] == dims[:20].tolist()
    assert [float(row[1]) for row in rows] == pytest.approx(used.values[:20].tolist(), abs=6e-4)
    assert "2 more" in out
    whole = run.command("traverse", "steps=3", "dims=all", "out=all.png")[1]
    assert "more" not in whole
    assert size(Path("all.png"))[1] > size(trained.folder / "figures" / "traverse.png")[1]


@pytest.mark.parametrize("arguments", [["image=null"], ["dims=3"], ["dims=[1,0]", "range=2"]])
def test_a_traversal_from_elsewhere_or_of_some_dimensions(run, arguments):
    run("vae")
    code, out, err = run.command("traverse", *arguments)
    assert code == 0, err
    assert ("prior" in out) == (arguments == ["image=null"])


def test_points_are_traversed_in_their_deviations(run, monkeypatch):
    trained, units = Trained(run("ae")), []
    monkeypatch.setattr("vaelab.figures.style.save", lambda *given: None)
    monkeypatch.setattr(walks, "traversals", lambda *given: units.append(given[-1]))
    code, out, err = run.command("traverse")
    assert code == 0, err
    assert "standard deviations" in out
    list(gallery.draw(trained.model, trained.data, 8, ["traversals"]))
    assert units == ["standard deviations from the mean code"] * 2


def test_an_interpolation_says_its_images_and_its_class(run):
    folder = run("cvae")
    labels = Trained(folder).split("test").batch(torch.arange(20)).labels.tolist()
    other = next(i for i in range(20) if labels[i] != labels[0])
    code, out, err = run.command("interpolate", "from=0", f"to={other}", "mode=spherical")
    assert code == 0, err
    assert f"test 0 (class {labels[0]})" in out
    assert f"test {other} (class {labels[other]})" in out
    assert f"decoded as class {labels[0]} throughout" in out
    assert "decoded as class 2 throughout" in run.command("interpolate", "label=2")[1]
    both = folder / "figures" / "interpolate.png"
    assert run.command("interpolate", "corners=[0,1,2,3]", "steps=5", "out=four.png")[0] == 0
    assert abs(size(Path("four.png"))[0] - size(Path("four.png"))[1]) < 20 < abs(size(both)[0] - size(both)[1])


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "arguments", "says"),
    [
        ("sample", ["label=1"], ["label=1", "takes no labels"]),
        ("sample", ["label=all"], ["label=all"]),
        ("sample", ["label=x"], ["label"]),
        ("sample", ["n=0"], ["n=0"]),
        ("sample", ["n=100001"], ["n=100001"]),
        ("sample", ["n=2000"], ["n=2000", ".npz"]),
        ("sample", ["out=made.gif"], ["out=made.gif", ".png"]),
        ("sample", ["out=a_file/x.png"], ["out=a_file/x.png"]),
        ("sample", ["out=a_file"], ["out=a_file", "it is a file"]),
        ("sample", [f"seed={2**70}"], ["seed"]),
        ("sample", ["seed=-1"], ["seed=-1"]),
        ("sample", ["temperature=-1"], ["temperature"]),
        ("reconstruct", ["image=20"], ["image=20", "0 to 19"]),
        ("reconstruct", ["image=[0,-1]"], ["image=-1"]),
        ("reconstruct", ["image=none.png"], ["image=none.png"]),
        ("reconstruct", ["image=small.png"], ["small.png", "8x8"]),
        ("reconstruct", ["image=a_file"], ["a_file"]),
        ("reconstruct", ["label=1"], ["label=1"]),
        ("reconstruct", ["n=300"], ["n: 300", ".npz"]),
        ("traverse", ["dims=[0,20]"], ["dims=[0, 20]", "20 dimensions"]),
        ("traverse", ["dims=some"], ["dims=some"]),
        ("traverse", ["dims=-1"], ["dims=-1"]),
        ("traverse", ["dims=[]"], ["dims=[]"]),
        ("traverse", ["steps=1"], ["steps=1"]),
        ("traverse", ["range=0"], ["range=0"]),
        ("traverse", ["range=1e300"], ["range"]),
        ("traverse", [f"dims={[0] * 600}"], ["dims=", "600 dimensions", "512"]),
        ("traverse", ["image=[0,1]"], ["image=[0,1]"]),
        ("traverse", ["out=folder/"], ["out=folder/"]),
        ("traverse", ["label=1"], ["label=1"]),
        ("interpolate", ["from=nobody.png"], ["from=nobody.png"]),
        ("interpolate", ["to=1000"], ["to=1000"]),
        ("interpolate", ["from=null"], ["from=null"]),
        ("interpolate", ["mode=curved"], ["mode"]),
        ("interpolate", ["corners=[0,1,2]"], ["corners=[0,1,2]", "four"]),
        ("interpolate", ["corner=[0,1,2,3]"], ["corner: no such key", "corners"]),
        ("interpolate", ["run=nowhere"], ["nowhere"]),
        ("interpolate", ["device=nonsense"], ["device=nonsense"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_one_line(run, word, arguments, says):
    folder = run("vae")
    Path("a_file").touch()
    save_png(torch.zeros(7, 8, dtype=torch.uint8), Path("small.png"))
    refused(run.command(word, *arguments), *says)
    assert not (folder / "figures" / f"{word}.png").exists()


def test_bad_options_are_found_before_the_run_is_opened(run, monkeypatch):
    run("vae")
    monkeypatch.setattr("vaelab.runs.load", lambda *a: pytest.fail("the model was loaded"))
    for arguments in (["traverse", "dims=x"], ["sample", "n=5000"], ["reconstruct", "image=no.png"],
                      ["interpolate", "corners=[1]"], ["interpolate", "out=x.txt"]):  # fmt: skip
        refused(run.command(*arguments))


def test_a_conditional_model_has_to_know_the_class(run):
    run("cvae")
    save_png(torch.zeros(8, 8, dtype=torch.uint8), Path("black.png"))
    for arguments in (["reconstruct", "image=black.png"], ["interpolate", "to=black.png"], ["traverse", "image=null"]):
        refused(run.command(*arguments), "label")
        assert run.command(*arguments, "label=1")[0] == 0
        refused(run.command(*arguments, "label=3"), "label=3", "0 to 2")


def test_models_without_what_it_takes_say_so(run):
    run("vqvae")
    refused(run.command("traverse"), "run", "VQVAE", "discrete", "vaelab report")
    refused(run.command("interpolate"), "VQVAE", "discrete")
    refused(run.command("sample", "temperature=0.5"), "temperature")
    run("ae")
    refused(run.command("sample"), "AE", "no prior")
    refused(run.command("traverse", "image=null"), "image=null", "no prior")
