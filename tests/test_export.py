"""A model outside its run folder: the same numbers from safetensors and from ONNX, and nothing else is run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import vaelab
from tests.test_conf import composed
from vaelab.core.config import build
from vaelab.inference import onnx

pytestmark = pytest.mark.usefixtures("parsed_once")
ROOT = Path(__file__).parent.parent
NORM = "network.norm=batch"
MLP = ["network=mlp", NORM, "network.hidden_dims=[16]"]
CONV = ["network=conv", NORM, "network.hidden_dims=[4,8]", "network.activation=gelu"]
RESNET = ["network=resnet", NORM, "network.hidden_dims=[4,8]", "network.attention=true", "network.skip=true"]
SMALL = ["model.latent_dim=3"]
CODES = ["codebook.restart_after=null", "model.num_embeddings=7", "model.embedding_dim=4"]
CASES = {
    "vae": ([*MLP, *SMALL], (1, 8, 8)),
    "capacity": ([*CONV, *SMALL, "likelihood=continuous_bernoulli"], (1, 11, 14)),
    "cvae": ([*RESNET, *SMALL, "likelihood=laplace", "likelihood.scale=0.5", "model.label_dim=2"], (3, 8, 8)),
    "m2": ([*SMALL, "network.hidden_dims=[16]", "model.label_dim=2"], (1, 8, 8)),
    "beta": (["network=burgess", *SMALL, "likelihood=gaussian", "likelihood.sigma=0.5"], (1, 64, 64)),
    "ae": ([*CONV, *SMALL, "likelihood=gaussian_learned", "likelihood.sigma=0.5"], (3, 8, 8)),
    "vqvae": (
        [*RESNET, "likelihood=gaussian", "likelihood.sigma=0.5", "codebook=gradient", *CODES],
        (3, 11, 8),
    ),
}
"""With which settings and for which images a model is exported: every network and every likelihood is there.

