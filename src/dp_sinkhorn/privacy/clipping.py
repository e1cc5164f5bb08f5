"""Clipping of each record or of a whole batch: sums whose sensitivity holds by construction."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

# Relative margin below the bound for rounding in float64 norms and in the sum itself: about 100 times the largest
# rounding error of a sum of 10⁵ clipped records of any shape used here.
ROUNDING_ROOM = 1e-6

_COLUMNS = 4096


@runtime_checkable
class Contributions(Protocol):
    """What each of B records would add to a sum; the B tensors need not be materialised."""

    def norms(self) -> Float64[Tensor, " B"]:
        """L2 norm of each record's contribution."""
        ...

    def weighted_sum(self, weights: Float64[Tensor, " B"]) -> Float64[Tensor, "..."]:
        """Σ_y weights[y] · contribution(y); a record of weight 0 adds exactly 0, even if it is not finite."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class BoundedSum:
    """A sum over records. Adding or removing one record changes it by at most `sensitivity` in L2.

    With `queries` = K > 1 it is the sum of K such tensors, each on its own subsample. Each is a release, so the sum is
    charged K times.
    """

    value: Float64[Tensor, "..."]
    sensitivity: float
    queries: int = 1


def clip_factors(norms: Float64[Tensor, " B"], clip_norm: float) -> Float64[Tensor, " B"]:
    """Factors min(1, clip_norm / norm), rounded down; 0 where the norm is not finite.

    Guarantees: norms · factors ≤ clip_norm, with `ROUNDING_ROOM` to spare.
    """
    factors = (clip_norm * (1.0 - ROUNDING_ROOM) / norms.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1.0)
    return torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))


def clipped_rows(rows: Float64[Tensor, "N D"], clip_norm: float) -> Float64[Tensor, "N D"]:
    """Each row scaled to L2 norm at most `clip_norm`; a row that is not finite becomes zero."""
    factors = clip_factors(torch.linalg.vector_norm(rows, dim=1), clip_norm).unsqueeze(1)
    return torch.where(factors > 0.0, rows * factors, 0.0)


def clipped_sum(contributions: Contributions, clip_norm: float) -> BoundedSum:
    """Sum of the contributions, each scaled to L2 norm at most `clip_norm`.

    Guarantees: adding or removing one record changes the value by at most `clip_norm` in L2.
    """
    factors = clip_factors(contributions.norms(), clip_norm)
    return BoundedSum(contributions.weighted_sum(factors), sensitivity=clip_norm)


def clipped_queries(gradients: Float[Tensor, "K n d"], clip_norm: float) -> BoundedSum:
    """Sum of K tensors, each scaled *as a whole* to L2 norm at most `clip_norm` (paper, section 3.2).

    Guarantees: each of the K terms lies in a ball of radius `clip_norm`, so any change of records moves it by at most
    2·`clip_norm`. This sensitivity holds for any function that computes the tensor. A tensor that is not finite counts
    as zero.
    """
    rows = gradients.flatten(1)
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    factors = clip_factors(norms, clip_norm)
    finite = torch.isfinite(norms).unsqueeze(1)
    # A few columns at a time, because a float64 copy of all K tensors would not fit into the processor's cache.
    parts = [factors @ torch.where(finite, part, 0.0).to(torch.float64) for part in rows.split(_COLUMNS, dim=1)]
    return BoundedSum(torch.cat(parts).view(gradients.shape[1:]), 2.0 * clip_norm, queries=gradients.shape[0])


def added(sums: Iterable[BoundedSum]) -> BoundedSum:
    """Add sums over disjoint sets of records (chunks): one record changes only one of them."""
    return reduce(lambda a, b: BoundedSum(a.value + b.value, max(a.sensitivity, b.sensitivity)), sums)


def together(sums: Iterable[BoundedSum]) -> BoundedSum:
    """Add the sums of different queries: each query keeps its sensitivity and is charged individually."""
    return reduce(
        lambda a, b: BoundedSum(a.value + b.value, max(a.sensitivity, b.sensitivity), a.queries + b.queries), sums
    )


def disjoint(sums: Sequence[BoundedSum]) -> BoundedSum:
    """Stack sums over disjoint sets of records (the classes): one record changes only one of them."""
    return BoundedSum(torch.stack([part.value for part in sums]), max(part.sensitivity for part in sums))
