"""Transport losses between batches of images, for any training loop.

    W(X, Y) = min_P ⟨P, C⟩ + λ KL(P ‖ a⊗b),   C_ij = c(x_i, y_j),   P with marginals a and b

(Cuturi 2013; KL against a⊗b as in Feydy et al. 2019). By the envelope theorem the gradient is ∂W/∂x_i =
Σ_j P_ij ∂c(x_i, y_j)/∂x_i with the optimal plan P held constant. It is exact at convergence and costs one weighted sum:
no iteration is unrolled, and no tensor of size n·m·d exists.
"""

import math
import sys
import warnings
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.transport.costs import L1, Cost, MixedCost, SquaredEuclidean, label_costs, label_mismatch
from dp_sinkhorn.transport.sinkhorn import Sinkhorn, Transport, check_weights, refuse_first

# The paper's weight of one-hot labels (Cao et al. 2021), for pixels in [-1, 1].
LABEL_WEIGHT = 15.0
# Reads 0.3 and 1/3 as exact fractions, so that ⌊10 · 0.3⌋ is 3 despite rounding.
LARGEST_DENOMINATOR = 10**6

_warned: set[Sinkhorn] = set()  # solvers that a warning of this process has named


class ConvergenceWarning(RuntimeWarning):
    """The iterations of a loss did not suffice: its value may be far too low, and its gradient is approximate."""


def transport_between(
    x: Float[Tensor, "*#k n d"],
    y: Float[Tensor, "*#k m d"],
    cost: Cost,
    solver: Sinkhorn,
    a: Float[Tensor, "*#k n"] | None = None,
    b: Float[Tensor, "*#k m"] | None = None,
    labels: tuple[Int64[Tensor, "*#k n"], Int64[Tensor, "*#k m"]] | None = None,
    label_weight: float = LABEL_WEIGHT,
) -> Transport:
    """Solve W(X, Y): potentials, plan, value and convergence; carries no gradient and does not warn.

    Args:
        x, y: (..., n, d) and (..., m, d), float32 or float64. Leading dimensions are independent problems; a tensor
            without them is shared by all problems.
        cost: c(x, y).
        solver: λ = `solver.reg` and the iterations.
        a, b: Weights ≥ 0 with equal sums, by default uniform. Weight 0 is padding; b = 0 is an empty problem.
        labels: Classes (..., n) and (..., m). Different classes add the cost between label_weight·onehot vectors.
        label_weight: ≥ 0, in units of a pixel. inf allows transport within the class only; a and b then pass through
            `within_class_weights`, and b counts relative to the class.

    Raises:
        InputError: Shapes, types or devices do not match, or the label weight is negative. Unless `solver.check` is
            False: a point is not finite, a weight is negative or not finite, or Σa ≠ Σb where b is not all 0.
    """
    _check(x, y, cost, solver, a, b, labels)
    a, b = _weights(x, solver, a, b, labels, label_weight)
    return _solve(x, y, cost, solver, a, b, labels, label_weight)


def entropic_ot(
    x: Float[Tensor, "*#k n d"],
    y: Float[Tensor, "*#k m d"],
    cost: Cost,
    solver: Sinkhorn,
    a: Float[Tensor, "*#k n"] | None = None,
    b: Float[Tensor, "*#k m"] | None = None,
    labels: tuple[Int64[Tensor, "*#k n"], Int64[Tensor, "*#k m"]] | None = None,
    label_weight: float = LABEL_WEIGHT,
) -> Float[Tensor, "*k"]:
    """W(X, Y) of every problem, differentiable in x and y. Arguments and errors as in `transport_between`.

    Warns with `ConvergenceWarning`, once for each solver, where the marginal error is above the solver's tolerance.

    Guarantees: ∂W/∂x_i = Σ_j P_ij ∂c(x_i, y_j)/∂x_i with constant P. The gradient of a shared tensor is the sum over
    the problems. Tensors that need no gradient get none, and weights are constants. Second derivatives raise
    RuntimeError.
    """
    solved = transport_between(x, y, cost, solver, a, b, labels, label_weight)
    return _differentiable(x, y, cost, solver, solved)


