"""Contributions of individual records to the transport gradient of the generated images of their class.

In the semi-dual form of entropic transport, given a potential f on the generated images x_1..x_n, a record y goes to
image i with probability p_i(y) = softmax_i((f_i − ‖x_i − y‖²)/reg). Its part of the gradient with respect to the images
is the n×d matrix D(y)_i = p_i(y) · ∂‖x_i − y‖²/∂x_i = p_i(y) · 2(x_i − y). It depends on no other record, so it can be
clipped individually. Only its norm and weighted sums over records are computed:

    ‖D(y)‖² = 4 Σ_i p_i(y)² ‖x_i − y‖²        Σ_y w_y D(y)_i = 2 (Σ_y w_y p_i(y)) x_i − 2 Σ_y w_y p_i(y) y

Both are matrix products of a B×n matrix, so no tensor of size n×B×d exists.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dp_sinkhorn.transport.costs import squared_euclidean


@dataclass(frozen=True, eq=False, repr=False)
class SemiDualContributions:
    """Contributions of the records `y` of one class to the images `x` of the same class, in float64.

    Args:
        x: (n, d) generated images.
        y: (B, d) records; B may be 0.
        cost: (B, n) squared distances.
        plan: (B, n) probabilities p; rows sum to 1.

    Guarantees, to float rounding: row b of `cost` and of `plan`, and D(y_b), depend on x, f, reg and record b only.
    """

    x: Float64[Tensor, "n d"]
    y: Float64[Tensor, "B d"]
    cost: Float64[Tensor, "B n"]
    plan: Float64[Tensor, "B n"]

    @classmethod
    def of(
        cls, x: Float[Tensor, "n d"], y: Float[Tensor, "B d"], f: Float[Tensor, " n"], reg: float
    ) -> "SemiDualContributions":
        """Assign each record to the images.

        Args:
            x: (n, d) generated images.
            y: (B, d) records.
            f: (n,) potential, computed without the records.
            reg: Entropic strength λ > 0, in units of the cost.
        """
        x, y = x.to(torch.float64), y.to(torch.float64)
        cost = squared_euclidean(y, x)
        return cls(x=x, y=y, cost=cost, plan=((f.to(torch.float64) - cost) / reg).softmax(dim=1))

    def norms(self) -> Float64[Tensor, " B"]:
        """The Frobenius norm ‖D(y)‖ of each record's contribution."""
        return 2.0 * (self.plan.square() * self.cost).sum(1).sqrt()

    def weighted_sum(self, weights: Float64[Tensor, " B"]) -> Float64[Tensor, "n d"]:
        """Σ_y weights[y] · D(y). A record of weight 0 adds exactly 0, even if it is not finite."""
        kept = (weights > 0.0).unsqueeze(1)
        mass = torch.where(kept, self.plan * weights.unsqueeze(1), 0.0)
        records = torch.where(kept, self.y, 0.0)
        return 2.0 * (mass.sum(0).unsqueeze(1) * self.x - mass.T @ records)


def balanced_potential(
    x: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], reg: float, iterations: int
) -> Float64[Tensor, " n"]:
    """Potential of the images `x` against reference images of the same class; both are public.

    Each of the `iterations` Sinkhorn half-iterations f_i ← f_i − reg · log(n · mean_{x'} p_i(x')) brings the mass that
    the reference sends to each image closer to 1/n. With 0 iterations f = 0: each record goes to the closest images,
    whatever mass they get (semi-relaxed transport).

    Args:
        x: (n, d) generated images.
        reference: (m, d) images of the model, m ≥ 1.
        reg: Entropic strength λ > 0, in units of the cost.
        iterations: ≥ 0.
    """
    f = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    if iterations == 0:
        return f
    scores = -squared_euclidean(reference.to(torch.float64), x.to(torch.float64)) / reg
    log_uniform = -math.log(x.shape[0])
    for _ in range(iterations):
        log_mean = (scores + f / reg).log_softmax(dim=1).logsumexp(0) - math.log(reference.shape[0])
        f = f - reg * (log_mean - log_uniform)
    return f
