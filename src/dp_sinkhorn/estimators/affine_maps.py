"""Affine maps of images, class by class: one of the coordinates in the subspace, one of the frequencies of the rest."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from dp_sinkhorn.estimators.moment_maps import MAX_STRETCH
from dp_sinkhorn.estimators.subspace import Subspace
from dp_sinkhorn.features.cosine import from_frequencies, to_frequencies

_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """Means of images, class by class.

    Args:
        coordinates: (K, r). rest: (K, d), cosine frequencies of the part outside the subspace.
    """

    coordinates: Float64[Tensor, "K r"]
    rest: Float64[Tensor, "K d"]


@dataclass(frozen=True, eq=False)
class AffineMaps:
    """Class k: coordinates z become z · maps[k] + shifts[k], frequencies p of the rest p · scales[k] + rest_shifts[k].

    Args:
        maps: (K, r, r). shifts: (K, r). scales: (K, b), one per band. rest_shifts: (K, d).
        bands: (d,) the band of each frequency.
    """

    maps: Float64[Tensor, "K r r"]
    shifts: Float64[Tensor, "K r"]
    scales: Float64[Tensor, "K b"]
    rest_shifts: Float64[Tensor, "K d"]
    bands: Int64[Tensor, " d"]

    @classmethod
    def identity(cls, classes: int, dimensions: int, bands: Int64[Tensor, " d"], num_bands: int) -> "AffineMaps":
        """The maps that move nothing."""
        zeros = torch.zeros(classes, dimensions, dtype=torch.float64)
        return cls(
            maps=torch.eye(dimensions, dtype=torch.float64).repeat(classes, 1, 1),
            shifts=zeros,
            scales=torch.ones(classes, num_bands, dtype=torch.float64),
            rest_shifts=torch.zeros(classes, len(bands), dtype=torch.float64),
            bands=bands,
        )

    @classmethod
    def about(
        cls, means: ClassMeans, maps: Tensor, moves: Tensor, scales: Tensor, rest_moves: Tensor, bands: Tensor
    ) -> "AffineMaps":
        """The maps that stretch images about the means and then add the moves."""
        return cls(
            maps=maps,
            shifts=means.coordinates + moves - _times(means.coordinates, maps),
            scales=scales,
            rest_shifts=means.rest + rest_moves - means.rest * scales[:, bands],
            bands=bands,
        )

    def then(self, after: "AffineMaps") -> "AffineMaps":
        """The composition: first these maps, then `after`."""
        return AffineMaps(
            maps=self.maps @ after.maps,
            shifts=_times(self.shifts, after.maps) + after.shifts,
            scales=self.scales * after.scales,
            rest_shifts=self.rest_shifts * after.scales[:, self.bands] + after.rest_shifts,
            bands=self.bands,
        )

    def bounded(self, means: ClassMeans) -> "AffineMaps":
        """The same maps with every stretch limited to `MAX_STRETCH`. The images of the means stay the same."""
        left, values, right = torch.linalg.svd(self.maps)
        maps = (left * values.clamp(max=MAX_STRETCH).unsqueeze(1)) @ right
        scales = self.scales.clamp(max=MAX_STRETCH)
        return AffineMaps(
            maps=maps,
            shifts=self.shifts + _times(means.coordinates, self.maps - maps),
            scales=scales,
            rest_shifts=self.rest_shifts + means.rest * (self.scales - scales)[:, self.bands],
            bands=self.bands,
        )

    def spreads(self, apart: Float64[Tensor, "K r r"]) -> Float64[Tensor, "K r r"]:
        """Square roots of the missing covariance in the directions whose stretch is at its limit.

        Args:
            apart: Target covariances minus those of the images that these maps have moved.
        """
        _, values, right = torch.linalg.svd(self.maps)
        roots = torch.zeros_like(self.maps)
        for label, (stretch, directions) in enumerate(zip(values, right, strict=True)):
            bound = directions[stretch > (1.0 - _ROUNDING) * MAX_STRETCH]
            missing, vectors = torch.linalg.eigh(bound @ apart[label] @ bound.T)
            root = (vectors * missing.clamp(min=0.0).sqrt()) @ vectors.T
            roots[label] = bound.T @ root @ bound
        return roots

    def tensors(
        self, subspace: Subspace, shape: tuple[int, int, int], spreads: Float64[Tensor, "K r r"]
    ) -> dict[str, Tensor]:
        """The tensors of `AffineLayer`, which adds changes to images that are not centred."""
        maps = self.maps - torch.eye(self.maps.shape[1], dtype=torch.float64)
        gains = self.scales - 1.0
        grey = torch.zeros_like(subspace.centre).unsqueeze(0)
        shifts = self.shifts + _times(subspace.project(grey).expand_as(self.shifts), maps)
        rest_shifts = self.rest_shifts + to_frequencies(subspace.rest(grey), shape) * gains[:, self.bands]
        rest_pixels = from_frequencies(rest_shifts, shape)
        pixels = subspace.lift(shifts - rest_pixels @ subspace.basis) + rest_pixels
        found = {"basis": subspace.basis, "maps": maps, "gains": gains, "shifts": pixels, "spreads": spreads}
        return {name: tensor.float() for name, tensor in found.items()}


def _times(rows: Float64[Tensor, "K r"], maps: Float64[Tensor, "K r r"]) -> Float64[Tensor, "K r"]:
    return torch.einsum("kr,krs->ks", rows, maps)
