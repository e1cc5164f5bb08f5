"""Entropic optimal transport of many small problems at once, by a fixed, public sequence of Sinkhorn iterations.

There are two kinds of full iteration. In the log domain,

    g_j ← −λ log Σ_i a_i exp((f_i − c_ij)/λ),    f_i ← −λ log Σ_j b_j exp((g_j − c_ij)/λ)

is stable for costs and λ of any size and takes two exponentials per pair. It gives the plan
P = a b exp((f ⊕ g − c)/λ). In the scaling domain v ← b/(Pᵀu), u ← a/(Pv) are the same iterations as two matrix-vector
products; f += λ log u and g += λ log v then absorb the factors (Schmitzer 2019, "Stabilized sparse scaling algorithms",
SIAM J. Sci. Comput. 41(3)). The factors u, v are clamped to e^±12; the next iteration in the log domain corrects this.

Every iteration is over-relaxed. Where a plain iteration multiplies a factor by t, this one multiplies it by

    t (t + s)/(1 + s t),    s = (2 − ω)/ω.

Near the solution this is t^ω, the classical over-relaxation (Thibault, Chizat, Dossal, Papadakis 2021, "Overrelaxed
Sinkhorn-Knopp algorithm", Algorithms 14(5)). Far from it, it is at most t · (1/s)^±1, while t^ω can run into cycles.
"""

import importlib
import math
import numbers
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.transport import kernels

ANNEALING_SHARE = 0.5  # share of the iterations that lower the strength from `start_reg` to `reg`
ANNEALING_RUN = 3  # scaling iterations per iteration in the log domain during annealing
LONGEST_RUN = 31  # after annealing 1, 3, 7, 15, 31, 31, ..., since the potentials move less and less
REACH = 12.0  # bound on |log| of scaling factors, as in scaling.py
UNEQUAL = 1e-4  # relative difference of Σa and Σb that counts as rounding


@dataclass(frozen=True, eq=False)
class Transport:
    """Solution of *k problems after the last iteration.

    Args:
        f, g: Potentials, in units of the cost.
        plan: P_ij = a_i b_j exp((f_i + g_j − c_ij)/λ); rows sum to a.
        value: Dual objective ⟨a, f⟩ + ⟨b, g⟩ − λ(ΣP − Σa). For Σa = Σb = 1 it is a lower bound on
            min ⟨P, C⟩ + λ KL(P ‖ a⊗b), and equal to it at convergence. Except after `symmetric`, and for costs in
            [0, c_max], it is above min ⟨P, C⟩ − marginal_error · c_max, up to rounding.
        marginal_error: (‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁)/Σa.
        converged: Whether marginal_error is at most the solver's tolerance.
    """

    f: Float[Tensor, "*k n"]
    g: Float[Tensor, "*k m"]
    plan: Float[Tensor, "*k n m"]
    value: Float[Tensor, "*k"]
    marginal_error: Float[Tensor, "*k"]
    converged: Bool[Tensor, "*k"]


@dataclass(frozen=True)
class Round:
    """One iteration in the log domain, then `run` scaling iterations, at strength `reg`; slack is s = (2 − ω)/ω."""

    reg: float
    slack: float
    run: int


