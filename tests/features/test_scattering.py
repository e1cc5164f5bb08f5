"""Scattering features of known images; norm at most 1 and independence of other images."""

import math

import pytest
import torch

from dp_sinkhorn.features.scattering import Scattering, first_layer, num_features

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 9, 13), (3, 8, 64)]


def some_images(shape: tuple[int, int, int], count: int = 5) -> torch.Tensor:
    return torch.rand(count, math.prod(shape), generator=torch.Generator().manual_seed(0)).double() * 2.0 - 1.0


@pytest.mark.parametrize("shape", SHAPES)
def test_features_have_the_stated_number_and_norm_at_most_1(shape: tuple[int, int, int]) -> None:
    images = some_images(shape)
    images[0], images[1] = -1.0, 1.0
    features = Scattering(shape)(images)
    assert features.shape == (5, num_features(shape))
    assert float(features.norm(dim=1).max()) <= 1.0 + 1e-12
    assert bool(features.isfinite().all())


def test_the_number_of_features_is_that_of_the_literature_plus_one() -> None:
    assert num_features((1, 28, 28)) == 81 * 7 * 7 + 1  # Tramèr and Boneh 2021, section 3: 81 × 7 × 7
    assert num_features((3, 32, 32)) == (81 + 2 * 17) * 8 * 8 + 1


def test_an_image_s_features_do_not_depend_on_other_images() -> None:
    images, scattering = some_images((1, 12, 12), 45), Scattering((1, 12, 12))
    together = scattering(images)
    alone = torch.cat([scattering(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-13)


def test_blank_images_have_no_feature_except_the_constant() -> None:
    features = Scattering((1, 16, 16))(torch.full((1, 256), 0.3, dtype=torch.float64))
    assert float(features[0, :-1].abs().max()) < 1e-9
    assert float(features[0, -1]) == pytest.approx(0.3 / math.sqrt(1.09))


def test_features_do_not_depend_on_brightness_and_contrast() -> None:
    images, scattering = some_images((1, 16, 16)), Scattering((1, 16, 16))
    torch.testing.assert_close(scattering(0.5 * images + 0.2), scattering(images), rtol=0.0, atol=1e-3)


def test_stripes_excite_the_wavelet_of_their_direction() -> None:
    size = 32
    x = torch.arange(size, dtype=torch.float64)
    stripes = torch.cos(3.0 * math.pi / 4.0 * x).expand(size, size).reshape(1, -1)  # the finest wavelet's own wave
    maps = Scattering((1, size, size))(stripes)[0, :-1].view(81, 8, 8)[:, 2:6, 2:6].mean((1, 2))
    assert int(maps[1:9].argmax()) == 0  # direction 0: along x
    turned = stripes.view(size, size).T.reshape(1, -1)
    maps = Scattering((1, size, size))(turned)[0, :-1].view(81, 8, 8)[:, 2:6, 2:6].mean((1, 2))
    assert int(maps[1:9].argmax()) == 4  # a quarter turn is four of eight directions


@pytest.mark.parametrize("shape", SHAPES)
def test_features_of_one_layer_are_part_of_those_of_two(shape: tuple[int, int, int]) -> None:
    images = some_images(shape)
    one = Scattering(shape, layers=1)
    assert one.num_features == num_features(shape, layers=1) < num_features(shape)
    torch.testing.assert_close(first_layer(Scattering(shape)(images), shape), one(images), rtol=0.0, atol=1e-12)
    assert float(one(images).norm(dim=1).max()) <= 1.0 + 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_match_finite_differences(shape: tuple[int, int, int]) -> None:
    scattering, images = Scattering(shape), some_images(shape, 3)
    random = torch.Generator().manual_seed(1)
    along = torch.randn(3, scattering.num_features, generator=random, dtype=torch.float64)
    way = torch.randn(images.shape, generator=random, dtype=torch.float64)
    gradients, step = scattering.gradients(images, along), 1e-6
    ahead, behind = ((scattering(images + sign * step * way) * along).sum(1) for sign in (1.0, -1.0))
    torch.testing.assert_close((gradients * way).sum(1), (ahead - behind) / (2.0 * step), rtol=1e-5, atol=1e-7)


def test_gradients_are_finite_for_blank_images_and_empty_for_none() -> None:
    scattering = Scattering((1, 8, 8))
    gradients = scattering.gradients(torch.full((2, 64), -1.0), torch.ones(2, scattering.num_features))
    assert bool(gradients.isfinite().all())
    nothing = torch.zeros(0, 64)
    assert scattering.gradients(nothing, torch.zeros(0, scattering.num_features)).shape == (0, 64)
