"""Rejection pulls the means of classes apart: the correction lets it as far as the released means say."""

import pytest
import torch

from dp_sinkhorn.estimators.image_moments import MomentFrame
from dp_sinkhorn.estimators.linear_classifier import LinearClassifier
from dp_sinkhorn.estimators.subspace import Subspace
from dp_sinkhorn.features.cosine import num_bands
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.corrected import CorrectedGenerator
from dp_sinkhorn.generators.rejecting import RejectingGenerator
from dp_sinkhorn.stages import variance_penalty
from dp_sinkhorn.stages.variance_penalty import shifts_under_rejection

SHAPE, SIZE, CLASSES, DIMENSIONS, DRAWN = (1, 8, 8), 64, 2, 3, 4_000
COUNTS = torch.tensor([500.0, 2_000.0], dtype=torch.float64)


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


class OfPixels(LinearClassifier):
    """Scores of pixels by random weights."""

    def __init__(self) -> None:
        self.weight = 3.0 * torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(1))
        self.features = torch.nn.Identity()  # type: ignore[assignment]


CORRECTED = CorrectedGenerator(Grey(), **some_correction())
REJECTING = RejectingGenerator(CORRECTED, OfPixels())
BASIS = torch.linalg.qr(torch.randn(SIZE, 5, generator=torch.Generator().manual_seed(2)))[0]
FRAME = MomentFrame.of(Subspace(torch.zeros(SIZE), BASIS), 40.0, SHAPE)


@pytest.fixture(scope="module")
def ends() -> tuple[torch.Tensor, torch.Tensor]:
    """Released without noise, of records that look like the generator's images, or like those that are kept."""

    def released_of(generator: Generator) -> torch.Tensor:
        sums = [FRAME.bounded(own).value for own in generator.samples_by_class(DRAWN, seed=5)]
        return torch.stack(sums) * COUNTS.unsqueeze(1) / DRAWN

    return released_of(CORRECTED), released_of(REJECTING)


def means(generator: Generator) -> torch.Tensor:
    return torch.stack([images.double().mean(0) for images in generator.samples_by_class(DRAWN, seed=9)])


def shifts(released: torch.Tensor) -> torch.Tensor:
    return shifts_under_rejection(CORRECTED, OfPixels(), released, COUNTS, FRAME, seed=3)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rejection_moves_means_as_far_as_the_released_ones_say(ends, share: float) -> None:
    before = {name: tensor.clone() for name, tensor in CORRECTED.state_dict().items()}
    found = shifts(torch.lerp(*ends, share))
    assert all(torch.equal(CORRECTED.state_dict()[name], tensor) for name, tensor in before.items())

    start, pulled = means(CORRECTED), means(REJECTING)
    goal = torch.lerp(start, pulled, share)
    moved = CorrectedGenerator(Grey(), **{**some_correction(), "shifts": found})
    got = means(RejectingGenerator(moved, OfPixels()))
    pull = (pulled - start).square().sum(1)
    assert bool((pull > 0.02).all()), pull
    assert bool(((got - goal).square().sum(1) < 0.15 * pull).all()), (pull, got - goal)


def test_no_class_is_pulled_the_other_way(ends, monkeypatch) -> None:
    """Released means that lie on the far side of the pull are for the correction, not for rejection to follow."""
    monkeypatch.setattr(variance_penalty, "_IMAGES", 800)
    found = [shifts(torch.lerp(*ends, share)) for share in (-3.0, 0.0, 1.0, 4.0)]
    torch.testing.assert_close(found[0], found[1], atol=0.04, rtol=0.0)
    torch.testing.assert_close(found[3], some_correction()["shifts"], atol=0.04, rtol=0.0)
    assert float((found[1] - found[2]).norm()) > 0.1
