"""The solver against closed forms and exact transport; schedules, batches, padding, compiled loops and tensors."""

import math
from functools import cache

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.transport.costs import squared_euclidean
from dp_sinkhorn.transport.sinkhorn import Sinkhorn, Transport, solve_anywhere, solve_compiled

FLOATS = (torch.float32, torch.float64)


def costs(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Costs between 0 and 1."""
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def weights(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """Positive weights that sum to 1."""
    raw = 0.2 + torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return raw / raw.sum(-1, keepdim=True)


@cache
def textbook(reg: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cost and weights of one problem in float64, and its potentials after 2,000 textbook iterations."""
    cost, a, b = costs(9, 12), weights(9), weights(12, seed=2)
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(2_000):
        g = -reg * ((f.unsqueeze(1) - cost) / reg + a.log().unsqueeze(1)).logsumexp(0)
        f = -reg * ((g - cost) / reg + b.log()).logsumexp(1)
    return cost, a, b, f, g


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("start_reg", [None, 1.0])
@pytest.mark.parametrize("relaxation", [1.0, 1.8])
def test_plan_and_value_match_textbook_iterations(
    dtype: torch.dtype, start_reg: float | None, relaxation: float
) -> None:
    reg = 0.05
    cost, a, b, f, g = textbook(reg)
    plan = a.unsqueeze(1) * b * ((f.unsqueeze(1) + g - cost) / reg).exp()
    value = (plan * cost).sum() + reg * (plan * (plan / (a.unsqueeze(1) * b)).log()).sum()
    solver = Sinkhorn(reg, iterations=600, start_reg=start_reg, relaxation=relaxation)
    solved = solver(cost.to(dtype), a.to(dtype), b.to(dtype))
    exact = 1e-9 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(solved.plan.double(), plan, rtol=0.0, atol=exact)
    torch.testing.assert_close(solved.value.double(), value, rtol=0.0, atol=10.0 * exact)
    assert bool(solved.converged)
    assert float(solved.marginal_error) < 100.0 * exact


def test_the_value_of_one_point_is_the_mean_cost() -> None:
    cost, b = costs(1, 20), weights(20)
    solved = Sinkhorn(0.1)(cost, None, b)
    torch.testing.assert_close(solved.value, (cost[0] * b).sum())
    torch.testing.assert_close(solved.plan[0], b)


def test_two_points_per_side_match_the_closed_form() -> None:
    """For c = [[0, 1], [1, 0]] the diagonal holds e^{1/λ}/(1 + e^{1/λ}) of the mass in equal parts."""
    solved = Sinkhorn(0.7, iterations=100)(1.0 - torch.eye(2, dtype=torch.float64))
    kept = 1.0 / (1.0 + math.exp(-1.0 / 0.7))
    expected = 0.5 * torch.tensor([[kept, 1.0 - kept], [1.0 - kept, kept]], dtype=torch.float64)
    torch.testing.assert_close(solved.plan, expected)


def test_gaussians_in_one_dimension_match_the_closed_form() -> None:
    """From N(0, s²) to N(m, t²) the covariance is (√(4s²t² + λ²/4) − λ/2)/2 (Janati et al. 2020)."""
    s, t, mean, reg = 1.0, 0.6, 0.8, 1.5
    x = torch.linspace(-7.0, 7.0, 400, dtype=torch.float64)
    a, b = ((-0.5 * ((x - m) / d) ** 2).exp() for m, d in ((0.0, s), (mean, t)))
    a, b = a / a.sum(), b / b.sum()
    solved = Sinkhorn(reg, iterations=200)((x.unsqueeze(1) - x) ** 2, a, b)
    covariance = (solved.plan * x.unsqueeze(1) * (x - mean)).sum()
    expected = 0.5 * (math.sqrt(4.0 * s**2 * t**2 + reg**2 / 4.0) - reg / 2.0)
    assert float(covariance) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_small_reg_gives_the_optimal_assignment(dtype: torch.dtype) -> None:
    """Between points and the same points in another order, moved a little, the plan is the permutation."""
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    cost = squared_euclidean(x, (x + 0.01)[order])
    rows, columns = linear_sum_assignment(cost.numpy())
    solved = Sinkhorn(1e-3, iterations=400, start_reg=1.0)(cost)
    assert bool((solved.plan.argmax(1) == torch.from_numpy(columns)).all())
    torch.testing.assert_close(solved.plan.amax(1), torch.full((30,), 1.0 / 30, dtype=dtype), rtol=1e-3, atol=0.0)
    # The KL divergence of a permutation from the uniform plan is log n.
    exact = float(cost[rows, columns].mean()) + 1e-3 * math.log(30)
    assert float(solved.value) == pytest.approx(exact, rel=0.01)


def test_annealing_converges_faster_at_a_small_reg() -> None:
    cost = costs(40, 40)
    direct = Sinkhorn(0.002, iterations=40)(cost)
    annealed = Sinkhorn(0.002, iterations=40, start_reg=0.05)(cost)
    assert float(annealed.marginal_error) < 0.5 * float(direct.marginal_error)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_batch_gives_the_same_solutions_as_single_problems(dtype: torch.dtype) -> None:
    cost, a, b = costs(2, 3, 7, 9, dtype=dtype), weights(2, 3, 7, dtype=dtype), weights(9, dtype=dtype)
    solver = Sinkhorn(0.05, iterations=60, start_reg=0.5)
    together = solver(cost, a, b)
    assert together.plan.shape == (2, 3, 7, 9)
    assert together.value.shape == together.converged.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            alone = solver(cost[i, j], a[i, j], b)
            torch.testing.assert_close(together.plan[i, j], alone.plan)
            torch.testing.assert_close(together.value[i, j], alone.value)


@pytest.mark.parametrize("dtype", FLOATS)
def test_padding_carries_no_mass_and_changes_nothing(dtype: torch.dtype) -> None:
    cost, b = costs(3, 8, 10, dtype=dtype), weights(3, 10, dtype=dtype)
    solver = Sinkhorn(0.05, iterations=80)
    bare = solver(cost, None, b)
    padded = solver(torch.cat([cost, 50.0 * costs(3, 8, 4, dtype=dtype)], 2), None, torch.nn.functional.pad(b, (0, 4)))
    assert bool((padded.plan[..., 10:] == 0.0).all())
    assert bool(torch.isfinite(padded.g).all())
    torch.testing.assert_close(padded.plan[..., :10], bare.plan)
    torch.testing.assert_close(padded.value, bare.value)


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_empty_problem_is_0_and_does_not_affect_others(dtype: torch.dtype) -> None:
    cost, b = costs(2, 6, 5, dtype=dtype), torch.stack([torch.zeros(5, dtype=dtype), weights(5, dtype=dtype)])
    solved = Sinkhorn(0.1)(cost, None, b)
    for part in (solved.plan, solved.f, solved.g, solved.value, solved.marginal_error):
        assert bool((part[0] == 0.0).all())
    torch.testing.assert_close(solved.plan[1], Sinkhorn(0.1)(cost[1], None, b[1]).plan)
    assert Sinkhorn(0.1)(torch.zeros(3, 4, 0, dtype=dtype)).plan.shape == (3, 4, 0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_nan_affects_its_own_problem_only(dtype: torch.dtype) -> None:
    cost = costs(2, 6, 5, dtype=dtype)
    cost[0, 2, 3] = math.nan
    solved = Sinkhorn(0.1, check=False)(cost)
    assert not bool(solved.converged[0])
    assert bool(solved.converged[1])
    assert bool(torch.isfinite(solved.plan[1]).all())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("reg", [2e-3, 0.3])
def test_the_compiled_loops_and_the_tensor_operations_agree(scale: float, reg: float) -> None:
    cost = scale * costs(4, 11, 67, dtype=torch.float32)
    a, b = weights(4, 11, dtype=torch.float32), weights(4, 67, dtype=torch.float32)
    b[1, 5:] = 0.0
    b = b / b.sum(1, keepdim=True)
    rounds = Sinkhorn(scale * reg, iterations=300, start_reg=scale).rounds()
    for one, other in zip(solve_compiled(cost, a, b, rounds), solve_anywhere(cost, a, b, rounds), strict=True):
        size = 1.0 if one.ndim == 3 else scale
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4 * size)


def test_the_solution_does_not_depend_on_the_number_of_threads() -> None:
    cost, threads = costs(64, 50, 50, dtype=torch.float32), torch.get_num_threads()
    try:
        plans = []
        for count in (1, 2):
            torch.set_num_threads(count)
            plans.append(Sinkhorn(0.01)(cost).plan)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*plans)