def sinkhorn_divergence(
    x: Float[Tensor, "*#k n d"],
    y: Float[Tensor, "*#k m d"],
    cost: Cost,
    solver: Sinkhorn,
    a: Float[Tensor, "*#k n"] | None = None,
    b: Float[Tensor, "*#k m"] | None = None,
    labels: tuple[Int64[Tensor, "*#k n"], Int64[Tensor, "*#k m"]] | None = None,
    label_weight: float = LABEL_WEIGHT,
) -> Float[Tensor, "*k"]:
    """W(X, Y) − ½W(X, X) − ½W(Y, Y) (Feydy et al. 2019). Arguments and warnings as in `entropic_ot`.

    It is ≥ 0, and 0 only for equal distributions, if exp(−c/λ) is a positive definite kernel (‖·‖², L1, their sum) and
    the three solves have converged. Differentiable in x and y like `entropic_ot`.
    """
    _check(x, y, cost, solver, a, b, labels)
    a, b = _weights(x, solver, a, b, labels, label_weight)
    x_labels, y_labels = (None, None) if labels is None else labels
    solved = _solve(x, y, cost, solver, a, b, labels, label_weight)
    between = _differentiable(x, y, cost, solver, solved)
    within_x = _self_transport(x, cost, solver, a, x_labels, label_weight)
    within_y = _self_transport(y, cost, solver, b, y_labels, label_weight)
    return between - 0.5 * within_x - 0.5 * within_y


def semi_debiased_loss(
    x: Float[Tensor, "*#k total d"],
    y: Float[Tensor, "*#k m d"],
    cost: Cost,
    solver: Sinkhorn,
    debias_fraction: float,
    b: Float[Tensor, "*#k m"] | None = None,
    labels: tuple[Int64[Tensor, "*#k total"], Int64[Tensor, "*#k m"]] | None = None,
    label_weight: float = LABEL_WEIGHT,
) -> Float[Tensor, "*k"]:
    """2·W(X[:n], Y) − W(X[:n], X[n':n'+n]) with n' = ⌊n·p⌋: the semi-debiased loss (Cao et al. 2021, section 3.1).

    p = 0 compares X with itself, which pulls the generated images together (bias). p = 1 compares X with n independent
    images (no bias, more variance).

    Args:
        x: (..., n + n', d) generated images of one batch.
        y: (..., m, d) real images.
        debias_fraction: p in [0, 1].
        b: Weights of y as in `transport_between`; a problem of weight 0 has W(X, Y) = 0.
        labels: Classes of all of x and of y. Other arguments and warnings as in `entropic_ot`.

    Raises:
        InputError: p is outside [0, 1], or the number of images is not n + ⌊n·p⌋ for any n.

    Guarantees: the second term, and the gradient with respect to the rows X[n:], do not depend on y, b or y's labels.
    """
    _check(x, y, cost, solver, None, b, labels)
    n, _ = split_debias(x.shape[-2], debias_fraction)
    x_labels, y_labels = (None, None) if labels is None else labels
    head_labels = None if x_labels is None else x_labels[..., :n]
    to_real = entropic_ot(x[..., :n, :], y, cost, solver, None, b, _pair(head_labels, y_labels), label_weight)
    return 2.0 * to_real - debiasing_term(x, cost, solver, debias_fraction, x_labels, label_weight)


def debiasing_term(
    x: Float[Tensor, "*#k total d"],
    cost: Cost,
    solver: Sinkhorn,
    debias_fraction: float,
    labels: Int64[Tensor, "*#k total"] | None = None,
    label_weight: float = LABEL_WEIGHT,
) -> Float[Tensor, "*k"]:
    """W(X[:n], X[n':n'+n]), the second term of `semi_debiased_loss`, of generated images alone.

    Arguments, errors and warnings as in `semi_debiased_loss`. Differentiable in x, on both sides if they overlap.
    """
    _check(x, x, cost, solver, None, None, _pair(labels, labels))
    n, extra = split_debias(x.shape[-2], debias_fraction)
    head, tail = x[..., :n, :], x[..., extra:, :]
    head_labels, tail_labels = (None, None) if labels is None else (labels[..., :n], labels[..., extra:])
    if solver.check and not math.isfinite(float(x.detach().sum())):  # so that an error names the row of x
        refuse_first("x", x, x.isfinite(), "finite points")
    if extra == 0:
        return _self_transport(head, cost, solver, None, head_labels, label_weight)
    return entropic_ot(head, tail, cost, solver, None, None, _pair(head_labels, tail_labels), label_weight)


