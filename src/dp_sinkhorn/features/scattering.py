"""Wavelet scattering: untrained image features, which cost no privacy.

Two layers of Morlet wavelets and moduli, with two scales (J = 2) and eight orientations (Bruna and Mallat 2013,
"Invariant scattering convolution networks"). Under differential privacy a linear classifier on these features beats a
network on pixels (Tramèr and Boneh 2021, "Differentially private learning needs better features (or much more data)").
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float16, Float64
from torch import Tensor, nn

from dp_sinkhorn.data.images import LabelledImages

_ORIENTATIONS = 8
_SIGMA, _FREQUENCY, _SLANT = 0.8, 3.0 * math.pi / 4.0, 4.0 / _ORIENTATIONS  # of the finest wavelet
_MIN_VARIANCE = 1e-8  # of a group of maps, so that a blank group gives zeros
_EPSILON = 1e-12  # added to squared moduli, for a finite gradient at 0
_BIAS = 0.3
_FIRST_MAPS, _SECOND_MAPS = 1 + 2 * _ORIENTATIONS, _ORIENTATIONS**2
_BLOCK = 4
_CHUNK_PIXELS = 16_000  # pixels per pass; more do not fit the processor's cache and take three times as long


class Scattering(nn.Module):
    """Maps images in [-1, 1] to features of norm at most 1.

    The mean of the channels gives 1 + 8 + 8 + 64 maps: the smoothed image, two scales of the first layer, and the
    second layer. Every channel but the last gives 1 + 8 + 8 maps of its difference from the mean. All maps have a
    quarter of the resolution. Each group of maps (the smoothed image, a scale of the first layer, the eight
    second-layer maps of one first-layer map) is scaled to mean 0 and variance 1 within the image. The last feature is
    constant, for a bias.

    Args:
        shape: (channels, height, width), sides of 8 to 64.
        layers: 2, or 1 to leave out the second layer, in less than half the time.
    """

    def __init__(self, shape: tuple[int, int, int], layers: int = 2) -> None:
        super().__init__()
        self.shape, self.layers = shape, layers
        sides = {"rows": shape[1], "columns": shape[2]}
        fine, coarse = (_wavelets(scale) for scale in range(2))
        for name, tensor in (
            ("fine", fine),
            ("coarse", coarse),
            ("fine_shifted", _shifted(fine)),
            ("coarse_shifted", _shifted(coarse)),
            *((f"quartering_{axis}", _smoothing(side, 1.6, 4)) for axis, side in sides.items()),
            *((f"halving_{axis}", _smoothing(side, 0.8, 2)) for axis, side in sides.items()),
            *((f"again_{axis}", _smoothing(math.ceil(side / 2), 0.8, 2)) for axis, side in sides.items()),
        ):
            self.register_buffer(name, tensor, persistent=False)

    @property
    def num_features(self) -> int:
        """Number D of features, including the constant."""
        return num_features(self.shape, self.layers)

    def forward(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n D"]:
        """Features of flat images, in the images' precision; differentiable.

        Guarantees, to float rounding: an image's features depend on that image alone and have norm at most 1.
        """
        rows = [self._features(chunk) for chunk in images.split(self._chunk) if len(chunk)]
        return torch.cat(rows) if rows else images.new_zeros(0, self.num_features)

    def gradients(self, images: Float[Tensor, "n d"], directions: Float[Tensor, "n D"]) -> Float[Tensor, "n d"]:
        """The gradient of ⟨direction_i, features(x_i)⟩ at each image x_i."""
        rows = []
        with torch.enable_grad():
            for chunk, direction in zip(images.split(self._chunk), directions.split(self._chunk), strict=True):
                at = chunk.detach().requires_grad_()
                if len(chunk):
                    rows += torch.autograd.grad((self._features(at) * direction).sum(), at)
        return torch.cat(rows) if rows else torch.zeros_like(images)

    @property
    def _chunk(self) -> int:
        return max(1, _CHUNK_PIXELS // (self.shape[1] * self.shape[2]))

    def _features(self, images: Tensor) -> Tensor:
        planes = images.view(-1, *self.shape)
        mean = planes.mean(1, keepdim=True)
        groups = self._layers(mean, second=self.layers == 2)
        for channel in range(self.shape[0] - 1):
            groups += self._layers(planes[:, channel : channel + 1] - mean, second=False)
        scaled = [_standardised(group) for group in groups]
        features = torch.cat([group.flatten(1) for group in scaled], dim=1)
        bias = features.new_full((len(features), 1), _BIAS)
        return torch.cat([features / math.sqrt(features.shape[1]), bias], dim=1) / math.sqrt(1.0 + _BIAS**2)

    def _layers(self, plane: Float[Tensor, "n 1 h w"], *, second: bool) -> list[Tensor]:
        """Groups of smoothed maps, at a quarter of the resolution."""
        fine, coarse = self._modulus(plane, "fine"), self._modulus(plane, "coarse")
        groups = [self._smoothed(maps, "quartering") for maps in (plane, fine, coarse)]
        if second:
            # The coarse wavelets are the fine ones at half the resolution.
            halved = self._smoothed(fine, "halving")
            maps = halved.flatten(0, 1).unsqueeze(1)
            again = self._modulus(maps, "fine").view(len(plane), -1, *halved.shape[2:])
            groups += self._smoothed(again, "again").split(_ORIENTATIONS, dim=1)
        return groups

    def _smoothed(self, maps: Float[Tensor, "n c h w"], name: str) -> Tensor:
        rows, columns = (self._filter(f"{name}_{axis}", maps) for axis in ("rows", "columns"))
        return rows @ maps @ columns.T

    def _modulus(self, plane: Float[Tensor, "n 1 h w"], name: str) -> Float[Tensor, "n orientations h w"]:
        filters, shifted = self._filter(name, plane), getattr(self, f"{name}_shifted")
        both: Tensor = _Convolution.apply(_padded(plane, filters), filters, shifted)  # type: ignore[no-untyped-call]
        real, imaginary = both.split(_ORIENTATIONS, dim=1)
        modulus: Tensor = (real.square() + imaginary.square() + _EPSILON).sqrt()
        return modulus

    def _filter(self, name: str, like: Tensor) -> Tensor:
        filters: Tensor = getattr(self, name)
        return filters.to(like)


@dataclass(frozen=True)
class ScatteringView:
    """The scattering features of records, computed in float64 and stored in float16.

    Take norms and sums of the stored values, in float64.

    Guarantees: each row is a function of its own record.
    """

    name: str = "scattering"

    def __call__(self, images: LabelledImages) -> Float16[Tensor, "N D"]:
        """The features of all images."""
        scattering = Scattering(images.shape)
        features = torch.empty(len(images), scattering.num_features, dtype=torch.float16)
        with torch.no_grad():
            first = 0
            for chunk in images.float_chunks():
                features[first : first + len(chunk)] = scattering(chunk.to(torch.float64))
                first += len(chunk)
        return features


SCATTERING = ScatteringView()
"""The features of records that all stages share."""


def num_features(shape: tuple[int, int, int], layers: int = 2) -> int:
    """Number D of features of `Scattering(shape, layers)`."""
    channels, height, width = shape
    maps = channels * _FIRST_MAPS + (_SECOND_MAPS if layers == 2 else 0)
    return maps * math.ceil(height / 4) * math.ceil(width / 4) + 1


def first_layer(features: Float[Tensor, "n D"], shape: tuple[int, int, int]) -> Float[Tensor, "n D1"]:
    """The features of `Scattering(shape, layers=1)`, selected from those of both layers."""
    area = math.prod(map_shape(shape)[1:])
    of_mean, of_differences = features[:, : _FIRST_MAPS * area], features[:, (_FIRST_MAPS + _SECOND_MAPS) * area : -1]
    scale = math.sqrt((features.shape[1] - 1) / (of_mean.shape[1] + of_differences.shape[1]))
    return torch.cat([of_mean * scale, of_differences * scale, features[:, -1:]], dim=1)


def map_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(maps, height, width) of all features except the last, the constant."""
    height, width = (math.ceil(side / 4) for side in shape[1:])
    return (num_features(shape) - 1) // (height * width), height, width


