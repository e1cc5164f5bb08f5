"""The Gaussian mechanism: noise of exactly the declared standard deviation, for any sum."""

import math

import pytest
import torch

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import MAX_NOISE
from dp_sinkhorn.privacy.clipping import BoundedSum
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.random import CryptoRandom

pytestmark = pytest.mark.quick

SHAPE = (4, 50, 300)


def has_stddev(noise: torch.Tensor, stddev: float) -> bool:
    """Mean 0, this standard deviation, and the normal share within one of it: each to 6 standard errors."""
    count, scaled = noise.numel(), noise / stddev
    inside = math.erf(math.sqrt(0.5))
    share = float((scaled.abs() < 1.0).double().mean())
    return (
        abs(float(scaled.mean())) < 6.0 / math.sqrt(count)
        and abs(float(scaled.square().mean()) - 1.0) < 6.0 * math.sqrt(2.0 / count)
        and abs(share - inside) < 6.0 * math.sqrt(inside * (1.0 - inside) / count)
    )


def total(value: torch.Tensor, sensitivity: float = 2.5) -> BoundedSum:
    return BoundedSum(value.double(), sensitivity)


def test_stddev_is_the_noise_multiplier_times_the_sensitivity() -> None:
    assert GaussianMechanism(2.5, 1.2).noise_stddev == 3.0
    assert GaussianMechanism(sensitivity=0.5, noise_multiplier=4.0).noise_stddev == 2.0


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_the_noise_has_this_stddev_and_no_other(size: float) -> None:
    value = size * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    released = GaussianMechanism(2.5, 1.2)(total(value), CryptoRandom(test_seed=1))
    noise = released - value
    assert released.dtype == torch.float64
    assert has_stddev(noise, 3.0)
    for factor in (2 / 3, 3 / 2, 0.97, 1.03, 1.2, 1 / 2.5):
        assert not has_stddev(noise, 3.0 * factor)


def test_every_coordinate_is_noised() -> None:
    value = torch.zeros(SHAPE)
    released = GaussianMechanism(2.5, 1.2)(total(value), CryptoRandom(test_seed=2))
    assert bool((released != 0.0).all())
    for part in (*released, *released.transpose(0, 1)[:3], *released.permute(2, 0, 1)[:3]):
        assert float(part.std()) == pytest.approx(3.0, rel=6.0 / math.sqrt(2.0 * part.numel()))


def test_the_noise_of_an_empty_draw_is_that_of_a_full_one() -> None:
    """The same stream gives the same noise, for any sum."""
    mechanism = GaussianMechanism(2.5, 1.2)
    empty = mechanism(total(torch.zeros(3, 5)), CryptoRandom(test_seed=3))
    full = mechanism(total(torch.full((3, 5), 64.0)), CryptoRandom(test_seed=3))
    assert empty.shape == full.shape == (3, 5)
    torch.testing.assert_close(full - 64.0, empty, rtol=0.0, atol=1e-12)


def test_two_releases_have_different_noise() -> None:
    mechanism, random = GaussianMechanism(2.5, 1.2), CryptoRandom(test_seed=4)
    first, second = (mechanism(total(torch.zeros(1_000)), random) for _ in range(2))
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 6.0 / math.sqrt(1_000)


def test_the_sum_itself_is_not_changed() -> None:
    bounded = total(torch.ones(3))
    GaussianMechanism(2.5, 1.2)(bounded, CryptoRandom(test_seed=5))
    assert bounded.value.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("sensitivity", [2.4, 2.6, 5.0, 1.0])
def test_a_sum_of_another_sensitivity_is_refused(sensitivity: float) -> None:
    with pytest.raises(ValueError, match="sensitivity"):
        GaussianMechanism(2.5, 1.2)(total(torch.zeros(3), sensitivity), CryptoRandom(test_seed=6))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["sensitivity", "noise_multiplier"])
def test_a_mechanism_without_noise_is_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"{name}={value} is not a positive number"):
        GaussianMechanism(**({"sensitivity": 1.0, "noise_multiplier": 1.0} | {name: value}))


@pytest.mark.parametrize("queries", [1, 4, 64])
def test_the_sum_of_queries_carries_the_noise_of_each(queries: int) -> None:
    value = torch.zeros(SHAPE, dtype=torch.float64)
    released = GaussianMechanism(2.5, 1.2)(BoundedSum(value, 2.5, queries), CryptoRandom(test_seed=4))
    stddev = 3.0 * math.sqrt(queries)
    assert has_stddev(released, stddev)
    for factor in (2 / 3, 3 / 2, 0.97, 1.03):
        assert not has_stddev(released, stddev * factor)
    if queries > 1:
        assert not has_stddev(released, 3.0)
        assert not has_stddev(released, 3.0 * queries)


@pytest.mark.parametrize(
    ("noise_multiplier", "units"),
    # The last: noise that is no float64 by itself brings a large sum back to where floats have their lowest bits.
    [*((noise, units) for noise in (0.05, 1.0, 3e4, 2e6) for units in (0.0, 1.0)), (3e6, -(2.0**55))],
)
def test_the_lowest_bits_of_a_release_are_fair_coins_whatever_the_sum(noise_multiplier: float, units: float) -> None:
    """Large floats of noise round to even, so their parity would reveal that of the sum."""
    mechanism = GaussianMechanism(1.0, noise_multiplier)
    value = torch.full((400_000,), units * mechanism.grid, dtype=torch.float64)
    released = mechanism(total(value, 1.0), CryptoRandom(test_seed=7)) / mechanism.grid
    exact = released[released.abs() < 2.0**52]  # far beyond, floats have no lowest bit
    assert exact.numel() > 10_000
    assert torch.equal(exact, exact.round())
    for bit in range(2):
        share = float(torch.floor(exact / 2.0**bit).remainder(2.0).mean())
        assert abs(share - 0.5) < 6.0 * 0.5 / math.sqrt(exact.numel())


def test_noise_beyond_what_whole_numbers_hold_is_refused() -> None:
    GaussianMechanism(1.0, MAX_NOISE)(total(torch.zeros(2), 1.0), CryptoRandom(test_seed=9))
    for mechanism, queries in (
        (GaussianMechanism(1.0, 1.01 * MAX_NOISE), 1),
        (GaussianMechanism(1.0, 3e6), 9),
    ):
        with pytest.raises(ValueError, match=r"is above 8\.38861e\+06"):
            mechanism(BoundedSum(torch.zeros(2, dtype=torch.float64), 1.0, queries), CryptoRandom(test_seed=9))