def split_debias(num_images: int, debias_fraction: float) -> tuple[int, int]:
    """(n, n') with n' = ⌊n·p⌋ and n + n' = num_images: the split of a batch in the semi-debiased loss.

    Raises:
        InputError: p is outside [0, 1], there are no images, or no such n exists (n + ⌊n·p⌋ skips some numbers).
    """
    if not 0.0 <= debias_fraction <= 1.0:
        raise InputError(f"debias_fraction={debias_fraction} is not in [0, 1]; give 0 (biased) to 1 (debiased)")
    share = Fraction(debias_fraction).limit_denominator(LARGEST_DENOMINATOR)
    # n + ⌊n·p⌋ increases strictly with n. First the largest n with n + ⌊n·p⌋ ≤ num_images, or one less.
    n = math.floor(num_images / (1 + share))
    n += (n + 1) + math.floor((n + 1) * share) <= num_images
    extra = math.floor(n * share)
    if n < 1 or n + extra != num_images:
        fits = f"{n + extra} or {num_images + 1}" if n >= 1 else f"at least {1 + math.floor(share)}"
        raise InputError(
            f"{num_images} images are not n + ⌊n·p⌋ for any n at debias_fraction p={debias_fraction}; give {fits}"
        )
    return n, extra


def within_class_weights(
    x_labels: Int64[Tensor, "*#k n"],
    y_labels: Int64[Tensor, "*#k m"],
    y_weights: Bool[Tensor, "*#k m"] | Float[Tensor, "*#k m"] | None = None,
    x_weights: Float[Tensor, "*#k n"] | None = None,
) -> tuple[Float[Tensor, "*k n"], Float[Tensor, "*k m"]]:
    """Weights a, b that match every class of x with its class in y: the limit of a large label weight.

    The points y of a class share the mass Σ a of that class in x, in proportion to `y_weights`. a_i = 0 if the class of
    x_i is absent in y, and b_j = 0 if the class of y_j is absent in x.

    Args:
        x_labels, y_labels: Classes (..., n) and (..., m).
        y_weights: (..., m), a mask (False is padding) or weights within the class; by default equal.
        x_weights: (..., n) weights of x, by default 1/n.
    """
    if x_weights is None:
        x_weights = torch.full_like(x_labels, 1.0 / x_labels.shape[-1], dtype=torch.get_default_dtype())
    if y_weights is None:
        y_weights = torch.ones_like(y_labels, dtype=x_weights.dtype)
    y_weights = y_weights.to(x_weights.dtype)
    same = (x_labels.unsqueeze(-1) == y_labels.unsqueeze(-2)).to(x_weights.dtype)
    in_class_of_x = (same * y_weights.unsqueeze(-2)).sum(-1)
    a = torch.where(in_class_of_x > 0.0, x_weights, 0.0)
    per_y = torch.where(in_class_of_x > 0.0, a / in_class_of_x, 0.0)
    b = y_weights * (same * per_y.unsqueeze(-1)).sum(-2)
    return a.expand(*same.shape[:-2], -1), b


def _weights(
    x: Tensor,
    solver: Sinkhorn,
    a: Tensor | None,
    b: Tensor | None,
    labels: tuple[Tensor, Tensor] | None,
    label_weight: float,
) -> tuple[Tensor | None, Tensor | None]:
    """The given weights, or weights matched class by class for an infinite label weight."""
    if labels is None or label_weight != math.inf:
        return a, b  # the solver checks their values
    if solver.check:
        check_weights(a, b, equal_sums=False)
    uniform = x.new_full((x.shape[-2],), 1.0 / x.shape[-2])
    return within_class_weights(*labels, y_weights=b, x_weights=uniform if a is None else a.to(x.dtype))


