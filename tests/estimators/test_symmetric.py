"""Symmetric matrices as vectors: the same norm, and known noise."""

import math

import pytest
import torch

from dp_sinkhorn.estimators.symmetric import packed, unpacked
from dp_sinkhorn.privacy.random import CryptoRandom


@pytest.mark.parametrize("size", [1, 2, 9])
def test_a_packed_matrix_has_its_norm_and_comes_back(size: int) -> None:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = matrix + matrix.T
    numbers = packed(matrix)
    assert numbers.shape == (size * (size + 1) // 2,)
    torch.testing.assert_close(numbers.norm(), matrix.norm())
    torch.testing.assert_close(unpacked(numbers, size), matrix)


def test_noise_on_the_packed_vector_is_symmetric_noise_on_the_matrix() -> None:
    """Variance σ² on the diagonal, σ²/2 elsewhere."""
    size = 200
    matrix = unpacked(3.0 * CryptoRandom(test_seed=1).normal(size * (size + 1) // 2), size)
    assert torch.equal(matrix, matrix.T)
    upper = torch.triu_indices(size, size, offset=1)
    beside = matrix[upper[0], upper[1]]
    assert float(matrix.diagonal().square().mean()) == pytest.approx(9.0, rel=6.0 * math.sqrt(2.0 / size))
    assert float(beside.square().mean()) == pytest.approx(4.5, rel=6.0 * math.sqrt(2.0 / beside.numel()))
