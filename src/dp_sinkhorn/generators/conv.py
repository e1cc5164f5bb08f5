"""A small up-sampling convolutional generator, whose images are smooth by construction."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dp_sinkhorn.generators.base import Generator

_COARSEST_SIDE = 8
_EMBEDDING_DIM = 32


class ConvGenerator(Generator):
    """Latents and label embedding → `width` units → `channels` coarse maps of 4 to 8 pixels a side, then stages
    of "bilinear ×2, 3×3 convolution" that halve the maps, a last 3×3 convolution and tanh.

    No normalisation: one image must not depend on the others of its batch.
    """

    def __init__(
        self, shape: tuple[int, int, int], num_classes: int, latent_dim: int, width: int, channels: int
    ) -> None:
        super().__init__(shape, num_classes, latent_dim)
        colours, height, w = shape
        stages = max(1, math.ceil(math.log2(max(height, w) / _COARSEST_SIDE)))
        self.sizes = [(math.ceil(height / 2**k), math.ceil(w / 2**k)) for k in range(stages, -1, -1)]
        widths = [max(8, channels >> k) for k in range(stages + 1)]
        self.embedding = nn.Embedding(num_classes, _EMBEDDING_DIM)
        self.hidden = nn.Linear(latent_dim + _EMBEDDING_DIM, width)
        self.coarse_channels = widths[0]
        self.coarse = nn.Linear(width, widths[0] * self.sizes[0][0] * self.sizes[0][1])
        self.stages = nn.ModuleList(nn.Conv2d(wide, narrow, 3, padding=1) for wide, narrow in pairwise(widths))
        self.last = nn.Conv2d(widths[-1], colours, 3, padding=1)
        self.activation = nn.LeakyReLU(0.2)

    def forward(self, latents: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Images in [-1, 1], one flat row per image."""
        inputs = torch.cat([latents, self.embedding(labels)], dim=1)
        maps = self.activation(self.coarse(self.activation(self.hidden(inputs))))
        # Channels last in memory from the start avoids conversions of the layout.
        maps = maps.view(-1, *self.sizes[0], self.coarse_channels).permute(0, 3, 1, 2)
        for size, convolution in zip(self.sizes[1:], self.stages, strict=True):
            maps = interpolate(maps, size=size, mode="bilinear", align_corners=False)
            maps = self.activation(convolution(maps))
        return torch.tanh(self.last(maps)).flatten(1)
