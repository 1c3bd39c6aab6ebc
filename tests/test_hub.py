"""vaelab export hub=, and models that are loaded from the hub: no test asks the network for anything."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import vaelab
from vaelab.core import errors
from vaelab.core.errors import UserError

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """Nobody's token, and a hub that must not be asked."""
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, lambda *_, **__: pytest.fail("the hub was asked"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))


@pytest.fixture
def on_the_hub(monkeypatch):
    """Puts a folder onto the hub as me/mine; what is asked of it is in the list."""
    asked = []

    def give(folder: Path):
        def snapshot_download(name, **how):
            asked.append((name, how))
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return asked

    return give


def card_of(folder: Path) -> tuple[huggingface_hub.ModelCardData, str]:
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    return card.data, card.text


@pytest.mark.parametrize("model", ["vae", "cvae", "ae"])
def test_an_export_in_the_hubs_layout_loads_from_there_as_its_card_says(finished, command, on_the_hub, model):
    run = finished(f"model={model}").run
    (run / "figures").mkdir()
    (run / "figures" / "samples.png").write_bytes(b"picture")
    code, said, err = command("export", f"run={run}", "hub=me/mine")
    assert (code, err) == (0, "")
    assert f"not pushed, there is no token: hf auth login, then hf upload me/mine {run}/hub" in said
    folder = run / "hub"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"README.md", "config.json", "model.safetensors", "figures/samples.png"}
    asked = on_the_hub(folder)
    data, text = card_of(folder)
    names = {}
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], names)
    own = vaelab.load(run)
    labels = own.in_turn(4) if own.conditional else torch.zeros(4, dtype=torch.int64)
    assert torch.equal(names["made"], own.reconstruct(names["images"], labels))
    assert ("samples" in names) == (own.prior is not None)
    assert asked == [
        ("me/mine", {"revision": None, "allow_patterns": ["config.json", "model.json", "model.safetensors"]})
    ]
    assert (data.library_name, data.model_name) == ("vaelab", "vae-fake".replace("vae", model, 1))
    assert {"vaelab", model, "fake"} <= set(data.tags)
    assert "![Samples from the prior](figures/samples.png)" in text
    summary = json.loads((run / "summary.json").read_text())
    listed = {result.metric_type: result.metric_value for result in data.eval_results}
    assert listed["reconstruction"] == summary["metrics"]["test/reconstruction"]
    assert "beta" not in listed


def test_a_card_has_the_metrics_of_the_weights_that_it_comes_with(finished, command):
    run = finished("model=vae").run
    summary = json.loads((run / "summary.json").read_text())
    summary["best"]["epoch"] = 1  # the last epoch is the second
    (run / "summary.json").write_text(json.dumps(summary))
    point = {"name": "last", "epoch": 2, "step": 6}
    figures = {"likelihood/elbo": -12.5, "likelihood/elbo_se": 0.25, "disentanglement/mig": float("nan")}
    evaluation = {"checkpoint": point, "figures": figures, "images": 20, "split": "test"}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    assert command("export", f"run={run}", "hub=./card", "checkpoint=last")[0] == 0
    data, text = card_of(Path("card"))
    assert {result.metric_type: result.metric_value for result in data.eval_results} == {"likelihood/elbo": -12.5}
    assert "| likelihood/elbo | -12.500 | 0.250 |" in text
    assert 'vaelab.load("card")' in text
    assert command("export", f"run={run}", "hub=./card", "checkpoint=best")[0] == 0
    listed = {result.metric_type for result in card_of(Path("card"))[0].eval_results}
    assert listed == {"loss", "reconstruction", "kl", "elbo"}


def test_a_card_names_no_place_on_this_machine(finished, command):
    run = finished("model=vae").run
    config = (run / "config.yaml").read_text()
    places = "overrides:\n  - dataset.root=mine.csv\n  - logger.mlflow.uri=/home/me/my store\n  - '+x=~/y'"
    (run / "config.yaml").write_text(config.replace("overrides:", places, 1))
    code, said, _ = command("export", f"run={run}", "hub=./my card")
    assert code == 0
    assert f"the run has no figures for its card: vaelab report run={run} makes them" in said
    text = (Path("my card") / "README.md").read_text()
    assert "dataset.root=PATH logger.mlflow.uri=PATH +x=PATH dataset=fake" in text
    assert "/home" not in text
    assert "## Figures" not in text


def test_a_card_of_a_table_speaks_of_columns(train, command):
    Path("t.csv").write_text("a,b\n" + "".join(f"{i % 7},{i / 3}\n" for i in range(60)))
    given = (
        "dataset=table",
        "dataset.root=t.csv",
        "likelihood=table",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
    )
    run = train(*given, small=False).run
    assert command("export", f"run={run}", "hub=./card")[0] == 0
    data, text = card_of(Path("card"))
    assert not hasattr(data, "pipeline_tag") or data.pipeline_tag is None
    snippet = re.search(r"```python\n(.*?)```", text, re.S)[1]
    assert "columns, scaled" in snippet
    names = {}
    exec(snippet, names)
    assert names["made"].shape == (4, 1, 1, 2)