@dataclass(frozen=True)
class Sinkhorn:
    """Solver of min ⟨P, C⟩ + λ KL(P ‖ a⊗b) over plans P with marginals a and b; its fields are public constants.

    Args:
        reg: Entropic strength λ > 0, in units of the cost. Choose it relative to the costs: at 1 % of their mean, 50
            iterations leave a marginal error of some 1e-3 between two samples of 50 images.
        iterations: Number of full iterations (f and g), ≥ 1. There is no early stopping.
        start_reg: Strength ≥ reg from which a geometric schedule falls to `reg` in the first half of the iterations.
            About 5 % of the mean cost suits a reg of 0.1 % of it. None: no schedule.
        relaxation: ω in [1, 2); 1 gives plain iterations.
        tolerance: Largest marginal error, > 0, of a converged solve.
        check: Whether values are checked: wrong ones raise InputError, and a loss warns if it did not converge. Give
            False for private data (an error or a warning would reveal something of it), and for speed.

    Raises:
        InputError: A constant is out of its range.

    Guarantees: the sequence of operations depends on the constants and the shapes alone. With `check=False` the host
    never reads the data.
    """

    reg: float
    iterations: int = 50
    start_reg: float | None = None
    relaxation: float = 1.8
    tolerance: float = 1e-2
    check: bool = True

    def __post_init__(self) -> None:
        for name in ("reg", "iterations", "start_reg", "relaxation", "tolerance"):
            number: object = getattr(self, name)
            if name == "iterations" and not isinstance(number, numbers.Integral):
                raise InputError(f"iterations={number!r} is not a whole number; give at least 1")
            if not (isinstance(number, numbers.Real) or (name == "start_reg" and number is None)):
                raise InputError(f"{name}={number!r} is not a number; give one (of a tensor, its .item())")
        if not (math.isfinite(self.reg) and self.reg > 0.0):
            raise InputError(f"reg={self.reg} is not a finite number above 0; give one, in units of the cost")
        if self.iterations < 1:
            raise InputError(f"iterations={self.iterations} is too few; give at least 1")
        if self.start_reg is not None and not (math.isfinite(self.start_reg) and self.start_reg >= self.reg):
            raise InputError(f"start_reg={self.start_reg} is below reg={self.reg}; give a larger one, or None")
        if not 1.0 <= self.relaxation < 2.0:
            raise InputError(f"relaxation={self.relaxation} is not in [1, 2); give 1 for plain iterations, or 1.8")
        if not (math.isfinite(self.tolerance) and self.tolerance > 0.0):
            raise InputError(f"tolerance={self.tolerance} is not a finite number above 0; give for example 0.01")

    def __call__(
        self,
        cost: Float[Tensor, "*k n m"],
        a: Float[Tensor, "*#k n"] | None = None,
        b: Float[Tensor, "*#k m"] | None = None,
    ) -> Transport:
        """Solve all problems.

        Args:
            cost: c_ij, finite, or +inf for a forbidden pair.
            a, b: Weights ≥ 0 with equal sums, by default 1/n and 1/m. Weight 0 is padding: no mass and a finite
                potential. Σa = 0 or Σb = 0 is an empty problem, whose plan, potentials, value and error are 0.

        A problem without a solution, such as a weight with forbidden pairs only, has a large or NaN marginal error and
        does not affect the others. With `check=False` the same holds for Σa ≠ Σb, NaN and negative weights.

        Raises:
            InputError: Shapes, dtypes or devices do not match. Unless `check=False`: a cost is NaN or -inf, a weight is
                negative or not finite, or Σa ≠ Σb.
        """
        with torch.no_grad():
            costs, rows, columns = self._problems(cost, a, b)
            if costs.numel() == 0:
                f, g, plan = torch.zeros_like(rows), torch.zeros_like(columns), torch.zeros_like(costs)
            elif costs.device.type == "cpu" and costs.dtype == torch.float32:
                f, g, plan = solve_compiled(costs, rows, columns, self.rounds())
            else:
                f, g, plan = solve_anywhere(costs, rows, columns, self.rounds())
            return self._record(cost, f, g, plan, rows, columns)

    def symmetric(self, cost: Float[Tensor, "*k n n"], a: Float[Tensor, "*#k n"] | None = None) -> Transport:
        """Solve problems with equal sides, cost_ij = cost_ji, by averaged steps f ← ½(f + T f) with g = f.

        Near the solution each iteration at least halves the error (Feydy et al. 2019, "Interpolating between optimal
        transport and MMD", AISTATS), so there is no over-relaxation. Neither marginal is exact. Arguments and errors as
        in `__call__`; a cost that is not symmetric gives a large marginal error.
        """
        if cost.ndim < 2 or cost.shape[-1] != cost.shape[-2]:
            raise InputError(
                f"cost of shape {tuple(cost.shape)} is not square; give the costs between the points of one side"
            )
        with torch.no_grad():
            costs, rows, _ = self._problems(cost, a, a)
            f, plan = solve_symmetric(costs, rows, self.rounds())
            return self._record(cost, f, f, plan, rows, rows)

    def rounds(self) -> list[Round]:
        """The public sequence of `iterations` in all; the last one is plain and in the log domain."""
        slack = (2.0 - self.relaxation) / self.relaxation
        left = self.iterations - 1
        rounds: list[Round] = []
        if self.start_reg is not None:
            count = int(ANNEALING_SHARE * self.iterations) // (1 + ANNEALING_RUN)
            shares = [step / count for step in range(count)]
            regs = [self.start_reg ** (1.0 - share) * self.reg**share for share in shares]
            rounds = [Round(reg, slack, ANNEALING_RUN) for reg in regs]
            left -= count * (1 + ANNEALING_RUN)
        run = 1
        while left > 0:
            rounds.append(Round(self.reg, slack, min(run, left - 1)))
            left -= 1 + rounds[-1].run
            run = min(2 * run + 1, LONGEST_RUN)
        return [*rounds, Round(self.reg, 1.0, 0)]

    def _problems(self, cost: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Contiguous costs (K, n, m) and weights (K, n), (K, m); an empty problem gets weights 0."""
        if cost.ndim < 2 or cost.dtype not in (torch.float32, torch.float64):
            raise InputError(f"cost is {cost.dtype} of shape {tuple(cost.shape)}; give float32 or float64 (..., n, m)")
        lead, (n, m) = cost.shape[:-2], cost.shape[-2:]
        rows, columns = _weights("a", a, cost, n), _weights("b", b, cost, m)
        if self.check:
            _check_costs(cost)
            check_weights(a, b)
        occupied = ((rows.sum(-1) != 0.0) & (columns.sum(-1) != 0.0)).unsqueeze(-1)
        rows, columns = torch.where(occupied, rows, 0.0), torch.where(occupied, columns, 0.0)
        count = math.prod(lead)
        rows, columns = rows.reshape(count, n).contiguous(), columns.reshape(count, m).contiguous()
        return cost.detach().reshape(count, n, m).contiguous(), rows, columns

    def _record(self, cost: Tensor, f: Tensor, g: Tensor, plan: Tensor, a: Tensor, b: Tensor) -> Transport:
        """The solution of flattened problems, in the shape of `cost`."""
        lead = cost.shape[:-2]
        row_sums, total = plan.sum(2), a.sum(1)
        value = (a * f).sum(1) + (b * g).sum(1) - self.reg * (row_sums.sum(1) - total)
        gap = (row_sums - a).abs().sum(1) + (plan.sum(1) - b).abs().sum(1)
        error = gap / torch.where(total == 0.0, 1.0, total)
        return Transport(
            f=f.view(*lead, cost.shape[-2]),
            g=g.view(*lead, cost.shape[-1]),
            plan=plan.view(cost.shape),
            value=value.view(lead),
            marginal_error=error.view(lead),
            converged=(error <= self.tolerance).view(lead),
        )


def _weights(name: str, weights: Tensor | None, cost: Tensor, size: int) -> Tensor:
    lead = cost.shape[:-2]
    if weights is None:
        return cost.new_full((*lead, size), 1.0 / max(size, 1))
    if weights.dtype != cost.dtype:
        raise InputError(f"{name} is {weights.dtype}, cost is {cost.dtype}; give both in one dtype")
    if weights.device != cost.device:
        raise InputError(f"{name} is on {weights.device}, cost is on {cost.device}; move both to one device")
    try:
        fits = torch.broadcast_shapes(weights.shape, (*lead, size)) == (*lead, size) and weights.shape[-1] == size
    except (RuntimeError, IndexError):
        fits = False
    if not fits:
        raise InputError(f"{name} has shape {tuple(weights.shape)}; give {(*lead, size)}")
    return weights.detach().expand(*lead, size)


def check_weights(a: Tensor | None, b: Tensor | None, *, equal_sums: bool = True) -> None:
    """Refuse weights that are negative or not finite, and problems with Σa ≠ Σb, unless a or b is all 0.

    Weights that are not given sum to 1.

    Raises:
        InputError: With the place and value of the first one, or with both sums.
    """
    totals: list[Tensor | float] = []
    for name, weights in (("a", a), ("b", b)):
        if weights is None or weights.numel() == 0:
            totals.append(1.0)
            continue
        total: Tensor | float = weights.sum(-1)
        if weights.ndim == 1:  # one problem: numbers are faster than tensors
            total = float(total)
        totals.append(total)
        # A minimum keeps a NaN, and no comparison with a NaN holds.
        if not (float(weights.min()) >= 0.0 and _largest(total) < math.inf):
            refuse_first(name, weights, (weights >= 0.0) & weights.isfinite(), "weights that are finite and at least 0")
    of_a, of_b = totals
    difference: Tensor | float = abs(of_a - of_b)  # type: ignore[assignment]
    if equal_sums and a is not b and _largest(difference) > UNEQUAL * -_largest(-of_a):
        _refuse_sums(a, b)


def _largest(values: Tensor | float) -> float:
    return float(values.max()) if isinstance(values, Tensor) else values


def _refuse_sums(a: Tensor | None, b: Tensor | None) -> None:
    """Refuse the first problem with Σa ≠ Σb; where a side is all 0, its problem is empty."""
    of_a, of_b = torch.broadcast_tensors(*(torch.ones(()) if w is None else w.sum(-1).cpu() for w in (a, b)))
    unequal = ((of_a - of_b).abs() > UNEQUAL * of_a) & (of_a != 0.0) & (of_b != 0.0)
    if bool(unequal.any()):
        place = unequal.nonzero()[0].tolist()
        where = f" in problem {place}" if place else ""
        raise InputError(
            f"a sums to {float(of_a[tuple(place)]):.6g} and b to {float(of_b[tuple(place)]):.6g}{where}, where uniform "
            "weights sum to 1; give both sides the same sum, for example b / b.sum(-1, keepdim=True)"
        )


def refuse_first(name: str, values: Tensor, good: Tensor, remedy: str) -> None:
    """Refuse the first value that is not good, if there is one.

    Raises:
        InputError: With its place and value.
    """
    bad = good.logical_not().nonzero()
    if len(bad):
        place = bad[0].tolist()
        raise InputError(f"{name}{place} is {float(values[tuple(place)]):.6g}; give {remedy}")


def _check_costs(cost: Tensor) -> None:
    # The sum is NaN or -inf if a cost is. It may also overflow.
    if not float(cost.sum()) > -math.inf:
        refuse_first("cost", cost, cost > -math.inf, "finite costs, or inf for a forbidden pair")


def solve_compiled(
    cost: Float[Tensor, "k n m"], a: Float[Tensor, "k n"], b: Float[Tensor, "k m"], rounds: list[Round]
) -> tuple[Float[Tensor, "k n"], Float[Tensor, "k m"], Float[Tensor, "k n m"]]:
    """f, g and plan by compiled loops, for float32 on the CPU."""
    scaling = importlib.import_module("dp_sinkhorn.transport.scaling")
    f, g, plan = torch.empty_like(a), torch.empty_like(b), torch.empty_like(cost)
    schedule = (
        torch.tensor([step.reg for step in rounds], dtype=torch.float64),
        torch.tensor([step.slack for step in rounds], dtype=torch.float64),
        torch.tensor([step.run for step in rounds], dtype=torch.int64),
    )
    arguments = tuple(tensor.numpy() for tensor in (cost, a, b, *schedule, f, g, plan))
    work = cost.numel() * sum(1 + step.run for step in rounds)
    kernels.run_shared(scaling.solve, arguments, units=cost.shape[0], pixels=work)
    return f, g, plan


def solve_anywhere(
    cost: Float[Tensor, "k n m"], a: Float[Tensor, "k n"], b: Float[Tensor, "k m"], rounds: list[Round]
) -> tuple[Float[Tensor, "k n"], Float[Tensor, "k m"], Float[Tensor, "k n m"]]:
    """f, g and plan by tensor operations, on any device and in any dtype."""
    f, g, log_a, log_b = torch.zeros_like(a), torch.zeros_like(b), a.log(), b.log()
    plan = cost
    for step in rounds:
        scores = cost / -step.reg
        g = _moved_potential(g, scores + (log_a + f / step.reg).unsqueeze(2), 1, step)
        scores += (log_b + g / step.reg).unsqueeze(1)
        f = _moved_potential(f, scores, 2, step)
        plan = scores.add_((log_a + f / step.reg).unsqueeze(2)).exp_()
        if step.run == 0:
            continue
        # On the CPU row vector times matrix is many times as fast as matrix times column.
        transposed = plan.mT.contiguous()
        u, v = torch.ones_like(a), torch.ones_like(b)
        for _ in range(step.run):
            v = _moved_factors(v, b, torch.bmm(u.unsqueeze(1), plan).squeeze(1), step.slack)
            u = _moved_factors(u, a, torch.bmm(v.unsqueeze(1), transposed).squeeze(1), step.slack)
        f, g = f + step.reg * u.log(), g + step.reg * v.log()
    return f, g, plan


def solve_symmetric(
    cost: Float[Tensor, "k n n"], a: Float[Tensor, "k n"], rounds: list[Round]
) -> tuple[Float[Tensor, "k n"], Float[Tensor, "k n n"]]:
    """f and plan of problems with equal sides, by averaged steps."""
    f, log_a = torch.zeros_like(a), a.log()
    plan = cost
    for step in rounds:
        scores = cost / -step.reg
        scores += (log_a + f / step.reg).unsqueeze(1)
        f = 0.5 * (f + _moved_potential(f, scores, 2, Round(step.reg, 1.0, 0)))
        plan = torch.div(cost, -step.reg, out=scores)
        plan += (log_a + f / step.reg).unsqueeze(1)
        plan += (log_a + f / step.reg).unsqueeze(2)
        plan.exp_()
        u = torch.ones_like(a)
        for _ in range(step.run):
            plain = _moved_factors(u, a, torch.bmm(u.unsqueeze(1), plan).squeeze(1), 1.0)
            u = (u * plain).sqrt_()
        f = f + step.reg * u.log()
    return f, plan


def _moved_potential(potential: Tensor, scores: Tensor, dim: int, step: Round) -> Tensor:
    """Half-iteration in the log domain; a potential without any finite term stays as it is."""
    target = -scores.logsumexp(dim)
    ratio = (target - potential / step.reg).clamp(-25.0, 25.0).exp()
    moved = step.reg * (target + ((ratio + step.slack) / (1.0 + step.slack * ratio)).log())
    return torch.where(target == math.inf, potential, moved)


def _moved_factors(factors: Tensor, weights: Tensor, sums: Tensor, slack: float) -> Tensor:
    """Half-iteration in the scaling domain; a factor without any mass stays as it is."""
    ratio = (weights / (sums * factors)).clamp(math.exp(-2.0 * REACH), math.exp(2.0 * REACH))
    moved = factors * ratio * (ratio + slack) / (1.0 + slack * ratio)
    return torch.where(sums > 0.0, moved.clamp(math.exp(-REACH), math.exp(REACH)), factors)
