"""Mean features of classes: unbiased squared gaps to targets, and targets by shrunken noisy gaps."""

import pytest
import torch

from dp_sinkhorn.estimators.mean_features import (
    frequency_groups,
    shrunk_embedding_gap,
    shrunk_feature_gap,
    squared_gaps,
    wanted_means,
)
from dp_sinkhorn.features.scattering import map_shape

pytestmark = pytest.mark.quick

SHAPE = map_shape((1, 8, 8))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_squared_gap_is_the_mean_over_pairs_of_different_images() -> None:
    features, wanted = normal(3, 4, 5), normal(3, 5, seed=1)
    apart = features - wanted.unsqueeze(1)
    pairs = [[(apart[k, i] * apart[k, j]).sum() for i in range(4) for j in range(4) if i != j] for k in range(3)]
    torch.testing.assert_close(squared_gaps(features, wanted), torch.stack([torch.stack(row).mean() for row in pairs]))


@pytest.mark.parametrize("images", [2, 7])
def test_a_squared_gap_of_few_images_has_no_bias(images: int) -> None:
    """Its mean over draws of normal features is the squared gap of the means: 0.25·6 = 1.5, and 0."""
    wanted, draws = torch.zeros(2, 6, dtype=torch.float64), 20_000
    means = torch.tensor([[0.5], [0.0]], dtype=torch.float64).expand(2, 6)
    features = means.unsqueeze(1) + normal(draws, 2, images, 6)
    found = torch.stack([squared_gaps(rows, wanted) for rows in features])
    error = found.std(0) / draws**0.5
    assert bool(((found.mean(0) - torch.tensor([1.5, 0.0])).abs() < 4.0 * error).all())
    # The squared distance of the means would be too large by 6/n.
    assert float(error.max()) < 0.2 * 6.0 / images


def test_wanted_means_are_own_means_plus_the_shrunk_gap() -> None:
    own = [normal(50, 4, seed=k) + k for k in range(2)]
    counts, noise = torch.tensor([10.0, 40.0]).double(), 3.0
    released = counts.unsqueeze(1) * normal(2, 4, seed=9)
    asked: list[tuple[torch.Tensor, ...]] = []

    def half(gap: torch.Tensor, counts: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        asked.append((gap, counts, level))
        return 0.5 * gap

    found = wanted_means(own, released, counts, noise, half)
    means = torch.stack([rows.mean(0) for rows in own])
    means_of_records = released / counts.unsqueeze(1)
    torch.testing.assert_close(found, 0.5 * (means + means_of_records))
    [(gap, of, level)] = asked
    torch.testing.assert_close(gap, means_of_records - means)
    assert torch.equal(of, counts)
    # The noise of the release on a mean, and the sampling error of few images.
    for k, rows in enumerate(own):
        torch.testing.assert_close(level[k], ((noise / counts[k]) ** 2 + rows.var(0) / 50).sqrt())


def test_groups_are_the_octaves_of_each_map() -> None:
    assert frequency_groups((2, 2, 3)).tolist() == [0, 1, 2, 1, 1, 2, 3, 4, 5, 4, 4, 5]


def test_a_feature_gap_is_kept_at_little_noise_and_never_that_of_the_bias() -> None:
    gap = normal(3, 1 + SHAPE[0] * SHAPE[1] * SHAPE[2])
    counts = torch.ones(3, dtype=torch.float64)
    found = shrunk_feature_gap(gap, counts, torch.full_like(gap, 1e-6), SHAPE)
    torch.testing.assert_close(found[:, :-1], gap[:, :-1], rtol=1e-6, atol=1e-9)
    assert found[:, -1].tolist() == [0.0, 0.0, 0.0]
    assert float(shrunk_feature_gap(gap, counts, torch.full_like(gap, 100.0), SHAPE).abs().max()) == 0.0


def test_the_noise_of_a_map_is_its_mean_over_places() -> None:
    """An orthogonal transform spreads noise in one place over all frequencies."""
    shape, counts = (2, 4, 4), torch.ones(1, dtype=torch.float64)
    gap = torch.cat([0.3 * normal(1, 32), torch.zeros(1, 1, dtype=torch.float64)], dim=1)
    noise = torch.zeros_like(gap)
    noise[:, 3] = 40.0
    found = shrunk_feature_gap(gap, counts, noise, shape)
    assert float(found[:, :16].abs().max()) == 0.0
    torch.testing.assert_close(found[:, 16:], gap[:, 16:])


def test_the_gap_of_each_kernel_is_shrunk_as_a_whole() -> None:
    counts = torch.ones(2, dtype=torch.float64)
    gap = torch.tensor([[5.0, 5.0, 0.1, 0.1], [-5.0, -5.0, -0.1, -0.1]], dtype=torch.float64)
    noise = torch.ones_like(gap)
    found = shrunk_embedding_gap(gap, counts, noise, parts=2)
    # Opposite gaps have nothing in common; of energy 50 with noise 2, 24/25 is kept.
    torch.testing.assert_close(found[:, :2], 0.96 * gap[:, :2])
    assert float(found[:, 2:].abs().max()) == 0.0
    # As one kernel: energy 50.02 with noise 4.
    torch.testing.assert_close(shrunk_embedding_gap(gap, counts, noise, parts=1), (1.0 - 4.0 / 50.02) * gap)
