"""The orthonormal discrete cosine transform (DCT-II) of images, after an orthonormal change of colour axes."""

import math

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

_BANDS_A_SIDE = 10
_BANDS_A_COLOUR = math.ceil(_BANDS_A_SIDE * 2**0.5)
# Rows: brightness, red-green, yellow-blue. In natural images these axes are nearly independent, and brightness holds
# most of the detail (Ruderman, Cronin and Chiao 1998, "Statistics of cone responses to natural images").
_OPPONENT = ((1.0, 1.0, 1.0), (1.0, -1.0, 0.0), (1.0, 1.0, -2.0))


def cosines(size: int, keep: int) -> Float64[Tensor, "size keep"]:
    """The first `keep` basis vectors of the orthonormal DCT-II of length `size`, as columns."""
    position = torch.arange(size, dtype=torch.float64) + 0.5
    columns = torch.cos(math.pi / size * position.unsqueeze(1) * torch.arange(keep, dtype=torch.float64))
    return columns / columns.square().sum(0).sqrt()


def colour_axes(channels: int) -> Float64[Tensor, "c c"]:
    """Orthonormal rows: brightness and two opponent colours for 3 channels, else the identity."""
    if channels != len(_OPPONENT):
        return torch.eye(channels, dtype=torch.float64)
    rows = torch.tensor(_OPPONENT, dtype=torch.float64)
    axes: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return axes


def to_frequencies(images: Float[Tensor, "n d"], shape: tuple[int, int, int]) -> Float[Tensor, "n d"]:
    """Cosine coefficients of flat images of `shape` (channels, height, width), by colour axis: an orthogonal map."""
    axes = colour_axes(shape[0]).to(images)
    return maps_to_frequencies((axes @ images.view(-1, shape[0], shape[1] * shape[2])).flatten(1), shape)


def from_frequencies(coefficients: Float[Tensor, "n d"], shape: tuple[int, int, int]) -> Float[Tensor, "n d"]:
    """Flat images from their cosine coefficients; the inverse of `to_frequencies`."""
    axes = colour_axes(shape[0]).to(coefficients)
    planes = maps_from_frequencies(coefficients, shape).view(-1, shape[0], shape[1] * shape[2])
    return (axes.T @ planes).flatten(1)


def maps_to_frequencies(maps: Float[Tensor, "n d"], shape: tuple[int, int, int]) -> Float[Tensor, "n d"]:
    """Cosine coefficients of flat maps; channels are not mixed."""
    rows, columns = (cosines(side, side).to(maps) for side in shape[1:])
    return (rows.T @ maps.view(-1, *shape) @ columns).flatten(1)


def maps_from_frequencies(coefficients: Float[Tensor, "n d"], shape: tuple[int, int, int]) -> Float[Tensor, "n d"]:
    """The inverse of `maps_to_frequencies`."""
    rows, columns = (cosines(side, side).to(coefficients) for side in shape[1:])
    return (rows @ coefficients.view(-1, *shape) @ columns.T).flatten(1)


def num_bands(channels: int) -> int:
    """Number of bands of `frequency_bands`; the finest may be empty in small images."""
    return channels * _BANDS_A_COLOUR


def frequency_bands(shape: tuple[int, int, int]) -> Int64[Tensor, " d"]:
    """The band of each frequency, by its distance from 0; every colour axis has bands of its own."""
    channels, height, width = shape
    with torch.device("cpu"):  # on the "meta" device, `arange` would import a second of PyTorch's compiler
        down = torch.arange(height, dtype=torch.float64).unsqueeze(1) / height
        across = torch.arange(width, dtype=torch.float64) / width
        band = (_BANDS_A_SIDE * torch.hypot(down, across)).floor().to(torch.int64)
        return (band + _BANDS_A_COLOUR * torch.arange(channels).view(-1, 1, 1)).flatten()
