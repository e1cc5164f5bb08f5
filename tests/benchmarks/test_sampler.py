"""What computed noise may add to ε: the figures in docs/explanation/privacy.md, and their assumptions."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

import sampler
from dp_sinkhorn.privacy import random
from dp_sinkhorn.privacy.random import CryptoRandom

TEXT = (Path(__file__).parents[2] / "docs" / "explanation" / "privacy.md").read_text()


def rounded_up(value: float, digits: int = 2) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return math.ceil(value / unit - 1e-9) * unit


@pytest.mark.parametrize("bits", [29, 12])
def test_the_document_states_what_is_added_to_epsilon(bits: int) -> None:
    power = f"2{str(-bits).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    (row,) = re.findall(rf"^\| W {power} .*$", TEXT, re.MULTILINE)
    record, batch = (float(cell) for cell in row.strip("|").split("|")[1:3])
    assert record == pytest.approx(rounded_up(sampler.added_epsilon(3.4e7, 10.0, smooth_bits=bits)))
    assert batch == pytest.approx(rounded_up(sampler.added_epsilon(7.9e8, 10.0, smooth_bits=bits)))
    assert ("as it is" in row) == (bits == sampler.SMOOTH_BITS)


def test_the_document_states_the_other_figures() -> None:
    one = rounded_up(sampler.relative_error())
    ten, single = (rounded_up(sampler.added_epsilon(3.4e7, epsilon)) for epsilon in (10.0, 1.0))
    assert f"{one:.1e} in root mean square" in TEXT
    assert f"{ten:.2g} to ε at ε = 10, {single:.2g} at ε = 1 |" in TEXT
    assert f"= {sampler.largest_noise():.2f} standard deviations" in TEXT


def test_the_error_grows_with_the_grid_s_width_nearby_with_its_square() -> None:
    for bits in (6, 7, 8):
        error, nearby = sampler.grid_errors(bits)
        assert 0.01 < error * 2.0**bits < 0.025
        assert 0.003 < nearby * 4.0**bits < 0.03


def test_rounding_stays_within_the_bound_of_the_proof() -> None:
    """Compare the sampler's operations in float64 with the same in extended precision."""
    count = 200_000
    noise = CryptoRandom(test_seed=1).normal(count).numpy()
    again = CryptoRandom(test_seed=1)
    radii, angles = (again.uniform(2 * count).numpy().astype(np.longdouble) for _ in range(2))
    assert random.NORMALS_PER_DRAW == 4
    radius = np.sqrt(-2.0 * np.log(radii)).reshape(2, count)
    angle = (angles * (2.0 * np.arccos(np.longdouble(-1.0)))).reshape(2, count)
    exact = (radius * (np.cos(angle) + np.sin(angle))).sum(0) / 2.0
    bound = (sampler.ERRORS - 1.0) * 2.0**-53 * radius.sum(0) / math.sqrt(2.0)
    ratio = np.abs(noise - exact) / bound
    assert float(ratio.max()) < 1.0
    assert float(ratio.max()) > 0.01
