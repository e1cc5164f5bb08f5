"""A multilayer perceptron as generator, without a prior on images."""

from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dp_sinkhorn.generators.base import Generator


class MLPGenerator(Generator):
    """Two hidden layers of `width` units; a label enters as a one-hot vector beside the latents."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int, latent_dim: int, width: int) -> None:
        super().__init__(shape, num_classes, latent_dim)
        channels, height, w = shape
        sizes = (latent_dim + num_classes, width, width)
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, channels * height * w), nn.Tanh())

    def forward(self, latents: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Images in [-1, 1], one flat row per image."""
        onehot = nn.functional.one_hot(labels, self.num_classes).to(latents.dtype)
        images: Tensor = self.layers(torch.cat([latents, onehot], dim=1))
        return images