@pytest.mark.parametrize("dtype", FLOATS)
def test_symmetric_solves_match_general_solves(dtype: torch.dtype) -> None:
    x = torch.randn(3, 12, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
    cost = torch.stack([squared_euclidean(part, part) for part in x])
    a = weights(3, 12, dtype=dtype)
    solver = Sinkhorn(0.5, iterations=300)
    symmetric, general = solver.symmetric(cost, a), solver(cost, a, a)
    assert torch.equal(symmetric.f, symmetric.g)
    torch.testing.assert_close(symmetric.plan, symmetric.plan.mT)
    torch.testing.assert_close(symmetric.value, general.value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(symmetric.plan, general.plan, rtol=1e-4, atol=1e-5)


def test_the_value_rises_with_the_iterations() -> None:
    cost = costs(20, 20)
    values = [float(Sinkhorn(0.02, count, relaxation=1.0)(cost).value) for count in (1, 3, 10, 1_000)]
    assert values == sorted(values)
    assert values[0] < values[-1]


@pytest.mark.parametrize("iterations", [1, 2, 5, 40, 41])
@pytest.mark.parametrize("start_reg", [None, 5.0])
def test_exactly_the_given_number_of_iterations_is_made(iterations: int, start_reg: float | None) -> None:
    rounds = Sinkhorn(1.0, iterations, start_reg=start_reg).rounds()
    assert sum(1 + step.run for step in rounds) == iterations
    assert rounds[-1].reg == 1.0
    regs = [step.reg for step in rounds]
    assert regs == sorted(regs, reverse=True)


def test_an_unconverged_solve_is_reported_without_an_error() -> None:
    solved = Sinkhorn(1e-4, iterations=2)(costs(20, 20))
    assert isinstance(solved, Transport)
    assert not bool(solved.converged)
    unequal = Sinkhorn(0.1, check=False)(costs(4, 4), torch.full((4,), 0.25).double(), torch.full((4,), 0.5).double())
    assert not bool(unequal.converged)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"reg": 0.0}, "reg=0.0"),
        ({"reg": math.nan}, "reg=nan"),
        ({"reg": -1.0}, "reg=-1.0"),
        ({"reg": math.inf}, "reg=inf"),
        ({"reg": 1.0, "tolerance": 0.0}, "tolerance=0.0"),
        ({"reg": 1.0, "iterations": 0}, "iterations=0"),
        ({"reg": 1.0, "start_reg": 0.5}, "start_reg=0.5"),
        ({"reg": 1.0, "relaxation": 2.0}, "relaxation=2.0"),
        ({"reg": 1.0, "tolerance": -1.0}, "tolerance=-1.0"),
    ],
)
def test_solver_constants_out_of_range_are_refused(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Sinkhorn(**wrong)


def test_weights_of_another_dtype_are_refused() -> None:
    with pytest.raises(InputError, match="one dtype"):
        Sinkhorn(1.0)(costs(4, 5), weights(4, dtype=torch.float32))
