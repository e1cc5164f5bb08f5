"""The cosine transform, the colour axes and the bands against their definitions."""

import math

import pytest
import torch

from dp_sinkhorn.features.cosine import (
    colour_axes,
    frequency_bands,
    from_frequencies,
    maps_from_frequencies,
    maps_to_frequencies,
    num_bands,
    to_frequencies,
)

pytestmark = pytest.mark.quick

SHAPE = (3, 8, 12)


def wave(down: int, across: int) -> torch.Tensor:
    """The cosine of `down` and `across` half periods, of norm 1."""
    y, x = (torch.arange(side, dtype=torch.float64) + 0.5 for side in SHAPE[1:])
    both = torch.cos(math.pi / 8 * down * y).unsqueeze(1) * torch.cos(math.pi / 12 * across * x)
    return both / both.norm()


def some_images() -> torch.Tensor:
    return torch.randn(2, math.prod(SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_cosine_coefficient_is_an_inner_product_with_the_map() -> None:
    images = some_images()
    found = maps_to_frequencies(images, SHAPE)
    expected = (images.view(2, *SHAPE)[:, 1] * wave(3, 5)).sum((1, 2))
    torch.testing.assert_close(found.view(2, *SHAPE)[:, 1, 3, 5], expected)
    torch.testing.assert_close(maps_from_frequencies(found, SHAPE), images)
    torch.testing.assert_close(found.norm(dim=1), images.norm(dim=1))


def test_rgb_images_split_into_brightness_and_two_colour_axes() -> None:
    images = some_images()
    found = to_frequencies(images, SHAPE)
    red, green, blue = ((images.view(2, *SHAPE)[:, channel] * wave(3, 5)).sum((1, 2)) for channel in range(3))
    by_axis = found.view(2, *SHAPE)[:, :, 3, 5].T
    torch.testing.assert_close(by_axis[0], (red + green + blue) / math.sqrt(3))
    torch.testing.assert_close(by_axis[1], (red - green) / math.sqrt(2))
    torch.testing.assert_close(by_axis[2], (red + green - 2 * blue) / math.sqrt(6))
    torch.testing.assert_close(from_frequencies(found, SHAPE), images)
    torch.testing.assert_close(found.norm(dim=1), images.norm(dim=1))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_channels_of_other_images_are_not_mixed(channels: int) -> None:
    assert torch.equal(colour_axes(channels), torch.eye(channels, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(1, 8, 8), SHAPE, (3, 64, 64)])
def test_bands_of_each_colour_rise_from_the_mean_to_the_finest(shape: tuple[int, int, int]) -> None:
    bands = frequency_bands(shape).view(shape)
    each = num_bands(1)
    assert bands[:, 0, 0].tolist() == [each * axis for axis in range(shape[0])]
    assert bands[:, -1, -1].tolist() == bands.amax(dim=(1, 2)).tolist()
    assert bool((bands // each == torch.arange(shape[0]).view(-1, 1, 1)).all())
    assert int(bands.max()) < num_bands(shape[0])
    assert bool((bands.diff(dim=1) >= 0).all())
    assert bool((bands.diff(dim=2) >= 0).all())
