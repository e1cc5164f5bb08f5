"""Confidence limits against published values, closed forms and simulation."""

import math

import numpy as np
import pytest

from dp_sinkhorn.audit.intervals import (
    binomial_fits,
    chi_square_fits,
    clopper_pearson,
    mean_interval,
    normal_fits,
    stddev_interval,
    threshold_attack,
)


def test_clopper_pearson_agrees_with_tables():
    low, high = clopper_pearson(10, 100, 0.05)
    assert (round(low, 4), round(high, 4)) == (0.0490, 0.1762)  # tables
    assert clopper_pearson(0, 20, 0.05) == (0.0, pytest.approx(1.0 - 0.025 ** (1 / 20)))
    assert clopper_pearson(20, 20, 0.05) == (pytest.approx(0.025 ** (1 / 20)), 1.0)


def test_intervals_of_standard_deviation_and_mean():
    low, high = stddev_interval(10.0, 10, 0.05)
    assert (low, high) == (pytest.approx(math.sqrt(10 / 20.483), 1e-4), pytest.approx(math.sqrt(10 / 3.247), 1e-4))
    assert mean_interval(np.full(5, 2.0), 0.01) == (2.0, 2.0)
    low, high = mean_interval(np.array([1.0, 2.0, 3.0]), 0.05)
    assert (low, high) == (
        pytest.approx(2 - 4.3027 / math.sqrt(3), 1e-4),
        pytest.approx(2 + 4.3027 / math.sqrt(3), 1e-4),
    )


def test_fits_accept_the_right_law_and_reject_a_near_one():
    normals = np.random.default_rng(0).standard_normal(2000)
    assert normal_fits(normals, 1e-3)
    assert not normal_fits(1.2 * normals, 1e-3)
    assert chi_square_fits(float(np.square(normals).sum()), 2000, 1e-3)
    assert not chi_square_fits(1.2 * float(np.square(normals).sum()), 2000, 1e-3)
    assert binomial_fits(50, 100, 0.5, 1e-3)
    assert not binomial_fits(70, 100, 0.5, 1e-3)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_threshold_attack_bounds_a_laplace_mechanism_from_below(sign):
    """Laplace noise of scale 1 on a shift of 1 is 1-DP, and every threshold beyond either mean shows it."""
    random = np.random.default_rng(1)
    without, with_record = random.laplace(0.0, 1.0, 40_000), random.laplace(sign, 1.0, 40_000)
    if sign < 0:
        without, with_record = with_record, without
    assert 0.85 < threshold_attack(without, with_record, 0.0, 0.01) <= 1.0


def test_the_threshold_attack_on_equal_samples_finds_nothing():
    random = np.random.default_rng(2)
    assert threshold_attack(random.standard_normal(4000), random.standard_normal(4000), 1e-5, 0.01) == 0.0
