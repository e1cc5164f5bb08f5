"""Affine maps: composition, bounds, and the tensors of the affine layer."""

import pytest
import torch

from dp_sinkhorn.estimators.affine_maps import AffineMaps, ClassMeans
from dp_sinkhorn.estimators.subspace import Subspace
from dp_sinkhorn.features.cosine import frequency_bands, num_bands, to_frequencies
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.tuned import AffineLayer

pytestmark = pytest.mark.quick

SHAPE, SIZE, DIMENSIONS, CLASSES = (1, 8, 8), 64, 5, 2
BANDS = frequency_bands(SHAPE)


class Grey(Generator):
    """A generator whose images are not used."""

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise AssertionError


def some_maps(seed: int, size: float = 1.0) -> AffineMaps:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return size * torch.randn(shape, generator=random, dtype=torch.float64)

    return AffineMaps(
        maps=torch.eye(DIMENSIONS, dtype=torch.float64) + normal(CLASSES, DIMENSIONS, DIMENSIONS),
        shifts=normal(CLASSES, DIMENSIONS),
        scales=1.0 + normal(CLASSES, num_bands(SHAPE[0])),
        rest_shifts=normal(CLASSES, SIZE),
        bands=BANDS,
    )


def some_means(seed: int) -> ClassMeans:
    random = torch.Generator().manual_seed(seed)
    return ClassMeans(
        torch.randn(CLASSES, DIMENSIONS, generator=random, dtype=torch.float64),
        torch.randn(CLASSES, SIZE, generator=random, dtype=torch.float64),
    )


def mapped(maps: AffineMaps, of: ClassMeans) -> ClassMeans:
    """The maps of one point of each class, by definition."""
    return ClassMeans(
        torch.stack([of.coordinates[k] @ maps.maps[k] + maps.shifts[k] for k in range(CLASSES)]),
        torch.stack([of.rest[k] * maps.scales[k][BANDS] + maps.rest_shifts[k] for k in range(CLASSES)]),
    )


def same(found: ClassMeans, wanted: ClassMeans) -> None:
    torch.testing.assert_close(found.coordinates, wanted.coordinates)
    torch.testing.assert_close(found.rest, wanted.rest)


def test_composed_maps_are_one_map_after_the_other() -> None:
    first, after, point = some_maps(0), some_maps(1), some_means(2)
    same(mapped(first.then(after), point), mapped(after, mapped(first, point)))
    same(mapped(AffineMaps.identity(CLASSES, DIMENSIONS, BANDS, num_bands(SHAPE[0])), point), point)


def test_maps_about_a_mean_move_it_and_stretch_around_it() -> None:
    means, like, point = some_means(0), some_maps(1), some_means(2)
    maps = AffineMaps.about(means, like.maps, like.shifts, like.scales, like.rest_shifts, BANDS)
    same(mapped(maps, means), ClassMeans(means.coordinates + like.shifts, means.rest + like.rest_shifts))
    moved = mapped(maps, point).coordinates - mapped(maps, means).coordinates
    wanted = torch.stack([(point.coordinates - means.coordinates)[k] @ like.maps[k] for k in range(CLASSES)])
    torch.testing.assert_close(moved, wanted)


def test_no_direction_is_stretched_more_than_threefold_and_means_stay() -> None:
    maps, means = some_maps(0, 4.0), some_means(1)
    held = maps.bounded(means)
    assert float(torch.linalg.matrix_norm(maps.maps, 2).max()) > 3.0 < float(maps.scales.max())
    assert float(torch.linalg.matrix_norm(held.maps, 2).max()) == pytest.approx(3.0)
    assert float(held.scales.max()) == 3.0
    same(mapped(held, means), mapped(maps, means))


def test_variation_is_added_where_the_stretch_is_at_its_limit() -> None:
    random = torch.Generator().manual_seed(0)
    turns = torch.linalg.qr(torch.randn(2, CLASSES, DIMENSIONS, DIMENSIONS, generator=random, dtype=torch.float64))[0]
    stretches = torch.tensor([[4.0, 3.5, 3.0, 2.9, 0.1], [2.9, 2.0, 1.0, 0.5, 0.1]], dtype=torch.float64)
    maps = AffineMaps(
        maps=(turns[0] * stretches.unsqueeze(1)) @ turns[1].mT,
        shifts=torch.zeros(CLASSES, DIMENSIONS, dtype=torch.float64),
        scales=torch.ones(CLASSES, num_bands(SHAPE[0]), dtype=torch.float64),
        rest_shifts=torch.zeros(CLASSES, SIZE, dtype=torch.float64),
        bands=BANDS,
    ).bounded(some_means(0))
    # In the mapped directions: too little variance in the first and the fourth, too much in the second.
    apart = (turns[1] * torch.tensor([0.04, -0.04, 0.0, 0.09, 0.01], dtype=torch.float64)) @ turns[1].mT
    spreads = maps.spreads(apart)
    first = turns[1, 0, :, 0]
    torch.testing.assert_close(spreads[0] @ spreads[0].T, 0.04 * torch.outer(first, first), rtol=1e-9, atol=1e-12)
    assert not bool(spreads[1].any())


def test_the_tensors_move_an_almost_grey_image_as_the_maps_say() -> None:
    random = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(SIZE, DIMENSIONS, generator=random, dtype=torch.float64))[0]
    centre = 1e-3 * torch.randn(SIZE, generator=random, dtype=torch.float64)
    subspace, maps = Subspace(centre, basis), some_maps(1, 0.5)
    maps = AffineMaps(maps.maps, 1e-3 * maps.shifts, maps.scales, 1e-3 * maps.rest_shifts, BANDS)
    images = 1e-3 * torch.randn(CLASSES, SIZE, generator=random, dtype=torch.float64)
    tensors = maps.tensors(subspace, SHAPE, torch.zeros_like(maps.maps))
    layer = AffineLayer(SHAPE, **tensors)
    moved = layer(images.float(), torch.arange(CLASSES), torch.ones(CLASSES, DIMENSIONS)).double()

    def parts(rows: torch.Tensor) -> ClassMeans:
        return ClassMeans(subspace.project(rows), to_frequencies(subspace.rest(rows), SHAPE))

    # The layer leaves out the part of the rest's shift that lies in the subspace, so only the rest is compared.
    found, wanted = parts(moved), mapped(maps, parts(images))
    torch.testing.assert_close(found.coordinates, wanted.coordinates, rtol=1e-3, atol=1e-7)
    rotation = to_frequencies(torch.eye(SIZE, dtype=torch.float64), SHAPE)
    outside = rotation.T @ (torch.eye(SIZE, dtype=torch.float64) - basis @ basis.T) @ rotation
    torch.testing.assert_close(found.rest, wanted.rest @ outside, rtol=1e-3, atol=1e-7)