def _solve(
    x: Tensor,
    y: Tensor,
    cost: Cost,
    solver: Sinkhorn,
    a: Tensor | None,
    b: Tensor | None,
    labels: tuple[Tensor, Tensor] | None,
    label_weight: float,
    symmetric: bool = False,
) -> Transport:
    """One batched solve: costs of images and labels, weights expanded to all problems."""
    # In mixed-precision training the losses keep the precision of their inputs.
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        costs = cost.matrix(x, y)
        if costs.shape[-2:] != (x.shape[-2], y.shape[-2]):
            raise InputError(f"the cost's matrix is {tuple(costs.shape)}; return (..., {x.shape[-2]}, {y.shape[-2]})")
        if solver.check:
            _check_points(x, y, cost, costs)
        if labels is not None:
            costs = costs + label_costs(*labels, mismatch=label_mismatch(cost, label_weight)).to(costs.dtype)
        problems = torch.broadcast_shapes(costs.shape[:-2], *(w.shape[:-1] for w in (a, b) if w is not None))
        costs = costs.expand(*problems, -1, -1)
        a, b = (w if w is None else w.to(costs.dtype).expand(*problems, -1) for w in (a, b))
        return solver.symmetric(costs, a) if symmetric else solver(costs, a, b)


def _self_transport(
    x: Tensor, cost: Cost, solver: Sinkhorn, a: Tensor | None, x_labels: Tensor | None, label_weight: float
) -> Tensor:
    """W(X, X), differentiable in x on both sides; assumes a symmetric cost."""
    solved = _solve(x, x, cost, solver, a, a, _pair(x_labels, x_labels), label_weight, symmetric=True)
    # ∂c(x_j, x_i)/∂x_i = ∂c(x_i, x_j)/∂x_i, so one sum with P + Pᵀ covers both sides.
    return _differentiable(x, x.detach(), cost, solver, solved, solved.plan + solved.plan.mT)


def _differentiable(
    x: Tensor, y: Tensor, cost: Cost, solver: Sinkhorn, solved: Transport, plan: Tensor | None = None
) -> Tensor:
    """The value of a solve with its gradient; warns if the solve has not converged."""
    if solver.check and not bool(solved.converged.all()):
        _warn(solver, float(solved.marginal_error.max()))
    used = solved.plan if plan is None else plan
    result: Tensor = _Envelope.apply(x, y, cost, solved.value, used)  # type: ignore[no-untyped-call]
    return result


def _warn(solver: Sinkhorn, error: float) -> None:
    """Warn of an unconverged solve at the caller's line, once for each solver."""
    if solver in _warned:
        return
    frame, level = sys._getframe(), 1
    while frame.f_globals.get("__name__") == __name__ and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    start = "" if solver.start_reg is not None else "start_reg=5 % of the mean cost, "
    warnings.warn(
        f"the transport loss did not converge in {solver.iterations} iterations at reg={solver.reg:g}: marginal error "
        f"{error:.2g} is above tolerance={solver.tolerance:g}, so the value may be too low and the gradient is rough; "
        f"give {start}more iterations or a larger reg (said once for this solver)",
        ConvergenceWarning,
        stacklevel=level,
    )
    _warned.add(solver)


