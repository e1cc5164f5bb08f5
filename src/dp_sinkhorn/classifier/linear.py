"""The classifier itself, and what each record adds to the gradient of its training."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from dp_sinkhorn.classifier.scattering import Scattering


@dataclass(frozen=True, eq=False)
class LogisticContributions:
    """Gradients of the cross-entropy of softmax(weight · features), record by record, in float64.

    A record's gradient is the K×D matrix (p − onehot) ⊗ features, of norm ‖p − onehot‖·‖features‖: it is never formed.
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
        # The long matrix on the right: the other way round is ten times slower.
        return scaled.T @ features


class Classifier:
    """A trained linear classifier on scattering features, asked with every class equally likely beforehand.

    Args:
        weight: (K, D). shares: (K,) shares of the classes that it was trained on; their logarithms are taken off the
            scores, so that a rare class is not refused for being rare (Menon et al. 2021, "Long-tail learning via
            logit adjustment", equation 9).
    """

    def __init__(self, shape: tuple[int, int, int], weight: Float[Tensor, "K D"], shares: Float[Tensor, " K"]) -> None:
        self.features = Scattering(shape)
        self.weight = weight
        self._prior = shares.log().to(weight)

    @torch.no_grad()
    def margins(self, images: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """How far an image's score for its label lies above the best other one (below it: negative)."""
        scores = self.features(images) @ self.weight.T.to(images) - self._prior.to(images)
        own = scores.gather(1, labels.unsqueeze(1))
        others = scores.scatter(1, labels.unsqueeze(1), -math.inf)
        margins: Tensor = own.squeeze(1) - others.amax(dim=1)
        return margins
