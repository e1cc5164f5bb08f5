"""Wavelet scattering: image features that need no training, so they cost no privacy and look at no data.

Two scales (J = 2) and eight orientations of Morlet wavelets, moduli, and one more layer of the same (Bruna and
Mallat 2013, "Invariant scattering convolution networks"): where in the image, at which scale and direction, something
changes, and how regularly. On such features a linear classifier learns under differential privacy what a network on
pixels does not (Tramèr and Boneh 2021, "Differentially private learning needs better features (or much more data)").
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor, nn

_ORIENTATIONS = 8
_SIGMA, _FREQUENCY, _SLANT = 0.8, 3.0 * math.pi / 4.0, 4.0 / _ORIENTATIONS  # of the finest wavelet
_MIN_VARIANCE = 1e-8  # of a group of maps: a blank one gives zeros
_BIAS = 0.3
_CHUNK = 20  # more images at a time leave the processor's cache: three times slower


class Scattering(nn.Module):
    """Images in [-1, 1] → features of norm at most 1.

    An image's channels are taken apart into their mean and the differences from it. The mean gives 1 + 8 + 8 + 64 maps
    (smoothed, two scales, two layers), each difference 1 + 8 + 8, all at a quarter of the resolution. Groups of maps
    (each first-layer scale; the eight second-layer maps behind one first-layer map) are scaled to mean 0 and variance
    1 within the image; a constant feature stands for the bias.

    Args:
        shape: (channels, height, width), sides of 8 to 64.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape
        for name, tensor in (
            ("fine", _wavelets(scale=0)),
            ("coarse", _wavelets(scale=1)),
            ("halving", _gaussian(0.8)),
            ("quartering", _gaussian(1.6)),
        ):
            self.register_buffer(name, tensor, persistent=False)

    @property
    def num_features(self) -> int:
        """D, the bias included."""
        return num_features(self.shape)

    def forward(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n D"]:
        """Features of flat images, in the images' precision.

        Guarantees: an image's features depend on that image alone (to float rounding), and have norm at most 1 (to
        float rounding).
        """
        rows = [self._features(chunk) for chunk in images.split(_CHUNK)]
        return torch.cat(rows) if rows else images.new_zeros(0, self.num_features)

    def _features(self, images: Tensor) -> Tensor:
        planes = images.view(-1, *self.shape)
        mean = planes.mean(1, keepdim=True)
        groups = self._layers(mean, second=True)
        for channel in range(self.shape[0] - 1):
            groups += self._layers(planes[:, channel : channel + 1] - mean, second=False)
        scaled = [_standardised(group) for group in groups]
        features = torch.cat([group.flatten(1) for group in scaled], dim=1)
        bias = features.new_full((len(features), 1), _BIAS)
        return torch.cat([features / math.sqrt(features.shape[1]), bias], dim=1) / math.sqrt(1.0 + _BIAS**2)

    def _layers(self, plane: Float[Tensor, "n 1 h w"], *, second: bool) -> list[Tensor]:
        """Groups of smoothed maps, a quarter of the resolution."""
        fine, coarse = _modulus(plane, self._filter("fine", plane)), _modulus(plane, self._filter("coarse", plane))
        smooth = self._filter("quartering", plane)
        groups = [_smoothed(maps, smooth, 4) for maps in (plane, fine, coarse)]
        if second:
            # At half the resolution the fine wavelets are the coarse ones.
            halved = _smoothed(fine, self._filter("halving", plane), 2)
            maps = halved.flatten(0, 1).unsqueeze(1)
            again = _modulus(maps, self._filter("fine", plane)).view(len(plane), -1, *halved.shape[2:])
            groups += _smoothed(again, self._filter("halving", plane), 2).split(_ORIENTATIONS, dim=1)
        return groups

    def _filter(self, name: str, like: Tensor) -> Tensor:
        filters: Tensor = getattr(self, name)
        return filters.to(like)


def num_features(shape: tuple[int, int, int]) -> int:
    """D of `Scattering(shape)`."""
    channels, height, width = shape
    first = 1 + 2 * _ORIENTATIONS
    maps = first + _ORIENTATIONS**2 + (channels - 1) * first
    return maps * math.ceil(height / 4) * math.ceil(width / 4) + 1


def _wavelets(scale: int) -> Float64[Tensor, "two_orientations 1 k k"]:
    """Real parts, then imaginary parts, of Morlet wavelets that are 2^scale times the finest."""
    sigma, frequency = _SIGMA * 2.0**scale, _FREQUENCY / 2.0**scale
    reach = math.ceil(3.0 * sigma)
    offset = torch.arange(-reach, reach + 1, dtype=torch.float64)
    y, x = torch.meshgrid(offset, offset, indexing="ij")
    filters = []
    for turn in range(_ORIENTATIONS):
        angle = math.pi * turn / _ORIENTATIONS
        along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        envelope = torch.exp(-(along.square() + (_SLANT * across).square()) / (2.0 * sigma**2))
        wave = torch.polar(torch.ones_like(along), frequency * along)
        # The constant taken off makes the wavelet blind to brightness.
        filters.append(envelope * (wave - (envelope * wave).sum() / envelope.sum()) * _SLANT / (2 * math.pi * sigma**2))
    complex_filters = torch.stack(filters)
    return torch.cat([complex_filters.real, complex_filters.imag]).unsqueeze(1)


def _gaussian(sigma: float) -> Float64[Tensor, "1 1 k k"]:
    offset = torch.arange(-math.ceil(2.5 * sigma), math.ceil(2.5 * sigma) + 1, dtype=torch.float64)
    line = torch.exp(-offset.square() / (2.0 * sigma**2))
    line /= line.sum()
    return torch.outer(line, line)[None, None]


def _modulus(plane: Float[Tensor, "n 1 h w"], filters: Tensor) -> Float[Tensor, "n orientations h w"]:
    real, imaginary = F.conv2d(_padded(plane, filters), filters).split(_ORIENTATIONS, dim=1)
    modulus: Tensor = (real.square() + imaginary.square()).sqrt()
    return modulus


def _smoothed(maps: Float[Tensor, "n c h w"], gaussian: Tensor, stride: int) -> Tensor:
    single = maps.flatten(0, 1).unsqueeze(1)
    smooth: Tensor = F.conv2d(_padded(single, gaussian), gaussian, stride=stride).squeeze(1)
    return smooth.view(*maps.shape[:2], *smooth.shape[1:])


def _padded(maps: Tensor, filters: Tensor) -> Tensor:
    return F.pad(maps, (filters.shape[-1] // 2,) * 4, mode="reflect")


def _standardised(maps: Tensor) -> Tensor:
    """All the maps of the group together: mean 0, variance 1, image by image."""
    rows = maps.flatten(1)
    variance, mean = torch.var_mean(rows, dim=1, keepdim=True, correction=0)
    return (rows - mean) / (variance + _MIN_VARIANCE).sqrt()
