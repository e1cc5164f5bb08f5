"""The DCGAN generator against the literature."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import conv_transpose2d

from dp_sinkhorn.generators.base import doubling_sizes
from dp_sinkhorn.generators.dcgan import DCGANGenerator


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
    """Set running statistics by some passes in training mode, then switch to evaluation mode."""
    with torch.no_grad():
        for seed in range(30):
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
    """Radford et al. 2016: maps start at 4×4; the last hidden layer has `channels` = 64 maps."""
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


def test_it_has_the_published_number_of_parameters() -> None:
    """The paper has 3,576,704 at 3×64×64 with 100 latents; ours adds the weights of one class and a last bias."""
    generator = DCGANGenerator((3, 64, 64), 1, 100, 64)
    assert sum(parameter.numel() for parameter in generator.parameters()) == 3_576_704 + 512 * 4 * 4 + 3


def test_the_forward_pass_matches_the_textbook() -> None:
    """In evaluation mode: a transposed convolution of a 1×1 map, then kernels of 4 with stride 2."""
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


def test_initial_weights_are_those_of_the_paper() -> None:
    generator = build((1, 28, 28), channels=64)
    for name, parameter in generator.named_parameters():
        if parameter.dim() > 1:
            assert abs(float(parameter.detach().std()) - 0.02) < 0.002, name
    norms = [layer for layer in generator.layers if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 3
    assert all(float((norm.weight.detach() - 1.0).abs().max()) < 0.1 for norm in norms)
    assert all(float(norm.bias.detach().abs().max()) == 0.0 for norm in norms)
