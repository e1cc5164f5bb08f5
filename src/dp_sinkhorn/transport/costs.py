"""Costs between images: the matrix of all pairs, and its gradient weighted by a plan.

A cost is any object with the two methods of `Cost`. The costs of this module never hold a tensor with a number for
every pair and pixel. They use compiled loops or matrix products on the CPU; on other devices matrix products, and for
L1 a loop over the points y.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.transport import kernels

# With at least this many points on both sides a matrix product is as fast as the compiled loop, or faster.
PRODUCT_SIZE = 256


@runtime_checkable
class Cost(Protocol):
    """A cost c(x_i, y_j) between images, with its derivative.

    Both results are detached from autograd. Leading dimensions are independent problems and broadcast: x of shape
    (n, d) is shared by all problems.
    """

    def matrix(self, x: Float[Tensor, "*#k n d"], y: Float[Tensor, "*#k m d"]) -> Float[Tensor, "*k n m"]:
        """The costs c(x_i, y_j)."""
        ...

    def gradient(
        self, weights: Float[Tensor, "*k n m"], x: Float[Tensor, "*#k n d"], y: Float[Tensor, "*#k m d"]
    ) -> Float[Tensor, "*k n d"]:
        """Σ_j weights_ij · ∂c(x_i, y_j)/∂x_i of each problem."""
        ...


@dataclass(frozen=True)
class SquaredEuclidean:
    """‖x − y‖₂² (no ½), derivative 2(x − y).

    For many points matrix products compute the cost. Their rounding is relative to ‖x‖² + ‖y‖², not to the cost: in
    float32 about 1e-4 for images of 784 pixels in [-1, 1], far below any useful `reg`. Costs below 0 are set to 0.
    """

    def matrix(self, x: Float[Tensor, "*#k n d"], y: Float[Tensor, "*#k m d"]) -> Float[Tensor, "*k n m"]:
        """The costs of all pairs."""
        _check(x, y)
        if kernels.serves(x) and min(x.shape[-2], y.shape[-2]) < PRODUCT_SIZE:
            return kernels.cost_matrix(x, y, square_weight=1.0, l1_weight=0.0)
        return squared_by_products(x, y)

    @torch.no_grad()
    def gradient(
        self, weights: Float[Tensor, "*k n m"], x: Float[Tensor, "*#k n d"], y: Float[Tensor, "*#k m d"]
    ) -> Float[Tensor, "*k n d"]:
        """2 (Σ_j weights_ij) x_i − 2 Σ_j weights_ij y_j, by a matrix product."""
        _check(x, y, weights)
        lead, problems = weights.shape[:-2], math.prod(weights.shape[:-2])
        pull = (weights.sum(-1, keepdim=True) * x).view(problems, *x.shape[-2:])
        mass = weights.reshape(problems, *weights.shape[-2:])
        points = y.expand(*lead, *y.shape[-2:]).reshape(problems, *y.shape[-2:])
        with torch.autocast(x.device.type, enabled=False):
            return pull.baddbmm_(mass, points, beta=2.0, alpha=-2.0).view(*lead, *x.shape[-2:])


@dataclass(frozen=True)
class L1:
    """‖x − y‖₁, derivative sign(x − y) with sign(0) = 0."""

    def matrix(self, x: Float[Tensor, "*#k n d"], y: Float[Tensor, "*#k m d"]) -> Float[Tensor, "*k n m"]:
        """The costs of all pairs."""
        _check(x, y)
        if kernels.serves(x):
            return kernels.cost_matrix(x, y, square_weight=0.0, l1_weight=1.0)
        return l1_anywhere(x, y)

    def gradient(
        self, weights: Float[Tensor, "*k n m"], x: Float[Tensor, "*#k n d"], y: Float[Tensor, "*#k m d"]
    ) -> Float[Tensor, "*k n d"]:
        """Σ_j weights_ij sign(x_i − y_j)."""
        _check(x, y, weights)
        if kernels.serves(x):
            return kernels.cost_gradient(weights, x, y, square_weight=0.0, l1_weight=1.0)
        return l1_gradient_anywhere(weights, x, y)


@dataclass(frozen=True)
class MixedCost:
    """c_m(x, y) = ‖x − y‖₂² + m ‖x − y‖₁, the paper's cost (Cao et al. 2021, arXiv 2111.01177).

    Args:
        l1_weight: m ≥ 0, finite; the paper takes 1 or 3 for digits, 0 for faces.

    Raises:
        InputError: `l1_weight` is negative or not finite.
    """

    l1_weight: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.l1_weight < math.inf:
            raise InputError(f"l1_weight={self.l1_weight} is not finite and at least 0; give 0 for ‖x−y‖² alone")

    def matrix(self, x: Float[Tensor, "*#k n d"], y: Float[Tensor, "*#k m d"]) -> Float[Tensor, "*k n m"]:
        """The costs of all pairs."""
        if self.l1_weight == 0.0:
            return SquaredEuclidean().matrix(x, y)
        _check(x, y)
        if kernels.serves(x):
            return kernels.cost_matrix(x, y, square_weight=1.0, l1_weight=self.l1_weight)
        return squared_by_products(x, y).add_(l1_anywhere(x, y), alpha=self.l1_weight)

    def gradient(
        self, weights: Float[Tensor, "*k n m"], x: Float[Tensor, "*#k n d"], y: Float[Tensor, "*#k m d"]
    ) -> Float[Tensor, "*k n d"]:
        """Σ_j weights_ij (2(x_i − y_j) + m sign(x_i − y_j))."""
        if self.l1_weight == 0.0:
            return SquaredEuclidean().gradient(weights, x, y)
        _check(x, y, weights)
        if kernels.serves(x):
            return kernels.cost_gradient(weights, x, y, square_weight=1.0, l1_weight=self.l1_weight)
        smooth = SquaredEuclidean().gradient(weights, x, y)
        return smooth.add_(l1_gradient_anywhere(weights, x, y), alpha=self.l1_weight)


@dataclass(frozen=True)
class AutogradCost:
    """A cost given as a PyTorch function of one problem; autograd differentiates problem after problem.

    Args:
        function: Maps (n, d) and (m, d) to costs (n, m), where each entry depends on its own pair only.

    Raises:
        InputError: The function's result does not have shape (n, m), or does not depend on x.
    """

    function: Callable[[Tensor, Tensor], Tensor]

    def matrix(self, x: Float[Tensor, "*#k n d"], y: Float[Tensor, "*#k m d"]) -> Float[Tensor, "*k n m"]:
        """The costs of all pairs."""
        lead = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        out = x.new_empty(*lead, x.shape[-2], y.shape[-2])
        with torch.no_grad():
            for costs, a, b in zip(_each(out, lead), _each(x, lead), _each(y, lead), strict=True):
                costs.copy_(self._costs(a, b))
        return out

    def gradient(
        self, weights: Float[Tensor, "*k n m"], x: Float[Tensor, "*#k n d"], y: Float[Tensor, "*#k m d"]
    ) -> Float[Tensor, "*k n d"]:
        """Σ_j weights_ij ∂c(x_i, y_j)/∂x_i, by one backward pass per problem."""
        lead = weights.shape[:-2]
        out = x.new_empty(*lead, *x.shape[-2:])
        problems = zip(_each(out, lead), _each(weights, lead), _each(x, lead), _each(y, lead), strict=True)
        for pull, mass, a, b in problems:
            a = a.detach().requires_grad_()
            with torch.enable_grad():
                costs = self._costs(a, b.detach())
            if not costs.requires_grad:
                raise InputError("the cost function's result does not depend on x; compute it from x with PyTorch")
            pull.copy_(torch.autograd.grad(costs, a, mass.detach())[0])
        return out

    def _costs(self, x: Tensor, y: Tensor) -> Tensor:
        """The function's result, with its shape checked."""
        costs = self.function(x, y)
        if costs.shape != (x.shape[0], y.shape[0]):
            raise InputError(
                f"the cost function returned shape {tuple(costs.shape)}; for {x.shape[0]} images and {y.shape[0]} "
                f"points return ({x.shape[0]}, {y.shape[0]})"
            )
        return costs


