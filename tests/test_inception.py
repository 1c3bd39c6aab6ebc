"""FID in the features of a network from the user's file: its blocks, its file, the section."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import resnet18
from torchvision.models.inception import Inception3, InceptionA, InceptionE

from tests.test_evaluate import evaluate, read, trained  # noqa: F401
from vaelab.core.errors import UserError
from vaelab.evaluation import pretrained
from vaelab.evaluation.metrics import inception


def joined(block, x, pooled, branches):
    return torch.cat([*(branch(x) for branch in branches), block.branch_pool(pooled)], 1)


def test_averages_leave_out_the_border():
    """A block by its own definition, with zeros of the border not counted: 4, 6 or 9 pixels are averaged."""
    block = InceptionA(4, pool_features=3).eval()
    x = torch.rand(2, 4, 5, 5)
    counts = F.avg_pool2d(torch.ones_like(x), 3, 1, 1)
    pooled = F.avg_pool2d(x, 3, 1, 1) / counts
    inception._pool(block, inception.partial(F.avg_pool2d, count_include_pad=False))
    branches = [
        block.branch1x1,
        lambda x: block.branch5x5_2(block.branch5x5_1(x)),
        lambda x: block.branch3x3dbl_3(block.branch3x3dbl_2(block.branch3x3dbl_1(x))),
    ]
    assert torch.allclose(block(x), joined(block, x, pooled, branches), atol=1e-6)


def test_the_last_block_takes_the_largest():
    block = InceptionE(4).eval()
    x = torch.rand(2, 4, 5, 5)
    before = block(x)
    inception._pool(block, F.max_pool2d)
    after = block(x)
    assert torch.equal(after[:, :-192], before[:, :-192])
    assert torch.allclose(after[:, -192:], block.branch_pool(F.max_pool2d(x, 3, 1, 1)), atol=1e-6)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file in the format of pytorch-fid's, with weights of our own: small random ones, without counts of batches."""
    with torch.device("meta"):
        state = Inception3(num_classes=1008, aux_logits=False, init_weights=False).state_dict()
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, value in state.items():
        if value.ndim == 4:
            made[name] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        elif not name.endswith("num_batches_tracked"):
            made[name] = torch.ones(value.shape) if name.endswith(("weight", "var")) else torch.zeros(value.shape)
    path = tmp_path_factory.mktemp("weights") / "pt_inception.pth"
    torch.save(made, path)
    return path


def test_features_are_of_images_of_any_size_in_8_bits(weights):
    network = inception.Inception(weights)
    images = torch.rand(2, 1, 16, 20, generator=torch.Generator().manual_seed(0))
    features = network(images)
    assert features.shape == (2, 2048)
    assert features.std() > 0.01
    assert torch.allclose(network((images * 255).round().expand(-1, 3, -1, -1) / 255), features, atol=1e-5)


class Pools:
    """torch.nn.functional as the blocks' file sees it: eight averages without the border, then the largest."""

    def __init__(self):
        self.calls = 0

    def __getattr__(self, name):
        return getattr(F, name)

    def avg_pool2d(self, x, kernel_size, stride, padding):
        self.calls += 1
        if self.calls == 9:
            return F.max_pool2d(x, kernel_size, stride, padding)
        ones = F.avg_pool2d(torch.ones_like(x), kernel_size, stride, padding)
        return F.avg_pool2d(x, kernel_size, stride, padding) / ones


def test_the_whole_network_is_torchvisions_but_for_its_pools(weights, monkeypatch):
    images = (torch.rand(2, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    features = inception.Inception(weights)(images)
    network = Inception3(num_classes=1008, aux_logits=False, init_weights=False).eval()
    network.load_state_dict(torch.load(weights), strict=False)  # it counts batches
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        assert not torch.allclose(network(2 * images - 1), features, rtol=1e-2)
        monkeypatch.setattr("torchvision.models.inception.F", pools := Pools())
        torch.testing.assert_close(network(2 * images - 1), features, rtol=1e-4, atol=1e-5)
    assert pools.calls == 9


def test_a_file_of_anything_else_is_refused(weights, tmp_path):
    torch.save(resnet18().state_dict(), tmp_path / "other.pth")
    torch.save(inception.Inception, tmp_path / "pickle.pth")
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:1000])
    for name, words in {"other": "not the weights", "pickle": "more than tensors", "cut": "damaged"}.items():
        with pytest.raises(UserError, match=words):
            inception.Inception(tmp_path / f"{name}.pth")


class Few(torch.nn.Module):
    """Stands for the network: features are a few means of the pixels, so that few images do."""

    fingerprint = "0123"

    def __init__(self, path):
        super().__init__()
        self.none = torch.nn.Parameter(torch.zeros(0))

    def forward(self, images):
        return F.adaptive_avg_pool2d(images, 2).flatten(1)


def test_the_section_has_fid_and_rfid(finished, evaluate, monkeypatch, weights):  # noqa: F811
    monkeypatch.setattr(pretrained, "FEATURES", 4)
    monkeypatch.setattr(pretrained, "Inception", Few)
    run = trained(finished, "model=vae")
    assert evaluate(f"run={run}", f"inception={weights}", "sections=[inception]")[0] == 0
    figures = read(run)["figures"]
    assert figures["inception/rfid"] > 0
    assert figures["inception/fid"] > 0
    monkeypatch.setattr("vaelab.models.VAE.reconstruct", lambda self, x, labels=None: x)
    assert evaluate(f"run={run}", f"inception={weights}", "sections=[inception]")[0] == 0
    assert read(run)["figures"]["inception/rfid"] == pytest.approx(0, abs=1e-9)
    assert read(run)["figures"]["inception/fid"] == figures["inception/fid"]


def test_too_few_images_and_no_file_are_said(finished, evaluate, weights):  # noqa: F811
    run = trained(finished, "model=vae")
    code, _, err = evaluate(f"run={run}", f"inception={weights}", "sections=[inception]")
    assert code == 2
    assert "a covariance of 2,048 features needs more" in err
    code, _, err = evaluate(f"run={run}", "inception=none.pth")
    assert code == 2
    assert "inception=none.pth: there is no such file" in err


@pytest.mark.parametrize(("section", "key"), [("inception", "inception"), ("lpips", "lpips"), ("anomaly", "ood")])
def test_a_section_that_needs_an_option_is_refused_without_it(finished, evaluate, section, key):  # noqa: F811
    run = trained(finished, "model=vae")
    code, out, err = evaluate(f"run={run}", f"sections=[reconstruction,{section}]")
    assert (code, out) == (2, "")
    assert err == f"vaelab: sections: {section} is measured with {key}=, which is not given\n"
    assert not (run / "evaluation.json").exists()
