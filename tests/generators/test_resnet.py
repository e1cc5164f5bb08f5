"""The residual generator: its blocks written out, and what batch normalisation couples and what it does not."""

import math

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn.functional import conv2d

from dp_sinkhorn.generators.resnet import ResNetGenerator, _Block, _ConditionalBatchNorm
from dp_sinkhorn.io.errors import InputError

SHAPES = [(1, side, side) for side in (8, 9, 16, 28, 33, 64)] + [(3, 32, 32), (3, 9, 9), (1, 12, 20), (3, 64, 8)]


def build(
    shape: tuple[int, int, int] = (1, 12, 20), num_classes: int = 10, channels: int = 2, seed: int = 0
) -> ResNetGenerator:
    torch.manual_seed(seed)
    # The layout that a run uses.
    return ResNetGenerator(shape, num_classes, 5, channels).to(memory_format=torch.channels_last)


def inputs(count: int, num_classes: int = 10, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, 5, generator=random), torch.randint(num_classes, (count,), generator=random)


def trained(generator: ResNetGenerator) -> ResNetGenerator:
    """Running statistics as some passes in training mode leave them, then evaluation mode."""
    with torch.no_grad():
        for seed in range(30):
            generator.train()(*inputs(16, generator.num_classes, seed=100 + seed))
    return generator.eval()


def normalised(maps: torch.Tensor) -> torch.Tensor:
    """Every map with mean 0 and variance 1 over the batch and the pixels."""
    centred = maps - maps.mean((0, 2, 3), keepdim=True)
    return centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()


def doubled(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Every pixel four times, cut to `size`: what rounding up leaves over would be a pixel of the next row."""
    return maps.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : size[0], : size[1]]


def test_the_label_chooses_gain_and_bias() -> None:
    torch.manual_seed(0)
    norm = _ConditionalBatchNorm(3, 2)
    maps = 2.0 + 3.0 * torch.randn(6, 3, 4, 5)
    with torch.no_grad():
        norm.gain.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
        norm.bias.weight.copy_(torch.tensor([[0.0, 0.1, 0.2], [-1.0, -2.0, -3.0]]))
        out = norm(maps, torch.tensor([0, 0, 1, 1, 1, 0]))
    expected = normalised(maps)
    for image, label in enumerate([0, 0, 1, 1, 1, 0]):
        for feature in range(3):
            gain = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]][label][feature]
            bias = [[0.0, 0.1, 0.2], [-1.0, -2.0, -3.0]][label][feature]
            pixels = gain * expected[image, feature] + bias
            torch.testing.assert_close(out[image, feature], pixels, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (6, 10)], ids=str)
def test_a_block_is_the_textbooks(size: tuple[int, int]) -> None:
    """Normalise, ReLU, up, convolve, normalise, ReLU, convolve; beside it up, then 1×1."""
    torch.manual_seed(0)
    block = _Block(4, 3, size, 2)
    maps = torch.randn(5, 4, size[0] // 2, size[1] // 2)
    labels = torch.tensor([0, 1, 1, 0, 1])

    def conditioned(given: torch.Tensor, norm: _ConditionalBatchNorm) -> torch.Tensor:
        gain, bias = norm.gain.weight[labels], norm.bias.weight[labels]
        return normalised(given) * gain[:, :, None, None] + bias[:, :, None, None]

    hidden = doubled(conditioned(maps, block.first_norm).clamp(min=0.0), size)
    hidden = conv2d(hidden, block.first.weight, padding=1)
    hidden = conv2d(conditioned(hidden, block.second_norm).clamp(min=0.0), block.second.weight, padding=1)
    expected = hidden + conv2d(doubled(maps, size), block.shortcut.weight)
    torch.testing.assert_close(block(maps, labels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "finer"),
    [
        ((1, 28, 28), [(256, 7, 7), (256, 14, 14), (256, 28, 28)]),
        ((3, 32, 32), [(256, 8, 8), (256, 16, 16), (256, 32, 32)]),
        ((3, 64, 64), [(256, 8, 8), (256, 16, 16), (256, 32, 32), (128, 64, 64)]),
    ],
    ids=str,
)
def test_sides_double_from_four_pixels(shape: tuple[int, int, int], finer: list[tuple[int, int, int]]) -> None:
    generator = ResNetGenerator(shape, 2, 32, 64)
    assert generator.coarse_shape == (4, 4, 256)
    seen: list[tuple[int, ...]] = []
    for block in generator.blocks:
        block.register_forward_hook(lambda _, __, made: seen.append(tuple(made.shape[1:])))
    with torch.no_grad():
        generator.eval()(torch.rand(1, 32), torch.tensor([1]))
    assert seen == finer


def test_as_many_parameters_as_the_published_generator() -> None:
    """SNGAN's 4,276,739 at 3×32×32 with 128 latents and 256 maps, but for the three biases of 256 a block."""
    generator = ResNetGenerator((3, 32, 32), 1, 128, 64)
    assert sum(parameter.numel() for parameter in generator.parameters()) == 4_276_739 - 3 * 3 * 256


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("num_classes", [1, 10])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_have_the_declared_size_and_lie_in_range(
    shape: tuple[int, int, int], num_classes: int, training: bool
) -> None:
    generator = build(shape, num_classes).train(training)
    with torch.no_grad():
        generator.last.weight.mul_(100.0)  # far into the tanh
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
        generator.last.bias[1] += 0.1
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
    assert generator.norm.num_batches_tracked.item() == 1


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
    assert float((settled - images).abs().max()) < 0.005
    assert float((unused - images).abs().max()) > 0.1


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


def test_the_weights_at_the_start_are_orthogonal() -> None:
    generator = build((3, 8, 8), channels=4)
    for layer in generator.modules():
        if isinstance(layer, nn.Conv2d):
            rows = layer.weight.detach().flatten(1)
            torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 7, 28), (1, 28, 7), (3, 65, 32), (3, 32, 100)], ids=str)
def test_a_side_out_of_range_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=rf"images of {shape[1]}×{shape[2]} pixels .* not in 8\.\.64; resize them"):
        build(shape)
