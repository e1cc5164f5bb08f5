"""The network that is handed out: a choice of latents, a generator, an affine map of each class, texture."""

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
"""Latents of which the choice takes one."""
_CHOICE_UNITS = 128
# Gradients take √(1 − x²) to be as steep as it is where it is this large, and no steeper.
_LEAST_ROOM = 0.1


class LatentChoice(nn.Module):
    """Takes the first of five latents whose image is said to be good enough, or else the one of the best image.

    A network of two hidden layers says how good the image of a latent and a class is: good enough from 0 on. So images
    that look like another class are left out before they are made. A new one finds every image good enough.

    Args:
        latent_dim: Of one latent.
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
        """Of the images of these latents."""
        units = F.silu(self.first(2.0 * latents - 1.0) + self.biases(labels))
        goodness: Tensor = self.last(F.silu(self.second(units))).squeeze(-1)
        return goodness

    def forward(self, latents: Float[Tensor, "n several"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n z"]:
        """One of each row's latents, which stand one after the other."""
        several = latents.unflatten(1, (CHOICE_TRIES, -1))
        goodness = self.goodness(several, labels.unsqueeze(1).expand(-1, CHOICE_TRIES))
        earlier = torch.arange(CHOICE_TRIES, 0, -1, device=latents.device)
        best = torch.where(goodness >= 0.0, earlier, goodness).argmax(1)
        chosen: Tensor = several.gather(1, best.view(-1, 1, 1).expand(-1, 1, several.shape[2])).squeeze(1)
        return chosen


class AffineLayer(nn.Module):
    """Images x of class k become x + √(1 − x²) ⊙ (B·moved + R·C·(gains[k] ⊙ CᵀR·x) + shifts[k]), cut to ±1.

    B is the basis and moved = maps[k]ᵀ·Bᵀx + spreads[k]·e, where e has mean 0 and variance 1: variation in directions
    in which the generator has hardly any. R = 1 − B·Bᵀ takes the rest of an image, and Cᵀ takes its cosine frequencies,
    each with the gain of its band. The factor leaves black and white pixels as they are: without it blank backgrounds
    turn grey (Fréchet distance on MNIST 197 instead of 64). Its slope is infinite there; gradients take it as bounded.

    Args:
        shape: (channels, height, width). basis: (d, r). maps: (K, r, r). gains: (K, b), one a band. shifts: (K, d).
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
        """Nothing moves."""
        pixels = math.prod(shape)
        sizes = (pixels, dimensions), (classes, dimensions, dimensions), (classes, num_bands(shape[0]))
        return cls(shape, *(torch.zeros(*size) for size in (*sizes, (classes, pixels), sizes[1])))

    def forward(
        self, images: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], own: Float[Tensor, "n r"]
    ) -> Float[Tensor, "n d"]:
        """The images moved. `own`: e."""
        coordinates = images @ self.basis
        moves = _of_class(coordinates, self.maps, labels) + _of_class(own, self.spreads, labels)
        bands: Tensor = self.bands  # type: ignore[assignment]
        rest = to_frequencies(images - coordinates @ self.basis.T, self.shape)
        gained = from_frequencies(rest * self.gains[labels][:, bands], self.shape)
        moves = moves - gained @ self.basis  # what the gained rest has in the subspace is taken off again
        return _moved(images, moves @ self.basis.T + gained + self.shifts[labels])


class TextureLayer(nn.Module):
    """Adds a residual to images: three 3×3 convolutions of the image and a plane of noise, biased by the class.

    A generator that enlarges smooth maps has little texture of its own.
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
        """The images with texture. `noise`: uniform in [-1, 1]."""
        planes = torch.cat([images.view(-1, *self.shape), noise.view(-1, 1, *self.shape[1:])], dim=1)
        first, second = self.biases(labels)[:, :, None, None].chunk(2, dim=1)
        maps = F.leaky_relu(self.first(planes) + first, 0.2)
        maps = F.leaky_relu(self.second(maps) + second, 0.2)
        return _moved(images, self.last(maps).flatten(1))


class TunedGenerator(Generator):
    """A generator after a `LatentChoice`, before an `AffineLayer` and a `TextureLayer`, each of which may be missing.

    Its latents are those that the choice takes from, then one a dimension of the affine map, then one a pixel of the
    texture's noise.

    Args:
        choice: Whether there is one. dimensions: Of the subspace of the affine map; 0: there is none. channels: Maps of
            the texture; 0: none. classifier: Whether the weight of an `estimators.LinearClassifier` is kept beside
            them: it makes no image.
    """

    def __init__(
        self, generator: Generator, dimensions: int, channels: int, *, choice: bool, classifier: bool = False
    ) -> None:
        shape, classes = generator.shape, generator.num_classes
        several = generator.latent_dim * (CHOICE_TRIES if choice else 1)
        self.sizes = (several, dimensions, shape[1] * shape[2] if channels else 0)
        super().__init__(shape, classes, sum(self.sizes))
        self.generator = generator
        self.normalises_by_batch = generator.normalises_by_batch
        self.choice = LatentChoice(generator.latent_dim, classes) if choice else None
        self.affine = AffineLayer.identity(shape, classes, dimensions) if dimensions else None
        self.texture = TextureLayer(shape, classes, channels) if channels else None
        weight = torch.zeros(classes, num_features(shape))
        self.classifier = nn.Parameter(weight, requires_grad=False) if classifier else None

    def trainable(self) -> list[nn.Module]:
        """The networks in it that make images. Choice and affine map stay as they were found."""
        return [network for network in (self.generator, self.texture) if network is not None]

    def forward(self, latents: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Images in [-1, 1], one flat row each."""
        inner, own, noise = latents.split(self.sizes, dim=1)
        kind = latents.device.type
        if self.choice is not None:
            with torch.autocast(kind, enabled=False):  # the same choice in any precision
                inner = self.choice(inner, labels)
        images: Tensor = self.generator(inner, labels)
        # In full precision: what is added to an image is small.
        with torch.autocast(kind, enabled=False):
            images = images.float()
            if self.affine is not None:
                images = self.affine(images, labels, (own - 0.5) * math.sqrt(12.0))
            if self.texture is not None:
                images = self.texture(images, labels, 2.0 * noise - 1.0)
        return images


def _of_class(
    rows: Float[Tensor, "n r"], matrices: Float[Tensor, "K r r"], labels: Int64[Tensor, " n"]
) -> Float[Tensor, "n r"]:
    """Each row by the matrix of its class: one product, of rows that are zero but at the place of the class."""
    places = F.one_hot(labels, len(matrices)).to(rows.dtype)
    return torch.einsum("nk,nr->nkr", places, rows).flatten(1) @ matrices.flatten(0, 1)


def _moved(images: Float[Tensor, "n d"], moves: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    inside = (1.0 - images.square()).clamp(min=0.0)
    room = inside.detach().sqrt()
    if images.requires_grad:  # √(1 − x²) with its own slope, −x / √(1 − x²), where that is bounded; the same value
        sloped = inside / (2.0 * room.clamp(min=_LEAST_ROOM))
        room = room + (sloped - sloped.detach())
    return (images + room * moves).clamp(-1.0, 1.0)
