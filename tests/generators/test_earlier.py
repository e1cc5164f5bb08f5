"""The wrappers of generators in releases of versions 1 and 2."""

import pytest
import torch

from dp_sinkhorn.estimators.linear_classifier import LinearClassifier
from dp_sinkhorn.features.scattering import Scattering
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.earlier import CorrectedGenerator, MixtureGenerator, RefinedGenerator, RejectingGenerator
from dp_sinkhorn.generators.tuned import AffineLayer

pytestmark = pytest.mark.quick

SHAPE, SIZE = (1, 8, 8), 64


class Levels(Generator):
    """Every pixel of an image is a scale times its first latent, which lies in [0, 1]."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__(SHAPE, 2, 2)
        self.scale = torch.nn.Parameter(torch.tensor(scale))
        self.drawn = 0

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        assert len(labels) > 0
        self.drawn += len(labels)
        return self.scale * latents[:, :1].expand(-1, SIZE)


class Above(LinearClassifier):
    """Assigns images above a level to class 1, with a margin that grows with the distance."""

    def __init__(self, level: float, slope: float = 1e4) -> None:
        self.level, self.slope = level, slope

    def margins(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.slope * (images[:, 0] - self.level) * (2.0 * labels - 1.0)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def some_fields(steps: int) -> torch.Tensor:
    return 0.01 * torch.randn(steps, 2, Scattering(SHAPE).num_features, generator=seeded())


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_mixture_chooses_its_generator_by_a_further_latent(share: float) -> None:
    labels = torch.arange(2).repeat(5000)
    images = MixtureGenerator(Levels(), Levels(-1.0), share).sample(labels, seeded())[:, 0]
    for label in range(2):
        # Four standard deviations of a share of 5,000.
        found = float((images[labels == label] < 0.0).double().mean())
        assert abs(found - share) <= 4.0 * (share * (1.0 - share) / 5000) ** 0.5
    latents = torch.rand(50, 3, generator=seeded())
    made = MixtureGenerator(Levels(), Levels(-1.0), 0.5)(latents, labels[:50])
    assert torch.equal(made[:, 0], torch.where(latents[:, 2] < 0.5, -latents[:, 0], latents[:, 0]))


def test_a_corrected_generator_applies_its_affine_layer() -> None:
    layer = AffineLayer.identity(SHAPE, 2, 3)
    layer.load_state_dict({**layer.state_dict(), "shifts": torch.tensor([[0.1], [-0.2]]).expand(2, SIZE)})
    corrected = CorrectedGenerator(Levels(), layer)
    latents, labels = torch.rand(6, corrected.latent_dim, generator=seeded()), torch.arange(6) % 2
    wanted = layer(Levels()(latents[:, :2], labels), labels, (latents[:, 2:] - 0.5) * 12**0.5)
    assert torch.equal(corrected(latents, labels), wanted)
    assert not torch.equal(wanted[:, 0], latents[:, 0])


def test_images_that_the_classifier_is_not_sure_of_are_rejected() -> None:
    labels = torch.arange(400) % 2
    # Scores 10 apart between 0 and 1: they differ by 2 at 0.7 for class 1, at 0.3 for class 0.
    images = RejectingGenerator(Levels(), Above(0.5, 10.0)).sample(labels, seeded())[:, 0]
    own = torch.where(labels == 1, images, 1.0 - images)
    assert float((own < 0.7).double().mean()) < 0.22  # a share of 0.7⁵ = 0.17 is accepted in no try
    # Accepted images stay uniform.
    assert abs(float(own[own > 0.7].mean()) - 0.85) < 0.03


def test_without_an_accepted_try_the_most_likely_image_is_taken() -> None:
    generator = Levels()
    images = RejectingGenerator(generator, Above(2.0)).sample(torch.ones(200, dtype=torch.int64), seeded())[:, 0]
    assert generator.drawn == 5 * 200
    # The largest of five uniform numbers has mean 5/6.
    assert abs(float(images.mean()) - 5.0 / 6.0) < 0.04


def test_refinement_takes_gradient_steps_in_the_field_of_the_class() -> None:
    fields, labels = some_fields(2), torch.tensor([1, 0, 1])

    class Uneven(Levels):
        def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            images = super().forward(latents, labels) * torch.linspace(-1.0, 1.0, SIZE)
            return torch.cat([torch.full_like(images[:, :2], -1.0), images[:, 2:]], dim=1)

    found = RefinedGenerator(Uneven(), fields).sample(labels, seeded())
    images = unmoved = Uneven().sample(labels, seeded()).detach()
    features = Scattering(SHAPE)
    for field in fields:
        at = images.clone().requires_grad_()
        (features(at) * field[labels]).sum().backward()
        images = (images - (1.0 - images.square()) * at.grad).clamp(-1.0, 1.0)
    torch.testing.assert_close(found, images)
    assert float((found - unmoved).abs().max()) > 0.01
    assert bool((found[:, :2] == -1.0).all())


def test_rejected_images_are_not_refined() -> None:
    labels = torch.ones(40, dtype=torch.int64)
    rejecting, fields = RejectingGenerator(Levels(), Above(0.5)), some_fields(1)
    found = RefinedGenerator(rejecting, fields).sample(labels, seeded())
    kept = rejecting.sample(labels, seeded())
    gradients = Scattering(SHAPE).gradients(kept, fields[0][labels])
    torch.testing.assert_close(found, (kept - (1.0 - kept.square()) * gradients).clamp(-1.0, 1.0))
