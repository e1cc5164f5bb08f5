"""A generator whose images are moved by an affine map of their class."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dp_sinkhorn.features.cosine import frequency_bands, from_frequencies, to_frequencies
from dp_sinkhorn.generators.base import Generator

CORRECTION_TENSORS = ("basis", "maps", "gains", "shifts", "spreads")
"""The names of the map's tensors."""


class CorrectedGenerator(Generator):
    """Images x of class k become x + √(1 − x²) ⊙ (B·moved + R·C·(gains[k] ⊙ CᵀR·x) + shifts[k]), cut to ±1.

    B is the basis and moved = maps[k]ᵀ·Bᵀx + spreads[k]·e, where e are latents of the correction's own, of mean 0 and
    variance 1: variation in directions in which the generator has hardly any. R = 1 − B·Bᵀ takes the rest of an image,
    and Cᵀ takes its cosine frequencies, each with the gain of its band. The factor leaves pixels that are quite black
    or white as they are: without it blank backgrounds turn grey (Fréchet distance on MNIST 197 instead of 64).

    Args:
        basis: (d, r). maps: (K, r, r). gains: (K, b), one a band. shifts: (K, d). spreads: (K, r, r).
    """

    def __init__(
        self, generator: Generator, basis: Tensor, maps: Tensor, gains: Tensor, shifts: Tensor, spreads: Tensor
    ) -> None:
        super().__init__(generator.shape, generator.num_classes, generator.latent_dim + basis.shape[1])
        self.generator = generator
        self.basis, self.maps, self.gains, self.shifts, self.spreads = (
            nn.Parameter(tensor, requires_grad=False) for tensor in (basis, maps, gains, shifts, spreads)
        )
        self.register_buffer("bands", frequency_bands(generator.shape), persistent=False)

    def forward(self, latents: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Images in [-1, 1], one flat row each."""
        inner, own = latents.split([self.generator.latent_dim, self.basis.shape[1]], dim=1)
        return self.move(self.generator(inner, labels), labels, (own - 0.5) * math.sqrt(12.0))

    def move(
        self, images: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], own: Float[Tensor, "n r"]
    ) -> Float[Tensor, "n d"]:
        """The corrected images. `own`: e, of mean 0 and variance 1."""
        coordinates = images @ self.basis
        moves = torch.empty_like(coordinates)
        for label in labels.unique().tolist():
            of_class = labels == label
            moves[of_class] = coordinates[of_class] @ self.maps[label] + own[of_class] @ self.spreads[label]
        bands: Tensor = self.bands  # type: ignore[assignment]
        rest = to_frequencies(images - coordinates @ self.basis.T, self.shape)
        gained = from_frequencies(rest * self.gains[labels][:, bands], self.shape)
        moves = moves - gained @ self.basis  # what the gained rest has in the subspace is taken off again
        room = (1.0 - images.square()).clamp(min=0.0).sqrt()
        return (images + room * (moves @ self.basis.T + gained + self.shifts[labels])).clamp(-1.0, 1.0)
