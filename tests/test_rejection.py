"""Images that the classifier takes for another class are drawn again."""

import torch

from dp_sinkhorn.classifier.linear import Classifier
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.rejection import RejectingGenerator


class Levels(Generator):
    """An image is its first latent everywhere: a number in [0, 1]."""

    def __init__(self) -> None:
        super().__init__((1, 8, 8), 2, 1)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.drawn = 0

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.drawn += len(labels)
        return self.scale * latents.expand(-1, 64)


class Above(Classifier):
    """Takes an image for class 1 if it lies above a level."""

    def __init__(self, level: float) -> None:
        self.level = level

    def margins(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (images[:, 0] - self.level) * (2.0 * labels - 1.0)


def test_only_images_of_the_wanted_class_are_handed_out() -> None:
    labels = torch.arange(400) % 2
    images = RejectingGenerator(Levels(), Above(0.5)).sample(labels, torch.Generator().manual_seed(0))[:, 0]
    wrong = (images > 0.5) != (labels == 1)
    assert float(wrong.double().mean()) < 0.08  # one in 2⁵ finds no match in five tries
    # Accepted images are uniform on their half: rejection changes nothing within a class.
    high = images[(labels == 1) & ~wrong]
    assert abs(float(high.mean()) - 0.75) < 0.04


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