Every other option of a part is exported in `test_parts`.
"""


def model_of(case: str):
    """A model with random weights and batch norms that have seen something."""
    settings, shape = CASES[case]
    torch.manual_seed(0)
    model = build(composed(f"model={case}", *settings)["model"], shape=shape, num_classes=4)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def damage(folder: Path, **changed) -> None:
    """Changes entries of model.json."""
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


# --- safetensors ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["vae", "cvae", "ae", "vqvae"])
def test_an_exported_model_loads_as_it_was(finished, command, model):
    run = finished(f"model={model}").run
    code, _, err = command("export", f"run={run}")
    assert (code, err) == (0, "")
    assert {p.name for p in (run / "export").iterdir()} == {"model.safetensors", "model.json"}
    shutil.move(run / "export", "elsewhere")
    loaded, own = vaelab.load("elsewhere"), vaelab.load(run)
    assert not loaded.training
    x, labels = torch.rand(5, 1, 8, 8), torch.arange(5) % 2
    assert torch.equal(loaded.reconstruct(x, labels), own.reconstruct(x, labels))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), own.parameters(), strict=True))
    about = json.loads(Path("elsewhere/model.json").read_text())
    assert (about["class"], about["shape"], about["latents"]) == (type(own).__name__, [1, 8, 8], own.blank().name)
    assert about["run"]["checkpoint"] == "best"


def test_which_checkpoint_is_exported(finished, command):
    run = finished("model=vae").run
    assert command("export", f"run={run}", "checkpoint=last", "out=final")[0] == 0
    last = vaelab.load(run, "last").state_dict()
    assert all(torch.equal(value, last[name]) for name, value in vaelab.load("final").state_dict().items())
    assert json.loads(Path("final/model.json").read_text())["run"]["epoch"] == 2


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "vaelab.runs.os.system",
        "vaelab.commands.command.run",
        "vaelab.models.base.torch.load",
        "vaelab.nn.coders.torch.load",
        "vaelab.nn.networks.nn.Linear",
        "vaelab.nn.networks.pairwise",
        "vaelab.models.nothing.VAE",
        "torch.nn.functional.relu",
        "mine.Network",
    ],
)
def test_only_classes_of_vaelab_are_built(finished, command, monkeypatch, target):
    run = finished("model=vae", "trainer.max_epochs=1").run
    assert command("export", f"run={run}", "out=x")[0] == 0
    model = json.loads(Path("x/model.json").read_text())["model"]
    monkeypatch.setattr("vaelab.core.config.build", lambda *_, **__: pytest.fail("it was built"))
    for where in (model, model["network"]):
        before = where["_target_"]
        where["_target_"] = target
        damage(Path("x"), model=model)
        with pytest.raises(vaelab.core.errors.UserError, match=f"would run {re.escape(target)}"):
            vaelab.load("x")
        where["_target_"] = before
    damage(Path("x"), model=model | {"latent_dim": "${oc.env:HOME}"})
    with pytest.raises(vaelab.core.errors.UserError, match="HOME"):
        vaelab.load("x")


def test_a_damaged_export_is_told_apart(finished, command):
    run = finished("model=vae", "trainer.max_epochs=1").run
    assert command("export", f"run={run}", "out=x")[0] == 0
    about, weights = json.loads(Path("x/model.json").read_text()), Path("x/model.safetensors").read_bytes()

    def refused(word: str) -> None:
        with pytest.raises(vaelab.core.errors.UserError, match=word):
            vaelab.load("x")

    for key in ("format", "model", "shape", "extra"):
        damage(Path("x"), **{key: None})
        refused("model.json")
        damage(Path("x"), **about)
    damage(Path("x"), shape=[1, 9, 9])
    refused("another model")
    damage(Path("x"), model=about["model"] | {"latent_dim": 0})
    refused("latent_dim")
    damage(Path("x"), **about)
    Path("x/model.safetensors").write_bytes(weights[:-100])
    refused("damaged")
    Path("x/model.safetensors").unlink()
    refused("does not exist")
    Path("x/model.json").write_text("{")
    refused("no JSON")


# --- ONNX -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_onnx_computes_what_the_model_does(tmp_path, case, capfd):
    import onnx as format_
    import onnxruntime

    model = model_of(case)
    found = onnx.write(model, tmp_path, (0.0, 1.0), {"vaelab.class": case})
    assert all(gap is None or gap < 1e-5 for gap in found.values())
    assert capfd.readouterr() == ("", "")
    names = ("encoder", "decoder", *["classifier"] * (case == "m2"))
    assert {p.name for p in tmp_path.iterdir()} == {f"{name}.onnx" for name in names}
    for name in names:
        kept = {p.key: p.value for p in format_.load(tmp_path / f"{name}.onnx").metadata_props}
        assert (kept["vaelab.class"], kept["part"]) == (case, name)

    encoder, decoder = (onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in ("encoder", "decoder"))
    x, labels = torch.rand(6, *model.shape), torch.arange(6) % 4  # neither noise nor a batch that was compared
    given = {"labels": labels.numpy()} if model.conditional else {}
    codes = encoder.run(None, {"images": x.numpy(), **given})
    taken = decoder.get_inputs()[0].name
    assert taken == model.layout.arrays[0]
    images = decoder.run(["images"], {taken: codes[0], **given})[0]
    np.testing.assert_allclose(images, model.reconstruct(x, labels).numpy(), atol=2e-5)
    if case == "m2":
        classifier = onnxruntime.InferenceSession(tmp_path / "classifier.onnx")
        found = classifier.run(["log_probs"], {"images": x.numpy()})[0]
        np.testing.assert_allclose(found, model.classify(x).detach().numpy(), atol=2e-5)


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_refused(finished, command, monkeypatch):
    run = finished("model=vae").run
    decode = onnx.Decoder.forward

    def wrong(self, codes, labels=None):
        shift = 1e-3 if torch.compiler.is_exporting() else 0
        return decode(self, codes, labels) + shift

    monkeypatch.setattr(onnx.Decoder, "forward", wrong)
    code, _, err = command("export", f"run={run}", "onnx=true")
    assert code == 2
    assert all(word in err for word in ("onnx=true", "decoder.onnx", "1.0e-03"))
    assert not list((run / "export").iterdir())  # nothing half done


def test_other_indices_are_refused_unless_the_codes_are_equally_near():
    model = model_of("vqvae")
    model.codebook.codes.data[5] = model.codebook.codes.data[2]
    x = torch.rand(4, *model.shape)
    used = next(int(i) for i in model.encode(x).indices.flatten() if i not in (2, 5))
    model.codebook.codes.data[5] = model.codebook.codes.data[used]  # a copy of a code in use
    own = model.encode(x).indices
    tie, other = own.clone(), own.clone()
    tie[own == used], tie[own == 5] = 5, used
    other[0, 0, 0] = next(i for i in range(5) if i not in (own[0, 0, 0], used))
    assert onnx._agree(model, (x,), tie, own)[0]
    assert not torch.equal(tie, own)
    assert not onnx._agree(model, (x,), other, own)[0]


@pytest.mark.slow
def test_what_is_left_of_an_earlier_export(finished, command):
    run = finished("model=vae").run
    out = run / "export"
    code, said, err = command("export", f"run={run}", "onnx=true")
    assert (code, err) == (0, "")
    assert "decoder.images" in said
    assert {p.name for p in out.iterdir()} == {"model.safetensors", "model.json", "encoder.onnx", "decoder.onnx"}
    assert command("export", f"run={run}", "checkpoint=last")[0] == 0
    assert {p.name for p in out.iterdir()} == {"model.safetensors", "model.json"}  # none of other weights


def test_a_missing_package_is_named_before_any_work(finished, command, monkeypatch):
    run = finished("model=vae", "trainer.max_epochs=1").run
    monkeypatch.setattr(onnx, "PACKAGES", ("onnx", "onnxruntime_that_is_not_here"))
    code, _, err = command("export", f"run={run}", "onnx=true")
    assert code == 2
    assert all(word in err for word in ("onnxruntime_that_is_not_here", 'pip install "vaelab[onnx]"'))
    assert command("export", f"run={run}")[0] == 0  # safetensors needs none


def test_export_says_what_is_wrong(finished, command, tmp_path):
    run = finished("model=vae", "trainer.max_epochs=1").run
    (tmp_path / "file").write_text("")
    (tmp_path / "others").mkdir()
    (tmp_path / "others/model.safetensors").write_bytes(b"theirs")
    cases = {
        "run=nowhere": "nowhere",
        f"run={run} out=file": "out=file",
        f"run={run} out=others": "out=others",
        f"run={run} onnx=maybe": "onnx",
        f"run={run} checkpoint=newest": "checkpoint",
        f"run={run} onx=true": "onnx",
    }
    for arguments, word in cases.items():
        code, _, err = command("export", *arguments.split())
        assert code == 2, arguments
        assert word in err
    assert (tmp_path / "others/model.safetensors").read_bytes() == b"theirs"


# --- docs -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vae", "cvae", "vqvae"])
def test_the_snippets_of_the_docs_run(finished, command, model):
    run = finished(f"model={model}", "dataset.classes=4").run
    assert command("export", f"run={run}", "onnx=true", "out=export")[0] == 0
    text = (ROOT / "docs" / "export.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(snippets) == 3
    own = vaelab.load("export")
    checked = 0
    for snippet in snippets:
        names = {}
        exec(snippet, names)
        if "made" in names:
            x = torch.as_tensor(names["images"])
            wanted = own.reconstruct(x, torch.zeros(len(x), dtype=torch.int64))
            np.testing.assert_allclose(names["made"], wanted.numpy(), atol=1e-4)
            checked += 1
    assert checked == 2
