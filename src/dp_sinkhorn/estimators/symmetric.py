"""Symmetric matrices as vectors of the same norm."""

import torch
from jaxtyping import Float64
from torch import Tensor


def packed(matrix: Float64[Tensor, "s s"]) -> Float64[Tensor, " numbers"]:
    """The diagonal, then √2 times the upper triangle: s(s + 1)/2 numbers of the same norm as the matrix.

    Noise of variance σ² on each number is noise of variance σ² on the diagonal of the matrix and σ²/2 elsewhere.
    """
    upper = torch.triu_indices(matrix.shape[0], matrix.shape[0], offset=1)
    return torch.cat([matrix.diagonal(), 2**0.5 * matrix[upper[0], upper[1]]])


def unpacked(numbers: Float64[Tensor, " numbers"], size: int) -> Float64[Tensor, "s s"]:
    """The symmetric matrix of a `packed` vector."""
    upper = torch.triu_indices(size, size, offset=1)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix[upper[0], upper[1]] = numbers[size:] / 2**0.5
    return matrix + matrix.T + torch.diag(numbers[:size])
