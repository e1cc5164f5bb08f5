"""The affine map of a class, against its definition."""

import torch

from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.corrected import CorrectedGenerator


class Fixed(Generator):
    """Every image is the same ramp."""

    def __init__(self) -> None:
        super().__init__((1, 8, 8), 2, 3)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.linspace(-0.5, 0.5, 64).expand(len(labels), -1)


def test_images_move_by_the_map_of_their_class_and_stay_in_range() -> None:
    random = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 4, generator=random))[0]
    maps, shifts = torch.randn(2, 4, 4, generator=random), torch.randn(2, 4, generator=random)
    shifts[1] *= 10.0
    labels = torch.tensor([1, 0, 1])
    images = CorrectedGenerator(Fixed(), basis, maps, shifts).sample(labels, random).detach()
    ramp = torch.linspace(-0.5, 0.5, 64)
    for image, label in zip(images, labels.tolist(), strict=True):
        expected = ramp + (1.0 - ramp**2).sqrt() * (basis @ (ramp @ basis @ maps[label] + shifts[label]))
        torch.testing.assert_close(image, expected.clamp(-1.0, 1.0))
    assert float(images.abs().max()) == 1.0


def test_black_and_white_stay_as_they_are() -> None:
    random = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 4, generator=random))[0]
    generator = CorrectedGenerator(Fixed(), basis, torch.zeros(2, 4, 4), torch.ones(2, 4))
    images = torch.rand(3, 64, generator=random) - 0.5
    images[:, :20], images[:, 20:40] = -1.0, 1.0
    moved = generator.move(images, torch.tensor([0, 1, 0]))
    assert torch.equal(moved[:, :40], images[:, :40])
    assert bool((moved[:, 40:] != images[:, 40:]).all())
