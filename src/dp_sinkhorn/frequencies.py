"""Images as sums of cosines: the orthonormal discrete cosine transform (DCT-II) of each channel."""

import math

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

_BANDS_A_SIDE = 10
NUM_BANDS = math.ceil(_BANDS_A_SIDE * 2**0.5)


def cosines(size: int, keep: int) -> Float64[Tensor, "size keep"]:
    """First `keep` columns of the orthonormal DCT-II of length `size`."""
    position = torch.arange(size, dtype=torch.float64) + 0.5
    columns = torch.cos(math.pi / size * position.unsqueeze(1) * torch.arange(keep, dtype=torch.float64))
    return columns / columns.square().sum(0).sqrt()


def to_frequencies(images: Float[Tensor, "n d"], shape: tuple[int, int, int]) -> Float[Tensor, "n d"]:
    """The strength of each cosine in flat images of `shape` (channels, height, width): a rotation."""
    rows, columns = (cosines(side, side).to(images) for side in shape[1:])
    return (rows.T @ images.view(-1, *shape) @ columns).flatten(1)


def from_frequencies(strengths: Float[Tensor, "n d"], shape: tuple[int, int, int]) -> Float[Tensor, "n d"]:
    """Flat images from the strengths of their cosines; undoes `to_frequencies`."""
    rows, columns = (cosines(side, side).to(strengths) for side in shape[1:])
    return (rows @ strengths.view(-1, *shape) @ columns.T).flatten(1)


def frequency_bands(shape: tuple[int, int, int]) -> Int64[Tensor, " d"]:
    """The band of each frequency, 0 (slowest) to NUM_BANDS - 1, whatever its direction and channel."""
    channels, height, width = shape
    down = torch.arange(height, dtype=torch.float64).unsqueeze(1) / height
    across = torch.arange(width, dtype=torch.float64) / width
    band = (_BANDS_A_SIDE * torch.hypot(down, across)).floor().to(torch.int64)
    return band.expand(channels, height, width).flatten()
