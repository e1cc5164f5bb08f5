"""The mathematics of the peers: their sensitivities hold, and their images follow what they release."""

import math
from dataclasses import replace

import pytest
import torch

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.method import settings_of
from dp_sinkhorn.privacy.clipping import BoundedSum
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.settings import parse_overrides
from dp_sinkhorn.stages.batch_steps import BatchStepsSettings
from peers import batch, dp_merf, gaussian
from peers.peer import Budget, draw_labels

NAMES = ("dark", "bright", "none")
SMALL_MERF = dp_merf.Settings(features=200, steps=120, num_generated=60, latent_dim=2, width=20, decay_every=50)


def two_kinds(count: int, shape: tuple[int, int, int] = (1, 8, 8)) -> LabelledImages:
    """Dark images of class 0 and twice as many bright ones of class 1; class 2 is empty."""
    random = torch.Generator().manual_seed(1)
    labels = (torch.arange(count) % 3 > 0).long()
    level = torch.where(labels == 0, 40, 200).view(-1, 1, 1, 1)
    pixels = level + torch.randint(-15, 16, (count, *shape), generator=random)
    return LabelledImages(pixels.to(torch.uint8), labels, NAMES)


class Replayed:
    """A budget that records the totals and answers every data set with the same released numbers."""

    def __init__(self, answers: dict[str, torch.Tensor]) -> None:
        self.answers = answers
        self.totals: dict[str, BoundedSum] = {}

    def release(self, name: str, total: BoundedSum, share: float) -> tuple[torch.Tensor, float]:
        self.totals[name] = total
        return self.answers.setdefault(name, total.value.clone()), 0.5 / math.sqrt(share)


@pytest.mark.parametrize(
    ("synthesise", "settings"),
    [(dp_merf.synthesise, replace(SMALL_MERF, steps=1)), (gaussian.synthesise, gaussian.Settings())],
    ids=["dp-merf", "gaussian"],
)
def test_one_record_moves_each_released_total_by_at_most_its_sensitivity(synthesise, settings):
    whole, answers = two_kinds(31), {}
    first = Replayed(answers)
    synthesise(whole, first, 0, 4, settings)
    largest = dict.fromkeys(first.totals, 0.0)
    for left_out in range(3):
        fewer = whole.subset(torch.arange(31) != left_out)
        other = Replayed(answers)
        synthesise(fewer, other, 0, 4, settings)
        for name, total in first.totals.items():
            moved = float((total.value - other.totals[name].value).norm())
            assert moved <= total.sensitivity
            largest[name] = max(largest[name], moved)
    assert min(largest.values()) > 0.3
    assert largest[max(largest, key=lambda name: first.totals[name].value.numel())] > 0.999


@pytest.mark.parametrize(("epsilon", "shares"), [(0.2, (1.0,)), (0.2, (0.01, 0.4, 0.59)), (10.0, (0.4, 0.6))])
def test_what_a_budget_releases_spends_it_and_no_more(epsilon, shares):
    budget = Budget(epsilon, 1e-5, CryptoRandom(test_seed=0))
    for number, share in enumerate(shares):
        budget.release("abc"[number], BoundedSum(torch.zeros(3, dtype=torch.float64), 2.0), share)
    assert 0.98 * epsilon < budget.spent() <= epsilon
    with pytest.raises(ValueError, match="is left"):
        budget.release("d", BoundedSum(torch.zeros(3, dtype=torch.float64), 2.0), 0.01)


def test_a_budget_s_noise_is_what_it_says():
    budget = Budget(1.0, 1e-5, CryptoRandom(test_seed=0))
    noisy, stddev = budget.release("a", BoundedSum(torch.zeros(20_000, dtype=torch.float64), 2.0), 0.25)
    # Balle and Wang's σ at (1, 1e-5) is 3.7306 (their figure 1's mechanism); 2 is the sensitivity, a quarter the share.
    assert stddev == pytest.approx(2.0 * 2.0 * 3.7306, rel=5e-3)
    assert float(noisy.std()) == pytest.approx(stddev, rel=0.03)


def test_fourier_features_have_norm_one_and_a_gaussian_kernel():
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 5, generator=random, dtype=torch.float64)
    length = 1.7
    frequencies = torch.randn(5, 40_000, generator=random, dtype=torch.float64) / length
    features = dp_merf.fourier_features(rows, frequencies)
    assert features.norm(dim=1) == pytest.approx(torch.ones(6, dtype=torch.float64), abs=1e-12)
    kernel = torch.exp(-torch.cdist(rows, rows).square() / (2 * length**2))
    assert (features @ features.T - kernel).abs().max() < 4.0 / math.sqrt(40_000)


