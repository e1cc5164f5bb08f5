"""Wrong values are refused in one line that names place and remedy; private solves look at no value."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.transport.costs import L1, AutogradCost, MixedCost, SquaredEuclidean
from dp_sinkhorn.transport.divergence import (
    debiasing_term,
    entropic_ot,
    semi_debiased_loss,
    sinkhorn_divergence,
    transport_between,
)
from dp_sinkhorn.transport.sinkhorn import Sinkhorn

N, M, D = 4, 6, 3
SOLVER = Sinkhorn(reg=3.0, iterations=100)
PRIVATE = replace(SOLVER, check=False)
COSTS = [SquaredEuclidean(), MixedCost(l1_weight=0.5), L1(), AutogradCost(lambda x, y: torch.cdist(x, y))]
FLOATS = [torch.float32, torch.float64]
EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True)


def semi_debiased(x: Tensor, y: Tensor, cost: Any, solver: Sinkhorn, b: Tensor | None = None, **more: Any) -> Tensor:
    return semi_debiased_loss(x, y, cost, solver, 0.0, b, **more)


LOSSES: list[Callable[..., Any]] = [transport_between, entropic_ot, sinkhorn_divergence, semi_debiased]
WEIGHTED = LOSSES[:3]


def problem(lead: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(*lead, size, D, generator=source, dtype=dtype) for size in (N, M))
    a, b = (0.1 + torch.rand(*lead, size, generator=source, dtype=dtype) for size in (N, M))
    return x, y, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)


def refusal(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    with pytest.raises(InputError) as refused:
        call(*arguments, **named)
    return str(refused.value)


def spoilt(tensor: Tensor, at: int, value: float) -> tuple[Tensor, list[int]]:
    """The tensor with another value at one place, and the place."""
    wrong = tensor.clone()
    wrong.view(-1)[at % tensor.numel()] = value
    place = torch.zeros_like(tensor).view(-1)
    place[at % tensor.numel()] = 1.0
    return wrong, place.view(tensor.shape).nonzero()[0].tolist()


@pytest.mark.parametrize("loss", LOSSES)
@EXAMPLES
@given(
    st.sampled_from([(), (2,), (2, 3)]),
    st.sampled_from(FLOATS),
    st.sampled_from(COSTS),
    st.sampled_from(["x", "y"]),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.integers(0, 10_000),
)
def test_a_point_that_is_not_finite_is_named(loss, lead, dtype, cost, side, value, at) -> None:  # type: ignore[no-untyped-def]
    points = dict(zip("xy", problem(lead, dtype)[:2], strict=True))
    points[side], place = spoilt(points[side], at, value)
    says = refusal(loss, points["x"], points["y"], cost, SOLVER)
    assert says == f"{side}{place} is {value}; give finite points"


@pytest.mark.parametrize("loss", LOSSES)
@EXAMPLES
@given(
    st.sampled_from([(), (2,), (2, 3)]),
    st.sampled_from(FLOATS),
    st.sampled_from(["a", "b"]),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.25, -1e-9]),
    st.booleans(),
    st.integers(0, 10_000),
)
def test_a_bad_weight_is_named(loss, lead, dtype, side, value, within, at) -> None:  # type: ignore[no-untyped-def]
    x, y, a, b = problem(lead, dtype)
    weights, cost = {"a": a, "b": b}, SquaredEuclidean()
    if loss not in WEIGHTED:
        side = "b"
        del weights["a"]
    weights[side], place = spoilt(weights[side], at, value)
    labels = (torch.arange(N) % 2, torch.arange(M) % 2)
    options = {"labels": labels, "label_weight": math.inf} if within else {}
    says = refusal(loss, x, y, cost, SOLVER, **weights, **options)
    assert says == f"{side}{place} is {value:.6g}; give weights that are finite and at least 0"
    if loss in WEIGHTED and not within:
        costs = cost.matrix(x, y)
        assert refusal(SOLVER, costs, weights["a"], weights["b"]) == says


@pytest.mark.parametrize("loss", LOSSES)
@EXAMPLES
@given(
    st.sampled_from([(), (3,)]),
    st.sampled_from(FLOATS),
    st.one_of(st.floats(1e-6, 0.999), st.floats(1.001, 1e6)),
    st.floats(1e-3, 1e3),
)
def test_unequal_masses_are_refused(loss, lead, dtype, factor, scale) -> None:  # type: ignore[no-untyped-def]
    x, y, a, b = problem(lead, dtype)
    if loss not in WEIGHTED:
        assert "; give both sides the same sum" in refusal(loss, x, y, SquaredEuclidean(), SOLVER, b=factor * b)
        return
    says = refusal(loss, x, y, SquaredEuclidean(), SOLVER, a=scale * a, b=factor * scale * b)
    assert says.startswith("a sums to ")
    assert "; give both sides the same sum, for example b / b.sum(-1, keepdim=True)" in says


@pytest.mark.parametrize("given_weights", [{"a": torch.ones(N)}, {"b": torch.ones(M)}])
def test_weights_on_one_side_must_sum_to_1(given_weights: dict[str, Tensor]) -> None:
    x, y, _, _ = problem((), torch.float32)
    ((name, weights),) = given_weights.items()
    sums = {"a": 1, "b": 1} | {name: len(weights)}
    says = refusal(entropic_ot, x, y, SquaredEuclidean(), SOLVER, **given_weights)
    assert says.startswith(f"a sums to {sums['a']} and b to {sums['b']}, where uniform weights sum to 1; give")


def test_the_first_problem_with_unequal_masses_is_named() -> None:
    x, y, _, b = problem((2, 3), torch.float64)
    b[1, 2] *= 1.5
    assert "a sums to 1 and b to 1.5 in problem [1, 2]" in refusal(entropic_ot, x, y, SquaredEuclidean(), SOLVER, b=b)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_side_without_mass_is_an_empty_problem_and_no_error(dtype: torch.dtype) -> None:
    x, y, a, b = problem((3,), dtype)
    for empty in (b * torch.tensor([[1.0], [0.0], [1.0]], dtype=dtype), 0.0 * b):
        none = empty.sum(-1) == 0.0
        value = entropic_ot(x, y, SquaredEuclidean(), SOLVER, a, empty)
        assert torch.equal(value == 0.0, none)
    assert float(entropic_ot(x[0], y[0], SquaredEuclidean(), SOLVER, 0.0 * a[0], b[0])) == 0.0


@EXAMPLES
@given(st.integers(0, 10_000), st.sampled_from(FLOATS), st.floats(1e-3, 1e3), st.sampled_from([(), (2,)]))
def test_rounding_of_the_masses_is_no_error(seed, dtype, scale, lead) -> None:  # type: ignore[no-untyped-def]
    x, y, a, b = problem(lead, dtype, seed)
    assert bool(
        transport_between(x, y, SquaredEuclidean(), SOLVER, scale * a, b * (1.0 + 3e-5) * scale).converged.all()
    )


@pytest.mark.parametrize("loss", LOSSES)
@EXAMPLES
@given(st.integers(0, 10_000), st.sampled_from(FLOATS), st.sampled_from(COSTS), st.sampled_from([(), (2,)]))
def test_checks_change_no_bit_of_a_result(loss, seed, dtype, cost, lead) -> None:  # type: ignore[no-untyped-def]
    x, y, a, b = problem(lead, dtype, seed)
    weights = {"a": a, "b": b} if loss in WEIGHTED else {"b": b}
    one, other = (loss(x, y, cost, solver, **weights) for solver in (SOLVER, PRIVATE))
    if loss is transport_between:
        one, other = one.plan, other.plan
    assert torch.equal(one, other)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_cost_without_meaning_is_named(value: float) -> None:
    costs = torch.rand(2, N, N, dtype=torch.float64)
    costs[1, 2, 3] = value
    for call in (SOLVER, SOLVER.symmetric):
        says = refusal(call, costs)
        assert says == f"cost[1, 2, 3] is {value}; give finite costs, or inf for a forbidden pair"


def test_a_cost_may_forbid_pairs_and_may_be_huge() -> None:
    costs = torch.rand(5, 5, dtype=torch.float64)
    costs[torch.arange(5), torch.arange(5)] = math.inf
    solved = SOLVER(costs)
    assert bool(solved.converged)
    assert float(solved.plan.diagonal().sum()) == 0.0
    assert bool(SOLVER(torch.full((5, 5), 3e38)).converged)  # the sum of the costs overflows


def test_points_whose_cost_overflows_are_refused() -> None:
    x = torch.full((N, D), 1e30)
    says = refusal(entropic_ot, x, -x, SquaredEuclidean(), SOLVER)
    assert says == "the cost[0, 0] is inf; give points of smaller size, for example in [-1, 1]"


def test_a_nan_after_the_first_n_rows_is_named_as_of_x() -> None:
    x, y, _, _ = problem((), torch.float64)
    wrong, place = spoilt(x, N * D - 1, math.nan)
    for p in (0.0, 0.4, 1.0):
        says = refusal(semi_debiased_loss, wrong, y, SquaredEuclidean(), SOLVER, p)
        assert says == f"x{place} is nan; give finite points"
        assert refusal(debiasing_term, wrong, SquaredEuclidean(), SOLVER, p) == says


@pytest.mark.parametrize("loss", LOSSES)
def test_a_private_solve_raises_and_warns_of_nothing(loss: Callable[..., Any]) -> None:
    """An error or a warning would reveal something of the values; warnings are errors in these tests."""
    x, y, _, b = problem((2,), torch.float32)
    early = Sinkhorn(reg=1e-6, iterations=1, check=False)
    for value in (math.nan, math.inf, -1.0):
        loss(x, spoilt(y, 1, value)[0], SquaredEuclidean(), early)
        loss(x, y, SquaredEuclidean(), early, b=spoilt(b, 1, value)[0])
    loss(x, y, SquaredEuclidean(), early, b=2.0 * b)


class WideCost:
    """Has its sides in the wrong order."""

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        return y @ x.mT

    def gradient(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return weights @ y


@pytest.fixture
def as_installed() -> Iterator[None]:
    """Without the tests' own check of annotations, which would refuse wrong types first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": np.zeros((N, D))}, "x: a ndarray is not a tensor; give one, by torch.as_tensor"),
        ({"y": [[0.0] * D] * M}, "y: a list is not a tensor; give one, by torch.as_tensor"),
        (
            {"x": torch.zeros(N, D, dtype=torch.int64)},
            "x is torch.int64 and y is torch.float32; give both as",
        ),
        ({"b": [1.0 / M] * M}, "b: a list is not a tensor; give one"),
        ({"b": torch.ones(M, dtype=torch.complex64)}, "b: torch.complex64 does not fit; give real numbers as weights"),
        ({"b": torch.ones(M, device="meta")}, "x is on cpu, b on meta; move all tensors to one device"),
        ({"y": torch.zeros(M, D, device="meta")}, "x is on cpu, y on meta; move all tensors to one device"),
        ({"labels": (torch.zeros(N), torch.zeros(M))}, "labels of x: torch.float32 does not fit; give real numbers as"),
        ({"cost": torch.cdist}, "the cost is a function; give SquaredEuclidean() or AutogradCost(function)"),
        ({"cost": SquaredEuclidean}, "the cost is a type; give SquaredEuclidean() or AutogradCost(function)"),
        ({"cost": WideCost()}, "the cost's matrix is (6, 4); return (..., 4, 6)"),
        ({"solver": 0.1}, "the solver is a float; give Sinkhorn(reg=...)"),
    ],
)
def test_what_is_no_tensor_cost_or_solver_is_refused(
    loss: Callable[..., Any], change: dict[str, Any], says: str, as_installed: None
) -> None:
    x, y, _, _ = problem((), torch.float32)
    assert refusal(loss, **({"x": x, "y": y, "cost": SquaredEuclidean(), "solver": SOLVER} | change)).startswith(says)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"reg": "2"}, "reg='2' is not a number"),
        ({"reg": torch.tensor(2.0)}, "reg=tensor(2.) is not a number; give one (of a tensor, its .item())"),
        ({"iterations": 2.5}, "iterations=2.5 is not a whole number; give at least 1"),
        ({"relaxation": None}, "relaxation=None is not a number"),
        ({"tolerance": "small"}, "tolerance='small' is not a number"),
    ],
)
def test_solver_constants_that_are_no_numbers_are_refused(wrong: dict[str, Any], says: str, as_installed: None) -> None:
    assert refusal(Sinkhorn, **({"reg": 1.0} | wrong)).startswith(says)


def test_weights_on_another_device_are_refused(as_installed: None) -> None:
    costs = torch.zeros(N, M)
    says = refusal(SOLVER, costs, torch.full((N,), 1.0 / N, device="meta"))
    assert says == "a is on meta, cost is on cpu; move both to one device"
