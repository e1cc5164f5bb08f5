"""The classifier's gradients by autograd, one record's reach, and how its answers treat rare classes."""

import math

import pytest
import torch
import torch.nn.functional as F

from dp_sinkhorn.classifier.linear import Classifier, LogisticContributions
from dp_sinkhorn.classifier.scattering import num_features
from dp_sinkhorn.privacy.clipping import clipped_sum

CLASSES, FEATURES = 3, 7


def some_records(count: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(count, FEATURES, generator=random).half()
    labels = torch.arange(count) % CLASSES
    return features, labels, torch.randn(CLASSES, FEATURES, generator=random, dtype=torch.float64)


def test_contributions_are_the_gradients_of_the_cross_entropy() -> None:
    features, labels, weight = some_records()
    contributions = LogisticContributions.of(features, labels, weight)
    weights = torch.linspace(0.1, 2.0, len(labels), dtype=torch.float64)
    gradients = []
    for row, label in zip(features.double(), labels, strict=True):
        at = weight.clone().requires_grad_()
        F.cross_entropy((at @ row).unsqueeze(0), label.unsqueeze(0)).backward()
        gradients.append(at.grad)
    expected = torch.stack(gradients)
    torch.testing.assert_close(contributions.norms(), expected.flatten(1).norm(dim=1))
    torch.testing.assert_close(contributions.weighted_sum(weights), torch.einsum("b,bkd->kd", weights, expected))


@pytest.mark.parametrize("clip_norm", [0.1, 1.0])
def test_a_record_more_or_less_moves_the_clipped_sum_by_at_most_the_clip_norm(clip_norm: float) -> None:
    features, labels, weight = some_records()
    features[3] *= 100.0

    def total(kept: torch.Tensor) -> torch.Tensor:
        return clipped_sum(LogisticContributions.of(features[kept], labels[kept], weight), clip_norm).value

    everyone = torch.arange(len(labels))
    moved = [float((total(everyone) - total(everyone[everyone != j])).norm()) for j in everyone]
    assert max(moved) <= clip_norm
    assert moved[3] == pytest.approx(clip_norm, rel=1e-5)  # the long record uses the whole bound


def test_a_record_that_is_not_finite_counts_as_zero() -> None:
    features, labels, weight = some_records()
    without = clipped_sum(LogisticContributions.of(features[1:], labels[1:], weight), 0.5).value
    features[0, 2] = math.inf
    torch.testing.assert_close(clipped_sum(LogisticContributions.of(features, labels, weight), 0.5).value, without)


def test_no_record_gives_zeros() -> None:
    features, labels, weight = some_records()
    assert torch.equal(
        clipped_sum(LogisticContributions.of(features[:0], labels[:0], weight), 0.5).value, torch.zeros_like(weight)
    )


def test_margins_take_the_shares_of_the_classes_off_the_scores() -> None:
    shape = (1, 8, 8)
    weight = torch.zeros(2, num_features(shape))
    # Without any evidence, a score that only knows the shares must be undecided.
    weight[:, -1] = torch.tensor([0.9, 0.1]).log() / (0.3 / math.sqrt(1.09))
    classifier = Classifier(shape, weight, torch.tensor([0.9, 0.1]))
    images = torch.rand(4, 64, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    margins = classifier.margins(images, torch.tensor([0, 1, 0, 1]))
    torch.testing.assert_close(margins, torch.zeros(4), atol=1e-5, rtol=0.0)


def test_margins_are_the_label_s_score_less_the_best_other_one() -> None:
    shape = (1, 8, 8)
    weight = torch.randn(3, num_features(shape), generator=torch.Generator().manual_seed(1))
    classifier = Classifier(shape, weight, torch.full((3,), 1.0 / 3.0))
    images = torch.rand(6, 64, generator=torch.Generator().manual_seed(2)) * 2.0 - 1.0
    scores = classifier.features(images) @ weight.T
    for label in range(3):
        others = scores[:, [k for k in range(3) if k != label]].max(dim=1).values
        margins = classifier.margins(images, torch.full((6,), label))
        torch.testing.assert_close(margins, scores[:, label] - others)