def label_mismatch(cost: Cost, label_weight: float) -> float:
    """The cost between label_weight · onehot(l) and label_weight · onehot(l') for two labels l ≠ l'.

    A cost that sums over coordinates grows by this number when the scaled one-hot labels are appended to both images.
    `label_weight` = ∞ gives ∞: transport within the class only.

    Raises:
        InputError: `label_weight` is negative or NaN, or finite for a cost that does not sum over coordinates.
    """
    if not label_weight >= 0.0:
        raise InputError(f"label_weight={label_weight} is not at least 0; give inf to stay within the class")
    if label_weight == math.inf:
        return math.inf
    own, other = label_weight * torch.eye(2, dtype=torch.float64).unsqueeze(1)
    if isinstance(cost, SquaredEuclidean | L1 | MixedCost):
        return float(cost.matrix(own, other))
    try:
        both, first, second = (
            float(cost.matrix(x, y)) for x, y in ((own, other), (own[:, :1], other[:, :1]), (own[:, 1:], other[:, 1:]))
        )
    except RuntimeError:  # a cost for images of one size only
        both, first, second = math.nan, math.nan, math.nan
    if not math.isclose(both, first + second, rel_tol=1e-9):
        raise InputError(
            f"label_weight={label_weight} treats labels as further pixels, but this cost is not a sum over pixels; "
            "give inf to stay within the class"
        )
    return both


