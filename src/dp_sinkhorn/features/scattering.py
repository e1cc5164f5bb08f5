"""Wavelet scattering: image features that need no training, so they cost no privacy and look at no data.

Two scales (J = 2) and eight orientations of Morlet wavelets, moduli, and one more layer of the same (Bruna and
Mallat 2013, "Invariant scattering convolution networks"): where in the image, at which scale and direction, something
changes, and how regularly. On such features a linear classifier learns under differential privacy what a network on
pixels does not (Tramèr and Boneh 2021, "Differentially private learning needs better features (or much more data)").
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
_MIN_VARIANCE = 1e-8  # of a group of maps: a blank one gives zeros
_NOTHING = 1e-12  # a modulus of 0 has a gradient
_BIAS = 0.3
_FIRST_MAPS, _SECOND_MAPS = 1 + 2 * _ORIENTATIONS, _ORIENTATIONS**2
_BLOCK = 4
_CHUNK_PIXELS = 16_000  # more at a time leave the processor's cache: three times slower


class Scattering(nn.Module):
    """Images in [-1, 1] → features of norm at most 1.

    An image's channels are taken apart into their mean and the differences from it. The mean gives 1 + 8 + 8 + 64 maps
    (smoothed, two scales, two layers), each difference 1 + 8 + 8, all at a quarter of the resolution. Groups of maps
    (each first-layer scale; the eight second-layer maps behind one first-layer map) are scaled to mean 0 and variance
    1 within the image; a constant feature stands for the bias.

    Args:
        shape: (channels, height, width), sides of 8 to 64.
        layers: 2, or 1: without the second layer, for less than half of the time.
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
        """D, the bias included."""
        return num_features(self.shape, self.layers)

    def forward(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n D"]:
        """Features of flat images, in the images' precision.

        Guarantees: an image's features depend on that image alone (to float rounding), and have norm at most 1 (to
        float rounding).
        """
        rows = [self._features(chunk) for chunk in images.split(self._chunk) if len(chunk)]
        return torch.cat(rows) if rows else images.new_zeros(0, self.num_features)

    def gradients(self, images: Float[Tensor, "n d"], directions: Float[Tensor, "n D"]) -> Float[Tensor, "n d"]:
        """The gradient of ⟨direction, features⟩ at each image."""
        rows = []
        with torch.enable_grad():
            for chunk, along in zip(images.split(self._chunk), directions.split(self._chunk), strict=True):
                at = chunk.detach().requires_grad_()
                if len(chunk):
                    rows += torch.autograd.grad((self._features(at) * along).sum(), at)
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
        """Groups of smoothed maps, a quarter of the resolution."""
        fine, coarse = self._modulus(plane, "fine"), self._modulus(plane, "coarse")
        groups = [self._smoothed(maps, "quartering") for maps in (plane, fine, coarse)]
        if second:
            # At half the resolution the fine wavelets are the coarse ones.
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
        modulus: Tensor = (real.square() + imaginary.square() + _NOTHING).sqrt()
        return modulus

    def _filter(self, name: str, like: Tensor) -> Tensor:
        filters: Tensor = getattr(self, name)
        return filters.to(like)


@dataclass(frozen=True)
class ScatteringView:
    """The features of records, computed image by image in float64 and rounded: each a function of one record.

    Norms and sums are to be taken of what is kept, in float64.
    """

    name: str = "scattering"

    def __call__(self, images: LabelledImages) -> Float16[Tensor, "N D"]:
        """Of all these images."""
        scattering = Scattering(images.shape)
        features = torch.empty(len(images), scattering.num_features, dtype=torch.float16)
        with torch.no_grad():
            first = 0
            for chunk in images.float_chunks():
                features[first : first + len(chunk)] = scattering(chunk.to(torch.float64))
                first += len(chunk)
        return features


SCATTERING = ScatteringView()
"""The view of the records that all stages share."""


def num_features(shape: tuple[int, int, int], layers: int = 2) -> int:
    """D of `Scattering(shape, layers)`."""
    channels, height, width = shape
    maps = channels * _FIRST_MAPS + (_SECOND_MAPS if layers == 2 else 0)
    return maps * math.ceil(height / 4) * math.ceil(width / 4) + 1


def first_layer(features: Float[Tensor, "n D"], shape: tuple[int, int, int]) -> Float[Tensor, "n D1"]:
    """What `Scattering(shape, layers=1)` gives, from features of both layers."""
    area = math.prod(map_shape(shape)[1:])
    own, others = features[:, : _FIRST_MAPS * area], features[:, (_FIRST_MAPS + _SECOND_MAPS) * area : -1]
    longer = math.sqrt((features.shape[1] - 1) / (own.shape[1] + others.shape[1]))
    return torch.cat([own * longer, others * longer, features[:, -1:]], dim=1)


def map_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(maps, height, width) of all features but the last, which is the bias."""
    height, width = (math.ceil(side / 4) for side in shape[1:])
    return (num_features(shape) - 1) // (height * width), height, width


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


def _smoothing(size: int, sigma: float, stride: int) -> Float64[Tensor, "fewer size"]:
    """What takes a line of `size` pixels to every `stride`-th of its Gaussian averages, mirrored at the ends."""
    reach = math.ceil(2.5 * sigma)
    offset = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-offset.square() / (2.0 * sigma**2))
    lines = F.pad(torch.eye(size, dtype=torch.float64).unsqueeze(1), (reach, reach), mode="reflect")
    return F.conv1d(lines, (weights / weights.sum())[None, None], stride=stride).squeeze(1).T


class _Convolution(torch.autograd.Function):
    """Planes by filters, (n, 1, h, w) and (m, 1, k, k), like `conv2d`, with a gradient of the planes.

    PyTorch takes ten times as long for that gradient as for the convolution: its kernels are fast where there are many
    output channels, and a plane is one. So a block of 4×4 pixels is one output place of 16 channels here.
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
    """The flipped filters at each place of a block, what `_Convolution` takes gradients by."""
    size, side = filters.shape[-1], filters.shape[-1] + _BLOCK - 1
    places = filters.new_zeros(_BLOCK, _BLOCK, len(filters), side, side)
    for down, across in product(range(_BLOCK), repeat=2):
        places[down, across, :, down : down + size, across : across + size] = filters.flip(2, 3)[:, 0]
    return places.flatten(0, 1)


def _padded(maps: Tensor, filters: Tensor) -> Tensor:
    return F.pad(maps, (filters.shape[-1] // 2,) * 4, mode="reflect")


def _standardised(maps: Tensor) -> Tensor:
    """All the maps of the group together: mean 0, variance 1, image by image."""
    rows = maps.flatten(1)
    variance, mean = torch.var_mean(rows, dim=1, keepdim=True, correction=0)
    return (rows - mean) / (variance + _MIN_VARIANCE).sqrt()
