"""Moments of images: one image moves each sum by at most 1, and sums are read as means, squares and energies."""

import math

import pytest
import torch

from dp_sinkhorn.estimators.image_moments import image_moments, read_image_moments

SIZE, NUM_BANDS = 24, 7
BANDS = torch.arange(SIZE - 5) % NUM_BANDS


def extreme_images() -> torch.Tensor:
    """Black, white, chequered, mid-grey, random black and white, random grey."""
    random = torch.Generator().manual_seed(0)
    chequered = torch.tensor([1.0, -1.0]).repeat(SIZE // 2).unsqueeze(0)
    rows = [torch.full((1, SIZE), -1.0), torch.ones(1, SIZE), chequered, torch.zeros(1, SIZE)]
    rows += [torch.randint(2, (5, SIZE), generator=random) * 2.0 - 1.0, torch.rand(5, SIZE, generator=random) * 2 - 1]
    return torch.cat(rows).double()


@pytest.mark.parametrize("radius", [0.5, 4.0, 1e3])
@pytest.mark.parametrize("seen", [0, 5, SIZE])
def test_image_moments_change_by_at_most_1(radius: float, seen: int) -> None:
    """The first `seen` numbers of an image are its coordinates, the others its rest."""
    bands = torch.zeros(SIZE - seen, dtype=torch.int64)

    def total(rows: torch.Tensor) -> torch.Tensor:
        found = image_moments(rows[:, :seen], rows[:, seen:], bands, 1, radius)
        assert found.sensitivity == 1.0
        return found.value

    rows = extreme_images()
    moved = [float((total(rows) - total(torch.cat([rows[:j], rows[j + 1 :]]))).norm()) for j in range(len(rows))]
    assert max(moved) <= 1.0
    # Black has norm √24. Above the first two radii it reaches the bound, if all of it lies on one side.
    assert (moved[0] == pytest.approx(1.0, abs=1e-5)) == (radius < 5.0 and seen in (0, SIZE))


def test_a_row_that_is_not_finite_counts_as_zero() -> None:
    rows = torch.tensor([[0.1, 0.2], [math.inf, 0.0], [0.1, math.nan]], dtype=torch.float64)
    flat, bands = torch.zeros_like(rows), torch.tensor([0, 1])
    for parts in ((rows, flat), (flat, rows)):
        first = image_moments(parts[0][:1], parts[1][:1], bands, 2, 1.0)
        assert torch.equal(image_moments(*parts, bands, 2, 1.0).value, first.value)


def test_sums_are_read_as_means_squares_and_energies() -> None:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(50, SIZE, generator=random, dtype=torch.float64)
    q, p = rows[:, :5] / 100.0, rows[:, 5:] / 100.0
    released = image_moments(rows[:, :5], rows[:, 5:], BANDS, NUM_BANDS, 100.0).value
    mean, square, rest_mean, energies = read_image_moments(released, 50.0, 5, SIZE - 5)
    torch.testing.assert_close(mean, q.mean(0), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(square, q.T @ q / 50, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(rest_mean, p.mean(0), rtol=1e-5, atol=0.0)
    expected = torch.stack([p[:, band == BANDS].square().sum(1).mean() for band in range(NUM_BANDS)])
    torch.testing.assert_close(energies, expected, rtol=1e-5, atol=1e-12)


def test_images_longer_than_the_radius_are_scaled_to_it() -> None:
    rows = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    released = image_moments(rows[:, :1], rows[:, 1:], torch.tensor([2]), NUM_BANDS, 2.0).value
    mean, square, rest_mean, energies = read_image_moments(released, 1.0, 1, 1)
    found = torch.cat([mean, square.flatten(), rest_mean, energies])
    expected = torch.zeros(3 + NUM_BANDS, dtype=torch.float64)
    expected[:3], expected[5] = torch.tensor([0.6, 0.36, 0.8]), 0.64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-12)
