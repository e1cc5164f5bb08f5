"""CryptoRandom: standard normals (2/3 and 3/2 of them are rejected), uniform numbers, keys that cannot be replayed."""

import math
import os
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from dp_sinkhorn.privacy.random import CryptoRandom

pytestmark = pytest.mark.quick

COUNT = 200_000


def deviations(sample: torch.Tensor) -> list[str]:
    """Statistics of a sample that are more than 6 standard errors away from those of a standard normal."""
    count = sample.numel()
    measured = {
        "mean": (sample.mean(), 0.0, 1.0),
        "variance": (sample.square().mean(), 1.0, 2.0),
        "skewness": (sample.pow(3).mean(), 0.0, 15.0),
        "kurtosis": (sample.pow(4).mean(), 3.0, 96.0),
    }
    for bound in (0.5, 1.0, 2.0, 3.0, 4.0):
        inside = 1.0 - 2.0 * norm.sf(bound)
        measured[f"P(|z| < {bound})"] = ((sample.abs() < bound).double().mean(), inside, inside * (1.0 - inside))
    return [
        name
        for name, (value, expected, variance) in measured.items()
        if not abs(float(value) - expected) < 6.0 * math.sqrt(variance / count)
    ]


def normals() -> torch.Tensor:
    return CryptoRandom(test_seed=1).normal(COUNT)


def test_normals_have_the_moments_and_tails_of_a_standard_normal() -> None:
    assert deviations(normals()) == []


def test_normals_of_a_private_source_have_them_too() -> None:
    assert deviations(CryptoRandom().normal(COUNT)) == []


@pytest.mark.parametrize("scale", [2 / 3, 3 / 2, 0.97, 1.03])
def test_the_check_rejects_other_standard_deviations(scale: float) -> None:
    assert {"variance", "kurtosis", "P(|z| < 1.0)"} <= set(deviations(scale * normals()))


def test_the_check_rejects_a_uniform_of_the_same_variance() -> None:
    uniform = (CryptoRandom(test_seed=1).uniform(COUNT) - 0.5) * math.sqrt(12.0)
    assert "kurtosis" in deviations(uniform)


def test_normals_pass_kolmogorov_smirnov() -> None:
    assert kstest(normals().numpy(), "norm").pvalue > 1e-6


def test_normals_have_the_requested_shape_in_float64() -> None:
    random = CryptoRandom(test_seed=0)
    assert random.normal(2, 3, 4).shape == (2, 3, 4)
    assert random.normal(0, 7).shape == (0, 7)
    assert random.normal(5).dtype == random.uniform(5).dtype == torch.float64


def test_coordinates_are_uncorrelated() -> None:
    sample = CryptoRandom(test_seed=2).normal(20_000, 12)
    assert float((torch.corrcoef(sample.T) - torch.eye(12)).abs().max()) < 6.0 / math.sqrt(20_000)
    squares = torch.corrcoef(sample.square().T) - torch.eye(12, dtype=torch.float64)
    assert float(squares.abs().max()) < 6.0 / math.sqrt(20_000)


def test_halves_of_a_call_and_successive_calls_are_uncorrelated() -> None:
    random = CryptoRandom(test_seed=3)
    first, second = random.normal(COUNT), random.normal(COUNT)
    half = COUNT // 2
    for a, b in ((first, second), (first[:half], first[half:]), (first[:-1], first[1:]), (first, second.flip(0))):
        assert abs(float((a * b).mean())) < 6.0 / math.sqrt(a.numel())
        assert abs(float((a.square() * b.square()).mean()) - 1.0) < 6.0 * math.sqrt(8.0 / a.numel())


def test_no_normal_repeats() -> None:
    random = CryptoRandom(test_seed=4)
    both = torch.cat([random.normal(5_000), random.normal(5_000)])
    assert both.unique().numel() == 10_000


def test_uniform_is_uniform_and_inside_the_open_interval() -> None:
    sample = CryptoRandom(test_seed=5).uniform(COUNT)
    assert float(sample.min()) > 0.0
    assert float(sample.max()) < 1.0
    assert kstest(sample.numpy(), "uniform").pvalue > 1e-6


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_uniform_of_the_extreme_words_is_inside_the_open_interval(word: int) -> None:
    class Stuck(CryptoRandom):
        def bits(self, count: int) -> np.ndarray:
            return np.full(count, word, dtype=np.uint64)

    assert 0.0 < float(Stuck(0).uniform(1)) < 1.0
    assert bool(torch.isfinite(Stuck(0).normal(3)).all())


def test_two_private_sources_differ() -> None:
    one, other = CryptoRandom(), CryptoRandom()
    assert one.is_private
    assert other.is_private
    assert not np.array_equal(one.bits(4), other.bits(4))


def test_a_test_seed_repeats_exactly_and_is_not_private() -> None:
    one, same, other = CryptoRandom(7), CryptoRandom(7), CryptoRandom(8)
    assert not one.is_private
    first = one.normal(10)
    assert torch.equal(first, same.normal(10))
    assert not torch.equal(first, other.normal(10))
    assert not torch.equal(first, one.normal(10))


def test_a_private_source_draws_a_new_key_in_a_forked_process() -> None:
    random = CryptoRandom()
    random.bits(3)
    receive, send = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn about fork with threads
        child = os.fork()
    if child == 0:
        try:
            os.write(send, random.bits(4).tobytes())
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        in_child = np.frombuffer(pipe.read(), dtype=np.uint64)
    os.waitpid(child, 0)
    assert in_child.shape == (4,)
    assert not set(in_child.tolist()) & set(random.bits(4).tolist())


@pytest.mark.parametrize("width", [1, 3, 40, 63])
def test_integers_are_uniform_on_their_range(width: int) -> None:
    drawn = CryptoRandom(test_seed=3).integers(width, 100, 500)
    half = 1 << (width - 1)
    assert drawn.shape == (100, 500)
    assert drawn.dtype == torch.int64
    assert -half <= int(drawn.min()) <= int(drawn.max()) < half
    for share in (0.25, 0.5, 0.75) if width > 1 else (0.5,):
        below = float((drawn < round(2 * half * share) - half).double().mean())
        assert abs(below - share) < 6.0 * math.sqrt(share * (1.0 - share) / drawn.numel())
