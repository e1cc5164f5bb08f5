"""Entropic optimal transport of many small problems at once, by a fixed and public sequence of Sinkhorn steps.

Two kinds of full iteration take turns. In the log domain,

    g_j ← −λ log Σ_i a_i exp((f_i − c_ij)/λ),    f_i ← −λ log Σ_j b_j exp((g_j − c_ij)/λ)

is exact for costs and λ of any size, and costs two exponentials a pair. After it the plan P = a b exp((f ⊕ g − c)/λ)
is known, and v ← b/(Pᵀu), u ← a/(Pv) are the same iterations as two matrix-vector products; f += λ log u and
g += λ log v then absorb them (Schmitzer 2019, "Stabilized sparse scaling algorithms", SIAM J. Sci. Comput. 41(3)).
Factors u, v are kept within e^±12: what they cut off, the next iteration in the log domain takes up.

Every step is over-relaxed. Where a plain step multiplies a factor by t, ours multiplies it by

    t (t + s)/(1 + s t),    s = (2 − ω)/ω,

which is t^ω close to the solution, the classical over-relaxation (Thibault, Chizat, Dossal, Papadakis 2021,
"Overrelaxed Sinkhorn-Knopp algorithm", Algorithms 14(5)), and at most t · (1/s)^±1 far from it, where t^ω itself
can run into cycles.
"""

import importlib
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.transport import kernels

ANNEALING_SHARE = 0.5  # of the iterations, on the way from `start_reg` to `reg`
ANNEALING_RUN = 3  # scaling iterations after one in the log domain there
LONGEST_RUN = 31  # later: 1, 3, 7, 15, 31, 31, ...: the potentials move ever less
REACH = 12.0  # |log| of scaling factors, as in scaling.py


@dataclass(frozen=True, eq=False)
class Transport:
    """Solution of *k problems, as far as the iterations got.

    Args:
        f, g: potentials in units of the cost. plan: P_ij = a_i b_j exp((f_i + g_j − c_ij)/λ), rows sum to a.
        value: dual objective ⟨a, f⟩ + ⟨b, g⟩ − λ(ΣP − Σa): a lower bound of min ⟨P, C⟩ + λ KL(P ‖ a⊗b)
            (Σa = Σb = 1), equal to it at convergence.
        marginal_error: (‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁)/Σa. converged: marginal_error ≤ the solver's tolerance.
    """

    f: Float[Tensor, "*k n"]
    g: Float[Tensor, "*k m"]
    plan: Float[Tensor, "*k n m"]
    value: Float[Tensor, "*k"]
    marginal_error: Float[Tensor, "*k"]
    converged: Bool[Tensor, "*k"]


@dataclass(frozen=True)
class Round:
    """One iteration in the log domain and `run` scaling iterations at strength `reg`; slack = (2 − ω)/ω."""

    reg: float
    slack: float
    run: int


@dataclass(frozen=True)
class Sinkhorn:
    """Public constants of a solve: min ⟨P, C⟩ + λ KL(P ‖ a⊗b) over plans with marginals a and b.

    Args:
        reg: entropic strength λ > 0, in units of the cost. Choose it relative to the costs: at 1 % of their mean, 50
            iterations leave a marginal error of some 1e-3 between two samples of 50 images.
        iterations: full iterations (f and g), ≥ 1; every one of them is made.
        start_reg: larger strength, ≥ reg, from which a geometric schedule comes down to `reg` in the first half of
            the iterations; about 5 % of the mean cost serves where reg is 0.1 % of it. None: no schedule.
        relaxation: ω in [1, 2); 1 are plain iterations.
        tolerance: marginal error, > 0, up to which a solve is called converged.

    Raises:
        InputError: a constant is out of its range.

    Guarantees: what is computed, and how often, depends on the constants and the shapes alone. Nothing of the data is
    read on the host.
    """

    reg: float
    iterations: int = 50
    start_reg: float | None = None
    relaxation: float = 1.8
    tolerance: float = 1e-2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.reg) and self.reg > 0.0):
            raise InputError(f"reg={self.reg} is not a strength; give a number above 0, in units of the cost")
        if self.iterations < 1:
            raise InputError(f"iterations={self.iterations} is too few; give at least 1")
        if self.start_reg is not None and not (math.isfinite(self.start_reg) and self.start_reg >= self.reg):
            raise InputError(f"start_reg={self.start_reg} is below reg={self.reg}; give a larger one, or None")
        if not 1.0 <= self.relaxation < 2.0:
            raise InputError(f"relaxation={self.relaxation} is not in [1, 2); give 1 for plain iterations, or 1.8")
        if not (math.isfinite(self.tolerance) and self.tolerance > 0.0):
            raise InputError(f"tolerance={self.tolerance} is not a marginal error; give a number above 0, as 0.01")

    def __call__(
        self,
        cost: Float[Tensor, "*k n m"],
        a: Float[Tensor, "*#k n"] | None = None,
        b: Float[Tensor, "*#k m"] | None = None,
    ) -> Transport:
        """Solve all problems.

        Args:
            cost: c_ij, finite, or +inf for a pair that is forbidden.
            a, b: weights ≥ 0 with equal sums, by default 1/n and 1/m. Weight 0 is padding: no mass, and a finite
                potential. Σa = 0 or Σb = 0 is an empty problem: plan, potentials, value and error are 0.

        A problem without a solution (Σa ≠ Σb; a weight with forbidden pairs only) shows in its marginal error, as
        does a NaN, and leaves the others alone: refusing it would tell about the data.

        Raises:
            InputError: shapes or dtypes do not fit.
        """
        with torch.no_grad():
            costs, rows, columns = _problems(cost, a, b)
            if costs.numel() == 0:
                f, g, plan = torch.zeros_like(rows), torch.zeros_like(columns), torch.zeros_like(costs)
            elif costs.device.type == "cpu" and costs.dtype == torch.float32:
                f, g, plan = solve_compiled(costs, rows, columns, self.rounds())
            else:
                f, g, plan = solve_anywhere(costs, rows, columns, self.rounds())
            return self._record(cost, f, g, plan, rows, columns)

    def symmetric(self, cost: Float[Tensor, "*k n n"], a: Float[Tensor, "*#k n"] | None = None) -> Transport:
        """Solve problems whose sides are the same, cost_ij = cost_ji: f ← ½(f + T f), and g = f.

        Close to the solution each iteration at least halves the error (Feydy et al. 2019, "Interpolating between
        optimal transport and MMD", AISTATS), and nothing is over-relaxed. Both marginals are those of `f`; neither
        is exact. Arguments and errors as in a general solve; a cost that is not symmetric shows in the error.
        """
        if cost.ndim < 2 or cost.shape[-1] != cost.shape[-2]:
            raise InputError(f"cost of shape {tuple(cost.shape)} is not square; give the costs of one side to itself")
        with torch.no_grad():
            costs, rows, _ = _problems(cost, a, a)
            f, plan = solve_symmetric(costs, rows, self.rounds())
            return self._record(cost, f, f, plan, rows, rows)

    def rounds(self) -> list[Round]:
        """The public sequence of steps: `iterations` in all, of which the last is plain and in the log domain."""
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

    def _record(self, cost: Tensor, f: Tensor, g: Tensor, plan: Tensor, a: Tensor, b: Tensor) -> Transport:
        """The solution of problems in one row, in the shape of `cost`."""
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


