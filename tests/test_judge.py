import io
import os
import pickle

import pytest
import torch
from torch import nn

from vaelab.core.pixels import to_unit
from vaelab.core.randomness import seeded
from vaelab.evaluation.metrics import judge as judging
from vaelab.evaluation.metrics.judge import Judge, cache_folder, cached_judge, train_judge
from vaelab.inference.batches import evaluating

CPU = torch.device("cpu")


def digits():
    """Images [1797, 1, 8, 8] uint8 and labels of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    grey, target = load_digits(return_X_y=True)
    return torch.as_tensor(grey).mul(255 / 16).byte().view(-1, 1, 8, 8), torch.as_tensor(target, dtype=torch.int64)


def toy(count=40, shape=(1, 8, 8), seed=0):
    """Noise with labels of 4 classes."""
    noise = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=noise, dtype=torch.uint8), torch.arange(count) % 4


@pytest.fixture
def short(monkeypatch):
    """Trainings of a few steps."""
    monkeypatch.setattr(judging, "STEPS", 3)


@pytest.fixture(scope="module")
def trained():
    """Trained on digits, in fewer steps than a real one."""
    images, labels = digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "STEPS", 120)
        return train_judge(images[:1400], labels[:1400], 10, seed=0, progress=False)


def same_weights(a, b):
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def test_it_knows_digits_it_has_not_seen(trained):
    images, labels = digits()
    assert (trained.classify(images[1400:]) == labels[1400:]).float().mean() >= 0.96


def test_it_learns_from_floats_of_large_binary_colour_images(monkeypatch):
    """Classes that differ in the lit half, at 48x40: every image of the test is new."""
    monkeypatch.setattr(judging, "STEPS", 20)
    labels = torch.arange(400) % 2
    images = (torch.rand(400, 3, 48, 40, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    images[labels == 1, :, 24:] = 1.0
    judge = train_judge(images[:200], labels[:200], 2, seed=0, progress=False)
    assert (judge.classify(images[200:]) == labels[200:]).all()


def test_features_are_what_the_last_layer_decides_from(trained):
    images = digits()[0][:700].float() / 255
    features = trained.features(images)
    assert features.shape == (700, judging.FEATURES)
    assert (features >= 0).all()
    assert not features.requires_grad
    torch.testing.assert_close(trained.head(features), trained(images))


def test_features_do_not_depend_on_the_batch_or_the_type(trained, monkeypatch):
    images = digits()[0][:50]
    whole = trained.features(images)
    torch.testing.assert_close(trained.features(images.float() / 255), whole)
    monkeypatch.setattr(judging, "batch_size", lambda shape: 7)
    torch.testing.assert_close(trained.features(images), whole, rtol=1e-4, atol=1e-4)
    assert trained.features(images[:0]).shape == (0, judging.FEATURES)


def test_batches_are_bounded_in_values():
    assert judging.batch_size((1, 8, 8)) == 512
    for shape in [(1, 28, 28), (3, 64, 64), (3, 256, 256), (3, 1024, 1024)]:
        size = judging.batch_size(shape)
        assert size == 1 or size * torch.Size(shape).numel() <= 2**20


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 11), (1, 28, 28), (3, 64, 20)])
def test_any_size_from_8x8(shape, short):
    images, labels = toy(shape=shape)
    judge = train_judge(images, labels, 4, seed=0, progress=False)
    assert judge.features(images).shape == (40, judging.FEATURES)
    assert judge.classify(images).shape == (40,)
    assert not judge.training


def test_an_order_is_made_of_whole_passes(monkeypatch):
    monkeypatch.setattr(judging, "STEPS", 5)
    order = judging._training_order(100, seed=3)
    assert order.shape == (5, judging.BATCH)
    first, second = order.flatten()[:100], order.flatten()[100:200]
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(100))
    assert first.tolist() != second.tolist()


def test_a_judge_is_a_function_of_the_seed(short):
    images, labels = toy()
    a = train_judge(images, labels, 4, seed=1, progress=False)
    torch.manual_seed(99)
    assert same_weights(a, train_judge(images, labels, 4, seed=1, progress=False))
    assert not same_weights(a, train_judge(images, labels, 4, seed=2, progress=False))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_training_leaves_the_callers_state_alone(mode, short):
    images, labels = toy()
    before = torch.get_rng_state()
    with mode():
        enabled = torch.is_grad_enabled()
        judge = train_judge(images, labels, 4, seed=1, progress=False)
        assert torch.is_grad_enabled() == enabled
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(judge, train_judge(images, labels, 4, seed=1, progress=False))
    assert not any(p.requires_grad for p in judge.parameters())


def test_seeded_draws_the_same_and_restores_even_after_an_error():
    draws = []
    before = torch.get_rng_state()

    def fail():
        with seeded(5, CPU):
            draws.append(torch.rand(3))
            raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            fail()
    assert torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluating_restores_the_mode_of_every_part():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    model[1].eval()

    def fail():
        with evaluating(model):
            assert not torch.is_grad_enabled()
            assert not any(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.is_grad_enabled()
    assert [m.training for m in model.modules()] == [True, True, False]


def test_a_range_is_mapped_to_the_unit_interval():
    assert to_unit(torch.tensor([-1.0, 0.0, 1.0, 1.3]), (-1.0, 1.0)).tolist() == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("images", "labels", "classes", "named"),
    [
        (torch.zeros(10, 8, 8), torch.arange(10), 10, "images"),
        (torch.zeros(10, 1, 7, 8), torch.arange(10), 10, "images"),
        (torch.zeros(10, 1, 8, 8), torch.arange(9), 10, "labels"),
        (torch.zeros(10, 1, 8, 8), torch.arange(10.0), 10, "labels"),
        (torch.zeros(10, 1, 8, 8), torch.arange(10), 9, "labels"),
        (torch.zeros(10, 1, 8, 8), torch.zeros(10, dtype=torch.int64), 1, "labels"),
        (torch.full((10, 1, 8, 8), 2.0), torch.arange(10), 10, "images"),
        (torch.zeros(10, 1, 8, 8, dtype=torch.int64), torch.arange(10), 10, "images"),
    ],
)
def test_what_no_judge_can_learn_from_is_refused(images, labels, classes, named):
    with pytest.raises(ValueError, match=named):
        train_judge(images, labels, classes, seed=0, progress=False)


@pytest.mark.parametrize("bad", [torch.nan, -0.1, 1.1])
def test_images_out_of_range_are_refused(bad):
    images = torch.full((3, 1, 8, 8), 0.5)
    images[1, 0, 2, 2] = bad
    judge = Judge((1, 8, 8), 4).eval()
    with pytest.raises(ValueError, match="images"):
        judge.features(images)
    with pytest.raises(ValueError, match="images"):
        judge.features(torch.zeros(3, 8, 8, 1))


# --- the cache --------------------------------------------------------------------------------


@pytest.fixture
def trainings(monkeypatch):
    """The numbers of classes of the judges that were trained."""
    made, train = [], judging.train_judge
    monkeypatch.setattr(judging, "train_judge", lambda *a: made.append(a[2]) or train(*a))
    return made


def ask(folder, data=None, num_classes=4, seed=0):
    return cached_judge(*(data or toy()), num_classes, seed, CPU, progress=False, folder=folder)


def test_a_judge_is_trained_once(short, tmp_path, trainings):
    first = ask(tmp_path / "new" / "folder")
    second = ask(tmp_path / "new" / "folder")
    assert len(trainings) == 1
    assert same_weights(first, second)
    assert not second.training
    images = toy()[0]
    assert torch.equal(first.features(images), second.features(images))
    assert len(list(tmp_path.rglob("*.*"))) == 1  # and no partial file is left


def test_other_images_labels_seed_or_classes_are_other_judges(short, tmp_path, monkeypatch, trainings):
    """Wherever the images lie: two folders of the same name in two projects are two sets."""
    images, labels = toy()
    ask(tmp_path)
    ask(tmp_path, (images.clone(), labels.clone()))
    assert len(trainings) == 1
    other = images.clone()
    other[-1, 0, 0, 0] ^= 1
    ask(tmp_path, (other, labels))
    ask(tmp_path, (images, labels.roll(1)))
    ask(tmp_path, seed=1)
    ask(tmp_path, num_classes=5)
    monkeypatch.setattr(judging, "ARCHITECTURE", -1)
    ask(tmp_path)
    assert len(trainings) == 6


def flip_a_weight(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x40]) + data[middle + 1 :]


def saved(what):
    file = io.BytesIO()
    torch.save(what, file)
    return file.getvalue()


class Malice:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"not a checkpoint at all",
        lambda data: pickle.dumps({"shape": [1, 8, 8]}),
        lambda data: saved(Malice()),
        flip_a_weight,
    ],
    ids=["empty", "cut", "text", "other", "malice", "flipped"],
)
def test_a_damaged_file_is_trained_and_written_anew(damage, short, tmp_path, monkeypatch, trainings):
    monkeypatch.chdir(tmp_path)
    first = ask(tmp_path)
    (path,) = tmp_path.glob("*.pt")
    path.write_bytes(damage(path.read_bytes()))
    assert same_weights(first, ask(tmp_path))
    assert len(trainings) == 2
    assert not (tmp_path / "executed").exists()
    ask(tmp_path)
    assert len(trainings) == 2


def test_a_folder_that_cannot_be_written_costs_a_training(short, tmp_path, trainings):
    (tmp_path / "file").write_text("")
    for _ in range(2):
        ask(tmp_path / "file" / "below")
    assert len(trainings) == 2


def test_the_cache_is_where_the_standard_says(short, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "vaelab"
    ask(None)
    assert len(list((tmp_path / "vaelab").iterdir())) == 1
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("relative/path", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == tmp_path / "home" / ".cache" / "vaelab"
