"""Kernel distance: the squared maximum mean discrepancy of features with a cubic kernel."""

import math
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
        standard_error: That of `value`, over the draw of both samples.
        floor_standard_error: That of `floor`.
        num_synthetic: Synthetic images compared.
        num_real: Real images compared with them; as many again for the floor.
    """

    extractor: str
    estimator: str
    value: float
    floor: float
    standard_error: float
    floor_standard_error: float
    num_synthetic: int
    num_real: int


def kernel_distance(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]) -> tuple[float, float]:
    """The unbiased MMD² over all pairs, n, m >= 2, in float64 (Gretton et al. 2012, eq. 3), and its standard error.

    The kernel is that of KID (Bińkowski et al. 2018). KID averages over random subsets of 1,000, with the same
    expectation and more variance. The standard error is that of the means of each image's own part, its structural
    components (Sen 1960). It is too large, by up to a half, where both distributions are equal.
    """
    within, across = _kernel_means(first, first, diagonal=False), _kernel_means(first, second, diagonal=True)
    of_first = within - across
    of_second = _kernel_means(second, second, diagonal=False) - _kernel_means(second, first, diagonal=True)
    variance = 4.0 * (of_first.var() / len(first) + of_second.var() / len(second))
    return float(of_first.mean() + of_second.mean()), math.sqrt(float(variance))


def _kernel_means(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"], diagonal: bool) -> Float[Tensor, " n"]:
    """The mean of each row of the kernel matrix, without pairs (i, i) unless `diagonal`; a block of rows at a time."""
    rows = second.to(torch.float64)
    means = []
    for start in range(0, len(first), _BLOCK):
        block = first[start : start + _BLOCK].to(torch.float64)
        values = (block @ rows.T / first.shape[1] + 1.0).pow(3)
        if not diagonal:
            values.diagonal(start).zero_()
        means.append(values.sum(dim=1) / (len(second) - (0 if diagonal else 1)))
    return torch.cat(means)
