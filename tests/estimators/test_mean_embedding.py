"""Steps towards an embedding: an unbiased gradient, and the means of the others for a hidden class."""

import pytest
import torch

from dp_sinkhorn.estimators import mean_embedding
from dp_sinkhorn.estimators.mean_embedding import EmbeddingGoal, ReleasedEmbedding
from dp_sinkhorn.features.random_fourier import FourierMap, fourier_features, fourier_map
from dp_sinkhorn.features.scattering import SCATTERING
from support.stage_runs import SHAPE, toy


def blank(numbers: int = 400) -> FourierMap:
    """Features whose values do not matter."""
    return FourierMap(torch.zeros(5, numbers // 2).double())


def released(sums: torch.Tensor, noise: float) -> ReleasedEmbedding:
    return ReleasedEmbedding(blank(sums.shape[1]), sums, noise)


def test_the_gradient_of_few_images_has_no_bias():
    """The mean gradient over draws of 2 images of each class is the gradient of many images."""
    random = torch.Generator().manual_seed(0)
    frequencies = torch.randn(6, 30, generator=random).double()
    target = fourier_features(torch.zeros(1, 6).double(), frequencies)
    counts = torch.full((1,), 100.0, dtype=torch.float64)
    found = []
    for each, steps in ((2, 6000), (500, 60)):
        goal = EmbeddingGoal.of(ReleasedEmbedding(FourierMap(frequencies), target * 100.0, 0.0), counts, each)
        total = torch.zeros(6)
        for _ in range(steps):
            # Images are noise about 0.3, scaled by a learnt width. A shift alone would not change their products.
            latents = torch.rand(each, 6, generator=random)
            total += (goal.gradient(0.3 + 0.5 * latents) * latents).sum(0)
        found.append(total / steps)
    assert float(found[1].norm()) > 0.3
    assert float((found[0] - found[1]).norm()) < 0.05 * float(found[1].norm())


def test_wavelet_features_of_few_images_give_an_unbiased_gradient(monkeypatch):
    """The mean gradient over draws is that of all images, though only the first few have wavelet features."""
    data = toy(100)
    features = fourier_map(SHAPE, 100, 15.0, 0.9, 0.25, 0, "cpu")
    rows = features.of_records(data, SCATTERING(data))
    sums = torch.stack([rows[data.labels == label].sum(0) for label in range(2)])
    counts = torch.full((2,), 50.0, dtype=torch.float64)
    seen, gradients = [], []
    for numbers in (400 * 784, 2 * 64 * 3):
        monkeypatch.setattr(mean_embedding, "_WAVELET_NUMBERS", numbers)
        goal = EmbeddingGoal.of(ReleasedEmbedding(features, sums, 0.0), counts, 24)
        seen.append(goal.seen)
        random, total = torch.Generator().manual_seed(1), torch.zeros(2, 64)
        ramp = torch.linspace(-0.5, 0.5, 64)
        shapes = torch.stack([ramp, ramp.view(8, 8).T.flatten()]).repeat_interleave(12, 0)
        for _ in range(200):
            images = shapes + 0.05 * torch.rand(24, 64, generator=random)
            total += goal.gradient(images).unflatten(0, (2, 12)).sum(1)
        gradients.append(total / 200)
    assert seen == [12, 3]
    assert float((gradients[0] - gradients[1]).norm()) < 0.1 * float(gradients[0].norm())


def test_the_gradient_vanishes_at_the_target():
    features = fourier_map(SHAPE, 100, 15.0, 0.3, 0.25, 0, "cpu")
    random, counts = torch.Generator().manual_seed(2), torch.full((1,), 1.0, dtype=torch.float64)
    images = torch.rand(2000, 64, generator=random) - 0.5
    means = torch.cat([part.mean(1) for part in features.single().of_images(images.unsqueeze(0), 2000)], dim=1)
    sizes = []
    for shift in (0.0, 0.1):
        goal = EmbeddingGoal.of(ReleasedEmbedding(features, means.double(), 0.0), counts, 2000)
        sizes.append(float(goal.gradient(images + shift).norm()))
    assert sizes[0] < 0.1 * sizes[1]


def test_a_small_class_that_noise_hides_follows_all_others():
    random = torch.Generator().manual_seed(0)
    counts = torch.tensor([1000.0, 800.0, 10.0, 60.0, 90.0], dtype=torch.float64)
    means = torch.nn.functional.normalize(torch.randn(5, 400, generator=random).double(), dim=1) * 0.5
    noise = torch.randn(5, 400, generator=random).double()
    sums = means * counts.unsqueeze(1)
    quiet = EmbeddingGoal.of(released(sums + 1e-3 * noise, 1e-3), counts, 40)
    assert quiet.hidden.tolist() == [False] * 5
    # Noise of 4 on each number of the sums: 0.4 on a mean of ten records, 0.067 of sixty, 0.044 of ninety.
    noisy = sums + 4.0 * noise
    hiding = EmbeddingGoal.of(released(noisy, 4.0), counts, 40)
    assert hiding.hidden.tolist() == [False, False, True, True, False]
    others = noisy[~hiding.hidden].sum(0) / counts[~hiding.hidden].sum()
    assert torch.allclose(hiding.target[2:4].double(), others.expand(2, -1), atol=1e-6)
    assert torch.allclose(hiding.target[4].double(), noisy[4] / 90.0, atol=1e-6)
    more = EmbeddingGoal.of(released(noisy, 4.0), counts, 40, hiding_noise=0.04)
    assert more.hidden.tolist() == [False, False, True, True, True]


@pytest.mark.parametrize("noise", [0.0, 50.0])
def test_a_large_class_is_never_hidden(noise):
    counts = torch.tensor([100.0, 90.0], dtype=torch.float64)
    assert EmbeddingGoal.of(released(torch.ones(2, 400).double(), noise), counts, 16).hidden.tolist() == [False, False]
