"""The refinement of a whole generator: almost without noise, its images get the records' mean features."""

import math

import torch

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.features.scattering import Scattering, map_shape
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.refined import REFINEMENT_STEPS, RefinedGenerator
from dp_sinkhorn.privacy.curator import Draw, HeldRecords
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.stages.class_features import (
    believed_gap,
    feature_sum,
    frequency_groups,
    refinement_fields,
    sum_class_features,
)

SHAPE, SIZE = (1, 8, 8), 64


class Smooth(Generator):
    """A bright bump in the middle of noise that is weak."""

    def __init__(self) -> None:
        super().__init__(SHAPE, 2, SIZE)
        self.scale = torch.nn.Parameter(torch.tensor(0.2))

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        line = torch.linspace(-1.5, 1.5, 8)
        bump = torch.exp(-line.square().unsqueeze(1) - line.square()).flatten()
        return self.scale * (latents - 0.5) + bump - 0.6


def some_records(count: int = 300) -> LabelledImages:
    """The same bump; class 0 with stripes across it, class 1 with stripes along it."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat_interleave(count)
    stripes = torch.tensor([0.25, -0.25]).repeat(4).expand(8, 8)
    texture = torch.stack([stripes, stripes.T]).flatten(1)[labels]
    with torch.no_grad():
        images = Smooth()(torch.rand(2 * count, SIZE, generator=random), labels) + texture
    pixels = ((images + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return LabelledImages(pixels.view(-1, *SHAPE), labels, ("across", "along"))


def fields_of(data: LabelledImages, noise: float) -> torch.Tensor:
    total = sum_class_features(2, Draw(HeldRecords(data))).value
    released = total + noise * CryptoRandom(test_seed=0).normal(*total.shape)
    return refinement_fields(Smooth(), released, torch.full((2,), len(data) / 2.0, dtype=torch.float64), noise, 0)


def gaps(generator: Generator, data: LabelledImages) -> list[float]:
    """Squared distance of the mean features, class by class."""
    features, random, found = Scattering(SHAPE), torch.Generator().manual_seed(9), []
    for label in range(2):
        with torch.no_grad():
            made = features(generator.sample(torch.full((400,), label), random)).mean(0)
        real = features(data.floats()[data.labels == label]).mean(0)
        found.append(float((made - real).square().sum()))
    return found


def test_refined_images_have_the_records_mean_features() -> None:
    data = some_records()
    fields = fields_of(data, 1e-3)
    assert fields.shape == (REFINEMENT_STEPS, 2, Scattering(SHAPE).num_features)
    before, after = gaps(Smooth(), data), gaps(RefinedGenerator(Smooth(), fields), data)
    assert all(now < 0.3 * then for now, then in zip(after, before, strict=True))
    # The other class's texture is not what brings it about.
    swapped = gaps(RefinedGenerator(Smooth(), fields.flip(1)), data)
    assert all(now > 1.5 * right for now, right in zip(swapped, after, strict=True))


def test_where_noise_hides_the_records_images_stay_as_they_are() -> None:
    fields = fields_of(some_records(100), 1e5)
    images = [
        generator.sample(torch.arange(2).repeat(50), torch.Generator().manual_seed(0)).detach()
        for generator in (Smooth(), RefinedGenerator(Smooth(), fields))
    ]
    assert float((images[0] - images[1]).abs().max()) < 0.02


def test_a_feature_sum_keeps_short_rows_and_takes_none_that_is_not_finite() -> None:
    rows = torch.tensor([[0.6, 0.0], [0.1, 0.2], [math.nan, 0.0], [0.0, math.inf], [3.0, -4.0]])
    found = feature_sum(rows)
    assert found.sensitivity == 1.0
    torch.testing.assert_close(found.value, torch.tensor([1.3, -0.6], dtype=torch.float64), rtol=1e-5, atol=0.0)
    assert torch.equal(feature_sum(rows[:0]).value, torch.zeros(2, dtype=torch.float64))


def test_groups_are_the_octaves_of_each_map() -> None:
    groups = frequency_groups((2, 2, 3))
    assert groups.tolist() == [0, 1, 2, 1, 1, 2, 3, 4, 5, 4, 4, 5]


def test_a_gap_is_believed_with_little_noise_and_the_bias_never() -> None:
    random = torch.Generator().manual_seed(2)
    shape = map_shape(SHAPE)
    gap = torch.randn(3, 1 + shape[0] * shape[1] * shape[2], generator=random, dtype=torch.float64)
    counts = torch.ones(3, dtype=torch.float64)
    found = believed_gap(gap, counts, torch.full_like(gap, 1e-6), shape)
    torch.testing.assert_close(found[:, :-1], gap[:, :-1], rtol=1e-6, atol=1e-9)
    assert found[:, -1].tolist() == [0.0, 0.0, 0.0]
    assert float(believed_gap(gap, counts, torch.full_like(gap, 100.0), shape).abs().max()) == 0.0
