"""Poisson subsampling: each record independently with the declared rate, at a cost that does not grow with N."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import binom

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.subsampling import PoissonSubsampler

pytestmark = pytest.mark.quick

DRAWS = 3_000


class CountingRandom(CryptoRandom):
    """Counts the random words that are drawn."""

    words = 0

    def bits(self, count: int) -> np.ndarray:
        self.words += count
        return super().bits(count)


@cache
def inclusion(num_records: int, sample_rate: float) -> torch.Tensor:
    """DRAWS × num_records matrix of 0 and 1."""
    subsampler, random = PoissonSubsampler(num_records, sample_rate), CryptoRandom(test_seed=11)
    drawn = torch.zeros(DRAWS, num_records, dtype=torch.float64)
    for row in drawn:
        row[subsampler.draw(random)] = 1.0
    return drawn


@pytest.mark.parametrize(("num_records", "sample_rate"), [(40, 0.1), (20, 0.93), (300, 0.004)])
def test_each_record_is_drawn_with_the_declared_probability(num_records: int, sample_rate: float) -> None:
    counts = inclusion(num_records, sample_rate).sum(0).numpy()
    assert binom.cdf(counts, DRAWS, sample_rate).min() > 1e-9
    assert binom.sf(counts - 1, DRAWS, sample_rate).min() > 1e-9


@pytest.mark.parametrize(("num_records", "sample_rate"), [(40, 0.1), (20, 0.93)])
def test_records_are_drawn_independently(num_records: int, sample_rate: float) -> None:
    correlation = torch.corrcoef(inclusion(num_records, sample_rate).T) - torch.eye(num_records)
    assert float(correlation.abs().max()) < 6.0 / math.sqrt(DRAWS)


@pytest.mark.parametrize(("num_records", "sample_rate"), [(40, 0.1), (20, 0.93)])
def test_the_drawn_size_is_binomial(num_records: int, sample_rate: float) -> None:
    sizes = inclusion(num_records, sample_rate).sum(1)
    mean, variance = num_records * sample_rate, num_records * sample_rate * (1.0 - sample_rate)
    assert abs(float(sizes.mean()) - mean) < 6.0 * math.sqrt(variance / DRAWS)
    # A draw of fixed size would have variance 0.
    assert abs(float(sizes.var()) / variance - 1.0) < 6.0 * math.sqrt(2.3 / DRAWS)


def test_successive_draws_are_independent() -> None:
    sizes = inclusion(40, 0.1).sum(1)
    lagged = torch.corrcoef(torch.stack([sizes[:-1], sizes[1:]]))[0, 1]
    assert abs(float(lagged)) < 6.0 / math.sqrt(DRAWS)


def test_rate_1_draws_everything() -> None:
    assert PoissonSubsampler(17, 1.0).draw(CryptoRandom(test_seed=0)).tolist() == list(range(17))


@pytest.mark.parametrize("sample_rate", [1e-12, 1e-100, 5e-324])
def test_a_tiny_rate_gives_empty_draws(sample_rate: float) -> None:
    drawn = PoissonSubsampler(1_000, sample_rate).draw(CryptoRandom(test_seed=0))
    assert drawn.shape == (0,)
    assert drawn.dtype == torch.int64


@pytest.mark.parametrize("sample_rate", [1.0 - 2.0**-53, 0.999, 0.5, 0.01])
@pytest.mark.parametrize("num_records", [1, 2, 1_000])
def test_indices_ascend_without_repetition_and_lie_in_range(num_records: int, sample_rate: float) -> None:
    random = CryptoRandom(test_seed=3)
    for _ in range(20):
        drawn = PoissonSubsampler(num_records, sample_rate).draw(random)
        assert drawn.dtype == torch.int64
        assert bool((drawn.diff() > 0).all())
        assert bool(((drawn >= 0) & (drawn < num_records)).all())


def test_the_last_record_is_reached_when_a_block_of_gaps_falls_short() -> None:
    class ZeroGaps(CryptoRandom):
        """The first call draws every record, so that one block is not enough."""

        calls = 0

        def uniform(self, count: int) -> torch.Tensor:
            self.calls += 1
            return torch.full((count,), 0.999, dtype=torch.float64)

    random = ZeroGaps(test_seed=0)
    assert PoissonSubsampler(1_000, 0.01).draw(random).tolist() == list(range(1_000))
    assert random.calls > 1


def test_the_cost_grows_with_the_batch_and_not_with_the_records() -> None:
    words = {}
    for num_records in (10_000, 10_000_000):
        for expected in (100, 1_000):
            random = CountingRandom(test_seed=5)
            PoissonSubsampler(num_records, expected / num_records).draw(random)
            words[num_records, expected] = random.words
    assert words[10_000, 100] == words[10_000_000, 100] < 400
    assert words[10_000, 100] < words[10_000, 1_000] == words[10_000_000, 1_000] < 2_000


@pytest.mark.parametrize("sample_rate", [0.0, -0.1, 1.0001, 50.0, math.inf, math.nan])
def test_a_rate_outside_0_to_1_is_refused(sample_rate: float) -> None:
    with pytest.raises(InputError, match=rf"sample_rate={sample_rate} is not in \(0, 1\]") as caught:
        PoissonSubsampler(10, sample_rate)
    assert "\n" not in str(caught.value)


def padded(queries: int, capacity: int, seed: int, num_records: int = 30, sample_rate: float = 0.1) -> tuple:
    random = CryptoRandom(test_seed=seed)
    return PoissonSubsampler(num_records, sample_rate).draw_padded(queries, capacity, random)


def test_padded_subsamples_are_independent_coins_of_the_declared_rate() -> None:
    index, drawn = padded(DRAWS, 30, seed=21)
    counts = torch.zeros(DRAWS, 30)
    for query in range(DRAWS):
        own = index[query][drawn[query]]
        assert own.tolist() == sorted(set(own.tolist()))
        counts[query, own] = 1.0
    by_record = counts.sum(0).numpy()
    assert binom.cdf(by_record, DRAWS, 0.1).min() > 1e-9
    assert binom.sf(by_record - 1, DRAWS, 0.1).min() > 1e-9
    sizes = counts.sum(1)
    assert float(sizes.var()) == pytest.approx(30 * 0.1 * 0.9, rel=0.15)
    # Neighbouring queries and neighbouring records are independent.
    centred = counts - 0.1
    for product in (centred[1:] * centred[:-1], centred[:, 1:] * centred[:, :-1]):
        assert abs(float(product.sum())) < 6.0 * 0.09 * math.sqrt(product.numel())


def test_padding_has_a_public_shape_and_says_so() -> None:
    index, drawn = padded(50, 4, seed=22)
    whole, all_drawn = padded(50, 30, seed=22)
    assert index.shape == drawn.shape == (50, 4)
    assert bool((index[~drawn] == 0).all())
    assert int(all_drawn.sum(1).max()) > 4
    assert torch.equal(drawn, all_drawn[:, :4])
    assert torch.equal(index, whole[:, :4])


def test_no_record_drawn_is_an_ordinary_padded_draw() -> None:
    index, drawn = padded(3, 4, seed=23, sample_rate=1e-12)
    assert index.shape == (3, 4)
    assert not bool(drawn.any())


def test_at_rate_1_every_query_holds_every_record() -> None:
    index, drawn = padded(3, 30, seed=24, sample_rate=1.0)
    assert bool(drawn.all())
    assert index.tolist() == [list(range(30))] * 3
