"""Two generators as one: who makes which image, and that it is that image."""

import pytest
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dp_sinkhorn.features.cosine import num_bands
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.corrected import CorrectedGenerator
from dp_sinkhorn.generators.mixture import MixtureGenerator

pytestmark = pytest.mark.quick

SHAPE, CLASSES, LATENTS = (1, 2, 3), 4, 5


class Telling(Generator):
    """Its images hold its own name, their latents and their label."""

    def __init__(self, name: float) -> None:
        super().__init__(SHAPE, CLASSES, LATENTS)
        self.name = nn.Parameter(torch.tensor(name))

    def forward(self, latents: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        assert len(labels) > 0
        told = torch.cat([self.name.expand(len(labels), 1), latents[:, :4], labels.unsqueeze(1) / CLASSES], dim=1)
        return told @ torch.eye(6)  # in half the precision under autocast, as a network's layers are


def mixture(share: float) -> MixtureGenerator:
    return MixtureGenerator(Telling(0.25), Telling(-0.5), share)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_so_many_images_of_each_class_are_the_second_generators(share):
    labels = torch.arange(CLASSES).repeat(5000)
    images = mixture(share).sample(labels, torch.Generator().manual_seed(0))
    by_second = (images[:, 0] == -0.5).double()
    assert ((images[:, 0] == 0.25) | (images[:, 0] == -0.5)).all()
    for label in range(CLASSES):
        # Four standard deviations of a share of 5,000.
        assert abs(float(by_second[labels == label].mean()) - share) < 4.0 * (share * (1.0 - share) / 5000) ** 0.5


def test_an_image_is_that_of_its_latents_and_its_label_whoever_makes_it():
    latents = torch.rand(50, LATENTS + 1, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(50) % CLASSES
    images = mixture(0.5)(latents, labels)
    assert torch.equal(images[:, 1:5], latents[:, :4])
    assert torch.equal(images[:, 5], labels / CLASSES)
    # The choice is none of the latents that the two have.
    again = mixture(0.5)(torch.cat([latents[:, :LATENTS], 1.0 - latents[:, LATENTS:]], dim=1), labels)
    assert (images[:, 0] != again[:, 0]).all()


@pytest.mark.parametrize(("share", "name"), [(0.0, 0.25), (1.0, -0.5)])
def test_one_of_them_may_make_all(share, name):
    """Then the other is never asked for no image at all."""
    images = mixture(share).sample(torch.zeros(200, dtype=torch.int64), torch.Generator().manual_seed(2))
    assert (images[:, 0] == name).all()


def test_in_half_the_precision_images_are_float32():
    made = mixture(0.5)
    made.precision = torch.bfloat16
    assert made.sample(torch.zeros(9, dtype=torch.int64), torch.Generator()).dtype == torch.float32


def test_a_correction_moves_the_images_of_both():
    size, rank = 6, 2
    shifts = torch.full((CLASSES, size), 0.1)
    maps = torch.zeros(CLASSES, rank, rank)
    basis = torch.eye(size)[:, :rank].contiguous()
    corrected = CorrectedGenerator(mixture(0.5), basis, maps, torch.zeros(CLASSES, num_bands(1)), shifts, maps)
    images = corrected.sample(torch.zeros(100, dtype=torch.int64), torch.Generator().manual_seed(3))
    found = sorted(set(images[:, 0].tolist()))
    moved = [name + 0.1 * (1.0 - name**2) ** 0.5 for name in (-0.5, 0.25)]
    assert found == pytest.approx(moved)
