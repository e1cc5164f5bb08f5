"""Muon's update against the singular value decomposition."""

import pytest
import torch

from dp_sinkhorn.generators.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(6, 6), (4, 40), (40, 4), (1, 7)])
def test_singular_values_become_about_1_and_the_vectors_stay(shape: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=random), full_matrices=False)
    values = torch.linspace(1.0, 0.05, len(right))
    found = left.T @ orthogonal(left @ (values.unsqueeze(1) * right) * 1e3) @ right.T
    assert found.diagonal().min() > 0.65
    assert found.diagonal().max() < 1.25
    torch.testing.assert_close(found, found.diagonal().diag(), atol=1e-4, rtol=0.0)


def test_iteration_on_the_gram_matrix_matches_the_paper() -> None:
    matrix = torch.randn(5, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain = matrix / matrix.norm()
    for _ in range(5):
        gram = plain @ plain.T
        plain = 3.4445 * plain + (-4.7750 * gram + 2.0315 * gram @ gram) @ plain
    torch.testing.assert_close(orthogonal(matrix.float()), plain.float(), atol=1e-4, rtol=1e-4)


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_the_first_update_of_a_convolution_is_orthogonal() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last))
    weight.grad = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    Muon([weight], lr=0.5).step()
    # Momentum and look-ahead are multiples of g, and only the direction counts.
    expected = -0.5 * 0.4 * 12**0.5 * orthogonal(weight.grad.flatten(1))
    torch.testing.assert_close(weight.detach().flatten(1), expected, atol=1e-5, rtol=1e-4)


def test_the_momentum_of_20_steps_outweighs_one_gradient() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimiser = Muon([weight], lr=0.1)
    for _ in range(20):
        weight.grad = torch.eye(2)
        optimiser.step()
    before = weight.detach().clone()
    weight.grad = -torch.eye(2)
    optimiser.step()
    # 0.05·(−1) + 0.95·(0.95·m − 0.05) with m = 1 − 0.95^20: still along the old gradient.
    assert bool((weight.detach() - before).diagonal().lt(0.0).all())