def label_costs(
    x_labels: Int64[Tensor, "*#k n"],
    y_labels: Int64[Tensor, "*#k m"],
    mismatch: float,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*k n m"]:
    """The label part of the cost: 0 for equal labels, `mismatch` for others. Add it to the images' costs.

    Args:
        mismatch: See `label_mismatch`.
        dtype: That of the images.
    """
    differ = x_labels.unsqueeze(-1) != y_labels.unsqueeze(-2)
    return torch.zeros(differ.shape, dtype=dtype, device=differ.device).masked_fill_(differ, mismatch)


def squared_euclidean(a: Float[Tensor, "m d"], b: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]:
    """‖a_i − b_j‖² (no ½) by one matrix product; negative rounding errors are set to 0."""
    squares = a.square().sum(1).unsqueeze(1) + b.square().sum(1)
    return squares.addmm(a, b.T, alpha=-2.0).clamp_(min=0.0)


@torch.no_grad()
def squared_by_products(x: Float[Tensor, "*#k n d"], y: Float[Tensor, "*#k m d"]) -> Float[Tensor, "*k n m"]:
    """‖x_i‖² + ‖y_j‖² − 2⟨x_i, y_j⟩ on any device, in full precision even inside autocast."""
    squares = x.square().sum(-1).unsqueeze(-1) + y.square().sum(-1).unsqueeze(-2)
    with torch.autocast(x.device.type, enabled=False):
        return squares.sub_(torch.matmul(x, y.mT), alpha=2.0).clamp_(min=0.0)


@torch.no_grad()
def l1_anywhere(x: Float[Tensor, "*#k n d"], y: Float[Tensor, "*#k m d"]) -> Float[Tensor, "*k n m"]:
    """‖x_i − y_j‖₁ on any device."""
    return torch.cdist(x, y, p=1.0)


@torch.no_grad()
def l1_gradient_anywhere(
    weights: Float[Tensor, "*k n m"], x: Float[Tensor, "*#k n d"], y: Float[Tensor, "*#k m d"]
) -> Float[Tensor, "*k n d"]:
    """Σ_j weights_ij sign(x_i − y_j) on any device, in a loop over j."""
    pull = x.new_zeros(*weights.shape[:-1], x.shape[-1])
    for mass, point in zip(weights.unsqueeze(-1).unbind(-2), y.unsqueeze(-2).unbind(-3), strict=True):
        difference = x - point
        # PyTorch's sign maps NaN to 0; the NaN must remain.
        pull.addcmul_(mass, torch.where(difference.isnan(), difference, difference.sign()))
    return pull


def _each(tensor: Tensor, lead: tuple[int, ...]) -> tuple[Tensor, ...]:
    """One matrix per problem, as views of a contiguous tensor."""
    return tensor.expand(*lead, *tensor.shape[-2:]).reshape(math.prod(lead), *tensor.shape[-2:]).unbind(0)


def _check(x: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
    """Refuse tensors whose types or shapes do not match."""
    tensors = [x, y] if weights is None else [x, y, weights]
    if x.dtype not in kernels.DTYPES or any(tensor.dtype != x.dtype for tensor in tensors):
        given = ", ".join(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
        raise InputError(f"images and weights are {given}; give all of them as float32 or all as float64")
    if x.shape[-1] != y.shape[-1]:
        raise InputError(f"images have {x.shape[-1]} and {y.shape[-1]} numbers; give both the same size")
    if weights is None:
        return
    lead = weights.shape[:-2]
    sizes = weights.shape[-2:] == (x.shape[-2], y.shape[-2])
    if not (sizes and _broadcasts(x.shape[:-2], lead) and _broadcasts(y.shape[:-2], lead)):
        raise InputError(
            f"weights of shape {tuple(weights.shape)} do not fit images {tuple(x.shape)} and points {tuple(y.shape)}; "
            "give each problem a row per image and a column per point"
        )


def _broadcasts(own: tuple[int, ...], lead: tuple[int, ...]) -> bool:
    """Whether the leading dimensions `own` broadcast to `lead`."""
    return len(own) <= len(lead) and all(size in (1, other) for size, other in zip(own[::-1], lead[::-1], strict=False))
