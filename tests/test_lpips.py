"""LPIPS in the features of a network from the user's file, held against torchmetrics; its file, its section."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchmetrics.functional.image.lpips as oracle
import torchvision

from tests.test_evaluate import evaluate, read, trained  # noqa: F401
from vaelab.core.errors import UserError
from vaelab.evaluation.metrics.lpips import KINDS, LPIPS

KIND = {"alex": KINDS[0], "vgg": KINDS[1]}


@pytest.fixture(scope="module", params=KIND)
def kind(request):
    return request.param


def made(kind: str) -> dict[str, torch.Tensor]:
    """Random weights of features, as torchvision names them, and torchmetrics' copy of the linear layers."""
    with torch.device("meta"):
        shapes = getattr(torchvision.models, KIND[kind].name)(weights=None).features.state_dict()
    generator = torch.Generator().manual_seed(0)
    features = {
        f"features.{name}": torch.randn(value.shape, generator=generator) * (2 / max(1, value[0].numel())) ** 0.5
        for name, value in shapes.items()
    }
    lines = Path(oracle.__file__).parent / "lpips_models" / f"{kind}.pth"
    return features | torch.load(lines, map_location="cpu", weights_only=True)


@pytest.fixture(scope="module")
def state(kind):
    return made(kind)


@pytest.fixture(scope="module")
def file(kind, state, tmp_path_factory):
    path = tmp_path_factory.mktemp(kind) / "weights.pth"
    torch.save(state | {"classifier.1.weight": torch.zeros(1)}, path)  # torchvision's files have the classifier, too
    return path


@pytest.fixture(scope="module")
def alex(tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "alex.pth"
    torch.save(made("alex"), path)
    return path


def drawn(seed: int, channels: int = 3, size: int = 40) -> torch.Tensor:
    return torch.rand(3, channels, size, size + 3, generator=torch.Generator().manual_seed(seed))


def test_it_is_that_of_torchmetrics(kind, state, file, monkeypatch):
    def features(net, pretrained):
        with torch.device("meta"):
            network = getattr(torchvision.models, net)(weights=None).features
        own = {name.removeprefix("features."): v for name, v in state.items() if name.startswith("features.")}
        network.load_state_dict(own, assign=True)
        return network

    monkeypatch.setattr(oracle, "_get_tv_model_features", features)
    theirs, ours = oracle._LPIPS(net=kind, pnet_rand=True), LPIPS(file)
    first, second = drawn(0), drawn(1)
    expected = theirs(first, second, normalize=True).flatten()
    torch.testing.assert_close(ours(first, second), expected, rtol=1e-4, atol=0)
    assert (expected > 0.01).all()


def test_it_is_a_distance(alex):
    network, images = LPIPS(alex), drawn(0)
    assert network(images, images).tolist() == [0, 0, 0]
    other = (images + 0.3 * drawn(1)).clamp(0, 1)
    torch.testing.assert_close(network(images, other), network(other, images))
    assert (network(images, 0.9 * images + 0.1 * other) < network(images, other)).all()
    torch.testing.assert_close(network(3 * images - 1, other), network((3 * images - 1).clamp(0, 1), other))
    grey = drawn(2, 1), drawn(3, 1)
    torch.testing.assert_close(network(*grey), network(*(x.expand(-1, 3, -1, -1) for x in grey)))


def test_images_of_the_least_size_are_taken(kind, file):
    network, least = LPIPS(file), KIND[kind].least
    assert network(drawn(0, 3, least), drawn(1, 3, least)).shape == (3,)
    with pytest.raises(RuntimeError):
        network(drawn(0, 3, least - 1), drawn(1, 3, least - 1))


def test_a_file_of_anything_else_is_refused(alex, tmp_path):
    whole, path = torch.load(alex), tmp_path / "other.pth"
    for changed, words in (
        ({name: v for name, v in whole.items() if not name.startswith("lin")}, "not the weights"),
        ({name: v for name, v in whole.items() if name.startswith("lin")}, "not the weights"),
        (whole | {"lin1.model.1.weight": whole["lin0.model.1.weight"]}, "not the weights"),
        (whole | {"features.28.weight": torch.zeros(1)}, "not the weights"),
        (whole | {"note": "text"}, "no tensors by their names"),
        ([1, 2], "no tensors by their names"),
        (LPIPS, "more than tensors"),
    ):
        torch.save(changed, path)
        with pytest.raises(UserError, match=words) as error:
            LPIPS(path)
        assert str(error.value).startswith(f"lpips={path}: ")
        assert len(str(error.value).splitlines()) <= 2


def test_the_section_is_of_each_reconstruction(finished, evaluate, alex, monkeypatch):  # noqa: F811
    run = trained(finished, "model=vae", "dataset.image_shape=[1,32,32]", size=100)
    assert evaluate(f"run={run}", f"lpips={alex}", "sections=[lpips]")[0] == 0
    found = read(run)
    assert found["figures"]["lpips/mean"] > 0
    assert "features of alexnet" in found["protocols"]["lpips"]
    monkeypatch.setattr("vaelab.models.VAE.reconstruct", lambda self, x, labels=None: x)
    assert evaluate(f"run={run}", f"lpips={alex}", "sections=[lpips]")[0] == 0
    assert read(run)["figures"]["lpips/max"] == 0


@pytest.mark.parametrize("key", ["lpips", "inception"])
def test_a_wrong_file_is_refused_before_anything_is_measured(finished, evaluate, tmp_path, key):  # noqa: F811
    run = trained(finished, "model=vae")
    wrong = tmp_path / "a = b, [c].pth"
    torch.save({"conv.weight": torch.zeros(1)}, wrong)
    for path, words in ((wrong, "not the weights"), ("none.pth", "there is no such file"), (tmp_path, "a folder")):
        code, out, err = evaluate(f"run={run}", f"{key}={path}")
        assert (code, out) == (2, "")
        assert words in err
        assert len(err.splitlines()) <= 2
    assert not (run / "evaluation.json").exists()


def test_images_that_are_too_small_are_said(finished, evaluate, alex):  # noqa: F811
    run = trained(finished, "model=vae")
    code, out, err = evaluate(f"run={run}", f"lpips={alex}")
    assert (code, out) == (2, "")
    assert err == "vaelab: lpips: alexnet takes images from 31 pixels on, and these are 8x8: leave it out\n"
