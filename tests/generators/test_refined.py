"""Refined images: moved down the gap of their class's mean features, black and white pixels left alone."""

import torch

from dp_sinkhorn.features.scattering import Scattering
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.refined import RefinedGenerator, moved

SHAPE = (1, 8, 8)


class Latents(Generator):
    """An image is its latents, from -1 to 1."""

    def __init__(self) -> None:
        super().__init__(SHAPE, 2, 64)
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.scale * latents - 1.0


def some_fields(steps: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(steps, 2, Scattering(SHAPE).num_features, generator=random)


def test_the_gradient_is_that_of_finite_differences() -> None:
    random = torch.Generator().manual_seed(0)
    features = Scattering((3, 8, 9))
    images = torch.rand(3, 3 * 8 * 9, generator=random, dtype=torch.float64) * 2.0 - 1.0
    along = torch.randn(3, features.num_features, generator=random, dtype=torch.float64)
    way = torch.randn(images.shape, generator=random, dtype=torch.float64)
    gradients = features.gradients(images, along)
    step = 1e-6
    ahead, behind = (((features(images + sign * step * way)) * along).sum(1) for sign in (1.0, -1.0))
    torch.testing.assert_close((gradients * way).sum(1), (ahead - behind) / (2.0 * step), rtol=1e-5, atol=1e-7)


def test_blank_images_have_finite_gradients() -> None:
    features = Scattering(SHAPE)
    gradients = features.gradients(torch.full((2, 64), -1.0), torch.ones(2, features.num_features))
    assert bool(gradients.isfinite().all())


def test_images_go_down_the_field_of_their_class_step_by_step() -> None:
    fields, labels = 0.01 * some_fields(2), torch.tensor([1, 0, 1])
    generator = RefinedGenerator(Latents(), fields)
    with torch.no_grad():  # as `sample` does
        found = generator.sample(labels, torch.Generator().manual_seed(0))
        images = unmoved = Latents().sample(labels, torch.Generator().manual_seed(0))
    features = Scattering(SHAPE)
    for field in fields:
        at = images.clone().requires_grad_()
        (features(at) * field[labels]).sum().backward()
        images = (images - (1.0 - images.square()) * at.grad).clamp(-1.0, 1.0)
    torch.testing.assert_close(found, images)
    assert float((found - unmoved).abs().max()) > 0.01


def test_what_is_refined_is_what_the_generator_hands_out() -> None:
    """Its `sample`, which may reject images, and not what its latents alone give."""

    class Third(Latents):
        def sample(self, labels: torch.Tensor, random: torch.Generator) -> torch.Tensor:
            return [super(Third, self).sample(labels, random) for _ in range(3)][-1]

    labels, random = torch.tensor([0, 1]), torch.Generator().manual_seed(0)
    for _ in range(2):
        Latents().sample(labels, random)
    expected = RefinedGenerator(Latents(), 0.01 * some_fields(1)).sample(labels, random)
    found = RefinedGenerator(Third(), 0.01 * some_fields(1)).sample(labels, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, expected)


def test_black_and_white_pixels_stay_and_no_pixel_leaves_the_range() -> None:
    images = torch.tensor([[-1.0, 1.0, 0.0, 0.5]])
    assert moved(images, torch.tensor([[3.0, 3.0, 0.25, -9.0]])).tolist() == [[-1.0, 1.0, -0.25, 1.0]]


def test_no_image_gives_none() -> None:
    features = Scattering(SHAPE)
    nothing = torch.zeros(0, 64)
    assert features.gradients(nothing, torch.zeros(0, features.num_features)).shape == (0, 64)
