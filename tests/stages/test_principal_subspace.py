"""First moments and the second: what one record moves, and that what is read from them is what the data say."""

import math
from collections.abc import Callable

import pytest
import torch

from dp_sinkhorn import method
from dp_sinkhorn.estimators.symmetric import unpacked
from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.privacy.clipping import BoundedSum
from dp_sinkhorn.privacy.curator import Draw, HeldRecords
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.stages.principal_subspace import (
    first_moments,
    read_first_moments,
    second_moment,
    sum_first_moments,
    sum_second_moment,
    variance_about,
)
from support.stage_runs import config_of, curator_of, plain_descent, toy, with_noise

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
    assert whole.sensitivity == 1.0
    return [float((whole.value - total(torch.cat([rows[:j], rows[j + 1 :]])).value).norm()) for j in range(len(rows))]


def test_first_moments_change_by_at_most_1() -> None:
    moved = changes(first_moments, extreme_images())
    assert max(moved) <= 1.0
    # Black and white images use the whole bound.
    assert moved[:2] == pytest.approx([1.0, 1.0], abs=1e-5)
    # Beyond the declared range, too.
    assert max(changes(first_moments, 1e3 * extreme_images())) <= 1.0


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-30, 1e6])
def test_the_second_moment_changes_by_at_most_1(scale: float) -> None:
    rows = scale * extreme_images()
    moved = changes(second_moment, rows)
    assert max(moved) <= 1.0
    for row, change in zip(rows, moved, strict=True):
        # A row keeps its direction, and below 0.01 its length.
        assert change == pytest.approx(min(1.0, float(row.double().norm()) / 0.01) ** 2, abs=1e-5)


def test_rows_of_rounding_error_are_not_stretched() -> None:
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


def test_the_second_moment_is_the_sum_of_u_u_transposed() -> None:
    rows = extreme_images().double()
    units = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)
    matrix = unpacked(second_moment(rows).value, SIZE)
    torch.testing.assert_close(matrix, units.T @ units, rtol=1e-5, atol=1e-9)


def test_chunks_of_records_add_up() -> None:
    """There are more records than one chunk holds."""
    data = toy(100).subset(torch.arange(100).repeat(90))
    draw, exact = Draw(HeldRecords(data)), toy(100).floats()
    mean, variance = read_first_moments(sum_first_moments(draw).value, 9_000, 0.0)
    torch.testing.assert_close(mean, exact.double().mean(0), rtol=1e-5, atol=1e-6)
    assert variance == pytest.approx(float(exact.double().var(0, correction=0).sum()), rel=1e-4)
    frame = torch.linalg.qr(torch.randn(64, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    centre = exact.mean(0)
    found = sum_second_moment(centre, frame, draw).value
    expected = 90.0 * second_moment((exact - centre).double() @ frame).value
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


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
    for noise in stddev * random.normal(repeats, SIZE + 1):
        mean, variance = read_first_moments(total + noise, count, stddev)
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


def test_almost_without_noise_the_subspace_is_that_of_the_records() -> None:
    stage, config, data = method.STAGES["principal_subspace"], config_of("record"), toy()
    for name in stage.charged:
        config = with_noise(config, name, 1e-3)
    generator = build_generator(config.generator, data.shape, data.num_classes)
    state = plain_descent(config, generator)
    assert len(list(stage.run(curator_of(config, data), state))) == 1
    rows = data.floats().double()
    torch.testing.assert_close(state.subspace.centre.double(), rows.mean(0), rtol=0.0, atol=0.01)
    centred = rows - rows.mean(0)
    assert state.variance == pytest.approx(float(centred.square().sum(1).mean()), rel=0.01)
    # One direction tells the two classes apart: it takes most of the variance.
    leading = torch.linalg.svd(centred / centred.norm(dim=1, keepdim=True), full_matrices=False).Vh[0]
    assert float((state.subspace.basis[:, 0].double() @ leading).abs()) > 0.999
