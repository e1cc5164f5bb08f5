"""A generator whose images are moved until the mean features of a class are those of the records."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dp_sinkhorn.features.scattering import Scattering
from dp_sinkhorn.generators.base import Generator

REFINEMENT_STEPS = 4
"""Steps that images are moved."""


class RefinedGenerator(Generator):
    """Images, some steps down ⟨fields[t, class], φ(x)⟩ each, φ the scattering features.

    The field of step t is the gap between the mean features that images of the class then have and those wanted, times
    a step size: gradient flow of the maximum mean discrepancy (Arbel et al. 2019) of φ, class by class. Pixels that are
    quite black or white stay as they are, as in a correction.

    Args:
        fields: (T, K, D).
    """

    def __init__(self, generator: Generator, fields: Float[Tensor, "T K D"]) -> None:
        super().__init__(generator.shape, generator.num_classes, generator.latent_dim)
        self.generator = generator
        self.features = Scattering(generator.shape)
        self.fields = nn.Parameter(fields, requires_grad=False)

    def forward(self, latents: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Images in [-1, 1], one flat row each."""
        return self._refined(self.generator(latents, labels), labels)

    @torch.no_grad()
    def sample(self, labels: Int64[Tensor, " n"], random: torch.Generator) -> Float[Tensor, "n d"]:
        """One image a label. Only what the generator hands out is refined, not the images that it rejects."""
        images = self.generator.sample(labels, random)
        return self._refined(images, labels.to(images.device))

    def _refined(self, images: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        # In full precision: the features are sums over thousands of pixels.
        with torch.autocast(images.device.type, enabled=False):
            images = images.to(torch.float32)
            for field in self.fields:
                images = moved(images, self.features.gradients(images, field[labels]))
        return images


def moved(images: Float[Tensor, "n d"], gradients: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """One step down the gradients, those of black and white pixels 0."""
    return (images - room(images) * gradients).clamp(-1.0, 1.0)


def room(images: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """How far a pixel may move, relative: 1 where it is grey, 0 where it is black or white."""
    return (1.0 - images.square()).clamp(min=0.0)
