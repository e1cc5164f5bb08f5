"""Rejection pulls the means of classes apart: the correction lets it as far as the released means say."""

import pytest
import torch

from dp_sinkhorn.estimators.linear_classifier import Classifier
from dp_sinkhorn.estimators.subspace import Subspace
from dp_sinkhorn.features.cosine import num_bands
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.corrected import CorrectedGenerator
from dp_sinkhorn.generators.rejecting import RejectingGenerator
from dp_sinkhorn.stages.class_moments import bounded_moments
from dp_sinkhorn.stages.principal_subspace import ReleasedStatistics
from dp_sinkhorn.stages.variance_penalty import held_under_rejection

SHAPE, SIZE, CLASSES, DIMENSIONS = (1, 8, 8), 64, 2, 3


class Grey(Generator):
    """Independent grey pixels, the same for every class."""

    def __init__(self) -> None:
        super().__init__(SHAPE, CLASSES, SIZE)
        self.scale = torch.nn.Parameter(torch.tensor(0.6))

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.scale * (latents - 0.5)


def some_correction() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "basis": torch.linalg.qr(torch.randn(SIZE, DIMENSIONS, generator=random))[0],
        "maps": torch.zeros(CLASSES, DIMENSIONS, DIMENSIONS),
        "gains": torch.zeros(CLASSES, num_bands(1)),
        "shifts": 0.1 * torch.randn(CLASSES, SIZE, generator=random),
        "spreads": torch.zeros(CLASSES, DIMENSIONS, DIMENSIONS),
    }


def means(generator: Generator) -> torch.Tensor:
    return torch.stack([images.double().mean(0) for images in generator.samples_by_class(4_000, seed=9)])


class Noise(Classifier):
    """Scores of pixels by random weights."""

    def __init__(self, scale: float) -> None:
        self.weight = scale * torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(1))
        self.features = torch.nn.Identity()  # type: ignore[assignment]


def some_statistics() -> ReleasedStatistics:
    basis = torch.linalg.qr(torch.randn(SIZE, 5, generator=torch.Generator().manual_seed(2)))[0]
    counts = torch.tensor([500.0, 2_000.0], dtype=torch.float64)
    return ReleasedStatistics(class_counts=counts, variance=40.0, subspace=Subspace(torch.zeros(SIZE), basis))


def released_of(generator: Generator, statistics: ReleasedStatistics) -> torch.Tensor:
    """Without noise, records that look like the generator's images."""
    images = list(generator.samples_by_class(4_000, seed=5))
    sums = torch.stack([bounded_moments(own, statistics, SHAPE).value for own in images])
    return sums * statistics.class_counts.unsqueeze(1) / 4_000.0


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rejection_moves_class_means_as_far_as_the_released_ones_say(share: float) -> None:
    generator, correction, statistics, classifier = Grey(), some_correction(), some_statistics(), Noise(3.0)
    corrected = CorrectedGenerator(generator, **correction)
    rejecting = RejectingGenerator(corrected, classifier)
    released = torch.lerp(released_of(corrected, statistics), released_of(rejecting, statistics), share)
    before = {name: tensor.clone() for name, tensor in correction.items()}
    held = held_under_rejection(generator, correction, classifier, released, statistics, seed=3)
    assert all(torch.equal(correction[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(held[name], tensor) for name, tensor in before.items() if name != "shifts")

    start, pulled = means(corrected), means(rejecting)
    goal = torch.lerp(start, pulled, share)
    got = means(RejectingGenerator(CorrectedGenerator(generator, **held), classifier))
    pull = (pulled - start).square().sum(1)
    assert bool((pull > 0.02).all()), pull
    assert bool(((got - goal).square().sum(1) < 0.1 * pull).all()), (pull, got - goal)


def test_no_class_is_pulled_the_other_way() -> None:
    """Released means that lie on the far side of the pull are for the correction, not for rejection to follow."""
    generator, correction, statistics, classifier = Grey(), some_correction(), some_statistics(), Noise(3.0)
    corrected = CorrectedGenerator(generator, **correction)
    ends = [released_of(images, statistics) for images in (corrected, RejectingGenerator(corrected, classifier))]
    found = [
        held_under_rejection(generator, correction, classifier, torch.lerp(*ends, share), statistics, seed=3)["shifts"]
        for share in (-3.0, 0.0, 1.0, 4.0)
    ]
    torch.testing.assert_close(found[0], found[1], atol=0.02, rtol=0.0)
    torch.testing.assert_close(found[3], correction["shifts"], atol=0.02, rtol=0.0)
    assert float((found[1] - found[2]).norm()) > 0.1