class _Envelope(torch.autograd.Function):
    """The value of a solved transport, with the gradient at its constant plan."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, cost: Cost, value: Tensor, plan: Tensor) -> Tensor:
        ctx.cost = cost
        ctx.save_for_backward(x, y, plan)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, y, plan = ctx.saved_tensors
        grad_x = grad_y = None
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            weights = plan * grad_output[..., None, None]
            if ctx.needs_input_grad[0]:
                grad_x = ctx.cost.gradient(weights, x, y).sum_to_size(x.shape)
            if ctx.needs_input_grad[1]:
                grad_y = ctx.cost.gradient(weights.mT, y, x).sum_to_size(y.shape)
        if torch.is_grad_enabled():  # create_graph=True
            grad_x, grad_y = (
                g if g is None else _NoSecondDerivative.apply(g, x, y, grad_output)  # type: ignore[no-untyped-call]
                for g in (grad_x, grad_y)
            )
        return grad_x, grad_y, None, None, None


class _NoSecondDerivative(torch.autograd.Function):
    """A gradient that refuses to be differentiated again.

    torch's `once_differentiable` treats it as a constant if the loss is the last node of the graph.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *depends_on: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "transport losses have no second derivative: the plan is held constant; use first derivatives"
        )


def _pair(x_labels: Tensor | None, y_labels: Tensor | None) -> tuple[Tensor, Tensor] | None:
    return None if x_labels is None or y_labels is None else (x_labels, y_labels)


def _check_points(x: Tensor, y: Tensor, cost: Cost, costs: Tensor) -> None:
    """Refuse points that are not finite; a cost of one's own may be inf."""
    if math.isfinite(float(costs.sum())):  # one sum of n·m numbers; bad points make bad costs
        return
    for name, points in (("x", x), ("y", y)):
        refuse_first(name, points, points.isfinite(), "finite points")
    if isinstance(cost, SquaredEuclidean | L1 | MixedCost):
        refuse_first("the cost", costs, costs.isfinite(), "points of smaller size, for example in [-1, 1]")


def _check(
    x: Tensor,
    y: Tensor,
    cost: Cost,
    solver: Sinkhorn,
    a: Tensor | None,
    b: Tensor | None,
    labels: tuple[Tensor, Tensor] | None,
) -> None:
    """Refuse tensors whose types, devices or shapes do not match, and what is no cost or no solver."""
    if isinstance(cost, type) or not hasattr(cost, "matrix"):
        raise InputError(f"the cost is a {type(cost).__name__}; give SquaredEuclidean() or AutogradCost(function)")
    if not isinstance(solver, Sinkhorn):
        raise InputError(f"the solver is a {type(solver).__name__}; give Sinkhorn(reg=...)")
    for_x, for_y = (None, None) if labels is None else labels
    named = {"a": (a, x), "b": (b, y), "labels of x": (for_x, x), "labels of y": (for_y, y)}
    given = {name: (tensor, points) for name, (tensor, points) in named.items() if tensor is not None}
    for name, tensor in (("x", x), ("y", y), *((name, tensor) for name, (tensor, _) in given.items())):
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name}: a {type(tensor).__name__} is not a tensor; give one, by torch.as_tensor")
        if tensor.device != x.device:
            raise InputError(f"x is on {x.device}, {name} on {tensor.device}; move all tensors to one device")
    if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-1]:
        raise InputError(
            f"x {tuple(x.shape)} and y {tuple(y.shape)} do not end in (points, same d); flatten the images"
        )
    if x.dtype != y.dtype or x.dtype not in (torch.float32, torch.float64):
        raise InputError(f"x is {x.dtype} and y is {y.dtype}; give both as float32 or both as float64")
    if x.shape[-2] == 0:
        raise InputError("x holds no points; give at least one generated image")
    for name, (tensor, points) in given.items():
        if tensor.shape[-1:] != points.shape[-2:-1]:
            raise InputError(
                f"{name} has shape {tuple(tensor.shape)} for {points.shape[-2]} points; give one number per point"
            )
        if tensor.is_complex() or (tensor.is_floating_point() and name.startswith("labels")):
            raise InputError(f"{name}: {tensor.dtype} does not fit; give real numbers as weights, integers as labels")
    leads = [x.shape[:-2], y.shape[:-2], *(tensor.shape[:-1] for tensor, _ in given.values())]
    if not any(leads):
        return
    try:
        torch.broadcast_shapes(*leads)
    except RuntimeError:
        raise InputError(
            f"x {tuple(x.shape)}, y {tuple(y.shape)}, weights and labels are for different numbers of problems; "
            "give the same leading dimensions, or none for tensors that all problems share"
        ) from None
