"""The DCGAN generator: its layers against the literature, and what batch normalisation couples and what it does not."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn.functional import conv_transpose2d

from dp_sinkhorn.generators.base import doubling_sizes
from dp_sinkhorn.generators.dcgan import DCGANGenerator
from dp_sinkhorn.io.errors import InputError

SHAPES = [(1, side, side) for side in (8, 9, 16, 28, 33, 64)] + [(3, 32, 32), (3, 9, 9), (1, 12, 20), (3, 64, 8)]


def build(
    shape: tuple[int, int, int] = (1, 12, 20), num_classes: int = 10, channels: int = 4, seed: int = 0
) -> DCGANGenerator:
    torch.manual_seed(seed)
    # The layout that a run uses.
    return DCGANGenerator(shape, num_classes, 5, channels).to(memory_format=torch.channels_last)


def inputs(count: int, num_classes: int = 10, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, 5, generator=random), torch.randint(num_classes, (count,), generator=random)


def trained(generator: DCGANGenerator) -> DCGANGenerator:
    """Running statistics as a hundred passes in training mode leave them, then evaluation mode."""
    with torch.no_grad():
        for seed in range(100):
            generator.train()(*inputs(16, generator.num_classes, seed=100 + seed))
    return generator.eval()


@pytest.mark.parametrize(
    ("shape", "sizes", "widths"),
    [
        ((1, 8, 8), [(4, 4), (8, 8)], [64]),
        ((1, 28, 28), [(4, 4), (7, 7), (14, 14), (28, 28)], [256, 128, 64]),
        ((3, 32, 32), [(4, 4), (8, 8), (16, 16), (32, 32)], [256, 128, 64]),
        ((3, 64, 64), [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64)], [512, 256, 128, 64]),
        ((1, 9, 33), [(1, 3), (2, 5), (3, 9), (5, 17), (9, 33)], [512, 256, 128, 64]),
    ],
    ids=str,
)
def test_sides_double_and_maps_halve_without_cropping(
    shape: tuple[int, int, int], sizes: list[tuple[int, int]], widths: list[int]
) -> None:
    """Radford et al. 2016: 4×4 maps first, `channels` = 64 maps before the image."""
    generator = DCGANGenerator(shape, 10, 16, 64)
    seen: list[tuple[int, ...]] = []
    for layer in generator.layers:
        if isinstance(layer, nn.ConvTranspose2d):
            layer.register_forward_hook(lambda _, given, made: seen.extend((given[0].shape[1:], made.shape[1:])))
    with torch.no_grad():
        generator(torch.rand(2, 16), torch.tensor([0, 9]))
    maps = [(width, *size) for width, size in zip([*widths, shape[0]], sizes, strict=True)]
    assert seen == [size for pair in pairwise(maps) for size in pair]
    assert doubling_sizes(shape) == sizes


def test_as_many_parameters_as_the_published_generator() -> None:
    """3,576,704 at 3×64×64 with 100 latents and 64 maps; ours has a row for the one class and the last bias more."""
    generator = DCGANGenerator((3, 64, 64), 1, 100, 64)
    assert sum(parameter.numel() for parameter in generator.parameters()) == 3_576_704 + 512 * 4 * 4 + 3


def test_the_forward_pass_is_the_textbooks() -> None:
    """At 1×1 the first transposed convolution, then kernels of 4 with stride 2, written out, in evaluation mode."""
    generator = trained(build((1, 16, 16), 3))
    z, labels = inputs(6, 3)
    maps = torch.cat([z, torch.eye(3)[labels]], dim=1)[:, :, None, None]
    kernel = generator.coarse.weight.view(4, 4, 8, 8).permute(3, 2, 0, 1)
    layers = list(generator.layers)
    transposed = [layer for layer in layers if isinstance(layer, nn.ConvTranspose2d)]
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    maps = conv_transpose2d(maps, kernel)
    for norm, layer in zip(norms, transposed, strict=True):
        spread = (norm.running_var + 1e-5).sqrt()
        gain, bias = norm.weight / spread, norm.bias - norm.running_mean * norm.weight / spread
        maps = (maps * gain.view(-1, 1, 1) + bias.view(-1, 1, 1)).clamp(min=0.0)
        maps = conv_transpose2d(maps, layer.weight, layer.bias, stride=2, padding=1)
    torch.testing.assert_close(generator(z, labels), maps.tanh().flatten(1), rtol=1e-4, atol=1e-6)


def test_the_papers_weights_at_the_start() -> None:
    generator = build((1, 28, 28), channels=64)
    for name, parameter in generator.named_parameters():
        if parameter.dim() > 1:
            assert abs(float(parameter.detach().std()) - 0.02) < 0.002, name
    norms = [layer for layer in generator.layers if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 3
    assert all(float((norm.weight.detach() - 1.0).abs().max()) < 0.1 for norm in norms)
    assert all(float(norm.bias.detach().abs().max()) == 0.0 for norm in norms)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("num_classes", [1, 10])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_have_the_declared_size_and_lie_in_range(
    shape: tuple[int, int, int], num_classes: int, training: bool
) -> None:
    generator = build(shape, num_classes).train(training)
    with torch.no_grad():
        generator.layers[-2].weight.mul_(100.0)  # far into the tanh
        images = generator(*inputs(4, num_classes))
    assert images.shape == (4, math.prod(shape))
    assert images.dtype == torch.float32
    assert bool((images.abs() <= 1.0).all())
    assert float(images.min()) < 0.0 < float(images.max())
    assert float(images.std(0).max()) > 0.0


def test_rows_are_channels_then_height_then_width() -> None:
    generator = build((3, 9, 12), 2).eval()
    z, labels = inputs(2, 2)
    before = generator(z, labels)
    with torch.no_grad():
        generator.layers[-2].bias[1] += 0.1
    moved = (generator(z, labels) - before).view(2, 3, 9, 12).abs().amax((0, 2, 3))
    assert (moved > 0.0).tolist() == [False, True, False]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 33, 33), (1, 12, 20)], ids=str)
def test_the_gradient_reaches_every_parameter(shape: tuple[int, int, int]) -> None:
    generator = build(shape, 3)
    images = generator(*inputs(12, 3))
    images.backward(torch.randn(images.shape, generator=torch.Generator().manual_seed(1)))
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert float(parameter.grad.abs().max()) > 1e-4, name  # more than rounding


@pytest.mark.parametrize("training", [True, False])
def test_latents_and_labels_both_matter(training: bool) -> None:
    generator = trained(build()).train(training)
    z, labels = inputs(6)
    images = generator(z, labels)
    assert bool(((generator(1.0 - z, labels) - images).abs().amax(1) > 1e-3).all())
    assert bool(((generator(z, (labels + 1) % 10) - images).abs().amax(1) > 1e-3).all())


def test_in_evaluation_an_image_depends_on_its_own_latent_and_label_only() -> None:
    generator = trained(build())
    z, labels = inputs(8)
    images = generator(z, labels)
    changed_z, changed_labels = z.clone(), labels.clone()
    changed_z[3:] = 1.0 - z[3:]
    changed_labels[3:] = (labels[3:] + 1) % 10
    torch.testing.assert_close(generator(changed_z, changed_labels)[:3], images[:3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(generator(z[2:3], labels[2:3]), images[2:3], rtol=1e-5, atol=1e-6)


def test_evaluation_leaves_the_state_alone() -> None:
    generator = trained(build())
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    generator.sample(torch.arange(10), torch.Generator().manual_seed(1))
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


def test_in_training_a_batch_is_normalised_by_itself() -> None:
    """Coupled to its mates, but a function of the weights and the batch: what passed before does not matter."""
    generator, other = build(), trained(build())
    z, labels = inputs(8)
    with torch.no_grad():
        images = generator.train()(z, labels)
        assert torch.equal(generator(z, labels), images)
        assert torch.equal(other.train()(z, labels), images)
        assert float((generator(z[:4], labels[:4]) - images[:4]).abs().max()) > 1e-3


def test_a_training_sample_is_one_pass_of_the_whole_batch() -> None:
    generator, twin = build((1, 8, 8)), build((1, 8, 8))
    labels = torch.arange(10).repeat_interleave(25)
    sample = generator.sample(labels, torch.Generator().manual_seed(4))
    images = twin(torch.rand(250, 5, generator=torch.Generator().manual_seed(4)), labels)
    assert torch.equal(sample, images)
    state, expected = generator.state_dict(), twin.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert generator.layers[0].num_batches_tracked.item() == 1


def test_an_evaluation_sample_in_chunks_is_the_forward_pass() -> None:
    generator = trained(build((1, 8, 8)))
    labels = torch.arange(10).repeat_interleave(25)
    passes: list[int] = []
    generator.register_forward_hook(lambda _, given, __: passes.append(len(given[0])))
    sample = generator.sample(labels, torch.Generator().manual_seed(4))
    assert passes == [100, 100, 50]
    images = generator(torch.rand(250, 5, generator=torch.Generator().manual_seed(4)), labels)
    torch.testing.assert_close(sample, images, rtol=1e-5, atol=1e-6)


def test_running_statistics_become_those_of_the_batches() -> None:
    """After many passes of one batch, evaluation mode gives its training images, but for the n/(n−1) of variances."""
    generator = build((1, 8, 8))
    z, labels = inputs(40)
    with torch.no_grad():
        unused = generator.eval()(z, labels)
        for _ in range(200):
            images = generator.train()(z, labels)
        settled = generator.eval()(z, labels)
    assert float((settled - images).abs().max()) < 0.0005
    assert float((unused - images).abs().max()) > 0.02


def test_the_state_is_complete() -> None:
    """Through safetensors and back: equal images, and equal training passes from there."""
    generator, twin = trained(build(seed=0)), build(seed=1)
    tensors = {name: value.contiguous() for name, value in generator.state_dict().items()}
    assert {value.dtype for value in tensors.values()} == {torch.float32, torch.int64}
    twin.load_state_dict(load(save(tensors)))
    z, labels = inputs(8)
    assert torch.equal(twin.eval()(z, labels), generator(z, labels))
    assert torch.equal(twin.train()(z, labels), generator.train()(z, labels))
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in generator.state_dict().items())
    averaged = copy.deepcopy(generator).requires_grad_(requires_grad=False)
    assert averaged.state_dict().keys() == tensors.keys()


@pytest.mark.parametrize("shape", [(1, 7, 28), (1, 28, 7), (3, 65, 32), (3, 32, 100)], ids=str)
def test_a_side_out_of_range_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=rf"images of {shape[1]}×{shape[2]} pixels .* not in 8\.\.64; resize them"):
        build(shape)
