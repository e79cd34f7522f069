"""Train one small VAE in other ways than hfgen's, and print what came of it; called by `vae_speed.py`.

    python benchmarks/vae_training.py pythae images.npz 128 1e-3 60 1 105

The ways: `loop` as a student writes it (a `Dataset` of single images, a `DataLoader`, Adam), `bare` without a loader
(the images as one tensor), `pythae` by its trainer. All train the network 784-400-20-400-784 on the binary
cross-entropy of grey pixels and the divergence. After each epoch, outside of the time that counts, −ELBO of the test
images is found; training ends when that is at most the target, or when both the seconds and the number of epochs are
reached.
"""

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

PIXELS, HIDDEN, LATENTS = 784, 400, 20


class VAE(nn.Module):
    """The network, as in PyTorch's examples of a VAE."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(PIXELS, HIDDEN)
        self.mean, self.log_variance = nn.Linear(HIDDEN, LATENTS), nn.Linear(HIDDEN, LATENTS)
        self.decoder = nn.Sequential(nn.Linear(LATENTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS), nn.Sigmoid())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of q(z | x), each (B, 20)."""
        hidden = functional.relu(self.hidden(x.flatten(1)))
        return self.mean(hidden), self.log_variance(hidden)

    def decode(self, z: Tensor) -> Tensor:
        """Return the brightness of the pixels, (B, 784) in [0, 1]."""
        return self.decoder(z)


def negative_elbo(x: Tensor, encode: Callable, decode: Callable) -> Tensor:
    """Return the sum over images (B, 1, 28, 28) in [0, 1], with one latent drawn of each."""
    mean, log_variance = encode(x)
    z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
    error = functional.binary_cross_entropy(decode(z).flatten(1), x.flatten(1), reduction="sum")
    return error + 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()


class Watch:
    """Counts the time of training, and ends it."""

    def __init__(self, test: Tensor, seconds: float, epochs: int, target: float):
        self.test, self.limit, self.least, self.target = test, seconds, epochs, target
        self.epochs: list[dict[str, float]] = []
        self.seconds, self.started = 0.0, time.perf_counter()

    def is_over(self, encode: Callable, decode: Callable) -> bool:
        """Measure after an epoch, and tell whether to stop."""
        self.seconds += time.perf_counter() - self.started
        with torch.no_grad():
            elbo = sum(negative_elbo(x, encode, decode) for x in self.test.split(1000)).item() / len(self.test)
        self.epochs.append({"seconds": self.seconds, "negative_elbo": elbo})
        self.started = time.perf_counter()
        return elbo <= self.target or (self.seconds > self.limit and len(self.epochs) >= self.least)


def loop(images: Tensor, batch: int, rate: float, watch: Watch, per_item: bool) -> None:
    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    items = [(image.numpy() * 255).round().astype(np.uint8) for image in images[:, 0]] if per_item else []

    class Items(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(items)

        def __getitem__(self, index: int) -> Tensor:
            return torch.from_numpy(items[index]).float().div(255)[None]

    loader = torch.utils.data.DataLoader(Items(), batch_size=batch, shuffle=True) if per_item else None
    watch.started = time.perf_counter()
    while True:
        for x in loader or images[torch.randperm(len(images))].split(batch):
            optimizer.zero_grad()
            (negative_elbo(x, model.encode, model.decode) / len(x)).backward()
            optimizer.step()
        if watch.is_over(model.encode, model.decode):
            return


def pythae(images: Tensor, batch: int, rate: float, watch: Watch) -> None:
    from pythae import models
    from pythae.data.datasets import BaseDataset
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class OverError(Exception):
        pass

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.parts = VAE()

        def forward(self, x: Tensor) -> ModelOutput:
            mean, log_variance = self.parts.encode(x)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.parts = VAE().decoder

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.parts(z).view(-1, 1, 28, 28))

    encoder, decoder = Encoder(), Decoder()
    del encoder.parts.decoder

    class Epochs(TrainingCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            watch.started = time.perf_counter()

        def on_epoch_end(self, *_: object, **__: object) -> None:
            if watch.is_over(encoder.parts.encode, decoder.parts):
                raise OverError

    config = models.VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENTS, reconstruction_loss="bce")
    with tempfile.TemporaryDirectory() as folder:
        trainer = BaseTrainer(
            model=models.VAE(config, encoder, decoder),
            train_dataset=BaseDataset(images, torch.zeros(len(images))),
            training_config=BaseTrainerConfig(
                output_dir=folder, per_device_train_batch_size=batch, learning_rate=rate, num_epochs=1000, no_cuda=True
            ),
            callbacks=[Epochs()],
        )
        with contextlib.suppress(OverError):
            trainer.train()


def main() -> None:
    way, source, batch, rate, seconds, epochs, target = sys.argv[1:]
    torch.manual_seed(0)
    torch.set_num_threads(2)
    arrays = np.load(source)
    train, test = (torch.from_numpy(arrays[split])[:, None].float() / 255 for split in ("train", "test"))
    watch = Watch(test, float(seconds), int(epochs), float(target))
    if way == "pythae":
        pythae(train, int(batch), float(rate), watch)
    else:
        loop(train, int(batch), float(rate), watch, per_item=way == "loop")
    print(json.dumps(watch.epochs))


if __name__ == "__main__":
    main()
