"""The nearest image of a set, by the distance of pixels."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

_QUERIES, _POOL = 512, 8192


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest image of a pool for each query.

    Args:
        distance: Root mean square difference of the pixels, float64, in [0, 1] (1: black against white).
        index: Its position in the pool.
    """

    distance: Float[Tensor, " n"]
    index: Int64[Tensor, " n"]


def nearest(queries: UInt8[Tensor, "n c h w"], pool: UInt8[Tensor, "m c h w"]) -> Nearest:
    """The nearest of m >= 1 images for each query, a block at a time.

    The search runs in float32 and may confuse two nearly equal neighbours. The distance of the image found is exact, so
    an exact copy has distance 0.
    """
    best = torch.full((len(queries),), torch.inf)
    index = torch.zeros(len(queries), dtype=torch.int64)
    for first in range(0, len(pool), _POOL):
        rows = _centred(pool[first : first + _POOL])
        squares = rows.square().sum(dim=1)
        for start in range(0, len(queries), _QUERIES):
            span = slice(start, start + _QUERIES)
            block = _centred(queries[span])
            # Without the query's own square, which is the same for the whole pool.
            values, found = torch.addmm(squares, block, rows.T, alpha=-2.0).min(dim=1)
            closer = values < best[span]
            best[span] = torch.where(closer, values, best[span])
            index[span] = torch.where(closer, found + first, index[span])
    return Nearest(_distances(queries, pool, index), index)


def _centred(pixels: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    return pixels.flatten(1).to(torch.float32) / 255.0 - 0.5


def _distances(queries: Tensor, pool: Tensor, index: Tensor) -> Float[Tensor, " n"]:
    found = []
    for start in range(0, len(queries), _QUERIES):
        span = slice(start, start + _QUERIES)
        difference = queries[span].flatten(1).to(torch.float64) - pool[index[span]].flatten(1)
        found.append(difference.square().mean(dim=1).sqrt() / 255.0)
    return torch.cat(found)
