"""The refinement of a whole generator: almost without noise, its images get the records' mean features."""

from pathlib import Path

import pytest
import torch

from dp_sinkhorn.build import resolve
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.features.scattering import Scattering, map_shape
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.refined import REFINEMENT_STEPS, RefinedGenerator
from dp_sinkhorn.privacy.ledger import Header, Ledger
from dp_sinkhorn.privacy.plan import CLASS_FEATURES
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.settings import DataFacts, RunConfig, make_settings
from dp_sinkhorn.stages.class_features import (
    believed_gap,
    frequency_groups,
    refinement_fields,
    release_class_features,
)
from dp_sinkhorn.stages.label_classifier import record_features

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


def some_records(count: int = 400) -> LabelledImages:
    """The same bump; class 0 with stripes across it, class 1 with stripes along it."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat_interleave(count)
    stripes = torch.tensor([0.25, -0.25]).repeat(4).expand(8, 8)
    texture = torch.stack([stripes, stripes.T]).flatten(1)[labels]
    with torch.no_grad():
        images = Smooth()(torch.rand(2 * count, SIZE, generator=random), labels) + texture
    pixels = ((images + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return LabelledImages(pixels.view(-1, *SHAPE), labels, ("across", "along"))


def some_config(data: LabelledImages, noise: float) -> RunConfig:
    facts = DataFacts(source="arrays", num_records=len(data), shape=SHAPE, class_names=data.class_names)
    config = resolve(make_settings(None, {"target_epsilon": 1.0, "num_steps": 10}), facts)
    once = {**config.privacy.once, CLASS_FEATURES: noise}
    return config.model_copy(update={"privacy": config.privacy.model_copy(update={"once": once})})


def fields_of(data: LabelledImages, noise: float, folder: Path) -> torch.Tensor:
    config, ledger = some_config(data, noise), Ledger(folder / "ledger.jsonl")
    ledger.begin(Header(run="0" * 32, config_sha256=config.sha256()))
    random = CryptoRandom(test_seed=0)
    released = release_class_features(record_features(data), data.labels, config, ledger, random)
    assert [(charge.name, charge.noise_multiplier) for charge in ledger.charges] == [(CLASS_FEATURES, noise)]
    return refinement_fields(Smooth(), released, torch.full((2,), len(data) / 2.0, dtype=torch.float64), config)


def gaps(generator: Generator, data: LabelledImages) -> list[float]:
    """Squared distance of the mean features, class by class."""
    features, random, found = Scattering(SHAPE), torch.Generator().manual_seed(9), []
    for label in range(2):
        with torch.no_grad():
            made = features(generator.sample(torch.full((500,), label), random)).mean(0)
        real = features(torch.cat(list(data.float_chunks()))[data.labels == label]).mean(0)
        found.append(float((made - real).square().sum()))
    return found


def test_refined_images_have_the_records_mean_features(tmp_path: Path) -> None:
    data = some_records()
    fields = fields_of(data, 1e-3, tmp_path)
    assert fields.shape == (REFINEMENT_STEPS, 2, Scattering(SHAPE).num_features)
    before, after = gaps(Smooth(), data), gaps(RefinedGenerator(Smooth(), fields), data)
    assert all(now < 0.3 * then for now, then in zip(after, before, strict=True))
    # The other class's texture is not what brings it about.
    swapped = gaps(RefinedGenerator(Smooth(), fields.flip(1)), data)
    assert all(now > 1.5 * right for now, right in zip(swapped, after, strict=True))


def test_where_noise_hides_the_records_images_stay_as_they_are(tmp_path: Path) -> None:
    fields = fields_of(some_records(), 1e5, tmp_path)
    images = [
        generator.sample(torch.arange(2).repeat(50), torch.Generator().manual_seed(0)).detach()
        for generator in (Smooth(), RefinedGenerator(Smooth(), fields))
    ]
    assert float((images[0] - images[1]).abs().max()) < 0.02


def test_a_class_without_records_is_released_like_any_other(tmp_path: Path) -> None:
    data = some_records()
    one = data.subset((data.labels == 0).nonzero().squeeze(1))
    config, ledger = some_config(data, 2.0), Ledger(tmp_path / "ledger.jsonl")
    ledger.begin(Header(run="0" * 32, config_sha256=config.sha256()))
    released = release_class_features(record_features(one), one.labels, config, ledger, CryptoRandom(test_seed=0))
    # Noise only, on every number.
    assert float(released[1].std()) == pytest.approx(2.0, rel=0.2)


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