def _wavelets(scale: int) -> Float64[Tensor, "two_orientations 1 k k"]:
    """Real parts, then imaginary parts, of the Morlet wavelets at 2^scale times the finest scale."""
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
        # Without its mean the wavelet does not respond to constant brightness.
        filters.append(envelope * (wave - (envelope * wave).sum() / envelope.sum()) * _SLANT / (2 * math.pi * sigma**2))
    complex_filters = torch.stack(filters)
    return torch.cat([complex_filters.real, complex_filters.imag]).unsqueeze(1)


def _smoothing(size: int, sigma: float, stride: int) -> Float64[Tensor, "fewer size"]:
    """The matrix that smooths a line of `size` pixels, mirrored at its ends, and keeps every `stride`-th value."""
    reach = math.ceil(2.5 * sigma)
    offset = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-offset.square() / (2.0 * sigma**2))
    lines = F.pad(torch.eye(size, dtype=torch.float64).unsqueeze(1), (reach, reach), mode="reflect")
    return F.conv1d(lines, (weights / weights.sum())[None, None], stride=stride).squeeze(1).T


class _Convolution(torch.autograd.Function):
    """`conv2d` of planes (n, 1, h, w) and filters (m, 1, k, k), with a fast gradient with respect to the planes.

    PyTorch's own gradient takes ten times as long as the convolution: its kernels are fast for many output channels,
    and a plane is one channel. Here a block of 4×4 pixels is one position of 16 output channels.
    """

    @staticmethod
    def forward(ctx: Any, planes: Tensor, filters: Tensor, shifted: Tensor) -> Tensor:
        ctx.save_for_backward(shifted)
        return F.conv2d(planes, filters)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        shifted = ctx.saved_tensors[0].to(gradient)
        size = shifted.shape[-1] - _BLOCK + 1
        height, width = (length + size - 1 for length in gradient.shape[2:])
        below, right = (size - 1 - length % -_BLOCK for length in (height, width))
        blocks = F.conv2d(F.pad(gradient, (size - 1, right, size - 1, below)), shifted, stride=_BLOCK)
        return F.pixel_shuffle(blocks, _BLOCK)[:, :, :height, :width], None, None


def _shifted(filters: Float64[Tensor, "m 1 k k"]) -> Float64[Tensor, "16 m side side"]:
    """The flipped filters at each position of a block, for the gradient of `_Convolution`."""
    size, side = filters.shape[-1], filters.shape[-1] + _BLOCK - 1
    places = filters.new_zeros(_BLOCK, _BLOCK, len(filters), side, side)
    for down, across in product(range(_BLOCK), repeat=2):
        places[down, across, :, down : down + size, across : across + size] = filters.flip(2, 3)[:, 0]
    return places.flatten(0, 1)


def _padded(maps: Tensor, filters: Tensor) -> Tensor:
    return F.pad(maps, (filters.shape[-1] // 2,) * 4, mode="reflect")


def _standardised(maps: Tensor) -> Tensor:
    """Scale all maps of a group together to mean 0 and variance 1, image by image."""
    rows = maps.flatten(1)
    variance, mean = torch.var_mean(rows, dim=1, keepdim=True, correction=0)
    return (rows - mean) / (variance + _MIN_VARIANCE).sqrt()
