"""A linear classifier on scattering features, and each record's contribution to the gradient of its loss."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from dp_sinkhorn.features.scattering import Scattering

_MAX_SCALINGS, _SCALING_TOLERANCE, _SMALLEST_SHARE = 1000, 1e-4, 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class LogisticContributions:
    """Per-record gradients of the cross-entropy of softmax(weight · features), in float64.

    A record's gradient is the K×D matrix (p − onehot) ⊗ features, of norm ‖p − onehot‖·‖features‖. It is never formed.
    """

    residual: Float64[Tensor, "B K"]
    features: Float64[Tensor, "B D"]

    @classmethod
    def of(
        cls, features: Float[Tensor, "B D"], labels: Int64[Tensor, " B"], weight: Float64[Tensor, "K D"]
    ) -> "LogisticContributions":
        """The contributions of records to the gradient at `weight`."""
        exact = features.to(torch.float64)
        residual = (exact @ weight.T).softmax(dim=1)
        residual[torch.arange(len(labels), device=labels.device), labels] -= 1.0
        return cls(residual, exact)

    def norms(self) -> Float64[Tensor, " B"]:
        """Frobenius norm of each record's gradient."""
        norms: Tensor = torch.linalg.vector_norm(self.residual, dim=1) * torch.linalg.vector_norm(self.features, dim=1)
        return norms

    def weighted_sum(self, weights: Float64[Tensor, " B"]) -> Float64[Tensor, "K D"]:
        """Σ weights[y] · gradient(y). A record of weight 0 adds exactly 0, even where it is not finite."""
        kept = (weights > 0.0).unsqueeze(1)
        scaled = torch.where(kept, self.residual * weights.unsqueeze(1), 0.0)
        features = self.features if bool(kept.all()) else torch.where(kept, self.features, 0.0)
        # The long matrix stands on the right; the transposed product is ten times slower.
        return scaled.T @ features


class LinearClassifier:
    """A trained linear classifier on scattering features.

    Args:
        weight: (K, D); the last column is the bias.
    """

    def __init__(self, shape: tuple[int, int, int], weight: Float[Tensor, "K D"]) -> None:
        self.features = Scattering(shape).to(weight.device)
        self.weight = weight

    @torch.no_grad()
    def scores(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n K"]:
        """Score of each class. The softmax of the scores is the class probability under equal class frequencies."""
        scores: Tensor = self.features(images) @ self.weight.T.to(images)
        return scores

    def margins(self, images: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The score of an image's label minus the best other score."""
        return margins_of(self.scores(images), labels)


def margins_of(scores: Float[Tensor, "n K"], labels: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The score of the label minus the best other score. K ≥ 2."""
    own = scores.gather(1, labels.unsqueeze(1))
    others = scores.scatter(1, labels.unsqueeze(1), -math.inf)
    margins: Tensor = own.squeeze(1) - others.amax(dim=1)
    return margins


def without_preference(
    weight: Float64[Tensor, "K D"], features: Float[Tensor, "n D"], labels: Int64[Tensor, " n"]
) -> Float64[Tensor, "K D"]:
    """The weight with its biases balanced on samples; see `balancing`.

    Args:
        features: Of the samples; the last one belongs to the bias and is the same for all.
        labels: Of the samples; each class has at least one.
    """
    exact, balanced = features.to(torch.float64), weight.clone()
    balanced[:, -1] += balancing(exact @ weight.T, labels) / exact[0, -1]
    return balanced


def balancing(scores: Float[Tensor, "n K"], labels: Int64[Tensor, " n"]) -> Float64[Tensor, " K"]:
    """Bias corrections under which a classifier finds each class as often as it occurs among samples.

    Every class has the same weight, for any number of samples. p is the softmax of the corrected scores. The mean of p
    over the samples of a class, averaged over the classes, becomes 1/K in every component. This is the property of the
    maximum-likelihood biases, the rest of the classifier fixed. They are found by iterative scaling (Darroch and
    Ratcliff 1972).

    Args:
        labels: Each class has at least one sample.
    """
    classes, exact = scores.shape[1], scores.to(torch.float64)
    shares = 1.0 / (classes * torch.bincount(labels, minlength=classes).to(torch.float64))[labels]
    moves = torch.zeros(classes, dtype=torch.float64, device=scores.device)
    for _ in range(_MAX_SCALINGS):
        found = shares @ (exact + moves).softmax(dim=1)
        apart = -(classes * found).clamp(min=_SMALLEST_SHARE).log()
        moves = moves + apart
        if float(apart.abs().max()) < _SCALING_TOLERANCE:
            break
    return moves - moves.mean()
