"""The residual generator: its blocks against a plain version, its sizes and initial weights."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from dp_sinkhorn.generators.resnet import ResNetGenerator, _Block, _ConditionalBatchNorm


def build(
    shape: tuple[int, int, int] = (1, 12, 20), num_classes: int = 10, channels: int = 2, seed: int = 0
) -> ResNetGenerator:
    torch.manual_seed(seed)
    # The layout that a run uses.
    return ResNetGenerator(shape, num_classes, 5, channels).to(memory_format=torch.channels_last)


def normalised(maps: torch.Tensor) -> torch.Tensor:
    """Scale every map to mean 0 and variance 1 over the batch and the pixels."""
    centred = maps - maps.mean((0, 2, 3), keepdim=True)
    return centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()


def doubled(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Copy every pixel four times and crop to `size`."""
    return maps.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : size[0], : size[1]]


def test_the_label_selects_gain_and_bias() -> None:
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
def test_a_residual_block_matches_the_textbook(size: tuple[int, int]) -> None:
    """Normalise, ReLU, up, convolve, normalise, ReLU, convolve; the shortcut is up, then 1×1."""
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
def test_sides_double_from_4_pixels(shape: tuple[int, int, int], finer: list[tuple[int, int, int]]) -> None:
    generator = ResNetGenerator(shape, 2, 32, 64)
    assert generator.coarse_shape == (4, 4, 256)
    seen: list[tuple[int, ...]] = []
    for block in generator.blocks:
        block.register_forward_hook(lambda _, __, made: seen.append(tuple(made.shape[1:])))
    with torch.no_grad():
        generator.eval()(torch.rand(1, 32), torch.tensor([1]))
    assert seen == finer


def test_it_has_the_published_number_of_parameters() -> None:
    """SNGAN has 4,276,739 at 3×32×32 with 128 latents and 256 maps; ours lacks three biases of 256 per block."""
    generator = ResNetGenerator((3, 32, 32), 1, 128, 64)
    assert sum(parameter.numel() for parameter in generator.parameters()) == 4_276_739 - 3 * 3 * 256


def test_initial_weights_are_orthogonal() -> None:
    generator = build((3, 8, 8), channels=4)
    for layer in generator.modules():
        if isinstance(layer, nn.Conv2d):
            rows = layer.weight.detach().flatten(1)
            torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), rtol=0.0, atol=1e-5)
