"""Images as sums of cosines (the orthonormal discrete cosine transform, DCT-II), colours taken apart first."""

import math

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

_BANDS_A_SIDE = 10
_BANDS_A_COLOUR = math.ceil(_BANDS_A_SIDE * 2**0.5)
# Rows: brightness, red against green, yellow against blue. In pictures they hardly depend on each other, and the first
# has nearly all of the detail (Ruderman, Cronin and Chiao 1998, "Statistics of cone responses to natural images").
_OPPONENT = ((1.0, 1.0, 1.0), (1.0, -1.0, 0.0), (1.0, 1.0, -2.0))


def cosines(size: int, keep: int) -> Float64[Tensor, "size keep"]:
    """First `keep` columns of the orthonormal DCT-II of length `size`."""
    position = torch.arange(size, dtype=torch.float64) + 0.5
    columns = torch.cos(math.pi / size * position.unsqueeze(1) * torch.arange(keep, dtype=torch.float64))
    return columns / columns.square().sum(0).sqrt()


def colour_axes(channels: int) -> Float64[Tensor, "c c"]:
    """Orthonormal rows: brightness and two opponent colours of RGB; of any other number of channels, each its own."""
    if channels != len(_OPPONENT):
        return torch.eye(channels, dtype=torch.float64)
    rows = torch.tensor(_OPPONENT, dtype=torch.float64)
    axes: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return axes


def to_frequencies(images: Float[Tensor, "n d"], shape: tuple[int, int, int]) -> Float[Tensor, "n d"]:
    """The strength of each cosine in flat images of `shape` (channels, height, width), by colour axis: a rotation."""
    axes = colour_axes(shape[0]).to(images)
    return maps_to_frequencies((axes @ images.view(-1, shape[0], shape[1] * shape[2])).flatten(1), shape)


def from_frequencies(strengths: Float[Tensor, "n d"], shape: tuple[int, int, int]) -> Float[Tensor, "n d"]:
    """Flat images from the strengths of their cosines; undoes `to_frequencies`."""
    axes = colour_axes(shape[0]).to(strengths)
    planes = maps_from_frequencies(strengths, shape).view(-1, shape[0], shape[1] * shape[2])
    return (axes.T @ planes).flatten(1)


def maps_to_frequencies(maps: Float[Tensor, "n d"], shape: tuple[int, int, int]) -> Float[Tensor, "n d"]:
    """The strength of each cosine in each of flat maps that are no colours."""
    rows, columns = (cosines(side, side).to(maps) for side in shape[1:])
    return (rows.T @ maps.view(-1, *shape) @ columns).flatten(1)


def maps_from_frequencies(strengths: Float[Tensor, "n d"], shape: tuple[int, int, int]) -> Float[Tensor, "n d"]:
    """Undoes `maps_to_frequencies`."""
    rows, columns = (cosines(side, side).to(strengths) for side in shape[1:])
    return (rows @ strengths.view(-1, *shape) @ columns.T).flatten(1)


def num_bands(channels: int) -> int:
    """How many bands `frequency_bands` knows; the finest may be empty in small images."""
    return channels * _BANDS_A_COLOUR


def frequency_bands(shape: tuple[int, int, int]) -> Int64[Tensor, " d"]:
    """The band of each frequency, from slow to fine whatever its direction, those of each colour axis by themselves."""
    channels, height, width = shape
    down = torch.arange(height, dtype=torch.float64).unsqueeze(1) / height
    across = torch.arange(width, dtype=torch.float64) / width
    band = (_BANDS_A_SIDE * torch.hypot(down, across)).floor().to(torch.int64)
    return (band + _BANDS_A_COLOUR * torch.arange(channels).view(-1, 1, 1)).flatten()
