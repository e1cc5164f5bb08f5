"""The map between two Gaussians, and what is believed of noisy moments."""

import math

import pytest
import torch

from dp_sinkhorn.transport.moments import Moments, above_noise, moment_correction

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
    found = moment_correction(moments_of(*model), moments_of(*records), counts, silent, silent)
    for k in range(2):
        moved = (model[k] - found.origins[k]) @ found.maps[k] + found.means[k]
        torch.testing.assert_close(moved.mean(0), records[k].mean(0))
        torch.testing.assert_close(torch.cov(moved.T), torch.cov(records[k].T), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.maps[k], found.maps[k].T)  # the optimal map is symmetric


def test_what_noise_hides_stays_as_the_model_has_it() -> None:
    model, records = moments_of(some_samples(0, 1.0)), moments_of(some_samples(2, 1.3))
    counts = torch.full((1,), COUNT, dtype=torch.float64)
    loud = torch.full((1,), 10.0, dtype=torch.float64)
    found = moment_correction(model, records, counts, loud, loud)
    torch.testing.assert_close(found.means, model.means)
    torch.testing.assert_close(found.maps[0], torch.eye(SIZE, dtype=torch.float64), atol=1e-6, rtol=0.0)


def test_nothing_is_stretched_more_than_threefold() -> None:
    model, records = moments_of(some_samples(0, 0.01)), moments_of(some_samples(2, 1.3))
    silent = torch.zeros(1, dtype=torch.float64)
    found = moment_correction(model, records, torch.full((1,), COUNT, dtype=torch.float64), silent, silent)
    assert float(torch.linalg.eigvalsh(found.maps[0]).max()) == pytest.approx(3.0)


def test_eigenvalues_above_the_noise_are_found_and_freed_of_it() -> None:
    size, noise = 400, 0.05
    random = torch.Generator().manual_seed(0)
    raw = torch.randn(size, size, generator=random, dtype=torch.float64) * noise
    symmetric = torch.triu(raw, 1) / math.sqrt(2.0)
    symmetric = symmetric + symmetric.T + torch.diag(raw.diagonal())
    edge = noise * math.sqrt(2.0 * size)
    assert not bool(above_noise(symmetric, edge).any())
    direction = torch.nn.functional.normalize(torch.randn(size, generator=random, dtype=torch.float64), dim=0)
    found = torch.linalg.eigvalsh(above_noise(symmetric - 4.0 * torch.outer(direction, direction), edge))
    assert float(found[0]) == pytest.approx(-4.0, rel=0.02)
    assert not bool((found[1:].abs() > 1e-9).any())