def test_a_model_is_pushed_where_there_is_a_token(finished, command, monkeypatch):
    run, done = finished("model=vae", "trainer.max_epochs=1").run, []
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda _, name, **how: done.append((name, how)))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda _, **how: done.append(how))
    code, said, err = command("export", f"run={run}", "hub=hf://me/mine", "out=mine", "private=true")
    assert (code, err) == (0, "")
    assert 'pushed: https://huggingface.co/me/mine; vaelab.load("hf://me/mine") loads it' in said
    assert done[0] == ("me/mine", {"private": True, "exist_ok": True})
    assert (done[1]["repo_id"], done[1]["folder_path"]) == ("me/mine", Path("mine"))
    assert done[1]["allow_patterns"] == ["README.md", "config.json", "model.safetensors"]

    def refuse(*_, **__):
        raise OSError("403: not\nyours")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    code, _, err = command("export", f"run={run}", "hub=me/mine", "out=mine")
    assert code == 2
    assert err == "vaelab: hub=me/mine: it could not be pushed (403: not)\nmine has it: hf upload me/mine mine\n"


def test_nothing_of_others_is_written_over_and_nothing_of_former_weights_left(finished, command):
    run = finished("model=vae", "trainer.max_epochs=1").run
    Path("mine").mkdir()
    (Path("mine") / "README.md").write_text("by hand")
    code, _, err = command("export", f"run={run}", "hub=./mine")
    assert code == 2
    assert "hub=./mine: the folder holds files that are not of vaelab export" in err.replace("hub=mine", "hub=./mine")
    assert (Path("mine") / "README.md").read_text() == "by hand"
    assert command("export", f"run={run}", "out=both")[0] == 0
    assert command("export", f"run={run}", "hub=./both")[0] == 0
    assert {path.name for path in Path("both").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert command("export", f"run={run}", "out=both")[0] == 0
    assert not (Path("both") / "config.json").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["hub=hf://mine"], "hub=hf://mine: no name of a repository: write hub=USER/NAME"),
        (["hub=./mine", "out=there"], "out=there: hub=./mine is a folder, too: give one of them"),
        (["hub="], "hub= is empty"),
        (["private=perhaps"], "private"),
    ],
)
def test_export_says_what_is_wrong(finished, command, given, said):
    code, _, err = command("export", f"run={finished('model=vae', 'trainer.max_epochs=1').run}", *given)
    assert code == 2
    assert said in err


def test_the_extra_is_named_where_it_is_missing(finished, command, monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda package: None)
    run = finished("model=vae", "trainer.max_epochs=1").run
    code, _, err = command("export", f"run={run}", "hub=me/mine")
    assert (code, err) == (2, 'vaelab: hub=me/mine needs huggingface_hub: pip install "vaelab[hub]"\n')
    assert vaelab.open(run).export(hub="./mine") == Path("mine")  # a folder needs no hub
    with pytest.raises(UserError, match=r'hf:// needs huggingface_hub: pip install "vaelab\[hub\]"'):
        vaelab.load("hf://me/mine")


def of_response(kind: str) -> Exception:
    made = getattr(huggingface_hub.errors, kind)
    return made.__new__(made, "no such thing\nat all")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("RepositoryNotFoundError", "there is no such model, or it is private"),
        ("GatedRepoError", "only on request"),
        ("RevisionNotFoundError", "no such revision"),
        ("HFValidationError", "no name of a model"),
        ("LocalEntryNotFoundError", "the hub cannot be reached"),
        ("HfHubHTTPError", "the hub does not give it"),
    ],
)
def test_what_the_hub_does_not_give_is_said_in_a_line(monkeypatch, error, said):
    def refuse(*_, **__):
        raise of_response(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=f"^hf://me/mine@v1: .*{said}") as raised:
        vaelab.load("hf://me/mine@v1")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("address", ["hf://mine", "hf://", "hf://me/../x", "hf://me/mine/more", "hf://a b/c"])
def test_an_address_that_is_none_is_named(address):
    with pytest.raises(UserError, match="write hf://USER/NAME"):
        vaelab.load(address)


def test_a_strangers_model_executes_nothing(finished, command, on_the_hub, monkeypatch):
    run = finished("model=vae", "trainer.max_epochs=1").run
    assert command("export", f"run={run}", "hub=./mine")[0] == 0
    folder = Path("mine")
    asked = on_the_hub(folder)
    vaelab.load("hf://me/mine@v1")
    assert asked[0][1]["revision"] == "v1"
    monkeypatch.setattr("vaelab.core.config.build", lambda *_, **__: pytest.fail("it was built"))
    about = json.loads((folder / "config.json").read_text())
    about["model"]["_target_"] = "os.system"
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"config.json: model would run os.system: a file may not ask"):
        vaelab.load("hf://me/mine")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="another program's"):
        vaelab.load("hf://me/mine")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="the repository has no model of vaelab"):
        vaelab.load("hf://me/mine")
