"""The affine map of a class, against its definition."""

import torch

from dp_sinkhorn.features.cosine import cosines, frequency_bands, num_bands
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.corrected import CorrectedGenerator


class Fixed(Generator):
    """Every image is the same ramp."""

    def __init__(self) -> None:
        super().__init__((1, 8, 8), 2, 3)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.linspace(-0.5, 0.5, 64).expand(len(labels), -1)


def some_basis(random: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(64, 4, generator=random))[0]


def test_images_move_by_the_map_of_their_class_and_stay_in_range() -> None:
    random = torch.Generator().manual_seed(0)
    basis, maps = some_basis(random), torch.randn(2, 4, 4, generator=random)
    gains, shifts = torch.randn(2, num_bands(1), generator=random), torch.randn(2, 64, generator=random)
    shifts[1] *= 10.0
    spreads = torch.randn(2, 4, 4, generator=random)
    labels, latents = torch.tensor([1, 0, 1]), torch.rand(3, 3 + 4, generator=random)
    images = CorrectedGenerator(Fixed(), basis, maps, gains, shifts, spreads)(latents, labels).detach()
    ramp = torch.linspace(-0.5, 0.5, 64)
    rest = torch.eye(64) - basis @ basis.T
    wave = cosines(8, 8).float()
    both = torch.kron(wave, wave)
    for image, label, own in zip(images, labels.tolist(), (latents[:, 3:] - 0.5) * 12**0.5, strict=True):
        strengths = gains[label][frequency_bands((1, 8, 8))] * (both.T @ rest @ ramp)
        move = basis @ (ramp @ basis @ maps[label] + own @ spreads[label]) + rest @ both @ strengths + shifts[label]
        torch.testing.assert_close(image, (ramp + (1.0 - ramp**2).sqrt() * move).clamp(-1.0, 1.0))
    assert float(images.abs().max()) == 1.0


def test_black_and_white_stay_as_they_are() -> None:
    random = torch.Generator().manual_seed(0)
    generator = CorrectedGenerator(
        Fixed(),
        some_basis(random),
        torch.zeros(2, 4, 4),
        torch.ones(2, num_bands(1)),
        torch.ones(2, 64),
        torch.ones(2, 4, 4),
    )
    images = torch.rand(3, 64, generator=random) - 0.5
    images[:, :20], images[:, 20:40] = -1.0, 1.0
    moved = generator.move(images, torch.tensor([0, 1, 0]), torch.ones(3, 4))
    assert torch.equal(moved[:, :40], images[:, :40])
    assert bool((moved[:, 40:] != images[:, 40:]).all())
