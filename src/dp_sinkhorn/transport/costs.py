"""Costs between images."""

from jaxtyping import Float
from torch import Tensor


def squared_euclidean(a: Float[Tensor, "m d"], b: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]:
    """‖a_i − b_j‖² (no ½) by one matrix product; rounding below 0 is set to 0."""
    squares = a.square().sum(1).unsqueeze(1) + b.square().sum(1)
    return squares.addmm(a, b.T, alpha=-2.0).clamp_(min=0.0)
