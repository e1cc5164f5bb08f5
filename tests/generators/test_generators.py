"""The contract of all generators: shapes, range, gradients, independence of images, and complete state."""

import math

import pytest
import torch
from safetensors.torch import load, save

from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.generators.conv import ConvGenerator
from dp_sinkhorn.generators.dcgan import DCGANGenerator
from dp_sinkhorn.generators.mlp import MLPGenerator
from dp_sinkhorn.generators.resnet import ResNetGenerator
from dp_sinkhorn.generators.spec import GeneratorSpec
from dp_sinkhorn.io.errors import InputError

SHAPES = [(1, side, side) for side in (8, 9, 28, 33, 64)] + [(3, 32, 32), (3, 9, 9), (1, 12, 20), (3, 64, 8)]
KINDS = {"conv": ConvGenerator, "mlp": MLPGenerator, "dcgan": DCGANGenerator, "resnet": ResNetGenerator}
BY_BATCH = ["dcgan", "resnet"]  # generators that normalise by the statistics of the batch
CHANNELS = {"conv": 16, "mlp": 1, "dcgan": 4, "resnet": 2}


def build(name: str, shape: tuple[int, int, int] = (1, 12, 20), num_classes: int = 10, seed: int = 0) -> Generator:
    spec = GeneratorSpec(name=name, latent_dim=5, width=24, channels=CHANNELS[name])
    return build_generator(spec, shape, num_classes, seed=seed)


def inputs(count: int, num_classes: int = 10, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, 5, generator=random), torch.randint(num_classes, (count,), generator=random)


def trained(generator: Generator) -> Generator:
    """Set running statistics by some passes in training mode, then switch to evaluation mode."""
    with torch.no_grad():
        for seed in range(30 if generator.normalises_by_batch else 0):
            generator.train()(*inputs(16, generator.num_classes, seed=100 + seed))
    return generator.eval()


