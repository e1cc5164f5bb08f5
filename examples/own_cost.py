"""Transport with a cost of your own.

    python examples/own_cost.py

A cost must be symmetric, c(x, y) = c(y, x): the debiasing terms rely on it.
"""

import torch
from sklearn.datasets import load_digits

from dp_sinkhorn import AutogradCost, Sinkhorn, sinkhorn_divergence


def huber(x, y):  # (n, d), (m, d) -> (n, m); PyTorch differentiates it
    x, y = torch.broadcast_tensors(x[:, None], y[None])
    return torch.nn.functional.smooth_l1_loss(x, y, reduction="none").sum(2)


class WeightedSquares:
    """Σ_k w_k (x_k − y_k)², with its gradient written out: faster, and no tensor of n·m·d numbers."""

    def __init__(self, weights):
        self.weights = weights

    def matrix(self, x, y):  # (…, n, d), (…, m, d) -> (…, n, m)
        squares_x, squares_y = ((self.weights * points**2).sum(-1) for points in (x, y))
        return squares_x[..., :, None] + squares_y[..., None, :] - 2 * (self.weights * x) @ y.mT

    def gradient(self, plan, x, y):  # Σ_j plan_ij ∂c(x_i, y_j)/∂x_i, (…, n, d)
        return 2 * self.weights * (plan.sum(-1, keepdim=True) * x - plan @ y)


digits = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1  # (1797, 64), in [-1, 1]
real = digits[:100]
for cost in (AutogradCost(huber), WeightedSquares(torch.linspace(0.5, 1.5, 64))):
    points = digits[100:160].clone().requires_grad_()
    loss = sinkhorn_divergence(points, real, cost, Sinkhorn(reg=2.0))
    loss.backward()
    print(f"{type(cost).__name__}: divergence {loss.item():.2f}, gradient norm {points.grad.norm().item():.3f}")
