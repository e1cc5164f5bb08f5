"""Nearest images, the membership attack with its intervals, and the bound by ε."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.evaluation import nearest as nearest_module
from dp_sinkhorn.evaluation.attack import Bound, clopper_pearson, membership_attack, tpr_at_fpr
from dp_sinkhorn.evaluation.memorisation import memorisation, share_closer
from dp_sinkhorn.evaluation.nearest import nearest
from dp_sinkhorn.io.errors import InputError

BOUND = Bound(epsilon=1.0, delta=1e-5, auc=0.75, tpr_at_fpr={"0.01": 0.03, "0.001": 0.003})


def noise(count: int, seed: int, side: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, side, side), generator=generator, dtype=torch.uint8)


def labelled(pixels: torch.Tensor) -> LabelledImages:
    return LabelledImages(pixels, torch.zeros(len(pixels), dtype=torch.int64), ("a",))


def flat(values: list[int]) -> torch.Tensor:
    """Images of one grey value each."""
    return torch.tensor(values, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()


def test_nearest_is_the_brute_force_minimum(monkeypatch):
    monkeypatch.setattr(nearest_module, "_QUERIES", 7)
    monkeypatch.setattr(nearest_module, "_POOL", 11)
    queries, pool = noise(20, seed=0), noise(50, seed=1)
    pool[33] = queries[5]
    found = nearest(queries, pool)
    differences = (queries.double()[:, None] - pool.double()[None]).flatten(2) / 255
    expected = differences.square().mean(-1).sqrt().min(1)
    assert torch.equal(found.index, expected.indices)
    torch.testing.assert_close(found.distance, expected.values, rtol=1e-12, atol=0)
    assert found.index[5] == 33
    assert found.distance[5] == 0.0
    assert nearest(flat([0]), flat([255])).distance.item() == 1.0


def test_the_auc_and_its_deviation_agree_with_loops_over_pairs():
    """DeLong's components as double loops over all pairs, with ties."""
    random = np.random.default_rng(0)
    members, others = random.integers(0, 12, 40) + 1.0, random.integers(0, 12, 55).astype(float)
    wins = np.array([[1.0 if m > o else 0.5 if m == o else 0.0 for o in others] for m in members])
    found = membership_attack(members, others)
    assert found.auc == pytest.approx(wins.mean(), rel=1e-12)
    deviation = math.sqrt(wins.mean(1).var(ddof=1) / 40 + wins.mean(0).var(ddof=1) / 55)
    expected = (wins.mean() - 1.959964 * deviation, wins.mean() + 1.959964 * deviation)
    assert found.interval == pytest.approx(expected, rel=1e-6)
    assert (found.num_members, found.num_non_members) == (40, 55)


def test_the_true_positive_rate_is_that_computed_by_hand():
    """Ten non-members 0..9: at 20 % false positives the threshold is 7, above which lie 3 of 4 members."""
    members, others = np.array([7.0, 7.5, 8.0, 20.0]), np.arange(10.0)
    found = tpr_at_fpr(members, others, 0.2)
    assert found.value == 0.75
    assert found.interval[0] < 0.75 < found.interval[1]
    assert tpr_at_fpr(members, others, 0.01).value == 0.25  # only above all of them


def test_intervals_cover_the_true_rate():
    """Members N(1, 1), others N(0, 1): TPR 1 − Φ(Φ⁻¹(0.99) − 1), AUC Φ(1/√2). 200 seeded repetitions."""
    random = np.random.default_rng(1)
    true_rate, true_auc = norm.sf(norm.isf(0.01) - 1.0), norm.cdf(1 / math.sqrt(2))
    rate_hits = auc_hits = 0
    widths = []
    for _ in range(200):
        members, others = random.normal(1.0, 1.0, 600), random.normal(0.0, 1.0, 400)
        attack = membership_attack(members, others)
        low, high = attack.tpr_at_fpr["0.01"].interval
        rate_hits += low <= true_rate <= high
        auc_hits += attack.interval[0] <= true_auc <= attack.interval[1]
        widths.append(high - low)
    assert rate_hits >= 190
    assert 180 <= auc_hits < 200  # 95 %: neither too narrow nor too wide
    assert np.mean(widths) < 0.3


def test_clopper_pearson_intervals_at_0_and_1():
    # All of n: the lower end solves p^n = tail.
    assert clopper_pearson(20, 20, 0.025) == pytest.approx((0.025 ** (1 / 20), 1.0))
    assert clopper_pearson(0, 20, 0.025) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))


def test_too_few_records_cannot_be_attacked():
    with pytest.raises(InputError, match="1 training and 3 held-out images are too few"):
        membership_attack(np.zeros(1), np.zeros(3))


def test_randomised_response_stays_within_its_bound():
    epsilon, random = 1.0, np.random.default_rng(2)
    truth = np.repeat([1.0, 0.0], 20000)
    kept = random.random(40000) < math.exp(epsilon) / (1 + math.exp(epsilon))
    scores = np.where(kept, truth, 1 - truth)
    found = membership_attack(scores[:20000], scores[20000:])
    # It reaches the corner (1/(1+e^ε), e^ε/(1+e^ε)), which bounds every attack on an ε-private release.
    assert found.interval[0] <= 0.5 + 0.5 * math.tanh(epsilon / 2) <= found.interval[1]


def test_copies_of_training_images_are_detected():
    train, held_out = noise(120, seed=1), noise(100, seed=2)
    found = memorisation(labelled(train[:60].repeat(2, 1, 1, 1)), labelled(train), labelled(held_out), 0, None, str)
    assert found.private
    assert found.exact_copies == 120
    assert found.nearest_synthetic["0.95"] == 0.0
    assert found.nearest_held_out["0.01"] > 0.1
    assert found.share_closer.value > 0.8
    assert found.attack.auc > 0.7  # half of the members are copied
    assert found.attack.interval[0] > 0.5
    assert found.attack.tpr_at_fpr["0.01"].value == pytest.approx(0.5, abs=0.1)
    assert found.bound is None


def test_fresh_images_show_no_memorisation():
    train, held_out, synthetic = (labelled(noise(300, seed=seed)) for seed in (1, 2, 3))
    found = memorisation(synthetic, train, held_out, 0, BOUND, str)
    assert found.exact_copies == 0
    assert found.share_closer.interval[0] < 0.5 < found.share_closer.interval[1]
    assert found.attack.interval[0] < 0.5 < found.attack.interval[1]
    assert found.nearest_synthetic["0.5"] == pytest.approx(found.nearest_held_out["0.5"], rel=0.05)
    assert found.bound == BOUND
    assert found.num_pool == 300


def test_synthetic_images_with_one_neighbour_count_as_one():
    """50 synthetic images near one training image, 50 near one held-out image: two coins, no evidence."""
    found = share_closer(flat([11] * 50 + [201] * 50), flat([10, 90]), flat([200, 91]))
    assert found.value == 0.5
    assert found.interval == (0.0, 1.0)
    # Each individually: 1.96 · ½/√4.
    apart = share_closer(flat([11, 91, 201, 151]), flat([10, 90]), flat([200, 150]))
    assert apart.interval == pytest.approx((0.01, 0.99), abs=1e-4)
    assert share_closer(flat([20]), flat([20]), flat([20])).value == 0.5
