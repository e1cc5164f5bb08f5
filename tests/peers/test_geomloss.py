"""Value and gradients against geomloss, the field's PyTorch library for these losses.

geomloss' p = 2 cost is ½‖x−y‖² with reg = blur². Ours is ‖x−y‖² at reg = 2·blur², so both terms, the value and the
gradient are exactly twice theirs. The KL is against a⊗b in both. With a cost of one's own geomloss keeps
reg = blur², and everything is equal without a factor.
"""

import math

import pytest
import torch
from torch import Tensor

from dp_sinkhorn.transport.costs import Cost, MixedCost, SquaredEuclidean
from dp_sinkhorn.transport.divergence import entropic_ot, sinkhorn_divergence
from dp_sinkhorn.transport.sinkhorn import Sinkhorn

geomloss = pytest.importorskip("geomloss")

# geomloss only anneals: blur shrinks from `diameter` to its end by this factor, one iteration each. Starting just above
# the end gives it 400 iterations there; what it lags behind is proportional to 1 − SCALING.
SCALING = 0.99999
START = SCALING**-400
# Found: values differ by 1e-8, gradients by 1e-5 where the largest is about 0.2.
TOLERANCE = {"rtol": 1e-6, "atol": 1e-7}
GRADIENT_TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


def points() -> tuple[Tensor, Tensor]:
    """Three problems of 12 against 15 points."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(3, 12, 4, generator=source, dtype=torch.float64)
    y = 0.5 + torch.randn(3, 15, 4, generator=source, dtype=torch.float64)
    return x.requires_grad_(), y.requires_grad_()


def mixed(x: Tensor, y: Tensor) -> Tensor:
    """‖x−y‖² + 0.8‖x−y‖₁, as geomloss takes a cost: (B, N, D), (B, M, D) -> (B, N, M)."""
    difference = x.unsqueeze(2) - y.unsqueeze(1)
    return difference.square().sum(3) + 0.8 * difference.abs().sum(3)


@pytest.mark.parametrize(("debias", "weighted"), [(False, False), (True, True)])
@pytest.mark.parametrize(
    ("blur", "cost", "their_cost", "factor"),
    [
        pytest.param(1.0, SquaredEuclidean(), None, 2.0, id="squared"),
        pytest.param(math.sqrt(3.0), MixedCost(l1_weight=0.8), mixed, 1.0, id="mixed"),
    ],
)
def test_value_and_gradients_are_those_of_geomloss(
    blur: float, cost: Cost, their_cost: object, factor: float, debias: bool, weighted: bool
) -> None:
    x, y = points()
    a, b = torch.ones(3, 12, dtype=torch.float64), torch.ones(3, 15, dtype=torch.float64)
    if weighted:
        a, b = a + torch.arange(12.0, dtype=torch.float64), b + torch.arange(15.0, dtype=torch.float64).flip(0)
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    peer = geomloss.SamplesLoss(
        "sinkhorn",
        p=2,
        blur=blur,
        scaling=SCALING,
        diameter=blur * START,
        cost=their_cost,
        debias=debias,
        backend="tensorized",
    )
    theirs = peer(a, x, b, y)
    their_gradients = torch.autograd.grad(theirs.sum(), (x, y))

    loss = sinkhorn_divergence if debias else entropic_ot
    ours = loss(x, y, cost, Sinkhorn(reg=factor * blur**2, iterations=200), a, b)
    torch.testing.assert_close(ours, factor * theirs, **TOLERANCE)
    for gradient, other in zip(torch.autograd.grad(ours.sum(), (x, y)), their_gradients, strict=True):
        assert float(other.abs().max()) > 0.1
        torch.testing.assert_close(gradient, factor * other, **GRADIENT_TOLERANCE)
