"""Plans and values against POT, Python Optimal Transport.

POT's regulariser is the negative entropy: it minimises ⟨P, C⟩ + λ Σ P log P. On the plans with marginals a and b,
KL(P ‖ a⊗b) = Σ P log P − Σ a log a − Σ b log b, a constant away: the plans are equal, and

    our value = their value − λ (Σ a log a + Σ b log b).

`ot.sinkhorn2` returns ⟨P, C⟩ alone.
"""

import math

import pytest
import torch
from torch import Tensor

from dp_sinkhorn.transport.costs import MixedCost, SquaredEuclidean
from dp_sinkhorn.transport.divergence import entropic_ot, sinkhorn_divergence, transport_between
from dp_sinkhorn.transport.sinkhorn import Sinkhorn, Transport

ot = pytest.importorskip("ot")

REG = 2.0
COST = MixedCost(l1_weight=0.5)
SOLVER = Sinkhorn(reg=REG, iterations=300)
PLAN_TOLERANCE = {"rtol": 0.0, "atol": 1e-9}


def points(problems: int = 1, n: int = 10, m: int = 12) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points and weights of some problems."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(problems, n, 3, generator=source, dtype=torch.float64)
    y = 0.5 + torch.randn(problems, m, 3, generator=source, dtype=torch.float64)
    a = 0.5 + torch.rand(problems, n, generator=source, dtype=torch.float64)
    b = 0.5 + torch.rand(problems, m, generator=source, dtype=torch.float64)
    return x, y, a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)


def of_entropies(a: Tensor, b: Tensor) -> Tensor:
    """Σ a log a + Σ b log b."""
    return (a * a.log()).sum(-1) + (b * b.log()).sum(-1)


def ours_and_costs() -> tuple[Transport, Tensor, Tensor, Tensor]:
    """Our solve of one problem, with its costs and weights as POT takes them."""
    x, y, a, b = (part[0] for part in points())
    return transport_between(x, y, COST, SOLVER, a, b), COST.matrix(x, y), a, b


def test_the_plan_and_value_are_those_of_pots_log_sinkhorn() -> None:
    ours, costs, a, b = ours_and_costs()
    plan = ot.bregman.sinkhorn(a, b, costs, REG, method="sinkhorn_log", stopThr=1e-13, numItermax=10_000)
    torch.testing.assert_close(ours.plan, plan, **PLAN_TOLERANCE)
    linear = ot.sinkhorn2(a, b, costs, REG, method="sinkhorn_log", stopThr=1e-13, numItermax=10_000)
    torch.testing.assert_close((ours.plan * costs).sum(), linear)
    with_entropy = linear + REG * (plan * plan.log()).sum()
    torch.testing.assert_close(ours.value, with_entropy - REG * of_entropies(a, b))


def test_pots_own_kl_value_needs_no_conversion() -> None:
    ours, costs, a, b = ours_and_costs()
    theirs = ot.solve(costs, a, b, reg=REG, reg_type="KL", tol=1e-13, max_iter=10_000)
    torch.testing.assert_close(ours.value, theirs.value)
    torch.testing.assert_close(ours.plan, theirs.plan, **PLAN_TOLERANCE)


def test_a_batch_and_its_gradient_are_those_of_pots_batch_solver() -> None:
    x, y, a, b = points(problems=4)
    x.requires_grad_()
    y.requires_grad_()
    ours = entropic_ot(x, y, SquaredEuclidean(), SOLVER, a, b)
    costs = ot.batch.dist_batch(x, y, metric="sqeuclidean")
    theirs = ot.batch.solve_batch(costs, reg=REG, a=a, b=b, max_iter=5_000, tol=1e-13, grad="envelope")
    torch.testing.assert_close(ours, theirs.value - REG * of_entropies(a, b))
    solved = transport_between(x, y, SquaredEuclidean(), SOLVER, a, b)
    torch.testing.assert_close(solved.plan, theirs.plan, **PLAN_TOLERANCE)
    their_gradients = torch.autograd.grad(theirs.value.sum(), (x, y))
    for gradient, other in zip(torch.autograd.grad(ours.sum(), (x, y)), their_gradients, strict=True):
        assert float(other.abs().max()) > 0.1
        torch.testing.assert_close(gradient, other, rtol=1e-7, atol=1e-9)


def test_the_value_falls_to_exact_transport_as_reg_goes_to_zero() -> None:
    """exact ≤ value ≤ exact + λ·KL(exact plan ‖ a⊗b) ≤ exact + λ log n: the bounds close with λ."""
    x, y, *_ = (part[0] for part in points(n=8, m=8))
    costs = COST.matrix(x, y)
    uniform = torch.full((8,), 1.0 / 8, dtype=torch.float64)
    exact = float(ot.emd2(uniform, uniform, costs))
    gaps = []
    for reg in (1.0, 0.1, 0.01):
        solver = Sinkhorn(reg=reg, iterations=800, start_reg=10.0)
        gaps.append(float(entropic_ot(x, y, COST, solver)) - exact)
        assert 0.0 < gaps[-1] <= reg * math.log(8) + 1e-9
    assert gaps == sorted(gaps, reverse=True)
    divergence = sinkhorn_divergence(x, y, COST, Sinkhorn(reg=0.01, iterations=800, start_reg=10.0))
    assert float(divergence) == pytest.approx(exact, rel=1e-3)
