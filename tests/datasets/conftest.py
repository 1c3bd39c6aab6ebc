from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def common():
    """Values for the options that every data set has."""
    return {
        "batch_size": 16,
        "val_size": 0.1,
        "binarize": "none",
        "pixel_range": (0.0, 1.0),
        "storage": "auto",
        "num_workers": 0,
        "seed": 0,
        "split_seed": 0,
    }


@pytest.fixture
def trainer():
    """Stands in for Lightning's trainer: what the loaders ask it for."""
    progress = SimpleNamespace(is_last_batch=True, current=SimpleNamespace(processed=0))
    return SimpleNamespace(
        training=True,
        testing=False,
        overfit_batches=0,
        accumulate_grad_batches=1,
        num_training_batches=10**6,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        global_rank=0,
        world_size=1,
        current_epoch=0,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to reach a host fails, as on a machine without network."""

    def refuse(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
