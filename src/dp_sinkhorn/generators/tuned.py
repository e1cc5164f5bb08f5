"""The network of a release: a choice of latents, a generator, an affine map per class, a texture layer."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dp_sinkhorn.features.cosine import frequency_bands, from_frequencies, num_bands, to_frequencies
from dp_sinkhorn.features.scattering import num_features
from dp_sinkhorn.generators.base import Generator

AFFINE_TENSORS = ("basis", "maps", "gains", "shifts", "spreads")
"""The names of the affine map's tensors."""


CHOICE_TRIES = 5
"""Latents from which the choice takes one."""
_CHOICE_UNITS = 128
# Gradients of the mask √(1 − x²) divide by the mask, or by this bound where the mask is smaller.
_MIN_MASK = 0.1


class LatentChoice(nn.Module):
    """Takes the first of five latents with a predicted goodness of at least 0, or else the best of them.

    A network of two hidden layers predicts the goodness of an image from latent and class. So images that look like
    another class are avoided before they are made. Before training the goodness is 0 everywhere.

    Args:
        latent_dim: Numbers of one latent.
        classes: Number of classes.
    """

    def __init__(self, latent_dim: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(latent_dim, _CHOICE_UNITS)
        self.biases = nn.Embedding(classes, _CHOICE_UNITS)
        self.second = nn.Linear(_CHOICE_UNITS, _CHOICE_UNITS)
        self.last = nn.Linear(_CHOICE_UNITS, 1)
        for weight in (self.biases.weight, self.last.weight, self.last.bias):
            nn.init.zeros_(weight)

    def goodness(self, latents: Float[Tensor, "*n z"], labels: Int64[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Predicted goodness of the images of these latents."""
        units = F.silu(self.first(2.0 * latents - 1.0) + self.biases(labels))
        goodness: Tensor = self.last(F.silu(self.second(units))).squeeze(-1)
        return goodness

    def forward(self, latents: Float[Tensor, "n five_z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n z"]:
        """One of the five latents that each row of `latents` holds, one after the other."""
        candidates = latents.unflatten(1, (CHOICE_TRIES, -1))
        goodness = self.goodness(candidates, labels.unsqueeze(1).expand(-1, CHOICE_TRIES))
        earlier = torch.arange(CHOICE_TRIES, 0, -1, device=latents.device)
        best = torch.where(goodness >= 0.0, earlier, goodness).argmax(1)
        chosen: Tensor = candidates.gather(1, best.view(-1, 1, 1).expand(-1, 1, candidates.shape[2])).squeeze(1)
        return chosen


class AffineLayer(nn.Module):
    """Maps images x of class k to x + √(1 − x²) ⊙ (B·move + R·C·(gains[k] ⊙ CᵀR·x) + shifts[k]), clamped to [-1, 1].

    B is the basis and move = maps[k]ᵀ·Bᵀx + spreads[k]ᵀ·e. The noise e, of mean 0 and variance 1, adds variation in
    directions in which the generator has hardly any. R = 1 − B·Bᵀ projects onto the rest of the image. Cᵀ gives its
    cosine frequencies, each multiplied by the gain of its band.

    The mask √(1 − x²) keeps black and white pixels: without it blank backgrounds turn grey (Fréchet distance on MNIST
    197 instead of 64). Its slope is infinite there; gradients use a bounded one.

    Args:
        shape: (channels, height, width).
        basis: (d, r), orthonormal columns.
        maps: (K, r, r).
        gains: (K, b), one per band.
        shifts: (K, d).
        spreads: (K, r, r).
    """

    def __init__(
        self, shape: tuple[int, int, int], basis: Tensor, maps: Tensor, gains: Tensor, shifts: Tensor, spreads: Tensor
    ) -> None:
        super().__init__()
        self.shape = shape
        self.basis, self.maps, self.gains, self.shifts, self.spreads = (
            nn.Parameter(tensor, requires_grad=False) for tensor in (basis, maps, gains, shifts, spreads)
        )
        self.register_buffer("bands", frequency_bands(shape), persistent=False)

    @classmethod
    def identity(cls, shape: tuple[int, int, int], classes: int, dimensions: int) -> "AffineLayer":
        """The layer that leaves all images as they are."""
        pixels = math.prod(shape)
        sizes = (pixels, dimensions), (classes, dimensions, dimensions), (classes, num_bands(shape[0]))
        return cls(shape, *(torch.zeros(*size) for size in (*sizes, (classes, pixels), sizes[1])))

    def forward(
        self, images: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], noise: Float[Tensor, "n r"]
    ) -> Float[Tensor, "n d"]:
        """The mapped images. `noise`: e, of mean 0 and variance 1."""
        coordinates = images @ self.basis
        moves = _of_class(coordinates, self.maps, labels) + _of_class(noise, self.spreads, labels)
        bands: Tensor = self.bands  # type: ignore[assignment]
        rest = to_frequencies(images - coordinates @ self.basis.T, self.shape)
        gained = from_frequencies(rest * self.gains[labels][:, bands], self.shape)
        moves = moves - gained @ self.basis  # takes the subspace part of `gained` off
        return _add_masked(images, moves @ self.basis.T + gained + self.shifts[labels])


class TextureLayer(nn.Module):
    """Adds texture to images: three 3×3 convolutions of the image and a plane of noise, with biases of the class.

    Generators that enlarge smooth maps make little texture. Before training the layer adds nothing.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, channels: int) -> None:
        super().__init__()
        self.shape = shape
        self.first = nn.Conv2d(shape[0] + 1, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.biases = nn.Embedding(classes, 2 * channels)
        self.last = nn.Conv2d(channels, shape[0], 3, padding=1)
        for weight in (self.biases.weight, self.last.weight, self.last.bias):
            nn.init.zeros_(weight)  # type: ignore[arg-type]  # a convolution has a bias unless told otherwise

    def forward(
        self, images: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], noise: Float[Tensor, "n pixels"]
    ) -> Float[Tensor, "n d"]:
        """The images with texture. `noise`: uniform in [-1, 1], one number per pixel."""
        planes = torch.cat([images.view(-1, *self.shape), noise.view(-1, 1, *self.shape[1:])], dim=1)
        first, second = self.biases(labels)[:, :, None, None].chunk(2, dim=1)
        maps = F.leaky_relu(self.first(planes) + first, 0.2)
        maps = F.leaky_relu(self.second(maps) + second, 0.2)
        return _add_masked(images, self.last(maps).flatten(1))


class TunedGenerator(Generator):
    """A `LatentChoice`, a generator, an `AffineLayer` and a `TextureLayer` in sequence; each layer is optional.

    A latent holds the generator's latents (five with a choice), then one number per dimension of the affine map, then
    one per pixel of the texture's noise.

    Args:
        generator: The generator between the layers.
        dimensions: Dimensions of the affine map's subspace; 0: no affine map.
        channels: Maps of the texture layer; 0: no texture layer.
        choice: Whether there is a choice of latents.
        classifier: Whether to hold the weight of an `estimators.LinearClassifier`, which makes no images.
    """

    def __init__(
        self, generator: Generator, dimensions: int, channels: int, *, choice: bool, classifier: bool = False
    ) -> None:
        shape, classes = generator.shape, generator.num_classes
        chosen_from = generator.latent_dim * (CHOICE_TRIES if choice else 1)
        self.sizes = (chosen_from, dimensions, shape[1] * shape[2] if channels else 0)
        super().__init__(shape, classes, sum(self.sizes))
        self.generator = generator
        self.normalises_by_batch = generator.normalises_by_batch
        self.choice = LatentChoice(generator.latent_dim, classes) if choice else None
        self.affine = AffineLayer.identity(shape, classes, dimensions) if dimensions else None
        self.texture = TextureLayer(shape, classes, channels) if channels else None
        weight = torch.zeros(classes, num_features(shape))
        self.classifier = nn.Parameter(weight, requires_grad=False) if classifier else None

    def trainable(self) -> list[nn.Module]:
        """The networks that fine-tuning trains: generator and texture. Choice and affine map stay fixed."""
        return [network for network in (self.generator, self.texture) if network is not None]

    def forward(self, latents: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Images in [-1, 1], one flat row per image."""
        inner, affine_noise, texture_noise = latents.split(self.sizes, dim=1)
        kind = latents.device.type
        if self.choice is not None:
            with torch.autocast(kind, enabled=False):  # the choice is the same in any precision
                inner = self.choice(inner, labels)
        images: Tensor = self.generator(inner, labels)
        # Full precision, since the layers may add little to an image.
        with torch.autocast(kind, enabled=False):
            images = images.float()
            if self.affine is not None:
                images = self.affine(images, labels, (affine_noise - 0.5) * math.sqrt(12.0))
            if self.texture is not None:
                images = self.texture(images, labels, 2.0 * texture_noise - 1.0)
        return images


def _of_class(
    rows: Float[Tensor, "n r"], matrices: Float[Tensor, "K r r"], labels: Int64[Tensor, " n"]
) -> Float[Tensor, "n r"]:
    """Multiply each row by the matrix of its class, in one product of rows that are zero at all other classes."""
    places = F.one_hot(labels, len(matrices)).to(rows.dtype)
    return torch.einsum("nk,nr->nkr", places, rows).flatten(1) @ matrices.flatten(0, 1)


def _add_masked(images: Float[Tensor, "n d"], moves: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Add √(1 − x²) ⊙ moves to images x and clamp to [-1, 1]."""
    inside = (1.0 - images.square()).clamp(min=0.0)
    mask = inside.detach().sqrt()
    if images.requires_grad:  # the same value, with the slope −x / max(√(1 − x²), _MIN_MASK)
        sloped = inside / (2.0 * mask.clamp(min=_MIN_MASK))
        mask = mask + (sloped - sloped.detach())
    return (images + mask * moves).clamp(-1.0, 1.0)
