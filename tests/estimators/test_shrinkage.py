"""Shrinkage of noisy differences: sums of squares by hand."""

from functools import partial

import pytest
import torch

from dp_sinkhorn.estimators.shrinkage import garrote, shrunk, shrunk_along_means, shrunk_groups

pytestmark = pytest.mark.quick

GROUPS = torch.tensor([0, 0, 1, 1, 1])


def row(*numbers: float) -> torch.Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def test_a_number_shrinks_by_the_share_of_noise_in_its_square() -> None:
    found = garrote(row(2.0, -2.0, 0.9), row(1.0, 1.0, 1.0))
    assert found.tolist() == [[1.5, -1.5, 0.0]]


def test_a_group_shrinks_by_the_share_of_noise_in_its_energy() -> None:
    values = row(3.0, 1.0, 1.0, 2.0, 2.0)
    found = shrunk_groups(values, row(1.0), GROUPS)
    # Energy 10 with noise 2: factor 4/5. Energy 9 with noise 3, above the threshold of 7.3: factor 2/3, as
    # 3 + 2·√(3·log 2) + 2·log 2 is 7.3.
    torch.testing.assert_close(found, row(2.4, 0.8, 2.0 / 3.0, 4.0 / 3.0, 4.0 / 3.0))
    single = shrunk_groups(values[0], torch.ones(1, dtype=torch.float64), GROUPS)
    torch.testing.assert_close(single, found[0])


def test_a_group_that_noise_alone_could_reach_becomes_zero() -> None:
    just_below, just_above = row(0.0, 0.0, 2.69, 0.0, 0.0), row(0.0, 0.0, 2.7, 0.0, 0.0)  # 7.24 and 7.29
    assert float(shrunk_groups(just_below, row(1.0), GROUPS).abs().max()) == 0.0
    assert float(shrunk_groups(just_above, row(1.0), GROUPS)[0, 2]) == pytest.approx(2.7 * (1.0 - 3.0 / 2.7**2))
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(50, 2000, generator=random, dtype=torch.float64)
    kept = shrunk_groups(noise, torch.ones(50, 1, dtype=torch.float64), torch.arange(2000) // 4)
    # 25,000 groups, each kept with probability at most 1/500.
    assert float((kept != 0.0).double().mean()) < 1.0 / 500.0


def test_the_noise_of_a_group_may_differ_from_number_to_number() -> None:
    found = shrunk_groups(row(6.0, 2.0, 5.0, 0.0, 0.0), row(3.0, 1.0, 3.0, 4.0, 0.0), GROUPS)
    torch.testing.assert_close(found, row(4.5, 1.5, 0.0, 0.0, 0.0))


def test_many_small_numbers_exceed_the_noise_together_and_none_alone() -> None:
    """Noise of 1 on 4,000 numbers, each 0.5: individually almost none exceeds the noise."""
    random = torch.Generator().manual_seed(0)
    noisy = 0.5 + torch.randn(1, 4000, generator=random, dtype=torch.float64)  # energy 5,000 with noise 4,000
    found = shrunk_groups(noisy, row(1.0), torch.zeros(4000, dtype=torch.int64))
    # Wiener's factor: 0.25 / 1.25.
    assert float((found / noisy).mean()) == pytest.approx(0.2, abs=0.03)


def test_the_common_part_is_kept_where_no_class_exceeds_its_noise() -> None:
    """100 classes with the same gap, each below its own noise."""
    apart = torch.full((100, 2), 0.8, dtype=torch.float64)
    counts, noise = torch.ones(100, dtype=torch.float64), torch.ones(100, 1, dtype=torch.float64)
    kept = partial(shrunk_groups, groups=torch.zeros(2, dtype=torch.int64))
    found = shrunk(apart, counts, noise, kept)
    # The noise on the mean of 100 is 0.1: energy 1.28 with noise 0.02.
    torch.testing.assert_close(found, apart * (1.0 - 0.02 / 1.28))
    assert float(shrunk(apart[:1], counts[:1], noise[:1], kept).abs().max()) == 0.0


def test_a_mean_that_is_mostly_error_is_corrected_along_itself() -> None:
    """Two classes whose records have the same mean, and models that are 3 away from it on either side."""
    random = torch.Generator().manual_seed(0)
    error = 3.0 * torch.nn.functional.normalize(torch.randn(1000, generator=random, dtype=torch.float64), dim=0)
    own, counts = torch.stack([error, -error]), torch.ones(2, dtype=torch.float64)
    means = own + torch.linspace(-1.0, 1.0, 1000, dtype=torch.float64)  # the common part is right
    noise = torch.full((2, 1), 0.5, dtype=torch.float64)  # on each of 1,000 numbers, the largest about 0.3
    found = shrunk_along_means(-own, means, counts, noise)
    torch.testing.assert_close(found, -own * (1.0 - 0.25 / 9.0))
    across = torch.zeros_like(own)
    across[:, 0], across[:, 1] = own[:, 1], -own[:, 0]
    torch.testing.assert_close(shrunk_along_means(across, means, counts, noise), torch.zeros_like(own))


def test_along_the_common_mean_the_noise_is_that_of_a_mean() -> None:
    means, counts = torch.full((100, 4), 0.25, dtype=torch.float64), torch.ones(100, dtype=torch.float64)
    noise = torch.ones(100, 1, dtype=torch.float64)
    found = shrunk_along_means(-means, means, counts, noise)  # of norm 0.5, with noise 0.1
    torch.testing.assert_close(found, -means * (1.0 - 0.01 / 0.25))
    assert float(shrunk_along_means(-means, torch.zeros_like(means), counts, noise).abs().max()) == 0.0
