"""The linear classifier: gradients against autograd, sensitivity, and balanced biases."""

import math

import pytest
import torch
import torch.nn.functional as F

from dp_sinkhorn.estimators.linear_classifier import LinearClassifier, LogisticContributions, without_preference
from dp_sinkhorn.features.scattering import num_features
from dp_sinkhorn.privacy.clipping import clipped_sum

pytestmark = pytest.mark.quick

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
def test_one_record_moves_the_clipped_sum_by_at_most_the_clip_norm(clip_norm: float) -> None:
    features, labels, weight = some_records()
    features[3] *= 100.0

    def total(kept: torch.Tensor) -> torch.Tensor:
        return clipped_sum(LogisticContributions.of(features[kept], labels[kept], weight), clip_norm).value

    everyone = torch.arange(len(labels))
    moved = [float((total(everyone) - total(everyone[everyone != j])).norm()) for j in everyone]
    assert max(moved) <= clip_norm
    assert moved[3] == pytest.approx(clip_norm, rel=1e-5)  # the long record reaches the bound


def test_a_record_that_is_not_finite_counts_as_zero() -> None:
    features, labels, weight = some_records()
    without = clipped_sum(LogisticContributions.of(features[1:], labels[1:], weight), 0.5).value
    features[0, 2] = math.inf
    torch.testing.assert_close(clipped_sum(LogisticContributions.of(features, labels, weight), 0.5).value, without)


def test_an_empty_draw_gives_zeros() -> None:
    features, labels, weight = some_records()
    assert torch.equal(
        clipped_sum(LogisticContributions.of(features[:0], labels[:0], weight), 0.5).value, torch.zeros_like(weight)
    )


def mean_probabilities(weight: torch.Tensor, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over the classes of the mean probabilities of a class's samples."""
    found = (features.double() @ weight.T).softmax(dim=1)
    return torch.stack([found[labels == k].mean(0) for k in range(len(weight))]).mean(0)


def test_balanced_biases_find_each_class_as_often_as_it_occurs() -> None:
    random = torch.Generator().manual_seed(3)
    labels = torch.tensor([0] * 300 + [1] * 40 + [2] * 200)  # classes have equal weight, not samples
    means = torch.randn(3, FEATURES, generator=random)
    features = means[labels] + torch.randn(540, FEATURES, generator=random)
    features[:, -1] = 0.3
    weight = torch.randn(3, FEATURES, generator=random, dtype=torch.float64)
    weight[:, -1] += torch.tensor([20.0, 0.0, -20.0])
    assert float(mean_probabilities(weight, features, labels).max()) > 0.8
    balanced = without_preference(weight, features, labels)
    wanted = torch.full((3,), 1.0 / 3.0, dtype=torch.float64)
    torch.testing.assert_close(mean_probabilities(balanced, features, labels), wanted, atol=1e-4, rtol=0.0)
    assert torch.equal(balanced[:, :-1], weight[:, :-1])
    # Balanced biases do not move.
    torch.testing.assert_close(without_preference(balanced, features, labels), balanced, atol=1e-2, rtol=0.0)


def test_a_class_that_is_never_found_still_leaves_finite_biases() -> None:
    weight = torch.zeros(2, FEATURES, dtype=torch.float64)
    weight[0, 0] = 1e9
    features = torch.ones(10, FEATURES)
    assert bool(without_preference(weight, features, torch.arange(10) % 2).isfinite().all())


def test_margins_are_the_label_s_score_less_the_best_other_one() -> None:
    shape = (1, 8, 8)
    weight = torch.randn(3, num_features(shape), generator=torch.Generator().manual_seed(1))
    classifier = LinearClassifier(shape, weight)
    images = torch.rand(6, 64, generator=torch.Generator().manual_seed(2)) * 2.0 - 1.0
    scores = classifier.features(images) @ weight.T
    for label in range(3):
        others = scores[:, [k for k in range(3) if k != label]].max(dim=1).values
        margins = classifier.margins(images, torch.full((6,), label))
        torch.testing.assert_close(margins, scores[:, label] - others)
