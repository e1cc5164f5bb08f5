"""Standard errors against the spread over many draws, and the sentences on figures that are too uncertain."""

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch

from dp_sinkhorn.evaluation.cautions import FEWEST_OF_A_CLASS, LARGEST_ERROR, LARGEST_RECALL_ERROR, cautions
from dp_sinkhorn.evaluation.kernel import kernel_distance
from dp_sinkhorn.evaluation.prdc import Coverage, Prdc, coverage
from dp_sinkhorn.evaluation.record import ByClass, Shares
from dp_sinkhorn.evaluation.tstr import ScoreErrors, Scores
from dp_sinkhorn.evaluation.uncertainty import images_needed, mean_error, plus_minus, share_error

FIVE = ("accuracy", "balanced_accuracy", "macro_f1", "recall", "calibration_error")


def numbers(scores: Scores | ScoreErrors) -> np.ndarray:
    """The scores, or their errors; of the recalls only the first, which is that of a class with many images."""
    return np.array([getattr(scores, name) if name != "recall" else scores.recall[0] for name in FIVE])


def drawn(random: np.random.Generator, count: int, skill: float) -> Scores:
    """Four classes of unequal size; right with chance `skill`, and always as sure as if it were 20 points better."""
    labels = random.choice(4, count, p=(0.5, 0.2, 0.2, 0.1))
    guesses = np.where(random.random(count) < skill, labels, random.integers(0, 4, count))
    sure = np.clip(skill + (1 - skill) / 4 + 0.2 + random.uniform(-0.02, 0.02, count), 0.0, 1.0)
    return Scores.of(labels, guesses, sure, 4)


@pytest.mark.parametrize(("count", "skill"), [(100, 0.4), (200, 0.7), (1000, 0.7)])
def test_standard_errors_are_the_spread_over_test_sets(count, skill):
    random = np.random.default_rng(0)
    found = [drawn(random, count, skill) for _ in range(500)]
    spread = np.std([numbers(scores) for scores in found], axis=0)
    said = np.mean([numbers(scores.standard_errors) for scores in found], axis=0)
    assert said == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize("count", [1, 5, 2000])
@pytest.mark.parametrize("hit", [True, False])
def test_no_score_is_without_error_where_all_images_agree(count, hit):
    labels = np.arange(count) % 3
    scores = Scores.of(labels, labels if hit else (labels + 1) % 3, np.ones(count), 3)
    errors = numbers(scores.standard_errors)
    assert np.isfinite(errors).all()
    assert (errors > 0.0).all()
    # The rule of three: with 95 % certainty the share of the other kind is below 3/n.
    assert 2.0 * errors[0] == pytest.approx(min(1.0, 3.0 / count), rel=0.5)


def test_errors_of_shares_are_binomial_and_those_of_means_agree():
    assert share_error(86, 100) == pytest.approx(math.sqrt(0.86 * 0.14 / 100), rel=0.05)
    assert share_error(5, 5) == pytest.approx(math.sqrt(7 / 9 * 2 / 9 / 5))
    for hits, total in ((0, 1), (5, 5), (30, 100)):
        assert mean_error(np.arange(total) < hits) == pytest.approx(share_error(hits, total), rel=1e-12)
        # Two classes, of which one is never true or predicted: accuracy is a share, and so is the recall.
        labels = np.zeros(total, int)
        scores = Scores.of(labels, np.where(np.arange(total) < hits, 0, 1), np.ones(total), 2)
        expected = pytest.approx(share_error(hits, total), rel=1e-12)
        assert scores.standard_errors.accuracy == expected
        assert scores.standard_errors.balanced_accuracy == expected
        assert scores.standard_errors.recall == (expected, None)


def test_the_order_of_test_images_changes_nothing():
    random = np.random.default_rng(1)
    labels, guesses, sure = random.integers(0, 4, 60), random.integers(0, 4, 60), random.random(60)
    order = random.permutation(60)
    one, other = Scores.of(labels, guesses, sure, 5), Scores.of(labels[order], guesses[order], sure[order], 5)
    assert one.confusion == other.confusion
    assert numbers(one) == pytest.approx(numbers(other), rel=1e-12)
    assert numbers(one.standard_errors) == pytest.approx(numbers(other.standard_errors), rel=1e-12)


def clouds(random: np.random.Generator, count: int, shift: float) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.from_numpy(random.normal(size=(count, 8)) + move).float() for move in (0.0, shift))


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_errors_over_features_cover_the_draw_of_both_samples(shift):
    """Never much below the spread over draws, and at most about twice as large."""
    random = np.random.default_rng(2)
    values, errors = [], []
    for _ in range(80):
        real, other = clouds(random, 80, shift)
        (four, four_errors), (distance, distance_error) = coverage(real, other, 5), kernel_distance(other, real)
        values.append([*astuple(four), distance])
        errors.append([*astuple(four_errors), distance_error])
    ratio = np.mean(errors, axis=0) / np.std(values, axis=0)
    assert (ratio > 0.8).all(), ratio
    assert (ratio < 2.2).all(), ratio


