"""What the user gets wrong ends before training: exit code 2, one or two lines that name the key, no traceback."""

from __future__ import annotations

import gzip
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

CASES = {
    "model=nope": ("model=nope", "vqvae"),
    "model=vea": ("did you mean vae?",),
    "model.beta=2": ("it belongs to model=beta",),
    "-m model=vae,beta,ae model.beta=2": ("model.beta: no such key with model=vae and ae; it belongs to model=beta",),
    "codebook=ema": ("codebook=: model=vae takes none", "model=vqvae"),
    "model=hierarchical posterior=full": (
        "posterior=: model=hierarchical takes none",
        "leave it out, or choose another, as model=vae",
    ),
    "posterior.least_kl=11": ("posterior.least_kl=11", "less than or equal to 10"),
    "model=geco model.rate=2": ("model.rate=2", "less than or equal to 1"),
    "model=capacity model.multiplier_rate=2": ("model.multiplier_rate=2", "less than or equal to 1"),
    "model=vqvae codebook=fsq codebook.restart_after=3": ("it belongs to codebook=cosine, ema and gradient\n",),
    "network=mlp network.attention=true": ("it belongs to network=conv, conv1d, resnet and resnet_64\n",),
    "network.batch_norm=true": ("network.batch_norm: no such key; it is network.norm=batch or none",),
    "model=m2 condition.drop=0.5": ("condition.drop=0.5: model=m2 sums over the classes",),
    "model=cvae condition.drop=1": ("condition.drop=1: must be less than 1",),
    "model=quadrants model.drop=1": ("model.drop=1: must be less than 1",),
    "augment=[flips,shifts]": ("augment=[flips,shifts]: takes one option; several are a sweep: -m augment=flips,",),
    "model=[vae]": ("model=[vae]: takes one option",),
    "model=vae,beta": ("several values are a sweep: vaelab train -m …\n",),
    "trainer.max_epochs=1,2": ("vaelab train -m …, or write [1,2] for a list\n",),
    "model=vqvae codebook=none": ("codebook=none: this model needs one: codebook=cosine, ema, ", " or simvq"),
    "model.latent_dim=abc": ("model.latent_dim", "integer"),
    "model.latent_dim=0": ("model.latent_dim=0", "greater than 0"),
    "model.latent_dim=2.5": ("model.latent_dim", "integer"),
    "model.latent_dimm=3": ("model.latent_dimm", "did you mean model.latent_dim?"),
    "modle=vae": ("modle", "did you mean model?"),
    "sweep.dir=mine": ("sweep.dir=mine: it is for the jobs of a sweep: add -m",),
    "hydra/launcher=submitit_slurm": ("hydra/launcher=submitit_slurm: it is for the jobs of a sweep: add -m",),
    "hydra.launcher.width=3": ("add -m",),
    "-m seed=0,1 hydra/launcher=vectorized hydra.launcher.widht=3": (
        "hydra.launcher.widht",
        "did you mean hydra.launcher.width?",
    ),
    "trainer.max_epoch=3": ("did you mean trainer.max_epochs?",),
    "trainer.max_epochs=abc": ("trainer.max_epochs",),
    "trainer.max_epochs=0": ("trainer.max_epochs",),
    "trainer.accelerator=nope": ("trainer", "nope"),
    "model=capacity model.gamma=-1": ("model.gamma=-1",),
    "model=capacity model.constraint=l2": ("model.constraint", "lagrangian"),
    "model=beta model.beta=-1": ("model.beta=-1",),
    "model=beta model.beta=abc": ("vaelab: model.beta='abc': must be a number",),
    "model=vqvae model.num_embeddings=0": ("model.num_embeddings=0",),
    "model=vqvae model.num_embeddings=345": (
        "model.num_embeddings=345: 86 training images have 344 vectors",
        "give at most 344 codes",
    ),
    "model=vqvae2 model.num_embeddings=87": ("model.num_embeddings=87: 86 training images have 86 vectors",),
    "model=vqvae codebook=residual model.num_embeddings=345": ("86 training images have 344 vectors",),
    "model=vqvae network=mlp": ("network=mlp", "network=conv"),
    "schedule=capacity": ("schedule.capacity", "it has beta"),
    "schedule=warmup schedule.beta.unit=weeks": ("schedule.beta.unit", "epochs"),
    "model=cvae dataset.classes=null": ("labels", "model=vae"),
    "dataset.pixel_range=[-1,1]": ("dataset.pixel_range", "likelihood=bernoulli"),
    "dataset.pixel_range=[1,0]": ("dataset.pixel_range",),
    "dataset.batch_size=0": ("dataset.batch_size=0",),
    "dataset.val_size=5000": ("dataset.val_size",),
    "dataset=folder dataset.root=nowhere": ("nowhere",),
    "dataset=folder": ("dataset.root",),
    "dataset=mnist dataset.root=nowhere dataset.download=false": ("train-images-idx3-ubyte", "dataset.download=true"),
    "network=burgess": ("network=burgess", "64x64"),
    "network=conv network.hidden_dims=[8,8,8,8]": ("network.hidden_dims",),
    "network.activation=relo": ("network.activation", "relu"),
    "network.hidden_dims=[10,-3]": ("network.hidden_dims[1]=-3",),
    "likelihood=gaussian likelihood.sigma=0": ("likelihood.sigma",),
    "optimizer.lr=-1": ("optimizer.lr=-1", "greater than 0"),
    "run.dir=/dev/null/x": ("/dev/null/x", "run.dir"),
    "resume=nowhere": ("nowhere", "no run"),
    "resume=last": ("there is no run",),
    "seed=-1": ("seed=-1",),
    "seed=5000000000": ("seed=",),
    "seed=abc": ("seed='abc'",),
    "model=null": ("group",),
    "~model.latent_dim": ("model.latent_dim",),
    "trainer.devices=abc": ("trainer",),
    "trainer.accumulate_grad_batches=0": ("trainer.accumulate_grad_batches",),
    "trainer.precision=bf16-true": ("bf16-mixed",),
    "trainer.val_check_interval=1000": ("val_check_interval",),
    "run.dir=/proc": ("/proc", "run.dir"),
    "-m seed=0,1 --cfg job": ("--cfg",),
    "+foo=1": ("foo: no such key",),
    "run.dir=": ("run.dir=",),
    "-m seed=0,1 run.dir=x": ("sweep.dir",),
    "model.latent_dim=100000000": ("memory", "model.latent_dim"),
    "nonsense": ("nonsense", "key=value"),
    # a section that is none, or is not there
    "trainer=7": ("trainer=7", "mapping"),
    "callbacks=x": ("callbacks='x'", "mapping"),
    "callbacks.pictures=7": ("callbacks.pictures=7", "mapping"),
    "averaging=[1,2]": ("averaging=[1,2]: takes one option",),
    "logger=[]": ("logger", "must be given"),
    "schedule=linear schedule.beta=7": ("schedule.beta=7", "mapping"),
    "~model": ("model: it must be given",),
    "~optimizer": ("optimizer: it must be given",),
    "~trainer.max_steps": ("trainer.max_steps", "must be given"),
    "~callbacks.anneal._target_": ("callbacks.anneal", "a mapping with a _target_"),
    "~dataset._target_": ("dataset=", "a mapping with a _target_"),
    "optimizer=" + "z" * 300: ("optimizer=",),
    "optimizer.x=" + "y" * 300: ("optimizer.x",),
    "run.name=null": ("run.name=None",),
    "model=tcvae dataset.batch_size=1": (
        "dataset.batch_size=1: TCVAE compares the images of a batch: give at least 2",
    ),
    "model=dip dataset.batch_size=1": ("give at least 2",),
    "model=factor dataset.batch_size=1": ("give at least 2",),
    "model=infovae dataset.batch_size=1": ("give at least 2",),
    "model=wae dataset.batch_size=1": ("give at least 2",),
    "model=svae posterior=diagonal prior=standard": ("model=svae has latents on a sphere", "or model=vae"),
    "run.name=7": ("run.name=7: must be a string: quote it, as in 'run.name=\"7\"'",),
    # a number beyond its type, or beyond sense
    "model.latent_dim=1" + "0" * 300: ("model.latent_dim=1", "less than"),
    "+optimizer.eps=1" + "0" * 300: ("optimizer.eps",),
    "dataset.size=18446744073709551616": ("dataset.size", "less than"),
    "averaging=ema averaging.decay=-inf": ("averaging.decay", "finite"),
    "averaging=ema averaging.decay=1.0": ("averaging.decay=1.0", "less than 1"),
    "schedule=linear schedule.beta.end=-3": ("schedule.beta.end=-3", "0 or more"),
    "schedule=linear schedule.beta.start=nan": ("schedule.beta.start=nan", "finite"),
    "lr_schedule=plateau lr_schedule.factor=0": ("lr_schedule.factor=0",),
    "optimizer.lr=inf": ("optimizer.lr=inf", "finite"),
    "model=vqvae codebook=grouped codebook@codebook.of=lfq codebook.of.bits=3 model.num_embeddings=8": (
        "model.embedding_dim=64",
        "there are 4 groups: it must be 12",
    ),
    "optimizer.lr=0": ("optimizer.lr=0",),
    "dataset.val_size=1.5": ("dataset.val_size=1.5", "an integer or less than 1"),
    "dataset.val_size=1.0": ("dataset.val_size=1.0",),
    # what a class makes, where something else is wanted
    "+network._partial_=7": ("network._partial_=7", "true or false"),
    "model.latent_dim={_target_:builtins.len}": ("model.latent_dim", "a plain value"),
    "model.network=${likelihood}": ("model.network._target_", "a Network"),
    "network._target_=math.pi": ("network._target_=math.pi", "a class or a function"),
    # options of Lightning's trainer, of which it takes some in silence
    "trainer.gradient_clip_val=-1": ("trainer.gradient_clip_val=-1",),
    "trainer.gradient_clip_val=abc": ("trainer.gradient_clip_val='abc'", "a number"),
    "trainer.log_every_n_steps=-1": ("trainer.log_every_n_steps=-1",),
    "trainer.min_epochs=-2": ("trainer.min_epochs=-2",),
    "trainer.min_epochs=3": ("trainer.min_epochs=3", "trainer.max_epochs=2"),
    "trainer.val_check_interval=0": ("trainer.val_check_interval=0",),
    "trainer.max_epochs=null": ("trainer.max_epochs=null", "1,000"),
    "trainer.precision=fp16": ("'16-mixed'", "'bf16-mixed'"),
    "trainer.profiler=xla": ("trainer.profiler",),
    "trainer.max_time=5": ("trainer.max_time=5",),
    "trainer.overfit_batches=1 dataset.storage=stream": ("trainer.overfit_batches", "dataset.storage=resident"),
    "network.norm=batch dataset.batch_size=1": ("dataset.batch_size=1", "network.norm"),
    # what was meant
    "vqvae": ("as in model=vqvae",),
    "--model vqvae": ("write model=vqvae",),
    "trainer.epochs=10": ("did you mean trainer.max_epochs?",),
    "epochs=10": ("did you mean trainer.max_epochs?",),
    "lr=0.01": ("did you mean optimizer.lr?",),
    "batch_size=64": ("did you mean dataset.batch_size?",),
    "latent_dim=4": ("did you mean model.latent_dim?",),
    "beta=4": ("did you mean model.beta?", "model=beta"),
    "dataset.name=mnist": ("did you mean dataset=mnist?",),
    "model=VQVAE": ("did you mean vqvae?",),
    "dataset=MNIST": ("did you mean mnist?",),
    "likelihood=l2": ("did you mean mse?",),
    "likelihood=l1": ("did you mean laplace?",),
    "model=vqvae codebook.colour=3": ("codebook has restart_after, decay, epsilon",),
    "codebook.colour=3": ("codebook= takes cosine, ema",),
}


