"""Runs epochs of pythae's trainer on the MLP VAE, each when a line comes in. Not a command.

Started by training.py --pythae, it runs in an environment of its own with pythae 0.1.2, so it imports
nothing of the lab.
"""

import sys
import time

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import nn


class Encoder(BaseEncoder):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU())
        self.mean, self.logvar = nn.Linear(400, 20), nn.Linear(400, 20)

    def forward(self, x):
        hidden = self.body(x)
        return ModelOutput(embedding=self.mean(hidden), log_covariance=self.logvar(hidden))


class Decoder(BaseDecoder):
    def __init__(self):
        super().__init__()
        layers = [nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 784), nn.Sigmoid()]
        self.body = nn.Sequential(*layers, nn.Unflatten(1, (1, 28, 28)))

    def forward(self, z):
        return ModelOutput(reconstruction=self.body(z))


class Turns(TrainingCallback):
    """Reports each epoch's seconds at the start of the next one, then waits for its turn."""

    started = None

    def on_epoch_begin(self, training_config, **kwargs):
        if self.started is not None:
            print(f"seconds {time.perf_counter() - self.started}", flush=True)
        if not sys.stdin.readline():
            sys.exit()
        self.started = time.perf_counter()


def main():
    file, folder, batch, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    images = torch.load(file).float() / 255
    model = VAE(
        VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce"), encoder=Encoder(), decoder=Decoder()
    )
    config = BaseTrainerConfig(
        output_dir=folder,
        num_epochs=10_000,
        per_device_train_batch_size=int(batch),
        optimizer_cls="Adam",
        learning_rate=1e-3,
        no_cuda=True,
    )
    dataset = BaseDataset(images, torch.zeros(len(images)))
    BaseTrainer(model, dataset, training_config=config, callbacks=[Turns()]).train()


if __name__ == "__main__":
    main()