def _problems(cost: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Costs (K, n, m) and weights (K, n), (K, m), in one piece of memory each; an empty problem has weights 0."""
    if cost.ndim < 2 or cost.dtype not in (torch.float32, torch.float64):
        raise InputError(f"cost is {cost.dtype} of shape {tuple(cost.shape)}; give float32 or float64 (..., n, m)")
    lead, (n, m) = cost.shape[:-2], cost.shape[-2:]
    rows, columns = _weights("a", a, cost, n), _weights("b", b, cost, m)
    occupied = ((rows.sum(-1) != 0.0) & (columns.sum(-1) != 0.0)).unsqueeze(-1)
    rows, columns = torch.where(occupied, rows, 0.0), torch.where(occupied, columns, 0.0)
    count = math.prod(lead)
    rows, columns = rows.reshape(count, n).contiguous(), columns.reshape(count, m).contiguous()
    return cost.detach().reshape(count, n, m).contiguous(), rows, columns


def _weights(name: str, weights: Tensor | None, cost: Tensor, size: int) -> Tensor:
    lead = cost.shape[:-2]
    if weights is None:
        return cost.new_full((*lead, size), 1.0 / max(size, 1))
    if weights.dtype != cost.dtype:
        raise InputError(f"{name} is {weights.dtype}, cost is {cost.dtype}; give both in one dtype")
    try:
        fits = torch.broadcast_shapes(weights.shape, (*lead, size)) == (*lead, size) and weights.shape[-1] == size
    except (RuntimeError, IndexError):
        fits = False
    if not fits:
        raise InputError(f"{name} of shape {tuple(weights.shape)} does not fit; give {(*lead, size)}")
    return weights.detach().expand(*lead, size)


def solve_compiled(
    cost: Float[Tensor, "k n m"], a: Float[Tensor, "k n"], b: Float[Tensor, "k m"], rounds: list[Round]
) -> tuple[Float[Tensor, "k n"], Float[Tensor, "k m"], Float[Tensor, "k n m"]]:
    """f, g and plan by the compiled loops: float32 on the CPU."""
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
    """f, g and plan by tensor operations: any device and dtype."""
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
        # Row vector times matrix: on the CPU many times as fast as matrix times column.
        turned = plan.mT.contiguous()
        u, v = torch.ones_like(a), torch.ones_like(b)
        for _ in range(step.run):
            v = _moved_factors(v, b, torch.bmm(u.unsqueeze(1), plan).squeeze(1), step.slack)
            u = _moved_factors(u, a, torch.bmm(v.unsqueeze(1), turned).squeeze(1), step.slack)
        f, g = f + step.reg * u.log(), g + step.reg * v.log()
    return f, g, plan


def solve_symmetric(
    cost: Float[Tensor, "k n n"], a: Float[Tensor, "k n"], rounds: list[Round]
) -> tuple[Float[Tensor, "k n"], Float[Tensor, "k n n"]]:
    """f and plan of problems whose sides are the same, by averaged steps."""
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
    """Half-iteration in the log domain; a potential without any term stays where it is."""
    target = -scores.logsumexp(dim)
    ratio = (target - potential / step.reg).clamp(-25.0, 25.0).exp()
    moved = step.reg * (target + ((ratio + step.slack) / (1.0 + step.slack * ratio)).log())
    return torch.where(target == math.inf, potential, moved)


def _moved_factors(factors: Tensor, weights: Tensor, sums: Tensor, slack: float) -> Tensor:
    """Half-iteration in the scaling domain; a factor without any mass stays where it is."""
    ratio = (weights / (sums * factors)).clamp(math.exp(-2.0 * REACH), math.exp(2.0 * REACH))
    moved = factors * ratio * (ratio + slack) / (1.0 + slack * ratio)
    return torch.where(sums > 0.0, moved.clamp(math.exp(-REACH), math.exp(REACH)), factors)