def test_an_accelerator_that_is_not_there_is_named_with_the_remedy(train, monkeypatch):
    import vaelab.datasets  # noqa: F401  Lightning looks at the function that is put aside here

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    result = train("trainer.accelerator=gpu")
    assert result.code == 2
    assert "trainer.accelerator=gpu: torch finds none here: use accelerator=auto or cpu" in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dataset.batch_size=500"], "dataset.batch_size=500: a batch is all"),
        (["model=beta", "model.beta=1"], "model.beta=1: the objective is that of model=vae"),
        (
            ["model=vqvae", "codebook.restart_after=null", "model.num_embeddings=200"],
            "model.num_embeddings=200: the codes start on the 128 vectors of a batch",
        ),
        (["likelihood=gaussian", "dataset.pixel_range=[0,255]"], "dataset.pixel_range=[0.0, 255.0]"),
        (
            ["posterior=flow", "prior=vamp", "prior.components=2", "model.latent_dim=3"],
            "prior=vamp: every step runs the posterior's flow backwards for each of its pseudo-inputs, in 3 passes",
        ),
    ],
)
def test_what_is_hardly_meant_is_trained_with_a_warning(train, arguments, words):
    result = train(*arguments, "trainer.max_epochs=1", "test=false")
    assert result.code == 0, result.err
    warnings = [line for line in result.err.splitlines() + result.out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert words in warnings[0]
    assert "warning" not in train("trainer.max_epochs=1", "test=false").err
    grid = train("model=vqvae", "codebook=fsq", "trainer.max_epochs=1", "test=false")  # nothing of it is learned
    assert grid.code == 0
    assert "warning" not in grid.err + grid.out


@pytest.mark.parametrize(("shared", "code"), [("true", 0), ("false", 2)])
def test_levels_that_share_a_codebook_choose_from_it_with_all_their_vectors(train, shared, code):
    words = ("model=vqvae", "codebook=residual", f"codebook.shared={shared}", "model.num_embeddings=345")
    assert train(*words, "trainer.max_epochs=1", "test=false").code == code


@pytest.mark.parametrize("arguments", CASES)
def test_bad_input_is_named(train, tmp_path, arguments):
    result = train(*arguments.split(), small="dataset=" not in arguments)
    assert result.code == 2
    lines = result.err.strip().splitlines()
    assert 1 <= len(lines) <= 2, result.err
    assert lines[0].startswith("vaelab: ")
    for part in CASES[arguments]:
        assert part in result.err
    assert "Traceback" not in result.err + result.out
    assert not list(tmp_path.glob("**/config.yaml"))  # nothing that later commands would trust
    assert not list(tmp_path.glob("**/*.ckpt"))


def folder_of_images(root, count=40):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")


def refused(result, *parts):
    assert result.code == 2
    assert len(result.err.strip().splitlines()) <= 2, result.err
    for part in parts:
        assert part in result.err
    assert not (result.run / "config.yaml").exists()


def test_broken_data_files(train, tmp_path):
    folder_of_images(tmp_path / "images")
    arguments = ("dataset=folder", "dataset.root=images", "trainer.max_epochs=1")
    assert train(*arguments, small=False).code == 0
    (tmp_path / "images" / "train" / "cat" / "7.png").write_bytes(b"not an image")
    refused(train(*arguments, small=False), "7.png")
    (tmp_path / "empty").mkdir()
    refused(train("dataset=folder", "dataset.root=empty", small=False), "empty")


def test_a_truncated_mnist_file(train, tmp_path):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, shape, code in (("images-idx3", (100, 28, 28), 3), ("labels-idx1", (100,), 1)):
        header = bytes([0, 0, 8, code]) + b"".join(n.to_bytes(4, "big") for n in shape)
        for part in ("train", "t10k"):
            (raw / f"{part}-{name}-ubyte").write_bytes(header + bytes(int(np.prod(shape))))
    arguments = ("dataset=mnist", "dataset.root=data", "dataset.download=false", "trainer.max_epochs=1")
    assert train(*arguments, small=False).code == 0
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(train(*arguments, small=False), "train-images-idx3-ubyte")
    path.write_bytes(gzip.compress(b"something else"))
    refused(train(*arguments, small=False), "train-images-idx3-ubyte")


def test_a_folder_with_anything_in_it_is_not_written_to(train, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "summary.json").write_text("my own")
    refused(train("run.dir=mine"), "mine", "not empty")
    assert (tmp_path / "mine" / "summary.json").read_text() == "my own"


def test_two_processes_do_not_train_in_one_folder(train):
    import fcntl

    done = train("run.dir=mine")
    assert done.code == 0
    with open("mine/run.log", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        again = train("resume=mine", "trainer.max_epochs=5")
    assert again.code == 2
    assert "another process" in again.err
    assert train("resume=mine", "trainer.max_epochs=5").code == 0


@pytest.mark.parametrize("folder", ["with space/a=b", "ünïcödé", "it's"])
def test_any_path_does(train, folder):
    result = train(f"run.dir={folder}")
    assert result.code == 0, result.err
    again = train(f"resume={folder}", "trainer.max_epochs=3")
    assert again.code == 0, again.err


def test_nested_class_folders_are_refused(train, tmp_path):
    folder_of_images(tmp_path / "images", 10)
    (tmp_path / "images" / "train" / "cat" / "inner").mkdir()
    refused(train("dataset=folder", "dataset.root=images", small=False), "inner")


def test_a_used_run_folder_is_not_overwritten(train):
    first = train("run.dir=mine")
    assert first.code == 0
    again = train("run.dir=mine")
    assert again.code == 2
    assert "resume=mine" in again.err


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["tran"], ["--version"], ["train", "model=nope"], ["train", "x=1"]])
def test_help_and_errors_import_no_torch(arguments, tmp_path):
    code = f"""
import sys
from vaelab.cli import main
try:
    main({arguments!r})
finally:
    assert "torch" not in sys.modules and "pytorch_lightning" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_command_word_is_guessed(capsys):
    from vaelab.cli import main

    assert main(["tran"]) == 2
    assert "did you mean `vaelab train`?" in capsys.readouterr().err
    assert main(["model=vae"]) == 2
    assert "vaelab train model=vae" in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["prior=pixelcnn", "beta=4", "model.beta=4"])
def test_a_command_without_models_to_choose_names_none(command, argument):
    code, _, err = command("decompress", "input=x", argument)
    assert code == 2
    assert f"{argument.partition('=')[0]}: no such key" in err
    assert "belongs" not in err
    assert "did you mean model" not in err


def test_tab_completion_knows_commands_groups_and_options(monkeypatch, capsys):
    from vaelab.cli import main

    for line, expected in {
        "vaelab tr": "train",
        "vaelab train mod": "model=",
        "vaelab train model=vq": "model=vqvae",
    }.items():
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        assert main(["-sc", "query=bash"]) == 0
        assert expected in capsys.readouterr().out.split()
    assert main(["completion", "bash"]) == 0
    assert "complete" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "argument", ["trainer.gradient_clip_val=abc", "trainer.max_epochs=0", "seed=-1", "callbacks=x"]
)
def test_a_wrong_value_of_the_trainer_is_refused_without_torch(argument, tmp_path):
    code = f"""
