"""Both generators, from the settings' names: shapes, range, gradients, and one image at a time."""

import math

import pytest
import torch

from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.conv import ConvGenerator
from dp_sinkhorn.generators.mlp import MLPGenerator
from dp_sinkhorn.generators.spec import GeneratorSpec

SHAPES = [(1, side, side) for side in (8, 9, 16, 28, 33, 64)] + [(3, 32, 32), (3, 9, 9), (1, 12, 20), (3, 20, 12)]
NAMES = ["conv", "mlp"]


def build(name: str, shape: tuple[int, int, int] = (1, 12, 20), num_classes: int = 10, seed: int = 0) -> Generator:
    spec = GeneratorSpec(name=name, latent_dim=5, width=24, channels=16)
    return build_generator(spec, shape, num_classes, seed=seed)


def inputs(count: int, num_classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, 5, generator=random), torch.randint(num_classes, (count,), generator=random)


@pytest.mark.parametrize(("name", "kind"), [("conv", ConvGenerator), ("mlp", MLPGenerator)])
def test_the_name_selects_the_class(name: str, kind: type[Generator]) -> None:
    generator = build(name)
    assert type(generator) is kind
    assert (generator.shape, generator.num_classes, generator.latent_dim) == ((1, 12, 20), 10, 5)


@pytest.mark.parametrize("num_classes", [1, 10])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_images_have_the_declared_size_and_lie_in_range(
    name: str, shape: tuple[int, int, int], num_classes: int
) -> None:
    generator = build(name, shape, num_classes)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(3.0)  # far into the tanh
        images = generator(*inputs(4, num_classes))
    assert images.shape == (4, math.prod(shape))
    assert images.dtype == torch.float32
    assert bool((images.abs() <= 1.0).all())
    assert float(images.std(0).max()) > 0.0


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_channels_then_height_then_width(name: str) -> None:
    """The last layer's bias of a colour moves that colour's block of the row."""
    generator = build(name, (3, 9, 12), 2)
    z, labels = inputs(2, 2)
    before = generator(z, labels)
    bias = list(generator.parameters())[-1]
    with torch.no_grad():
        (bias.view(3, -1)[1]).add_(0.1)
    moved = (generator(z, labels) - before).view(2, 3, 9, 12).abs().amax((0, 2, 3))
    assert (moved > 0.0).tolist() == [False, True, False]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 33, 33), (1, 12, 20)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_every_parameter(name: str, shape: tuple[int, int, int]) -> None:
    generator = build(name, shape, 3)
    z, labels = inputs(12, 3)
    images = generator(z, labels)
    images.backward(torch.randn(images.shape, generator=torch.Generator().manual_seed(1)))
    for parameter_name, parameter in generator.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert bool(torch.isfinite(parameter.grad).all()), parameter_name
        assert float(parameter.grad.abs().max()) > 0.0, parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_an_image_depends_on_its_own_latent_and_label_only(name: str) -> None:
    generator = build(name)
    z, labels = inputs(8, 10)
    images = generator(z, labels)
    changed_z, changed_labels = z.clone(), labels.clone()
    changed_z[3:] = 1.0 - z[3:]
    changed_labels[3:] = (labels[3:] + 1) % 10
    torch.testing.assert_close(generator(changed_z, changed_labels)[:3], images[:3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(generator(z[2:3], labels[2:3]), images[2:3], rtol=1e-5, atol=1e-6)
    order = torch.tensor([5, 0, 7, 2, 1, 6, 3, 4])
    torch.testing.assert_close(generator(z[order], labels[order]), images[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_training_mode_does_not_couple_images_either(name: str) -> None:
    generator = build(name)
    z, labels = inputs(8, 10)
    torch.testing.assert_close(generator.train()(z, labels), generator.eval()(z, labels), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("name", NAMES)
def test_latents_and_labels_both_matter(name: str) -> None:
    generator = build(name)
    z, labels = inputs(6, 10)
    images = generator(z, labels)
    assert bool(((generator(1.0 - z, labels) - images).abs().amax(1) > 1e-5).all())
    assert bool(((generator(z, (labels + 1) % 10) - images).abs().amax(1) > 1e-5).all())


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_in_chunks_is_the_forward_pass(name: str) -> None:
    generator = build(name, (1, 8, 8))
    labels = torch.arange(10).repeat_interleave(25)
    sample = generator.sample(labels, torch.Generator().manual_seed(4))
    latents = torch.rand(250, 5, generator=torch.Generator().manual_seed(4))
    assert sample.shape == (250, 64)
    torch.testing.assert_close(sample, generator(latents, labels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_sample(name: str) -> None:
    labels = torch.tensor([0, 3, 3, 9])

    def sample(weights: int, latents: int) -> torch.Tensor:
        return build(name, seed=weights).sample(labels, torch.Generator().manual_seed(latents))

    assert torch.equal(sample(0, 1), sample(0, 1))
    assert not torch.equal(sample(0, 1), sample(0, 2))
    assert not torch.equal(sample(0, 1), sample(1, 1))


@torch.no_grad()
def test_samples_by_class_are_one_sample_cut_at_the_classes() -> None:
    generator = build("mlp", num_classes=3)
    random = torch.Generator().manual_seed(4)
    for label, own in enumerate(generator.samples_by_class(7, seed=4)):
        torch.testing.assert_close(own, generator.sample(torch.full((7,), label), random))
    assert label == 2
    assert not torch.equal(next(generator.samples_by_class(7, seed=5)), next(generator.samples_by_class(7, seed=4)))


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    build("conv")
    assert torch.equal(torch.random.get_rng_state(), before)
