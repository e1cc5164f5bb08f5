"""Images of whose class the classifier is not sure are drawn again."""

import torch

from dp_sinkhorn.estimators.linear_classifier import LinearClassifier
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.rejecting import RejectingGenerator


class Levels(Generator):
    """An image is its first latent everywhere: a number in [0, 1]."""

    def __init__(self) -> None:
        super().__init__((1, 8, 8), 2, 1)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.drawn = 0

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.drawn += len(labels)
        return self.scale * latents.expand(-1, 64)


class Above(LinearClassifier):
    """Takes an image for class 1 if it lies above a level, and is surer of it the further it does."""

    def __init__(self, level: float, slope: float = 1e4) -> None:
        self.level, self.slope = level, slope

    def margins(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.slope * (images[:, 0] - self.level) * (2.0 * labels - 1.0)


def test_only_images_of_the_wanted_class_are_handed_out() -> None:
    labels = torch.arange(400) % 2
    images = RejectingGenerator(Levels(), Above(0.5)).sample(labels, torch.Generator().manual_seed(0))[:, 0]
    wrong = (images > 0.5) != (labels == 1)
    assert float(wrong.double().mean()) < 0.08  # one in 2⁵ finds no match in five tries
    # Accepted images are uniform on their half: rejection changes nothing within a class.
    high = images[(labels == 1) & ~wrong]
    assert abs(float(high.mean()) - 0.75) < 0.04


def test_only_images_that_the_classifier_is_sure_of_are_handed_out() -> None:
    labels = torch.arange(400) % 2
    # Scores 10 apart between black and white: they differ by 2 at 0.7 for class 1, at 0.3 for class 0.
    images = RejectingGenerator(Levels(), Above(0.5, 10.0)).sample(labels, torch.Generator().manual_seed(0))[:, 0]
    own = torch.where(labels == 1, images, 1.0 - images)
    assert float((own < 0.7).double().mean()) < 0.22  # 0.7⁵ = 0.17 find none in five tries
    assert abs(float(own[own > 0.7].mean()) - 0.85) < 0.03


def test_where_no_try_fits_the_nearest_is_handed_out() -> None:
    generator = Levels()
    labels = torch.ones(200, dtype=torch.int64)
    images = RejectingGenerator(generator, Above(2.0)).sample(labels, torch.Generator().manual_seed(0))[:, 0]
    assert generator.drawn == 5 * 200
    # The largest of five uniform numbers has mean 5/6.
    assert abs(float(images.mean()) - 5.0 / 6.0) < 0.04


def test_equal_seeds_give_equal_images() -> None:
    labels = torch.arange(50) % 2
    generator = RejectingGenerator(Levels(), Above(0.3))
    first, second = (generator.sample(labels, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)
