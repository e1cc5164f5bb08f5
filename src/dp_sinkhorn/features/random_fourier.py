"""Random Fourier features of two Gaussian kernels; the mean of φ over a class is its mean embedding.

The first kernel compares pixels, as in DP-MERF (Harder et al. 2021). The second compares the first layer of wavelet
scattering, so strokes and textures. φ belongs to their weighted sum.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float16, Float64
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.features.scattering import Scattering, first_layer

# Keeps the draw of the frequencies apart from those of weights and latents, whose seeds are public, too.
_SEED = 0x5EED_F00D


@dataclass(frozen=True, eq=False)
class WaveletPart:
    """The kernel of wavelet features.

    Args:
        weight: Weight w of this kernel in the sum, in (0, 1).
        scattering: Wavelet scattering of one layer, D features.
        frequencies: Of φ₂, one column each.
    """

    weight: float
    scattering: Scattering
    frequencies: Float[Tensor, "D m"]

    def of(self, features: Float[Tensor, "n D"]) -> Float[Tensor, "n two_m"]:
        """√w·φ₂."""
        return math.sqrt(self.weight) * fourier_features(features, self.frequencies)


@dataclass(frozen=True, eq=False)
class FourierMap:
    """Maps an image y to φ(y) = (√(1 − w)·φ₁(y), √w·φ₂(ψ(y))), of norm 1; ψ are the wavelet features.

    Args:
        frequencies: Of φ₁, one column each.
        wavelets: The second kernel; None: φ(y) = φ₁(y).
    """

    frequencies: Float[Tensor, "d m"]
    wavelets: WaveletPart | None = None

    def of_records(
        self, data: LabelledImages, features: Float16[Tensor, "N D"] | None = None
    ) -> Float64[Tensor, "N numbers"]:
        """φ of each record, in float64: a row of a float32 matrix product may depend on the other rows.

        Args:
            features: Of these records, by `ScatteringView`; used with wavelets only.

        Guarantees: each row is a function of its own record.
        """
        images = data.floats().to(self.frequencies.device, torch.float64)
        return self.of(images, None if features is None else features.to(images), data.shape)

    def of(
        self, images: Float[Tensor, "n d"], features: Float[Tensor, "n D"] | None, shape: tuple[int, int, int]
    ) -> Float[Tensor, "n numbers"]:
        """φ of flat images and, with wavelets, of their scattering features of both layers."""
        if self.wavelets is None:
            return self._of_pixels(images)
        assert features is not None  # noqa: S101 - callers give them with wavelets
        return torch.cat([self._of_pixels(images), self.wavelets.of(first_layer(features, shape))], dim=1)

    def of_images(self, images: Float[Tensor, "K n d"], seen: int) -> list[Float[Tensor, "K some numbers"]]:
        """The parts of φ: φ₁ of all images of each class and φ₂ of its first `seen` images; differentiable."""
        classes = len(images)
        parts = [self._of_pixels(images.flatten(0, 1)).unflatten(0, (classes, -1))]
        if self.wavelets is not None:
            wavelets = self.wavelets.scattering(images[:, :seen].flatten(0, 1))
            parts.append(self.wavelets.of(wavelets).unflatten(0, (classes, -1)))
        return parts

    def single(self) -> "FourierMap":
        """The same map in float32, for generated images."""
        part = self.wavelets
        return FourierMap(self.frequencies.float(), part and replace(part, frequencies=part.frequencies.float()))

    def _of_pixels(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n two_m"]:
        weight = 0.0 if self.wavelets is None else self.wavelets.weight
        return math.sqrt(1.0 - weight) * fourier_features(images, self.frequencies)


def fourier_map(
    shape: tuple[int, int, int],
    num_frequencies: int,
    width: float,
    wavelet_weight: float,
    wavelet_width: float,
    seed: int,
    device: str,
) -> FourierMap:
    """Draw the map of a run from its public seed, in float64.

    Args:
        num_frequencies: m of each kernel; a kernel gives 2m features.
        width: Of the kernel of pixels, exp(−‖x − y‖²/(4·width)).
        wavelet_weight: w in [0, 1); 0: no kernel of wavelet features.
        wavelet_width: Of the kernel of wavelet features, as `width`.
    """
    random = torch.Generator().manual_seed(seed + _SEED)

    def drawn(size: int, width: float) -> Float64[Tensor, "size m"]:
        """Frequencies of the kernel exp(−‖x − y‖²/(4·width))."""
        standard = torch.randn(size, num_frequencies, generator=random, dtype=torch.float64)
        return (standard / math.sqrt(2.0 * width)).to(device)

    pixels = drawn(math.prod(shape), width)
    if wavelet_weight == 0.0:
        return FourierMap(pixels)
    scattering = Scattering(shape, layers=1).to(device)
    frequencies = drawn(scattering.num_features, wavelet_width)
    return FourierMap(pixels, WaveletPart(wavelet_weight, scattering, frequencies))


def fourier_features(rows: Float[Tensor, "n d"], frequencies: Float[Tensor, "d m"]) -> Float[Tensor, "n two_m"]:
    """φ(x) = (cos ωᵀx, sin ωᵀx)/√m, of norm 1 for every x (Rahimi and Recht 2007).

    ⟨φ(x), φ(y)⟩ estimates the kernel exp(−s²‖x − y‖²/2) if the ω are normal with standard deviation s.
    """
    angles = rows @ frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1).div(frequencies.shape[1] ** 0.5)
