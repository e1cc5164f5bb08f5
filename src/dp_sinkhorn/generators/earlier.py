"""Wrappers of the generator in releases of versions 1 and 2, which still load, sample and verify."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dp_sinkhorn.estimators.linear_classifier import LinearClassifier
from dp_sinkhorn.features.scattering import Scattering
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.tuned import AffineLayer

# Draws per image at most; the score of its class must exceed all others by this margin.
_TRIES, _MIN_MARGIN = 5, 2.0


class MixtureGenerator(Generator):
    """Takes each image from the second generator with probability `second_share`, by a further latent."""

    def __init__(self, first: Generator, second: Generator, second_share: float) -> None:
        super().__init__(first.shape, first.num_classes, first.latent_dim + 1)
        self.first, self.second, self.second_share = first, second, second_share

    def forward(self, latents: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Images in [-1, 1], one flat row per image."""
        inner, choice = latents.split([self.first.latent_dim, 1], dim=1)
        by_second = choice.squeeze(1) < self.second_share
        images = latents.new_empty(len(labels), math.prod(self.shape))
        for member, chosen in ((self.first, ~by_second), (self.second, by_second)):
            if bool(chosen.any()):
                images[chosen] = member(inner[chosen], labels[chosen]).to(images.dtype)
        return images


class CorrectedGenerator(Generator):
    """Applies an `AffineLayer` to the images of a generator."""

    def __init__(self, generator: Generator, layer: AffineLayer) -> None:
        super().__init__(generator.shape, generator.num_classes, generator.latent_dim + layer.basis.shape[1])
        self.generator, self.layer = generator, layer

    def forward(self, latents: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Images in [-1, 1], one flat row per image."""
        inner, noise = latents.split([self.generator.latent_dim, self.layer.basis.shape[1]], dim=1)
        images: Tensor = self.layer(self.generator(inner, labels), labels, (noise - 0.5) * math.sqrt(12.0))
        return images


class RejectingGenerator(Generator):
    """Draws an image up to five times, until a classifier is sure of its class.

    If it is sure of none, the most likely one is taken, so every label gets an image.
    """

    def __init__(self, generator: Generator, classifier: LinearClassifier) -> None:
        super().__init__(generator.shape, generator.num_classes, generator.latent_dim)
        self.generator = generator
        self.classifier = classifier

    def forward(self, latents: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """The generator's images, without rejection."""
        images: Tensor = self.generator(latents, labels)
        return images

    @torch.no_grad()
    def sample(self, labels: Int64[Tensor, " n"], random: torch.Generator) -> Float[Tensor, "n d"]:
        """One image per label."""
        images = self.generator.sample(labels, random)
        labels = labels.to(images.device)
        margins = self.classifier.margins(images, labels)
        for _ in range(_TRIES - 1):
            (rejected,) = torch.nonzero(margins < _MIN_MARGIN, as_tuple=True)
            if not len(rejected):
                break
            again = self.generator.sample(labels[rejected], random)
            new = self.classifier.margins(again, labels[rejected])
            better = new > margins[rejected]
            images[rejected[better]], margins[rejected[better]] = again[better], new[better]
        return images


class RefinedGenerator(Generator):
    """Moves images by T gradient steps on ⟨fields[t, class], φ(x)⟩, φ the scattering features; fields: (T, K, D)."""

    def __init__(self, generator: Generator, fields: Float[Tensor, "T K D"]) -> None:
        super().__init__(generator.shape, generator.num_classes, generator.latent_dim)
        self.generator = generator
        self.features = Scattering(generator.shape)
        self.fields = nn.Parameter(fields, requires_grad=False)

    def forward(self, latents: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Images in [-1, 1], one flat row per image."""
        return self._refined(self.generator(latents, labels), labels)

    @torch.no_grad()
    def sample(self, labels: Int64[Tensor, " n"], random: torch.Generator) -> Float[Tensor, "n d"]:
        """One image per label. The images that the generator returns are refined, not those that it rejects."""
        images = self.generator.sample(labels, random)
        return self._refined(images, labels.to(images.device))

    def _refined(self, images: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        images = images.to(torch.float32)
        for field in self.fields:
            gradients = self.features.gradients(images, field[labels])
            mask = (1.0 - images.square()).clamp(min=0.0)  # keeps black and white pixels
            images = (images - mask * gradients).clamp(-1.0, 1.0)
        return images
