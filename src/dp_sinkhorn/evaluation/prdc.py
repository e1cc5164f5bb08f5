"""Precision, recall, density and coverage of features: are synthetic images realistic, and are they diverse?"""

from dataclasses import astuple, dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dp_sinkhorn.evaluation.uncertainty import mean_error, share_error

NEIGHBOURS = 5
_BLOCK = 1000
_GROUPS = 10


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
        standard_errors: Those of the four measures, over the draw of both samples.
        floor_standard_errors: Those of the floor.
        neighbours: k.
        extractor: Name of the extractor.
        num_synthetic: Synthetic images compared.
        num_real: Real images compared with them; as many again for the floor.
    """

    floor: Coverage
    standard_errors: Coverage
    floor_standard_errors: Coverage
    neighbours: int
    extractor: str
    num_synthetic: int
    num_real: int


def coverage(real: Float[Tensor, "n d"], other: Float[Tensor, "m d"], neighbours: int) -> tuple[Coverage, Coverage]:
    """The four measures (Kynkäänniemi et al. 2019; Naeem et al. 2020, eq. 3-5) and their standard errors, in float64.

    The errors are those of a jackknife that leaves out a tenth of both samples at a time (Shao and Wu 1989): all
    measures depend on both, and binomial errors would be up to three times too small. But they are not below the error
    of the mean that each measure is, which is never 0.

    Args:
        real, other: n, m > neighbours + 1. Distances are computed in blocks of 1,000 rows, to save memory.
    """
    groups = min(_GROUPS, len(real), len(other))
    kept_real, kept_other = (_kept(count, groups) for count in (len(real), len(other)))
    real_radii, other_radii = _radii(real, neighbours, kept_real), _radii(other, neighbours, kept_other)
    balls = torch.zeros(kept_other.shape, dtype=torch.int64)
    recalled, covered = torch.zeros(2, len(kept_real), dtype=torch.int64)
    for start in range(0, len(real), _BLOCK):
        rows = slice(start, start + _BLOCK)
        squared = _squared_distances(real[rows], other)
        # Pairs that are near in any group; all others count nowhere.
        reach = torch.maximum(real_radii[:, rows].amax(dim=0)[:, None], other_radii.amax(dim=0))
        row, column = (squared < reach).nonzero(as_tuple=True)
        near = squared[row, column]
        for index in range(groups + 1):
            keep = kept_real[index, rows][row] & kept_other[index, column]
            in_real, in_other = keep & (near < real_radii[index, rows][row]), keep & (near < other_radii[index, column])
            balls[index] += column[in_real].bincount(minlength=len(other))
            covered[index] += row[in_real].bincount().count_nonzero()
            recalled[index] += row[in_other].bincount().count_nonzero()
    num_real, num_other = kept_real.sum(dim=1), kept_other.sum(dim=1)
    found = torch.stack(
        [
            (balls > 0).sum(dim=1) / num_other.double(),
            recalled / num_real.double(),
            balls.sum(dim=1) / (neighbours * num_other.double()),
            covered / num_real.double(),
        ],
        dim=1,
    )
    value, left_out = Coverage(*found[0].tolist()), found[1:]
    jackknife = ((len(left_out) - 1) * left_out.var(dim=0, correction=0)).sqrt().tolist()
    least = Coverage(
        precision=share_error(value.precision * len(other), len(other)),
        recall=share_error(value.recall * len(real), len(real)),
        density=mean_error(balls[0].numpy() / neighbours),
        coverage=share_error(value.coverage * len(real), len(real)),
    )
    return value, Coverage(*np.maximum(jackknife, astuple(least)).tolist())


def _kept(count: int, groups: int) -> Bool[Tensor, "g n"]:
    """Which images are kept: first all of them, then all but one group, for each group."""
    left_out = torch.arange(count) % groups == torch.arange(groups)[:, None]
    return torch.cat([torch.ones(1, count, dtype=torch.bool), ~left_out])


def _radii(points: Float[Tensor, "n d"], neighbours: int, kept: Bool[Tensor, "g n"]) -> Float[Tensor, "g n"]:
    """The squared distance from each point to its k-th nearest other point among those kept."""
    found, enough = [], neighbours + int((~kept).sum(dim=1).max())
    for start in range(0, len(points), _BLOCK):
        squared = _squared_distances(points[start : start + _BLOCK], points)
        squared.diagonal(start).fill_(torch.inf)
        nearest, index = squared.topk(enough, largest=False)
        is_kth = (kept[:, index].cumsum(dim=2) == neighbours).int().argmax(dim=2)  # (g, rows)
        found.append(nearest.gather(1, is_kth.T).T)
    return torch.cat(found, dim=1)


def _squared_distances(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    x, y = first.to(torch.float64), second.to(torch.float64)
    squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
    return torch.addmm(squares, x, y.T, alpha=-2.0).clamp_(min=0.0)
