"""Two generators as one: a latent of its own says which of them makes an image."""

import math

from jaxtyping import Float, Int64
from torch import Tensor

from dp_sinkhorn.generators.base import Generator


class MixtureGenerator(Generator):
    """Each image is the second generator's with probability `second_share`, in every class alike, or the first's.

    Args:
        first, second: Of the same images, classes and latents. second_share: In [0, 1].
    """

    def __init__(self, first: Generator, second: Generator, second_share: float) -> None:
        super().__init__(first.shape, first.num_classes, first.latent_dim + 1)
        self.first, self.second, self.second_share = first, second, second_share

    def forward(self, latents: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Images in [-1, 1], one flat row each."""
        inner, choice = latents.split([self.first.latent_dim, 1], dim=1)
        by_second = choice.squeeze(1) < self.second_share
        images = latents.new_empty(len(labels), math.prod(self.shape))
        for member, chosen in ((self.first, ~by_second), (self.second, by_second)):
            if bool(chosen.any()):
                images[chosen] = member(inner[chosen], labels[chosen]).to(images.dtype)
        return images