def last_layer(generator: Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the last layer."""
    weight, bias = list(generator.parameters())[-2:]
    return weight, bias


@pytest.mark.parametrize("name", KINDS)
def test_the_name_selects_the_class(name: str) -> None:
    generator = build(name)
    assert type(generator) is KINDS[name]
    assert (generator.shape, generator.num_classes, generator.latent_dim) == ((1, 12, 20), 10, 5)
    assert generator.normalises_by_batch == (name in BY_BATCH)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_images_have_the_declared_size_and_lie_in_range(name: str, training: bool) -> None:
    for shape in SHAPES:
        for num_classes in (1, 10):
            generator = build(name, shape, num_classes).train(training)
            with torch.no_grad():
                last_layer(generator)[0].mul_(100.0)  # far into the tanh
                images = generator(*inputs(4, num_classes))
            assert images.shape == (4, math.prod(shape))
            assert images.dtype == torch.float32
            assert bool((images.abs() <= 1.0).all())
            if name in BY_BATCH:
                assert float(images.min()) < 0.0 < float(images.max())
            assert float(images.std(0).max()) > 0.0


@pytest.mark.quick
@pytest.mark.parametrize("name", KINDS)
def test_rows_are_ordered_by_channel_then_height_then_width(name: str) -> None:
    """The last layer's bias of a colour changes that colour's block of the row."""
    generator = build(name, (3, 9, 12), 2).eval()
    z, labels = inputs(2, 2)
    before = generator(z, labels)
    with torch.no_grad():
        (last_layer(generator)[1].view(3, -1)[1]).add_(0.1)
    moved = (generator(z, labels) - before).view(2, 3, 9, 12).abs().amax((0, 2, 3))
    assert (moved > 0.0).tolist() == [False, True, False]


@pytest.mark.quick
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 33, 33)], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_the_gradient_reaches_every_parameter(name: str, shape: tuple[int, int, int]) -> None:
    generator = build(name, shape, 3)
    images = generator(*inputs(12, 3))
    images.backward(torch.randn(images.shape, generator=torch.Generator().manual_seed(1)))
    # Above rounding: a normalisation can cancel the gradient of the layer before it.
    least = 1e-4 if name in BY_BATCH else 0.0
    for parameter_name, parameter in generator.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert bool(torch.isfinite(parameter.grad).all()), parameter_name
        assert float(parameter.grad.abs().max()) > least, parameter_name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_latents_and_labels_both_matter(name: str, training: bool) -> None:
    generator = trained(build(name)).train(training)
    z, labels = inputs(6)
    images = generator(z, labels)
    assert bool(((generator(1.0 - z, labels) - images).abs().amax(1) > 1e-5).all())
    assert bool(((generator(z, (labels + 1) % 10) - images).abs().amax(1) > 1e-5).all())


@pytest.mark.quick
@pytest.mark.parametrize("name", KINDS)
def test_a_released_image_depends_on_its_own_latent_and_label_only(name: str) -> None:
    generator = trained(build(name))
    z, labels = inputs(8)
    images = generator(z, labels)
    changed_z, changed_labels = z.clone(), labels.clone()
    changed_z[3:] = 1.0 - z[3:]
    changed_labels[3:] = (labels[3:] + 1) % 10
    torch.testing.assert_close(generator(changed_z, changed_labels)[:3], images[:3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(generator(z[2:3], labels[2:3]), images[2:3], rtol=1e-5, atol=1e-6)
    order = torch.tensor([5, 0, 7, 2, 1, 6, 3, 4])
    torch.testing.assert_close(generator(z[order], labels[order]), images[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_training_mode_couples_images_only_if_declared(name: str) -> None:
    """The result is a function of the weights and the batch; earlier passes do not matter."""
    generator, other = build(name), trained(build(name))
    z, labels = inputs(8)
    with torch.no_grad():
        images = generator.train()(z, labels)
        assert torch.equal(generator(z, labels), images)
        assert torch.equal(other.train()(z, labels), images)
        moved = float((generator(z[:4], labels[:4]) - images[:4]).abs().max())
    assert (moved > 1e-3) == generator.normalises_by_batch


@pytest.mark.parametrize("name", KINDS)
def test_a_sample_in_chunks_is_the_forward_pass_and_changes_no_state(name: str) -> None:
    generator = trained(build(name, (1, 8, 8)))
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    labels = torch.arange(10).repeat_interleave(25)
    passes: list[int] = []
    generator.register_forward_hook(lambda _, given, __: passes.append(len(given[0])))
    sample = generator.sample(labels, torch.Generator().manual_seed(4))
    assert passes == [100, 100, 50]
    images = generator(torch.rand(250, 5, generator=torch.Generator().manual_seed(4)), labels)
    torch.testing.assert_close(sample, images, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


@pytest.mark.parametrize("name", KINDS)
def test_the_same_seed_gives_the_same_sample(name: str) -> None:
    labels = torch.tensor([0, 3, 3, 9])

    def sample(weights: int, latents: int) -> torch.Tensor:
        return build(name, seed=weights).sample(labels, torch.Generator().manual_seed(latents))

    assert torch.equal(sample(0, 1), sample(0, 1))
    assert not torch.equal(sample(0, 1), sample(0, 2))
    assert not torch.equal(sample(0, 1), sample(1, 1))


@pytest.mark.parametrize("name", KINDS)
def test_the_state_is_complete(name: str) -> None:
    """After safetensors and back, images and training passes are equal."""
    generator, twin = trained(build(name)), build(name, seed=1)
    tensors = {name: value.contiguous() for name, value in generator.state_dict().items()}
    assert {value.dtype for value in tensors.values()} <= {torch.float32, torch.int64}
    twin.load_state_dict(load(save(tensors)))
    z, labels = inputs(8)
    assert torch.equal(twin.eval()(z, labels), generator(z, labels))
    assert torch.equal(twin.train()(z, labels), generator.train()(z, labels))
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in generator.state_dict().items())


@pytest.mark.parametrize("name", BY_BATCH)
def test_a_training_sample_is_one_pass_of_the_whole_batch(name: str) -> None:
    generator, twin = build(name, (1, 8, 8)), build(name, (1, 8, 8))
    labels = torch.arange(10).repeat_interleave(25)
    passes: list[int] = []
    generator.register_forward_hook(lambda _, given, __: passes.append(len(given[0])))
    sample = generator.sample(labels, torch.Generator().manual_seed(4))
    assert passes == [250]
    images = twin(torch.rand(250, 5, generator=torch.Generator().manual_seed(4)), labels)
    assert torch.equal(sample, images)
    state, expected = generator.state_dict(), twin.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("name", "close", "apart"), [("dcgan", 0.0005, 0.02), ("resnet", 0.005, 0.1)])
def test_running_statistics_converge_to_those_of_the_batches(name: str, close: float, apart: float) -> None:
    """After many passes of one batch both modes agree, except for the factor n/(n−1) of variances."""
    generator = build(name, (1, 8, 8))
    z, labels = inputs(40)
    with torch.no_grad():
        unused = generator.eval()(z, labels)
        for _ in range(150):
            images = generator.train()(z, labels)
        settled = generator.eval()(z, labels)
    assert float((settled - images).abs().max()) < close
    assert float((unused - images).abs().max()) > apart


@pytest.mark.parametrize("name", BY_BATCH)
@pytest.mark.parametrize("shape", [(1, 7, 28), (3, 32, 65)], ids=str)
def test_an_image_side_out_of_range_is_refused(name: str, shape: tuple[int, int, int]) -> None:
    told = rf"images of {shape[1]}×{shape[2]} pixels .* not in 8\.\.64; give --side 64 or less"
    with pytest.raises(InputError, match=told):
        build(name, shape)


@torch.no_grad()
def test_samples_by_class_are_one_sample_split_at_the_classes() -> None:
    generator = build("mlp", num_classes=3)
    random = torch.Generator().manual_seed(4)
    for label, own in enumerate(generator.samples_by_class(7, seed=4)):
        torch.testing.assert_close(own, generator.sample(torch.full((7,), label), random))
    assert label == 2
    assert not torch.equal(next(generator.samples_by_class(7, seed=5)), next(generator.samples_by_class(7, seed=4)))


def test_building_does_not_change_the_global_random_state() -> None:
    before = torch.random.get_rng_state()
    build("conv")
    assert torch.equal(torch.random.get_rng_state(), before)
