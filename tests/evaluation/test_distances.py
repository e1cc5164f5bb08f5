"""Fréchet and kernel distance, precision to coverage, against closed forms and simple implementations."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from dp_sinkhorn.evaluation import feature_moments as moments
from dp_sinkhorn.evaluation import frechet, kernel, prdc
from dp_sinkhorn.evaluation.feature_moments import FeatureMoments, moments_of
from dp_sinkhorn.evaluation.frechet import frechet_distance
from dp_sinkhorn.evaluation.kernel import kernel_distance
from dp_sinkhorn.evaluation.prdc import Coverage, coverage

RELATIVE = 1e-6


def cloud(count: int, size: int, seed: int, shift: float = 0.0, offset: float = 0.0) -> torch.Tensor:
    """Correlated float32 features, as an extractor gives them."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(size, size)) / math.sqrt(size)
    return torch.from_numpy((random.normal(size=(count, size)) @ mixing + shift + offset).astype(np.float32))


def gaussian(mean: list[float], variances: list[float]) -> FeatureMoments:
    return FeatureMoments(
        count=2, mean=torch.tensor(mean).double(), scatter=torch.diag(torch.tensor(variances).double())
    )


def reference_frechet(first: torch.Tensor, second: torch.Tensor) -> float:
    """The textbook formula with SciPy's matrix square root."""
    x, y = first.double().numpy(), second.double().numpy()
    c, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    difference = x.mean(0) - y.mean(0)
    return float(difference @ difference + np.trace(c) + np.trace(d) - 2 * np.trace(sqrtm(c @ d).real))


def test_moments_of_many_chunks_are_numpys(monkeypatch):
    monkeypatch.setattr(moments, "_CHUNK", 64)
    # A mean of 1000 with a spread of 1: a float32 sum, or one of squares, would lose the covariance.
    features = cloud(500, 7, seed=0, offset=1000.0)
    found, exact = moments_of(features), features.double().numpy()
    assert found.count == 500
    np.testing.assert_allclose(found.mean.numpy(), exact.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(exact, rowvar=False), rtol=1e-9, atol=1e-10)


def test_frechet_of_diagonal_gaussians_is_the_closed_form():
    # (m1 - m2)² + (s1 - s2)² in each coordinate, standard deviations 2, 1, 0 and 5, 1, 3.
    first, second = gaussian([1.0, 0.0, 2.0], [4.0, 1.0, 0.0]), gaussian([3.0, 0.0, 2.5], [25.0, 1.0, 9.0])
    assert frechet_distance(first, second) == pytest.approx(4.0 + 9.0 + 0.25 + 9.0, rel=1e-12)
    assert frechet_distance(second, first) == pytest.approx(22.25, rel=1e-12)
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("count", "other"), [(400, 700), (1300, 1300)])
def test_frechet_agrees_with_scipy(count, other):
    first, second = cloud(count, 40, seed=1), cloud(other, 40, seed=2, shift=0.1)
    expected = reference_frechet(first, second)
    assert frechet_distance(moments_of(first), moments_of(second)) == pytest.approx(expected, rel=RELATIVE)


def test_frechet_of_few_samples_agrees_with_a_form_of_the_data():
    """tr (C₁C₂)^½ is the nuclear norm of X₁X₂ᵀ, which needs no covariance."""
    first, second = cloud(30, 64, seed=1), cloud(50, 64, seed=2, shift=0.2)
    x, y = (part.double().numpy() for part in (first, second))
    xc, yc = ((part - part.mean(0)) / math.sqrt(len(part) - 1) for part in (x, y))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + (xc**2).sum() + (yc**2).sum()
    expected -= 2 * np.linalg.svd(xc @ yc.T, compute_uv=False).sum()
    assert frechet_distance(moments_of(first), moments_of(second)) == pytest.approx(expected, rel=RELATIVE)


def test_frechet_is_biased_upwards_where_samples_are_few():
    few = frechet_distance(moments_of(cloud(40, 64, seed=1)), moments_of(cloud(40, 64, seed=2)))
    many = frechet_distance(moments_of(cloud(4000, 64, seed=1)), moments_of(cloud(4000, 64, seed=2)))
    assert few > 20 * many > 0


def test_the_kernel_distance_is_that_computed_by_hand():
    """d = 1, x = 0, 1 and y = 1, 2: within 1·1 and (2+1)³ = 27; across 1, 1, (1+1)³ = 8, 27."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    assert kernel_distance(x, y)[0] == pytest.approx(1.0 + 27.0 - 2.0 * (1 + 1 + 8 + 27) / 4.0, rel=1e-14)


def test_the_kernel_distance_agrees_with_a_plain_loop(monkeypatch):
    monkeypatch.setattr(kernel, "_BLOCK", 17)  # several blocks, the last one short
    first, second = cloud(60, 12, seed=3), cloud(45, 12, seed=4, shift=0.3)

    def k(a, b) -> float:
        return (sum(float(u) * float(v) for u, v in zip(a, b, strict=True)) / 12 + 1) ** 3

    x, y = first.tolist(), second.tolist()
    expected = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (60 * 59)
    expected += sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / (45 * 44)
    expected -= 2 * sum(k(a, b) for a in x for b in y) / (60 * 45)
    assert kernel_distance(first, second)[0] == pytest.approx(expected, rel=RELATIVE)


def test_the_kernel_distance_is_unbiased():
    """Equal distributions, 200 tiny samples: the mean is 0 within three standard errors, and some fall below 0."""
    values = np.array([kernel_distance(cloud(8, 3, seed=2 * i), cloud(8, 3, seed=2 * i + 1))[0] for i in range(200)])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(200)
    assert (values < 0).any()


def reference_prdc(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """Naeem et al. 2020 as printed, with all distances at once."""

    def distances(a, b):
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    real_radius = np.sort(distances(real, real), axis=1)[:, k]  # column 0 is the point itself
    fake_radius = np.sort(distances(fake, fake), axis=1)[:, k]
    across = distances(real, fake)
    return (
        (across < real_radius[:, None]).any(0).mean(),
        (across < fake_radius[None]).any(1).mean(),
        (across < real_radius[:, None]).sum(0).mean() / k,
        (across.min(1) < real_radius).mean(),
    )


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
def test_precision_to_coverage_agree_with_the_definitions(monkeypatch, shift):
    monkeypatch.setattr(prdc, "_BLOCK", 64)
    real, fake = cloud(300, 10, seed=5), cloud(170, 10, seed=6, shift=shift)
    found, _ = coverage(real, fake, neighbours=5)
    expected = reference_prdc(real.double().numpy(), fake.double().numpy(), 5)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected, rel=RELATIVE)


def test_extremes_of_precision_to_coverage():
    real = cloud(50, 4, seed=7)
    assert coverage(real, real, neighbours=3)[0] == Coverage(1.0, 1.0, pytest.approx(1.0, abs=0.4), 1.0)
    assert coverage(real, real + 100.0, neighbours=3)[0] == Coverage(0.0, 0.0, 0.0, 0.0)
    # One real image repeated: all of it is realistic, but it covers almost nothing.
    collapsed, _ = coverage(real, real[:1].repeat(50, 1), neighbours=3)
    assert collapsed.precision == 1.0
    assert collapsed.recall == 0.0
    assert collapsed.coverage < 0.3


def test_rounding_noise_is_left_out_of_a_covariance_s_factor():
    factor = frechet._factor(torch.diag(torch.tensor([4.0, 1e-30, 0.0], dtype=torch.float64)))
    assert factor.shape == (3, 1)
    assert factor.abs().max() == 2.0
