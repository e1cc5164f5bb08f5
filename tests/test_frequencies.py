"""The cosine transform against its definition, and the bands."""

import math

import pytest
import torch

from dp_sinkhorn.frequencies import NUM_BANDS, frequency_bands, from_frequencies, to_frequencies

SHAPE = (3, 8, 12)


def test_the_strength_of_a_cosine_is_its_inner_product_with_the_image() -> None:
    images = torch.randn(2, math.prod(SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = to_frequencies(images, SHAPE).view(2, *SHAPE)
    y, x = (torch.arange(side, dtype=torch.float64) + 0.5 for side in SHAPE[1:])
    wave = torch.cos(math.pi / 8 * 3 * y).unsqueeze(1) * torch.cos(math.pi / 12 * 5 * x)
    wave = wave / math.sqrt(8 / 2 * 12 / 2)
    expected = (images.view(2, *SHAPE)[:, 1] * wave).sum((1, 2))
    torch.testing.assert_close(found[:, 1, 3, 5], expected)
    torch.testing.assert_close(from_frequencies(found.flatten(1), SHAPE), images)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), images.norm(dim=1))


@pytest.mark.parametrize("shape", [(1, 8, 8), SHAPE, (3, 64, 64)])
def test_bands_run_from_the_mean_to_the_finest_checks(shape: tuple[int, int, int]) -> None:
    bands = frequency_bands(shape).view(shape)
    assert bool((bands[:, 0, 0] == 0).all())
    assert int(bands.max()) == int(bands[0, -1, -1]) < NUM_BANDS
    assert bool((bands.diff(dim=1) >= 0).all())
    assert bool((bands.diff(dim=2) >= 0).all())
