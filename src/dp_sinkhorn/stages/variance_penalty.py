"""A correction whose class means hold after rejection."""

import torch
from jaxtyping import Float64
from torch import Tensor

from dp_sinkhorn.estimators.linear_classifier import Classifier
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.corrected import CorrectedGenerator
from dp_sinkhorn.generators.rejecting import RejectingGenerator
from dp_sinkhorn.stages.class_moments import bounded_moments, read_moments
from dp_sinkhorn.stages.principal_subspace import ReleasedStatistics

# The model's own images: they cost time only. A class has at least so many.
_IMAGES, _MIN_PER_CLASS = 2_000, 200
_ROUNDS = 2


@torch.no_grad()
def held_under_rejection(
    generator: Generator,
    correction: dict[str, Tensor],
    classifier: Classifier,
    released: Float64[Tensor, "K numbers"],
    statistics: ReleasedStatistics,
    seed: int,
) -> dict[str, Tensor]:
    """The correction, its shifts moved until rejection moves class means no further than released ones say they lie.

    Images that a classifier is sure of lie further apart than all images of their classes: along what tells the
    classes apart and, where it was trained by a tiny budget, along its noise. How far to go along that one direction
    the released means know well, however noisy each of their numbers is. All of this is post-processing.

    Args:
        correction: The tensors of `CorrectedGenerator`. classifier: On the generator's device.
        released: Noisy sums of the class moments.
    """
    per_class = max(_MIN_PER_CLASS, _IMAGES // generator.num_classes)
    device = next(generator.parameters()).device

    def corrected() -> CorrectedGenerator:
        return CorrectedGenerator(generator, **correction).to(device)

    def drawn(images: Generator) -> list[Tensor]:
        # The same seed for every class: the first tries are those that the means before rejection are of.
        return [
            images.sample(torch.full((per_class,), label), torch.Generator().manual_seed(seed)).cpu()
            for label in range(generator.num_classes)
        ]

    def found(sums: Tensor, counts: Tensor) -> Float64[Tensor, "K numbers_of_means"]:
        inner, outer = read_moments(sums, counts, statistics)
        return torch.cat([inner.means, outer.means], dim=1)

    def cut_means(images: list[Tensor]) -> Float64[Tensor, "K numbers_of_means"]:
        sums = torch.stack([bounded_moments(own, statistics, generator.shape).value for own in images])
        return found(sums, torch.full_like(statistics.class_counts, per_class))

    before, after = drawn(corrected()), drawn(RejectingGenerator(corrected(), classifier))
    start = cut_means(before)
    pull, wanted = cut_means(after) - start, found(released, statistics.class_counts) - start
    along, length = (wanted * pull).sum(1, keepdim=True), pull.square().sum(1, keepdim=True)
    share = (along / length.clamp(min=1e-300)).clamp(0.0, 1.0)
    goal = torch.lerp(_means(before), _means(after), share)
    for turn in range(_ROUNDS):
        if turn > 0:
            after = drawn(RejectingGenerator(corrected(), classifier))
        correction = {**correction, "shifts": correction["shifts"] + (goal - _means(after)).float()}
    return correction


def _means(images: list[Tensor]) -> Float64[Tensor, "K d"]:
    return torch.stack([own.double().mean(0) for own in images])
