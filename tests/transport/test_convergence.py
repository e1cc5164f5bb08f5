"""Values against exact transport, for any strength and number of iterations; warnings where these did not suffice."""

import math
import re
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits
from torch import Tensor

import dp_sinkhorn.transport.divergence as divergence
from dp_sinkhorn.transport.costs import L1, MixedCost, SquaredEuclidean
from dp_sinkhorn.transport.divergence import (
    ConvergenceWarning,
    debiasing_term,
    entropic_ot,
    semi_debiased_loss,
    sinkhorn_divergence,
    transport_between,
)
from dp_sinkhorn.transport.sinkhorn import Sinkhorn

COSTS = [SquaredEuclidean(), MixedCost(l1_weight=0.5), L1()]
EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True)


def points(n: int, seed: int, d: int = 5) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return (torch.randn(n, d, generator=source, dtype=torch.float64) + shift for shift in (0.0, 1.0))


def exact_value(costs: Tensor) -> float:
    """The cost of the best assignment, which is optimal between equal weights on equally many points."""
    return float(costs[linear_sum_assignment(costs.numpy())].mean())


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "_warned", set())


@EXAMPLES
@given(
    st.integers(1, 30),
    st.integers(0, 10_000),
    st.sampled_from(COSTS),
    st.floats(-6.0, 0.0),
    st.builds(dict, iterations=st.integers(1, 300), relaxation=st.floats(1.0, 1.9)),
    st.booleans(),
)
def test_a_value_misses_exact_transport_by_what_it_says(n, seed, cost, log_share, options, anneal) -> None:  # type: ignore[no-untyped-def]
    """exact − marginal_error · max c ≤ value ≤ exact + λ log n, converged or not."""
    x, y = points(n, seed)
    costs = cost.matrix(x, y)
    mean, exact = float(costs.mean()), exact_value(costs)
    reg = 10.0**log_share * mean
    start = max(reg, 0.05 * mean) if anneal else None
    solved = transport_between(x, y, cost, Sinkhorn(reg, start_reg=start, **options))
    value, error, slack = float(solved.value), float(solved.marginal_error), 1e-9 * float(costs.max())
    assert exact - error * float(costs.max()) - slack <= value <= exact + reg * math.log(n) + slack
    assert bool(solved.converged) == (error <= 1e-2)


@EXAMPLES
@given(st.integers(1, 30), st.integers(0, 10_000), st.sampled_from(COSTS), st.floats(-6.0, -3.0))
def test_with_a_schedule_a_small_reg_gives_exact_transport(n, seed, cost, log_share) -> None:  # type: ignore[no-untyped-def]
    """The entropy of a permutation adds λ log n."""
    x, y = points(n, seed)
    costs = cost.matrix(x, y)
    mean, exact = float(costs.mean()), exact_value(costs)
    reg = 10.0**log_share * mean
    value = float(entropic_ot(x, y, cost, Sinkhorn(reg, 1_000, start_reg=0.05 * mean)))
    assert exact - 0.005 * exact <= value <= exact + reg * math.log(n) + 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tiny_reg_is_not_silently_far_too_low(dtype: torch.dtype) -> None:
    x, y = (part.to(dtype) for part in points(50, 0))
    costs = SquaredEuclidean().matrix(x, y)
    exact = exact_value(costs)
    with pytest.warns(ConvergenceWarning, match="did not converge in 50 iterations at reg=1e-06: marginal error 0.9"):
        assert float(entropic_ot(x, y, SquaredEuclidean(), Sinkhorn(1e-6))) < 0.8 * exact
    annealed = Sinkhorn(1e-6, iterations=1_000, start_reg=0.05 * float(costs.mean()))
    assert float(entropic_ot(x, y, SquaredEuclidean(), annealed)) == pytest.approx(exact, rel=1e-3)


def test_the_documented_figures_on_digits_are_measured() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "losses.md").read_text(encoding="utf-8")
    digits = torch.tensor(load_digits().data[:100], dtype=torch.float32) / 8.0 - 1.0
    costs = SquaredEuclidean().matrix(digits[:50], digits[50:])
    mean = float(costs.mean())
    assert f"exact transport {exact_value(costs):.2f}" in page
    rows = re.findall(r"^\| ([\d.]+) % ((?:\| [\d.*]+, error [\d.]+ )+)\|$", page, re.MULTILINE)
    assert len(rows) == 3
    for share, cells in rows:
        for cell, (count, start) in zip(cells.split("|")[1:], [(50, None), (50, 0.05), (200, 0.05)], strict=True):
            value, error = re.findall(r"\d+\.\d+", cell)
            solved = Sinkhorn(0.01 * float(share) * mean, count, start_reg=start and start * mean)(costs)
            assert float(solved.value) == pytest.approx(float(value), abs=0.006)
            assert float(solved.marginal_error) == pytest.approx(float(error), rel=0.5)


@EXAMPLES
@given(st.integers(2, 20), st.integers(0, 10_000), st.floats(-5.0, 0.0), st.integers(1, 100), st.floats(1e-6, 0.5))
def test_a_loss_warns_exactly_if_a_solve_did_not_converge(n, seed, log_share, iterations, tolerance) -> None:  # type: ignore[no-untyped-def]
    x, y = points(n, seed)
    cost = SquaredEuclidean()
    solver = Sinkhorn(10.0**log_share * float(cost.matrix(x, y).mean()), iterations, tolerance=tolerance)
    solved = transport_between(x, y, cost, solver)
    divergence._warned.clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        entropic_ot(x, y, cost, solver)
    assert len(said) == (float(solved.marginal_error) > tolerance)
    for warning in said:
        assert f"marginal error {float(solved.marginal_error):.2g} is above" in str(warning.message)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y, solver: entropic_ot(x, y, SquaredEuclidean(), solver),
        lambda x, y, solver: sinkhorn_divergence(x, y, SquaredEuclidean(), solver),
        lambda x, y, solver: semi_debiased_loss(x, y, SquaredEuclidean(), solver, 0.0),
        lambda x, y, solver: semi_debiased_loss(x, y, SquaredEuclidean(), solver, 1.0),
        lambda x, y, solver: debiasing_term(x, SquaredEuclidean(), solver, 1.0),
    ],
)
def test_a_warning_comes_once_a_solver(loss) -> None:  # type: ignore[no-untyped-def]
    x, y = points(10, 0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for reg in (1e-6, 1e-6, 1e-5, 1e-6):
            loss(x, y, Sinkhorn(reg, iterations=3))
            loss(y, x, Sinkhorn(reg, iterations=3))
    assert [warning.category for warning in said] == [ConvergenceWarning] * 2
    assert [str(warning.message).split(" at ")[1][:9] for warning in said] == ["reg=1e-06", "reg=1e-05"]


def test_a_warning_as_an_error_comes_every_time() -> None:
    x, y = points(10, 0)
    for _ in range(2):
        with pytest.raises(ConvergenceWarning, match="give start_reg=5 % of the mean cost, more iter"):
            entropic_ot(x, y, SquaredEuclidean(), Sinkhorn(1e-6))
        with pytest.raises(ConvergenceWarning, match="; give more iterations or a larger reg"):
            entropic_ot(x, y, SquaredEuclidean(), Sinkhorn(1e-6, start_reg=1.0, iterations=8))


def test_a_larger_tolerance_says_that_few_iterations_are_meant() -> None:
    x, y = points(10, 0)
    entropic_ot(x, y, SquaredEuclidean(), Sinkhorn(1e-6, tolerance=4.0))
