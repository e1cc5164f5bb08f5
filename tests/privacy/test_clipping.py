"""Clipping: the bound holds for every record, extreme ones too, and for the change of a sum by one record."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dp_sinkhorn.privacy.clipping import BoundedSum, clip_factors, clipped_queries, clipped_sum, disjoint
from dp_sinkhorn.transport.semidual import SemiDualContributions

pytestmark = pytest.mark.quick

CLIP_NORM = 1.5


def contributions(y: torch.Tensor, reg: float = 2.0) -> SemiDualContributions:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(7, y.shape[1], generator=random, dtype=torch.float64)
    f = torch.randn(7, generator=random, dtype=torch.float64)
    return SemiDualContributions.of(x, y, f, reg)


def records(seed: int, scale: float) -> torch.Tensor:
    """Twelve records: near ones and outliers up to 10⁶ times as far, shuffled."""
    random = torch.Generator().manual_seed(seed)
    y = torch.randn(12, 5, generator=random, dtype=torch.float64)
    lengths = scale * torch.tensor([0.0, 1e-3, 0.1, 1.0, 1.0, 1.0, 1.0, 3.0, 10.0, 1e2, 1e4, 1e6])
    return y * lengths[torch.randperm(12, generator=random)].double().unsqueeze(1)


def test_factors_are_1_below_the_bound_and_scale_down_to_it_above() -> None:
    norms = torch.tensor([0.0, 1e-300, 0.7, 1.4, 3.0, 1.5e8], dtype=torch.float64)
    factors = clip_factors(norms, CLIP_NORM)
    assert factors[:4].tolist() == [1.0] * 4
    torch.testing.assert_close(norms[4:] * factors[4:], torch.full((2,), CLIP_NORM).double(), rtol=2e-6, atol=0.0)


def test_factors_are_0_where_a_norm_is_not_finite() -> None:
    norms = torch.tensor([math.inf, math.nan, -math.inf, 1.0], dtype=torch.float64)
    assert clip_factors(norms, CLIP_NORM).tolist() == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("clip_norm", [1e-6, 0.1, 1.0, 1.5, 3.3e7])
def test_clipped_norms_never_exceed_the_bound(clip_norm: float) -> None:
    around = [clip_norm * (1.0 + sign * 2.0**-k) for k in range(1, 53) for sign in (-1, 1)]
    neighbours = [math.nextafter(clip_norm, 0.0), clip_norm, math.nextafter(clip_norm, math.inf)]
    extremes = [0.0, 5e-324, 1e-308, 1e-160, 1e150, 1e300]
    norms = torch.tensor(around + neighbours + extremes, dtype=torch.float64)
    factors = clip_factors(norms, clip_norm)
    assert factors.dtype == torch.float64
    assert bool(((factors >= 0.0) & (factors <= 1.0)).all())
    # Clipped norms leave a margin of 5e-7 of the bound.
    clipped = norms * factors
    assert bool((clipped <= clip_norm).all())
    assert bool((clipped[norms >= clip_norm] <= clip_norm * (1.0 - 5e-7)).all())
    assert bool((clipped[norms >= clip_norm] >= clip_norm * (1.0 - 2e-6)).all())


@given(
    norm=st.floats(min_value=0.0, max_value=1e280, allow_nan=False),
    clip_norm=st.floats(min_value=1e-12, max_value=1e12),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_no_norm_gets_past_any_bound(norm: float, clip_norm: float) -> None:
    factor = clip_factors(torch.tensor([norm], dtype=torch.float64), clip_norm)
    assert norm * float(factor) <= clip_norm


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("seed", range(2))
def test_removing_any_one_record_moves_the_sum_by_at_most_the_bound(seed: int, scale: float) -> None:
    y = records(seed, scale)
    whole = clipped_sum(contributions(y), CLIP_NORM)
    assert whole.sensitivity == CLIP_NORM
    norms = contributions(y).norms()
    assert float(norms.max()) > CLIP_NORM
    for j in range(12):
        without = clipped_sum(contributions(torch.cat([y[:j], y[j + 1 :]])), CLIP_NORM)
        change = float((whole.value - without.value).norm())
        assert change <= CLIP_NORM
        # No more clipping than needed: small contributions do not change, large ones reach the bound.
        assert change == pytest.approx(min(float(norms[j]), CLIP_NORM), rel=1e-5, abs=1e-9)


def test_the_bound_is_met_where_every_record_is_an_outlier() -> None:
    y = 1e3 * records(9, 1.0)[torch.tensor([5])].repeat(8, 1)
    value = clipped_sum(contributions(y), CLIP_NORM).value
    assert 0.999 * 8 * CLIP_NORM < float(value.norm()) <= 8 * CLIP_NORM


def test_small_contributions_are_not_changed() -> None:
    y = records(1, 1.0)
    pull = contributions(y)
    loose = 2.0 * float(pull.norms().max())
    assert torch.equal(clipped_sum(pull, loose).value, pull.weighted_sum(torch.ones(12, dtype=torch.float64)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
@pytest.mark.parametrize("where", ["one coordinate", "all coordinates"])
def test_a_record_that_is_not_finite_adds_exactly_0(bad: float, where: str) -> None:
    finite = records(2, 1.0)
    for j in (0, 4, 11):
        y = finite.clone()
        y[j, 2 if where == "one coordinate" else slice(None)] = bad
        factors = clip_factors(contributions(finite).norms(), CLIP_NORM)
        factors[j] = 0.0
        value = clipped_sum(contributions(y), CLIP_NORM).value
        assert torch.equal(value, contributions(finite).weighted_sum(factors))
        alone = clipped_sum(contributions(y[j : j + 1]), CLIP_NORM).value
        assert torch.equal(alone, torch.zeros_like(alone))


def test_an_empty_sum_is_zeros_of_the_same_shape() -> None:
    empty = clipped_sum(contributions(torch.zeros(0, 5)), CLIP_NORM)
    assert torch.equal(empty.value, torch.zeros(7, 5, dtype=torch.float64))
    assert empty.sensitivity == CLIP_NORM


def test_disjoint_sums_stack_and_do_not_add_sensitivities() -> None:
    a, b = torch.ones(2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    both = disjoint([BoundedSum(a, 0.5), BoundedSum(b, 2.0)])
    assert torch.equal(both.value, torch.stack([a, b]))
    assert both.sensitivity == 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_queries_are_clipped_as_wholes_and_added(dtype: torch.dtype) -> None:
    short, long = torch.full((4, 5), 0.1, dtype=dtype), torch.full((4, 5), -30.0, dtype=dtype)
    total = clipped_queries(torch.stack([short, long, short]), CLIP_NORM)
    assert (total.sensitivity, total.queries) == (2.0 * CLIP_NORM, 3)
    expected = 2.0 * short.double() + long.double() * CLIP_NORM / float(long.double().norm())
    torch.testing.assert_close(total.value, expected, rtol=2e-6, atol=1e-6)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=4, max_size=4), st.integers(-12, 12))
@settings(max_examples=80, deadline=None)
def test_one_query_moves_the_sum_by_at_most_twice_the_clip_norm(numbers: list[float], power: int) -> None:
    """For any tensor before and after the change, among other queries of any size."""
    one = torch.tensor(numbers, dtype=torch.float32).view(1, 2, 2)
    others = 10.0**power * torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(3))
    for replaced in (-one, torch.zeros_like(one), torch.full_like(one, math.nan)):
        change = (
            clipped_queries(torch.cat([others, one]), CLIP_NORM).value
            - clipped_queries(torch.cat([others, replaced]), CLIP_NORM).value
        )
        assert float(change.norm()) <= 2.0 * CLIP_NORM
    alone = clipped_queries(torch.cat([1e6 * one, -1e6 * one]), CLIP_NORM)
    assert float(alone.value.norm()) <= 1e-9


def test_opposite_queries_are_as_far_apart_as_the_sensitivity_says() -> None:
    far = torch.full((1, 3, 3), 1e4)
    change = clipped_queries(far, CLIP_NORM).value - clipped_queries(-far, CLIP_NORM).value
    assert float(change.norm()) == pytest.approx(2.0 * CLIP_NORM, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_query_that_is_not_finite_counts_as_zero(bad: float) -> None:
    gradients = torch.ones(3, 2, 2)
    gradients[1, 0, 1] = bad
    torch.testing.assert_close(
        clipped_queries(gradients, CLIP_NORM).value, clipped_queries(gradients[[0, 2]], CLIP_NORM).value
    )