import sys
from vaelab.cli import main
assert main(["train", {argument!r}]) == 2
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_hydra_may_change_the_folder_and_paths_stay_the_users(train, tmp_path):
    folder_of_images(tmp_path / "images", 10)
    result = train("hydra.job.chdir=true", "dataset=folder", "dataset.root=images", "trainer.max_steps=1", small=False)
    assert result.code == 0, result.err
    assert (result.run / "config.yaml").is_file()


def test_a_sweep_over_two_folders_trains_two_runs(train, tmp_path):
    for name in ("a", "b"):
        folder_of_images(tmp_path / name, 10)
    arguments = ("-m", "dataset=folder", "dataset.root=a,b", "trainer.max_steps=1", "test=false", "sweep.dir=sweep")
    first, again = train(*arguments, small=False), train(*arguments, small=False)
    assert first.code == again.code == 0, first.err
    assert len(list((tmp_path / "sweep").glob("*/config.yaml"))) == 2
    assert first.out.count("done already") == 0
    assert again.out.count("done already") == 2


def test_overfitting_takes_the_same_batches_in_every_epoch(train, monkeypatch):
    from vaelab.models.vae import VAE

    sums, step = [], VAE.training_step
    monkeypatch.setattr(VAE, "training_step", lambda *a: sums.append(a[1].images.sum().item()) or step(*a))
    assert train("trainer.overfit_batches=1", "trainer.max_epochs=3", "test=false").code == 0
    assert len(sums) == 3
    assert len(set(sums)) == 1


def test_a_plateau_does_not_count_the_validation_before_training(train):
    result = train("trainer.num_sanity_val_steps=2", "lr_schedule=plateau", "test=false")
    assert result.code == 0, result.err