def test_features_that_all_agree_have_errors_of_shares():
    real, far = clouds(np.random.default_rng(3), 40, 100.0)
    for other, share in ((real, 40), (far, 0)):
        _, errors = coverage(real, other, 5)
        assert (errors.precision, errors.recall, errors.coverage) == (share_error(share, 40),) * 3
        assert errors.density > 0.0
    still = torch.ones(10, 4)
    assert kernel_distance(still, still) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (86.12, 0.43, "86.1 ± 0.4"),
        (97.312, 0.17, "97.31 ± 0.17"),
        (81.04, 2.1, "81.0 ± 2.1"),
        (52.5, 5.6, "52 ± 6"),
        (100.0, 14.2, "100 ± 14"),
        (1234.5, 96.0, "1,234 ± 96"),
        (0.01234, 0.00051, "0.0123 ± 0.0005"),
        (3.0, 0.0998, "3.00 ± 0.10"),
        (-0.001, 0.02, "-0.001 ± 0.020"),
        (-0.001, 0.04, "0.00 ± 0.04"),
        (0.25, 0.0, "0.25 ± 0"),
    ],
)
def test_a_value_has_as_many_digits_as_its_error_allows(value, error, text):
    assert plus_minus(value, error) == text


def scores_of(counts: tuple[int, ...], hits: float) -> Scores:
    """So many test images of each class, of which this share is recognised."""
    labels = np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate([np.arange(count) / count for count in counts])
    return Scores.of(
        labels, np.where(place < hits, labels, (labels + 1) % len(counts)), np.ones(len(labels)), len(counts)
    )


def said(counts: tuple[int, ...], hits: float = 0.9, num_synthetic: int = 5000, prdc: Prdc | None = None) -> list[str]:
    classes = len(counts)
    even = (1 / classes,) * classes
    error = (share_error(num_synthetic / classes, num_synthetic),) * classes
    shares = Shares(even, tuple(count / sum(counts) for count in counts), ByClass(error, error))
    names = ("a", "b", "c", "d")[:classes]
    return list(cautions({"cnn": scores_of(counts, hits)}, prdc, shares, names, num_synthetic))


def test_enough_images_need_no_caution():
    assert said((2000, 2000)) == []


def test_few_test_images_are_named_with_a_number_that_would_do():
    (line,) = said((40, 40))
    assert line.startswith(
        "accuracies on 80 test images are too uncertain to compare: standard errors of up to 3.6 points"
    )
    enough = int(line.split("; ")[1].split()[0].replace(",", ""))
    assert said((enough // 2, enough // 2)) == []
    assert 0.8 * LARGEST_ERROR < scores_of((enough // 2, enough // 2), 0.9).standard_errors.accuracy <= LARGEST_ERROR


def test_classes_with_few_test_images_are_named_with_their_counts():
    lines = said((3000, FEWEST_OF_A_CLASS, FEWEST_OF_A_CLASS - 1, 0))
    assert len(lines) == 2  # class d has no image, class c has few
    assert "class d is not among the real test images" in lines[0]
    assert f"too uncertain to compare: c ({FEWEST_OF_A_CLASS - 1}); " in lines[1]
    worst = max(share_error(hits, FEWEST_OF_A_CLASS) for hits in range(FEWEST_OF_A_CLASS + 1))
    assert worst <= LARGEST_RECALL_ERROR < max(share_error(hits, 20) for hits in range(21))


def test_few_synthetic_images_are_named():
    (line,) = said((2000, 2000), num_synthetic=100)
    assert line.startswith("class shares of 100 synthetic images, and classifiers trained on so few, are too uncertain")
    assert "up to 5 points of a share; 630 synthetic images would do" in line


def test_small_samples_of_features_are_named():
    four, errors = Coverage(0.9, 0.9, 1.0, 0.9), Coverage(0.01, 0.01, 0.3, 0.1)
    prdc = Prdc(0.9, 0.9, 1.0, 0.9, four, errors, errors, neighbours=5, extractor="e", num_synthetic=180, num_real=180)
    (line,) = said((2000, 2000), prdc=prdc)
    assert line.startswith("precision, recall and coverage of 180 images a sample are too uncertain to compare")
    assert line.endswith("720 synthetic and 1,440 real test images would do")  # half the error: four times as many


@pytest.mark.parametrize(("error", "count", "needed"), [(0.04, 100, 400), (0.0345, 360, 1100), (0.021, 8, 9)])
def test_the_images_needed_follow_from_the_error(error, count, needed):
    assert images_needed(error, count, 0.02) == needed