@pytest.mark.parametrize("size", [200, 400])
def test_a_covariance_is_found_above_the_noise_and_nothing_in_noise(size):
    random = torch.Generator().manual_seed(0)
    stddev = 1.5
    noise = stddev * torch.randn(size, size, generator=random, dtype=torch.float64)
    noise = (noise + noise.T) / 2.0  # variance σ² on the diagonal, σ²/2 elsewhere: as a released matrix has it
    edge = stddev * math.sqrt(2.0 * size)
    assert gaussian.signal(noise, stddev) is None
    direction = torch.ones(size, dtype=torch.float64) / math.sqrt(size)
    truth = 1.5 * edge  # appears 11 % larger, as a direction that is 0.89 the true one
    found = gaussian.signal(noise + truth * torch.outer(direction, direction), stddev)
    assert torch.linalg.matrix_rank(found, atol=1e-6) <= 2
    assert float(torch.linalg.eigvalsh(found)[-1]) == pytest.approx(truth, rel=0.05)
    assert float(direction @ found @ direction) > 0.8 * truth


def test_means_are_shrunk_by_their_share_of_noise():
    means = torch.tensor([[3.0, 0.0], [-1.0, 0.0], [-1.0, 2.0]], dtype=torch.float64)
    counts = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)  # the mean of all: (0, 0.5)
    centre = torch.tensor([0.0, 0.5], dtype=torch.float64)
    apart = means - centre
    energy = torch.tensor([0.0, 0.5 * 1.25, 9.0], dtype=torch.float64)
    wanted = centre + torch.stack([apart[0], 0.5 * apart[1], 0.0 * apart[2]])
    assert gaussian.shrunk(means, counts, energy) == pytest.approx(wanted)


def test_noise_alone_hardly_ever_shows_a_direction():
    random = torch.Generator().manual_seed(3)
    for _ in range(100):
        noise = torch.randn(40, 40, generator=random, dtype=torch.float64)
        assert gaussian.signal((noise + noise.T) / 2.0, 1.0) is None


def test_drawn_images_have_the_mean_and_the_covariance_asked_for():
    random = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(torch.randn(9, 3, generator=random, dtype=torch.float64)).Q
    spread = torch.diag(torch.tensor([0.02, 0.01, 0.0], dtype=torch.float64))
    mean = torch.linspace(-0.3, 0.3, 9, dtype=torch.float64)
    images = gaussian.draw(mean, spread, frame, 40_000, random).double()
    assert images.mean(0) == pytest.approx(mean, abs=0.003)
    assert torch.cov(images.T) == pytest.approx(frame @ spread @ frame.T, abs=6e-4)


@pytest.mark.parametrize(
    ("synthesise", "settings", "shape"),
    [
        (dp_merf.synthesise, SMALL_MERF, (3, 8, 9)),
        (gaussian.synthesise, gaussian.Settings(), (1, 8, 9)),
        (gaussian.synthesise, gaussian.Settings(), (3, 19, 18)),  # more numbers than its frame of frequencies
    ],
)
def test_a_peer_with_a_large_budget_learns_what_each_class_looks_like(synthesise, settings, shape):
    budget = Budget(50.0, 1e-5, CryptoRandom(test_seed=0))
    made = synthesise(two_kinds(300, shape), budget, 0, 90, settings)
    levels = made.pixels.flatten(1).double().mean(1)
    assert made.shape == shape
    assert float(levels[made.labels == 0].mean()) == pytest.approx(40, abs=25)
    assert float(levels[made.labels == 1].mean()) == pytest.approx(200, abs=25)
    assert int((made.labels == 1).sum()) > int((made.labels == 0).sum())
    assert 49.0 < budget.spent() <= 50.0


def test_dp_merf_s_target_is_the_mean_of_each_class_s_features(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        dp_merf, "train", lambda generator, target, frequencies, *_: seen.update(t=target, f=frequencies)
    )
    data = two_kinds(300)
    dp_merf.synthesise(data, Budget(50.0, 1e-5, CryptoRandom(test_seed=0)), 0, 4, SMALL_MERF)
    rows = data.floats()
    for label in (0, 1):
        mean = dp_merf.fourier_features(rows[data.labels == label], seen["f"]).mean(0)
        # Noise of about 0.2 on a sum over 100 or 200 records, and of about 2 on their number.
        assert float((seen["t"][label] - mean).norm()) < 0.06
    lengths = 1.0 / seen["f"].std() ** 2
    assert float(lengths) == pytest.approx(2.0 * float(rows.var(0, correction=0).sum()), rel=0.1)


def test_labels_are_drawn_in_the_shares_of_the_counts():
    labels = draw_labels(torch.tensor([10.0, 30.0, 60.0]), 20_000, torch.Generator().manual_seed(0))
    assert torch.bincount(labels) / 20_000 == pytest.approx(torch.tensor([0.1, 0.3, 0.6]), abs=0.015)


@pytest.mark.parametrize(
    ("size", "queries", "steps"),
    [(784, 256, 1000), (3072, 65, 1000), (64, 256, 1000)],
)
def test_the_whole_batch_peer_is_a_valid_run_of_bounded_cost(size, queries, steps):
    overrides = parse_overrides([f"{key}={value}" for key, value in batch.settings(size).items()])
    settings = settings_of(batch.RECIPE, overrides)
    assert (settings.mode, settings.num_steps) == ("batch", steps)
    assert settings.of("batch_steps", BatchStepsSettings).queries_per_step == queries
    assert settings.noise_multiplier is None
