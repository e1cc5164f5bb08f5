"""Sums released once: one record moves each by at most 1, and what is read from them is what the data say."""

import math
from collections.abc import Callable

import pytest
import torch
from dp_sinkhorn.privacy.statistics import (
    UNIT_SENSITIVITY,
    class_counts,
    feature_sum,
    first_moments,
    image_moments,
    read_first_moments,
    read_image_moments,
    read_second_moment,
    second_moment,
    variance_about,
)

from dp_sinkhorn.privacy.clipping import BoundedSum
from dp_sinkhorn.privacy.random import CryptoRandom

pytestmark = pytest.mark.quick

SIZE = 24


def extreme_images(size: int = SIZE) -> torch.Tensor:
    """All black, all white, chequered, mid-grey, random black and white, random grey, nearly black."""
    random = torch.Generator().manual_seed(0)
    chequered = torch.tensor([1.0, -1.0]).repeat(size // 2).unsqueeze(0)
    rows = [torch.full((1, size), -1.0), torch.ones(1, size), chequered, torch.zeros(1, size)]
    rows += [torch.randint(2, (5, size), generator=random) * 2.0 - 1.0, torch.rand(5, size, generator=random) * 2 - 1]
    return torch.cat([*rows, -1.0 + 1e-6 * torch.rand(2, size, generator=random)])


def changes(total: Callable[[torch.Tensor], BoundedSum], rows: torch.Tensor) -> list[float]:
    """How far each row, taken away, moves the sum."""
    whole = total(rows)
    assert whole.sensitivity == UNIT_SENSITIVITY == 1.0
    return [
        float((whole.value - total(torch.cat([rows[:j], rows[j + 1 :]])).value).norm()) for j in range(rows.shape[0])
    ]


def test_first_moments_change_by_at_most_1() -> None:
    moved = changes(first_moments, extreme_images())
    assert max(moved) <= 1.0
    # Black and white images use the whole bound.
    assert moved[0] == pytest.approx(1.0, abs=1e-5)
    assert moved[1] == pytest.approx(1.0, abs=1e-5)


def test_first_moments_hold_the_bound_beyond_the_declared_range() -> None:
    assert max(changes(first_moments, 1e3 * extreme_images())) <= 1.0


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-30, 1e6])
def test_second_moment_changes_by_at_most_1(scale: float) -> None:
    rows = scale * extreme_images()
    moved = changes(second_moment, rows)
    assert max(moved) <= 1.0
    for row, change in zip(rows, moved, strict=True):
        # A row keeps its direction, and below 0.01 its length.
        assert change == pytest.approx(min(1.0, float(row.double().norm()) / 0.01) ** 2, abs=1e-5)


def test_rows_that_are_nothing_but_rounding_are_not_made_long() -> None:
    """Such a row may come out otherwise beside other records, so all of them may change at once."""
    rows = 1e-14 * extreme_images()
    assert float((second_moment(rows).value - second_moment(-rows.flip(1)).value).norm()) < 1e-20
    assert float(second_moment(rows).value.norm()) < 1e-20


