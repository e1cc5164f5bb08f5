"""Train a generator network of your own.

    python examples/own_generator.py

The network is part of the release, so its design must not come from the private images.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from dp_sinkhorn import DPSinkhorn, Generator, register_generator


class Upsampler(Generator):
    """A linear layer to a quarter of the image's sides, enlarged and smoothed by two convolutions."""

    def __init__(self, shape, num_classes, latent_dim, width):
        super().__init__(shape, num_classes, latent_dim)
        channels, height, image_width = shape
        self.coarse = (width, -(-height // 4), -(-image_width // 4))
        self.enter = nn.Linear(latent_dim + num_classes, self.coarse[0] * self.coarse[1] * self.coarse[2])
        self.leave = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.Upsample((height, image_width), mode="bilinear"),
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, channels, 3, padding=1),
            nn.Tanh(),  # images lie in [-1, 1]
        )

    def forward(self, latents, labels):  # (n, latent_dim), (n,) -> (n, channels·height·width)
        one_hot = nn.functional.one_hot(labels, self.num_classes).to(latents.dtype)
        maps = self.enter(torch.cat([latents, one_hot], dim=1)).unflatten(1, self.coarse)
        return self.leave(maps).flatten(1)


def build(shape, num_classes, spec):
    """From public facts and sizes to the network."""
    return Upsampler(shape, num_classes, spec.latent_dim, spec.width)


register_generator("upsampler", build, width=64, channels=1)  # also before a release is loaded

digits = load_digits()
model = DPSinkhorn(epsilon=10, settings={"generator": "upsampler"}).fit(digits.images / 16, digits.target)
images, labels = model.sample(100)
print(f"{len(images)} images by {model.privacy_.generator.name}")
