"""The public subspace: orthonormal columns, adjoint maps, cosine frames, and directions above the noise."""

import math

import pytest
import torch

from dp_sinkhorn.estimators.subspace import Subspace, low_frequencies, principal_subspace
from dp_sinkhorn.estimators.symmetric import unpacked
from dp_sinkhorn.privacy.random import CryptoRandom


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(seed: int, size: int, columns: int) -> torch.Tensor:
    return torch.linalg.qr(normal(seed, size, columns))[0]


def is_orthonormal(columns: torch.Tensor, atol: float = 1e-10) -> bool:
    return torch.allclose(columns.T @ columns, torch.eye(columns.shape[1], dtype=columns.dtype), rtol=0.0, atol=atol)


@pytest.fixture
def subspace() -> Subspace:
    return Subspace(centre=0.3 * normal(0, 30), basis=orthonormal(1, 30, 7))


def test_lift_is_the_adjoint_of_project(subspace: Subspace) -> None:
    images, field = normal(2, 5, 30), normal(3, 5, 7)
    left = (subspace.project(images + subspace.centre) * field).sum()
    torch.testing.assert_close(left, (images * subspace.lift(field)).sum())


def test_projecting_what_was_lifted_gives_it_back(subspace: Subspace) -> None:
    field = normal(3, 5, 7)
    torch.testing.assert_close(subspace.project(subspace.centre + subspace.lift(field)), field)
    assert subspace.num_dimensions == 7


def test_an_image_is_centre_plus_coordinates_plus_an_orthogonal_rest(subspace: Subspace) -> None:
    images = normal(4, 6, 30)
    rest = subspace.rest(images)
    torch.testing.assert_close(subspace.centre + subspace.lift(subspace.project(images)) + rest, images)
    torch.testing.assert_close(rest @ subspace.basis, torch.zeros(6, 7, dtype=torch.float64))
    assert float(rest.norm()) > 1.0


def test_the_centre_has_no_coordinates_and_no_rest(subspace: Subspace) -> None:
    centre = subspace.centre.unsqueeze(0)
    assert float(subspace.project(centre).norm()) == 0.0
    assert float(subspace.rest(centre).norm()) == 0.0


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 32, 32)])
def test_a_small_image_keeps_all_of_its_numbers(shape: tuple[int, int, int]) -> None:
    assert torch.equal(low_frequencies(*shape), torch.eye(math.prod(shape), dtype=torch.float64))


@pytest.mark.parametrize("shape", [(1, 33, 33), (3, 8, 64), (3, 64, 64)])
def test_a_large_image_keeps_at_most_1024_orthonormal_columns(shape: tuple[int, int, int]) -> None:
    frame = low_frequencies(*shape)
    assert frame.shape[0] == math.prod(shape)
    assert frame.shape[1] <= min(1024, math.prod(shape))
    assert frame.dtype == torch.float64
    assert is_orthonormal(frame)


def test_low_frequencies_hold_constant_and_slowly_varying_images() -> None:
    frame = low_frequencies(3, 64, 64)
    assert frame.shape[1] > 900
    height = torch.linspace(0.0, 1.0, 64, dtype=torch.float64).view(-1, 1).expand(64, 64)
    width = height.T
    constant = torch.tensor([0.2, -0.7, 1.0], dtype=torch.float64).view(3, 1, 1).expand(3, 64, 64)
    wave = torch.stack([torch.cos(2.0 * math.pi * height), torch.sin(3.0 * width), height * width])
    for image, lost in ((constant, 1e-12), (wave, 0.01)):
        flat = image.flatten()
        assert float((flat - frame @ (frame.T @ flat)).norm()) <= lost * float(flat.norm())
    noise = normal(5, 3 * 64 * 64)
    assert float((frame.T @ noise).norm()) < 0.4 * float(noise.norm())


def test_cosines_are_those_of_the_discrete_transform() -> None:
    """A pure cosine along the width lies on exactly one column, up to number 25, or 12 of a colour."""
    position = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    frame = low_frequencies(3, 64, 64)
    for colour, finest in (((1.0, 1.0, 1.0), 25), ((1.0, -1.0, 0.0), 12), ((1.0, 1.0, -2.0), 12)):
        for number, kept in ((5, 1), (finest, 1), (finest + 1, 0)):
            wave = torch.cos(number * math.pi * position).expand(64, 64)
            image = torch.tensor(colour, dtype=torch.float64).view(3, 1, 1) * wave
            weights = frame.T @ image.flatten()
            assert int((weights.abs() > 1e-9).sum()) == kept
            assert float(weights.norm()) == pytest.approx(kept * float(image.norm()), abs=1e-9)


def noise_matrix(size: int, stddev: float) -> torch.Tensor:
    """The noise of the mechanism on a second-moment matrix."""
    return unpacked(stddev * CryptoRandom(test_seed=size).normal(size * (size + 1) // 2), size)


@pytest.mark.parametrize("size", [64, 300])
def test_the_largest_eigenvalue_of_pure_noise_is_at_the_edge(size: int) -> None:
    largest = float(torch.linalg.eigvalsh(noise_matrix(size, 3.0))[-1])
    assert largest == pytest.approx(3.0 * math.sqrt(2.0 * size), rel=0.15)


def test_pure_noise_leaves_the_least_number_of_directions() -> None:
    size = 300
    found = principal_subspace(noise_matrix(size, 3.0), 3.0, torch.zeros(size), torch.eye(size).double(), 5)
    assert 5 <= found.num_dimensions <= 7
    assert (
        principal_subspace(torch.eye(8).double(), 1e6, torch.zeros(8), torch.eye(8).double(), 100).num_dimensions == 8
    )


@pytest.mark.parametrize(("strength", "expected"), [(3.0, 10), (0.2, 4)])
def test_planted_directions_are_found_above_the_edge_only(strength: float, expected: int) -> None:
    size, stddev = 200, 2.0
    planted = orthonormal(6, size, 10)
    edge = stddev * math.sqrt(2.0 * size)
    matrix = strength * edge * planted @ planted.T + noise_matrix(size, stddev)
    centre = torch.linspace(-0.5, 0.5, size)
    found = principal_subspace(matrix, stddev, centre, torch.eye(size).double(), 4)
    assert found.num_dimensions == expected
    assert found.basis.dtype == torch.float32
    assert torch.equal(found.centre, centre)
    assert is_orthonormal(found.basis, atol=1e-5)
    if expected == 10:
        # A direction of θ times the noise edge keeps 1 − 1/(4θ²) of its square: 0.97 at θ = 3.
        kept = (found.basis.double().T @ planted).square().sum() / 10
        assert 0.93 < float(kept) <= 1.0 + 1e-6


def test_directions_come_strongest_first_and_through_the_frame() -> None:
    frame = orthonormal(7, 12, 4)
    matrix = torch.diag(torch.tensor([5.0, 90.0, 0.0, 40.0], dtype=torch.float64))
    found = principal_subspace(matrix, 1.0, torch.zeros(12, dtype=torch.float64), frame, 1)
    assert found.num_dimensions == 3
    expected = frame[:, [1, 3, 0]]
    torch.testing.assert_close((found.basis * expected).sum(0).abs(), torch.ones(3, dtype=torch.float64))
