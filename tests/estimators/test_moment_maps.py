"""The map between two Gaussians, and the shrinkage of noisy moments."""

import math

import pytest
import torch

from dp_sinkhorn.estimators.moment_maps import Moments, RestMoments, moment_correction, rest_correction
from dp_sinkhorn.estimators.shrinkage import empirical_bayes, universal_garrote

pytestmark = pytest.mark.quick

SIZE, COUNT = 6, 1000.0


def moments_of(*samples: torch.Tensor) -> Moments:
    return Moments(
        torch.stack([rows.mean(0) for rows in samples]),
        torch.stack([rows.T @ rows / len(rows) for rows in samples]),
    )


def some_samples(seed: int, spread: float) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    mix = torch.eye(SIZE, dtype=torch.float64) + 0.2 * torch.randn(SIZE, SIZE, generator=random, dtype=torch.float64)
    rows = torch.randn(400, SIZE, generator=random, dtype=torch.float64) @ mix
    return 0.1 * spread * rows + 0.05 * torch.randn(SIZE, generator=random, dtype=torch.float64)


def test_without_noise_the_corrected_model_has_the_records_moments() -> None:
    model, records = [some_samples(0, 1.0), some_samples(1, 0.8)], [some_samples(2, 1.3), some_samples(3, 0.7)]
    counts, silent = torch.full((2,), COUNT, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    found = moment_correction(moments_of(*model), moments_of(*records), counts, silent)
    for k in range(2):
        mean = model[k].mean(0)
        moved = (model[k] - mean) @ found.maps[k] + mean + found.moves[k]
        torch.testing.assert_close(moved.mean(0), records[k].mean(0))
        torch.testing.assert_close(torch.cov(moved.T), torch.cov(records[k].T), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.maps[k], found.maps[k].T)  # the optimal map is symmetric


def test_moments_that_noise_hides_stay_those_of_the_model() -> None:
    model, records = moments_of(some_samples(0, 1.0)), moments_of(some_samples(2, 1.3))
    counts = torch.full((1,), COUNT, dtype=torch.float64)
    loud = torch.full((1,), 10.0, dtype=torch.float64)
    found = moment_correction(model, records, counts, loud)
    assert not bool(found.moves.any())
    torch.testing.assert_close(found.maps[0], torch.eye(SIZE, dtype=torch.float64), atol=1e-6, rtol=0.0)


def test_nothing_is_stretched_more_than_threefold() -> None:
    model, records = moments_of(some_samples(0, 0.01)), moments_of(some_samples(2, 1.3))
    silent = torch.zeros(1, dtype=torch.float64)
    found = moment_correction(model, records, torch.full((1,), COUNT, dtype=torch.float64), silent)
    assert float(torch.linalg.eigvalsh(found.maps[0]).max()) == pytest.approx(3.0)


def some_noise(classes: int, size: int, random: torch.Generator) -> torch.Tensor:
    """Symmetric noise matrices, one per class: variance 1 on the diagonal, ½ elsewhere."""
    raw = torch.randn(classes, size, size, generator=random, dtype=torch.float64)
    upper = torch.triu(raw, 1) / math.sqrt(2.0)
    return upper + upper.mT + torch.diag_embed(raw.diagonal(dim1=1, dim2=2))


def test_large_differences_are_kept_and_noise_is_removed() -> None:
    """Variances fall from 0.1 to 0.0001. The relative differences of the records are equal in all directions."""
    classes, size = 4, 48
    random = torch.Generator().manual_seed(0)
    deviations = torch.logspace(-0.5, -2, size, dtype=torch.float64)
    scale = deviations.unsqueeze(0) * deviations.unsqueeze(1)
    model = torch.diag(deviations.square()).repeat(classes, 1, 1)
    records = model + 0.2 * some_noise(classes, size, random) * scale
    stddev = 0.002
    still = torch.zeros(classes, size, dtype=torch.float64)
    counts, noise = (torch.full((classes,), number, dtype=torch.float64) for number in (COUNT, stddev))
    noisy = records + stddev * some_noise(classes, size, random)
    apart = moment_correction(Moments(still, model), Moments(still, noisy), counts, noise).apart

    def away(matrices: torch.Tensor, directions: slice) -> float:
        return float((model + matrices - records)[:, directions, directions].square().sum())

    # The noise is 0.002. The differences are 0.2 times values from 0.1 to 0.02, and from 0.001 to 0.0001.
    wide, narrow = slice(0, 16), slice(32, 48)
    assert away(apart, wide) < 0.2 * away(torch.zeros_like(apart), wide)
    assert float(apart[:, narrow, narrow].abs().max()) < 0.01 * stddev
    # The optimum for a known prior: the posterior mean of the difference.
    times = 2.0 - torch.eye(size, dtype=torch.float64)
    trust = (0.2 * scale).square() / ((0.2 * scale).square() + stddev**2)
    expected = trust * (noisy - model)
    assert float((times * (apart - expected)).norm()) < 0.15 * float((times * expected).norm())


def test_a_direction_that_the_model_lacks_is_restored() -> None:
    classes, size = 3, 12
    model = torch.eye(size, dtype=torch.float64).repeat(classes, 1, 1) * 0.05
    model[:, 4, 4] = 1e-6
    records = model.clone()
    records[:, 4, 4] = 0.05
    random = torch.Generator().manual_seed(0)
    still = torch.zeros(classes, size, dtype=torch.float64)
    counts, noise = (torch.full((classes,), number, dtype=torch.float64) for number in (COUNT, 0.003))
    noisy = records + 0.003 * some_noise(classes, size, random)
    apart = moment_correction(Moments(still, model), Moments(still, noisy), counts, noise).apart
    assert bool(((apart[:, 4, 4] - 0.05).abs() < 0.02).all()), apart[:, 4, 4]


def test_empirical_bayes_is_as_good_as_the_known_prior() -> None:
    random = torch.Generator().manual_seed(0)
    shape = torch.logspace(0, -6, 5000, dtype=torch.float64)
    spread, noise = torch.tensor([[3.0], [0.1]]).double(), torch.tensor([[0.5], [0.01]]).double()
    values = spread * shape.sqrt() * torch.randn(2, 5000, generator=random, dtype=torch.float64)
    noisy = values + noise * torch.randn(2, 5000, generator=random, dtype=torch.float64)
    variances = spread.square() * shape
    found, best = empirical_bayes(noisy, noise, shape), noisy * variances / (variances + noise.square())
    assert bool(((found - values).square().sum(1) < 1.02 * (best - values).square().sum(1)).all())
    # Noise alone is removed from every row.
    alone = torch.randn(2, 5000, generator=random, dtype=torch.float64)
    assert float(empirical_bayes(noise * alone, noise, shape).norm()) < 0.05 * float((noise * alone).norm())
    torch.testing.assert_close(empirical_bayes(noisy, torch.zeros(2, 1).double(), shape), noisy)


def test_a_mean_that_noise_moves_far_is_shrunk_like_the_others() -> None:
    """Classes lie ±0.2 apart; the third, of 1 % of the records, is 3 away through noise of 1.5·√6 = 3.7 in all."""
    means = torch.zeros(3, SIZE, dtype=torch.float64)
    means[0, 0], means[1, 0], means[2, 1:5] = 0.2, -0.2, 3.0
    flat = torch.eye(SIZE, dtype=torch.float64).repeat(3, 1, 1)
    model, records = (
        Moments(torch.zeros_like(means), flat),
        Moments(means, flat + means.unsqueeze(2) * means.unsqueeze(1)),
    )
    counts, noise = torch.tensor([495.0, 495.0, 10.0]).double(), torch.tensor([0.01, 0.01, 1.5]).double()
    moves = moment_correction(model, records, counts, noise).moves
    torch.testing.assert_close(moves[:2], means[:2], rtol=0.1, atol=0.04)
    assert float(moves[2].norm()) < 0.2  # by its own noise alone 6.0 · (1 − 13.5/36) = 3.8

    shared = Moments(means[2:].expand(3, -1), records.squares)
    noise = torch.full((3,), 1e-4, dtype=torch.float64)
    moves = moment_correction(model, shared, counts, noise).moves
    torch.testing.assert_close(moves, shared.means, rtol=1e-3, atol=1e-3)
    moves = moment_correction(Moments(means, flat), Moments(torch.zeros_like(means), flat), counts, noise).moves
    torch.testing.assert_close(moves, -means, rtol=1e-3, atol=1e-3)


BANDS = torch.tensor([0, 0, 1, 2, 2, 2])


def rest_moments(*samples: torch.Tensor) -> RestMoments:
    energies = [torch.zeros(3, dtype=torch.float64).index_add(0, BANDS, rows.square().mean(0)) for rows in samples]
    return RestMoments(torch.stack([rows.mean(0) for rows in samples]), torch.stack(energies))


def test_without_noise_the_corrected_rest_has_the_records_moments() -> None:
    model, records = [some_samples(0, 1.0), some_samples(1, 0.8)], [some_samples(2, 1.3), some_samples(3, 0.7)]
    counts, silent = torch.tensor([300.0, 700.0]).double(), torch.zeros(2, dtype=torch.float64)
    found = rest_correction(rest_moments(*model), rest_moments(*records), BANDS, counts, silent)
    means = [rows.mean(0) for rows in model]
    moved = [(model[k] - means[k]) * found.scales[k, BANDS] + means[k] + found.moves[k] for k in range(2)]
    wanted, got = rest_moments(*records), rest_moments(*moved)
    torch.testing.assert_close(got.means, wanted.means)
    torch.testing.assert_close(got.energies, wanted.energies)
    assert bool((found.scales[0] != found.scales[1]).all())


def test_a_rest_that_noise_hides_stays_that_of_the_model() -> None:
    model, records = rest_moments(some_samples(0, 1.0)), rest_moments(some_samples(2, 1.3))
    loud, counts = torch.full((1,), 10.0, dtype=torch.float64), torch.full((1,), COUNT, dtype=torch.float64)
    found = rest_correction(model, records, BANDS, counts, loud)
    assert not bool(found.moves.any())
    torch.testing.assert_close(found.scales, torch.ones_like(found.scales))


def test_means_of_the_rest_shrink_by_the_deviation_of_their_band() -> None:
    """They differ by 0.2 times the deviations, which are 0.3 and 0.003. The noise on each is 0.02."""
    random = torch.Generator().manual_seed(0)
    bands = torch.arange(2).repeat_interleave(500)
    deviations = torch.tensor([0.3, 0.003], dtype=torch.float64)
    model = RestMoments(torch.zeros(2, 1000).double(), (500.0 * deviations.square()).repeat(2, 1))
    means = 0.2 * deviations[bands] * torch.randn(2, 1000, generator=random, dtype=torch.float64)
    noisy = means + 0.02 * torch.randn(2, 1000, generator=random, dtype=torch.float64)
    energies = model.energies + torch.zeros(2, 2).double().index_add(1, bands, noisy.square())
    counts, noise = (torch.full((2,), number, dtype=torch.float64) for number in (COUNT, 0.02))
    moves = rest_correction(model, RestMoments(noisy, energies), bands, counts, noise).moves
    wide, narrow = moves[:, :500], moves[:, 500:]
    assert float((wide - means[:, :500]).norm()) < 0.4 * float(means[:, :500].norm())
    assert float(narrow.norm()) < 0.01 * float(noisy[:, 500:].norm())


def test_the_error_of_the_models_means_in_the_rest_is_corrected() -> None:
    """Two classes whose mean in the rest is 0; the model's is wrong by a vector of norm 0.5."""
    random = torch.Generator().manual_seed(0)
    made_up = 0.5 * torch.nn.functional.normalize(torch.randn(2, 1000, generator=random, dtype=torch.float64))
    energies, counts = torch.ones(2, 1, dtype=torch.float64), torch.tensor([300.0, 700.0], dtype=torch.float64)
    model, records = RestMoments(made_up, energies), RestMoments(torch.zeros_like(made_up), energies)
    noise = torch.full((2,), 0.05, dtype=torch.float64)  # on each number: three times the largest of them
    bands = torch.zeros(1000, dtype=torch.int64)
    found = rest_correction(model, records, bands, counts, noise, own_error=True)
    left = (made_up + found.moves).norm(dim=1)
    assert bool((left < 0.1 * 0.5).all()), left
    assert not bool(rest_correction(model, records, bands, counts, noise).moves.any())


def test_only_numbers_above_the_universal_threshold_are_kept() -> None:
    values = torch.zeros(5, 20, dtype=torch.float64)
    threshold = 0.3 * math.sqrt(2.0 * math.log(100))
    values[0, 3], values[2, 1], values[4, 7] = 1.1 * threshold, -10.0 * threshold, 0.99 * threshold
    found = universal_garrote(values, torch.full((5, 1), 0.3, dtype=torch.float64))
    assert float(found[0, 3]) == pytest.approx((1.1 - 1.0 / 1.1) * threshold)
    assert float(found[2, 1]) == pytest.approx(-9.9 * threshold)
    assert int(found.count_nonzero()) == 2


def test_the_part_common_to_all_classes_is_kept() -> None:
    """Every energy is 0.05 too small; the noise on one of 100 classes is 0.1, on the mean of all of them 0.01."""
    model = RestMoments(torch.zeros(100, 6).double(), torch.full((100, 3), 0.1).double())
    records = RestMoments(model.means, model.energies + 0.05)
    counts, noise = torch.full((100,), COUNT, dtype=torch.float64), torch.full((100,), 0.1, dtype=torch.float64)
    found = rest_correction(model, records, BANDS, counts, noise)
    expected = math.sqrt((0.1 + 0.05 * (1.0 - 0.01**2 / 0.05**2)) / 0.1)
    torch.testing.assert_close(found.scales, torch.full_like(found.scales, expected))


def test_a_band_is_scaled_at_most_threefold_and_an_empty_one_not_at_all() -> None:
    model = RestMoments(torch.zeros(1, 6).double(), torch.tensor([[1e-4, 0.0, 0.2]]).double())
    records = RestMoments(model.means, torch.tensor([[0.5, 0.5, -0.1]]).double())
    silent = torch.zeros(1, dtype=torch.float64)
    found = rest_correction(model, records, BANDS, torch.full((1,), COUNT, dtype=torch.float64), silent)
    assert found.scales[0].tolist() == [3.0, 1.0, 0.0]


def test_with_a_largest_scale_of_1_bands_only_shrink() -> None:
    model = RestMoments(torch.zeros(1, 6).double(), torch.tensor([[0.1, 0.4, 0.2]]).double())
    records = RestMoments(model.means, torch.tensor([[0.5, 0.1, -0.1]]).double())
    silent, counts = torch.zeros(1, dtype=torch.float64), torch.full((1,), COUNT, dtype=torch.float64)
    found = rest_correction(model, records, BANDS, counts, silent, largest_scale=1.0)
    torch.testing.assert_close(found.scales[0], torch.tensor([1.0, 0.5, 0.0]).double())