def test_an_image_that_equals_the_centre_adds_nothing() -> None:
    rows = extreme_images()
    with_it = second_moment(torch.cat([rows, torch.zeros(1, SIZE)])).value
    torch.testing.assert_close(with_it, second_moment(rows).value, rtol=0.0, atol=1e-12)
    alone = second_moment(torch.zeros(1, SIZE)).value
    assert torch.equal(alone, torch.zeros(SIZE * (SIZE + 1) // 2, dtype=torch.float64))


def test_class_counts_change_by_1_in_one_place() -> None:
    labels = torch.tensor([0, 2, 2, 1, 2, 0])
    counts = class_counts(labels, 5)
    assert counts.value.tolist() == [2.0, 1.0, 3.0, 0.0, 0.0]
    assert counts.value.dtype == torch.float64
    assert counts.sensitivity == 1.0
    for j in range(6):
        change = counts.value - class_counts(torch.cat([labels[:j], labels[j + 1 :]]), 5).value
        assert change.tolist() == [float(k == labels[j]) for k in range(5)]


def test_the_packed_vector_of_one_record_has_norm_1_and_is_u_u_transposed() -> None:
    row = torch.tensor([[3.0, 0.0, -4.0]])
    packed = second_moment(row).value
    assert float(packed.norm()) == pytest.approx(1.0, abs=2e-6)
    assert float(packed.norm()) <= 1.0
    expected = torch.tensor([[9.0, 0.0, -12.0], [0.0, 0.0, 0.0], [-12.0, 0.0, 16.0]], dtype=torch.float64) / 25.0
    torch.testing.assert_close(read_second_moment(packed, 3), expected, rtol=2e-6, atol=0.0)


def test_second_moment_reads_back_as_the_sum_of_u_u_transposed() -> None:
    rows = extreme_images().double()
    expected = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    for row in rows:
        if float(row.norm()) > 0.0:
            unit = row / row.norm()
            expected += torch.outer(unit, unit)
    matrix = read_second_moment(second_moment(rows).value, SIZE)
    assert torch.equal(matrix, matrix.T)
    torch.testing.assert_close(matrix, expected, rtol=1e-5, atol=1e-9)


def test_more_rows_than_a_chunk_are_all_counted() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, -1.0]]).repeat(10_000, 1)
    torch.testing.assert_close(
        read_second_moment(second_moment(rows).value, 2), 1e4 * torch.eye(2).double(), rtol=2e-6, atol=1e-9
    )
    mean, variance = read_first_moments(first_moments(rows).value, 20_000, 0.0)
    torch.testing.assert_close(mean, torch.tensor([0.5, -0.5]).double(), rtol=2e-6, atol=0.0)
    assert variance == pytest.approx(0.5, rel=1e-5)


