"""Precision, recall, density and coverage of features: are synthetic images realistic, and are they diverse?"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

NEIGHBOURS = 5
_BLOCK = 1000


@dataclass(frozen=True)
class Coverage:
    """Precision, recall, density and coverage. The ball of an image reaches to its k-th neighbour of the same kind.

    Args:
        precision: Share of synthetic images inside the ball of some real image.
        recall: Share of real images inside the ball of some synthetic image.
        density: Mean number of real balls that contain a synthetic image, divided by k; 1 for equal distributions.
        coverage: Share of real images with a synthetic image inside their ball.
    """

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True)
class Prdc(Coverage):
    """The four measures of synthetic against real test images, and of real against real.

    Args:
        floor: The same with other real test images in place of the synthetic ones: the best that can be expected.
        neighbours: k.
        extractor: Name of the extractor.
        num_synthetic: Synthetic images compared.
        num_real: Real images compared with them; as many again for the floor.
    """

    floor: Coverage
    neighbours: int
    extractor: str
    num_synthetic: int
    num_real: int


def coverage(real: Float[Tensor, "n d"], other: Float[Tensor, "m d"], neighbours: int) -> Coverage:
    """The four measures (Kynkäänniemi et al. 2019; Naeem et al. 2020, eq. 3-5), n, m > neighbours, in float64.

    Distances are computed in blocks of 1,000 rows, to save memory.
    """
    real_radius, other_radius = (_radius(points, neighbours) for points in (real, other))
    balls = torch.zeros(len(other), dtype=torch.int64)
    recalled = covered = 0
    for start in range(0, len(real), _BLOCK):
        squared = _squared_distances(real[start : start + _BLOCK], other)
        inside_real = squared < real_radius[start : start + _BLOCK, None]
        balls += inside_real.sum(dim=0)
        covered += int(inside_real.any(dim=1).sum())
        recalled += int((squared < other_radius).any(dim=1).sum())
    return Coverage(
        precision=float((balls > 0).double().mean()),
        recall=recalled / len(real),
        density=float(balls.sum()) / (neighbours * len(other)),
        coverage=covered / len(real),
    )


def _radius(points: Float[Tensor, "n d"], neighbours: int) -> Float[Tensor, " n"]:
    """The squared distance from each point to its k-th nearest other point."""
    found = []
    for start in range(0, len(points), _BLOCK):
        squared = _squared_distances(points[start : start + _BLOCK], points)
        squared.diagonal(start).fill_(torch.inf)
        found.append(squared.kthvalue(neighbours, dim=1).values)
    return torch.cat(found)


def _squared_distances(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    x, y = first.to(torch.float64), second.to(torch.float64)
    squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
    return torch.addmm(squares, x, y.T, alpha=-2.0).clamp_(min=0.0)
