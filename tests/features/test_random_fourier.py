"""Random Fourier features: kernels, norms, gradients, and independence of other records."""

import math

import pytest
import torch

from dp_sinkhorn.features import random_fourier
from dp_sinkhorn.features.random_fourier import FourierMap, fourier_map
from dp_sinkhorn.features.scattering import SCATTERING, Scattering
from support.stage_runs import SHAPE, toy

V = 20.0


def some_map(
    num_frequencies: int = 50, width: float = 0.25, weight: float = 0.3, of_wavelets=0.25, seed=0
) -> FourierMap:
    return fourier_map(SHAPE, num_frequencies, width * V, weight, of_wavelets, seed, "cpu")


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_features_estimate_the_weighted_sum_of_kernels(weight):
    data = toy(30)
    features = some_map(20_000, 0.5, weight, 0.1).of_records(data, SCATTERING(data))
    rows = data.floats().double()
    near = torch.exp(-torch.cdist(rows, rows).square() / (4.0 * 0.5 * V))
    wavelets = Scattering(data.shape, layers=1)(rows)
    alike = torch.exp(-torch.cdist(wavelets, wavelets).square() / (4.0 * 0.1))
    assert float(near.min()) < 0.5
    assert float(alike.min()) < 0.5
    wanted = (1.0 - weight) * near + weight * alike
    # The mean of 20,000 cosines has a standard deviation of at most 1/√40,000; five of them cover some 400 pairs.
    assert torch.allclose(features @ features.T, wanted, atol=5.0 / math.sqrt(40_000))


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.9])
def test_features_of_every_record_have_norm_1(weight):
    data = toy(20)
    norms = some_map(weight=weight).of_records(data, SCATTERING(data)).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(20).double(), rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_images_have_the_same_features_as_records(weight):
    """Records use stored float16 features of both layers; images use one layer."""
    data, features = toy(40), some_map(weight=weight)
    records = features.of_records(data, SCATTERING(data)).float()
    images = torch.cat(features.single().of_images(data.floats().unsqueeze(0), len(data)), dim=2)
    assert torch.allclose(images[0], records, atol=2e-4)
    # Another record differs by far more.
    assert float((records[0] - records[1]).abs().max()) > 0.05


def test_a_record_s_features_do_not_depend_on_other_records():
    data, features = toy(40), some_map()
    known = SCATTERING(data)
    alone = [features.of_records(data.subset(torch.tensor([row])), known[[row]]) for row in range(len(data))]
    assert torch.allclose(torch.cat(alone), features.of_records(data, known), rtol=0.0, atol=1e-12)


def test_gradients_of_both_kernels_match_finite_differences():
    features = some_map()
    images = (0.9 * toy(4).floats().double()).view(2, 2, -1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda rows: features.of_images(rows, 2), images, eps=1e-5, atol=1e-4, fast_mode=True
    )


def test_wavelets_of_weight_0_are_not_computed(monkeypatch):
    monkeypatch.setattr(random_fourier, "Scattering", None)
    assert some_map(weight=0.0).of_records(toy(20)).shape == (20, 100)


def test_frequencies_follow_from_the_public_seed():
    first, again, other = (some_map(seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.frequencies, again.frequencies)
    assert not torch.equal(first.frequencies, other.frequencies)
    assert torch.equal(first.wavelets.frequencies, again.wavelets.frequencies)
    assert not torch.equal(first.wavelets.frequencies, other.wavelets.frequencies)