def test_noise_on_the_packed_vector_is_symmetric_noise_on_the_matrix() -> None:
    """Variance σ² on the diagonal, half of it beside."""
    size = 200
    matrix = read_second_moment(3.0 * CryptoRandom(test_seed=1).normal(size * (size + 1) // 2), size)
    assert torch.equal(matrix, matrix.T)
    upper = torch.triu_indices(size, size, offset=1)
    beside = matrix[upper[0], upper[1]]
    assert float(matrix.diagonal().square().mean()) == pytest.approx(9.0, rel=6.0 * math.sqrt(2.0 / size))
    assert float(beside.square().mean()) == pytest.approx(4.5, rel=6.0 * math.sqrt(2.0 / beside.numel()))


def grey_images(count: int) -> torch.Tensor:
    """Pixels uniform on ±0.5 around means that run from -0.4 to 0.4: total variance SIZE/12."""
    random = torch.Generator().manual_seed(3)
    return torch.linspace(-0.4, 0.4, SIZE) + torch.rand(count, SIZE, generator=random) - 0.5


def test_mean_and_variance_are_those_of_the_data() -> None:
    images = grey_images(40_000)
    mean, variance = read_first_moments(first_moments(images).value, 40_000, 0.0)
    torch.testing.assert_close(mean, images.double().mean(0), rtol=2e-6, atol=1e-7)
    assert variance == pytest.approx(float(images.double().var(0, correction=0).sum()), rel=1e-4)
    assert variance == pytest.approx(SIZE / 12.0, rel=0.02)


def test_the_variance_about_a_centre_is_that_of_the_data() -> None:
    images = grey_images(4_000)
    centre = 0.1 * torch.arange(SIZE) / SIZE
    exact = float((images.double() - centre).square().sum(1).mean())
    assert variance_about(centre, first_moments(images).value, 4_000, 1e-9) == pytest.approx(exact, rel=1e-4)


def test_noise_that_hides_the_mean_image_leaves_the_variance_about_zero() -> None:
    """The only noise that is left is that on E‖y‖², √2·d·σ/N."""
    images, random = grey_images(4_000), CryptoRandom(test_seed=3)
    total, zero = first_moments(images).value, torch.zeros(SIZE)
    exact = float(images.double().square().sum(1).mean())
    noise = SIZE * 2**0.5 * 20.0 / 4_000
    found = [variance_about(zero, total + 20.0 * random.normal(SIZE + 1), 4_000, 20.0) for _ in range(200)]
    assert all(abs(value - exact) < 5.0 * noise for value in found)
    assert variance_about(zero, torch.zeros(SIZE + 1, dtype=torch.float64), 4_000, 20.0) == pytest.approx(noise)


def test_mean_and_variance_are_unbiased_under_noise() -> None:
    """The noise alone would add 2·d²·(σ/N)² = 0.72 to a variance of 2; averaged, nothing of it may be left."""
    count, stddev, repeats = 2_000, 50.0, 2_000
    images = grey_images(count)
    exact_mean, exact_variance = read_first_moments(first_moments(images).value, count, 0.0)
    total, random = first_moments(images).value, CryptoRandom(test_seed=4)
    means, variances = [], []
    for _ in range(repeats):
        mean, variance = read_first_moments(total + stddev * random.normal(SIZE + 1), count, stddev)
        means.append(mean)
        variances.append(variance)
    found = torch.tensor(variances, dtype=torch.float64)
    bias = 2.0 * SIZE**2 * (stddev / count) ** 2
    assert bias == pytest.approx(0.72)
    standard_error = float(found.std()) / math.sqrt(repeats)
    assert 6.0 * standard_error < 0.5 * bias
    assert abs(float(found.mean()) - exact_variance) < 6.0 * standard_error
    spread = math.sqrt(2.0 * SIZE) * stddev / count
    assert float((torch.stack(means).mean(0) - exact_mean).abs().max()) < 6.0 * spread / math.sqrt(repeats)


NUM_BANDS = 7
BANDS = torch.arange(SIZE - 5) % NUM_BANDS


@pytest.mark.parametrize("radius", [0.5, 4.0, 1e3])
@pytest.mark.parametrize("seen", [0, 5, SIZE])
def test_image_moments_change_by_at_most_1(radius: float, seen: int) -> None:
    """The first `seen` numbers of an image are its coordinates, the others its rest."""
    bands = torch.zeros(SIZE - seen, dtype=torch.int64)

    def moments(rows: torch.Tensor) -> BoundedSum:
        return image_moments(rows[:, :seen].double(), rows[:, seen:].double(), bands, 1, radius)

    moved = changes(moments, extreme_images())
    assert max(moved) <= 1.0
    # Black has length √24: beyond the first two radii it uses the whole bound, if all of it is on one side.
    assert (moved[0] == pytest.approx(1.0, abs=1e-5)) == (radius < 5.0 and seen in (0, SIZE))


def test_image_moments_take_a_row_that_is_not_finite_as_zero() -> None:
    rows = torch.tensor([[0.1, 0.2], [math.inf, 0.0], [0.1, math.nan]], dtype=torch.float64)
    flat, bands = torch.zeros_like(rows), torch.tensor([0, 1])
    for parts in ((rows, flat), (flat, rows)):
        first = image_moments(parts[0][:1], parts[1][:1], bands, 2, 1.0)
        assert torch.equal(image_moments(*parts, bands, 2, 1.0).value, first.value)


def test_image_moments_are_read_as_means_squares_and_energies() -> None:
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


def test_images_longer_than_the_radius_are_cut_whole() -> None:
    rows = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    released = image_moments(rows[:, :1], rows[:, 1:], torch.tensor([2]), NUM_BANDS, 2.0).value
    mean, square, rest_mean, energies = read_image_moments(released, 1.0, 1, 1)
    found = torch.cat([mean, square.flatten(), rest_mean, energies])
    expected = torch.zeros(3 + NUM_BANDS, dtype=torch.float64)
    expected[:3], expected[5] = torch.tensor([0.6, 0.36, 0.8]), 0.64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("scale", [0.01, 1.0, 1e4])
def test_a_feature_sum_changes_by_at_most_1(scale: float) -> None:
    moved = changes(feature_sum, scale * extreme_images())
    assert max(moved) <= 1.0
    # Black has length √24: it uses the whole bound where it is not tiny.
    assert moved[0] == pytest.approx(min(1.0, scale * SIZE**0.5), rel=1e-5)


def test_a_feature_sum_keeps_short_rows_and_drops_those_not_finite() -> None:
    rows = torch.tensor([[0.6, 0.0], [0.1, 0.2], [math.nan, 0.0], [0.0, math.inf]])
    torch.testing.assert_close(feature_sum(rows).value, torch.tensor([0.7, 0.2], dtype=torch.float64))
    assert torch.equal(feature_sum(rows[:0]).value, torch.zeros(2, dtype=torch.float64))
