"""Kernel distance: the squared maximum mean discrepancy of features with a cubic kernel."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_BLOCK = 1000
ESTIMATOR = "unbiased MMD², kernel (x·y/d + 1)³, all pairs"


@dataclass(frozen=True)
class Kernel:
    """The kernel distance between features of synthetic and real images, and between those of real images.

    Args:
        extractor: Name of the extractor.
        estimator: The estimator and the kernel.
        value: Synthetic against real test images; unbiased, so it may fall below 0.
        floor: Other real test images in place of the synthetic ones, at the same sample size.
        num_synthetic: Synthetic images compared.
        num_real: Real images compared with them; as many again for the floor.
    """

    extractor: str
    estimator: str
    value: float
    floor: float
    num_synthetic: int
    num_real: int


def kernel_distance(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]) -> float:
    """The unbiased MMD² over all pairs, n, m >= 2, in float64 (Gretton et al. 2012, eq. 3).

    The kernel is that of KID (Bińkowski et al. 2018). KID averages over random subsets of 1,000, with the same
    expectation and more variance.
    """
    n, m = len(first), len(second)
    within = _kernel_sum(first, first, diagonal=False) / (n * (n - 1))
    within += _kernel_sum(second, second, diagonal=False) / (m * (m - 1))
    return within - 2.0 * _kernel_sum(first, second, diagonal=True) / (n * m)


def _kernel_sum(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"], diagonal: bool) -> float:
    """The sum of the kernel over all pairs, without pairs (i, i) unless `diagonal`; a block of rows at a time."""
    rows = second.to(torch.float64)
    total = 0.0
    for start in range(0, len(first), _BLOCK):
        block = first[start : start + _BLOCK].to(torch.float64)
        values = (block @ rows.T / first.shape[1] + 1.0).pow(3)
        total += float(values.sum())
        if not diagonal:
            total -= float(values.diagonal(start).sum())
    return total
