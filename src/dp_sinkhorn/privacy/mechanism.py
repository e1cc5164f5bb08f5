"""The Gaussian mechanism: the only way from private sums to released numbers."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import MAX_NOISE
from dp_sinkhorn.privacy.clipping import BoundedSum
from dp_sinkhorn.privacy.random import CryptoRandom

# A release is a multiple of the grid, about sensitivity · 2⁻³⁴. Rounding n numbers to the grid changes the distance of
# two sums by at most √n · 2⁻³⁴ of the sensitivity: for n up to 2²⁴ a quarter of the margin that clipping leaves.
GRID_BITS = 34
# In units of the grid. The noise takes up to MAX_NOISE · 2³⁵ · 18 of the 64-bit range; the rest holds sums of up to
# 2²⁶ records.
_MAX_SUM = 2.0**61
# The uniform integers that smooth the noise are 2⁻¹² of its standard deviation wide. They raise its variance by a
# factor of 1 + 5e-9. They are so much wider than the change by rounding that rounding adds at most 4e-6 to ε
# (docs/explanation/privacy.md, section 3.5).
_SMOOTH_BITS = 12


@dataclass(frozen=True)
class GaussianMechanism:
    """Releases a bounded sum with Gaussian noise of standard deviation noise_multiplier · sensitivity.

    Args:
        sensitivity: L2 bound on the change when one record is added or removed.
        noise_multiplier: σ = stddev / sensitivity, the number that the accountant uses.
    """

    sensitivity: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        for name in ("sensitivity", "noise_multiplier"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)} is not a positive number; give one above 0")

    @property
    def noise_stddev(self) -> float:
        """Standard deviation of the noise on each coordinate."""
        return self.noise_multiplier * self.sensitivity

    @property
    def grid(self) -> float:
        """The power of two to whose multiples sums and noise are rounded."""
        return 2.0 ** (math.floor(math.log2(self.sensitivity)) - GRID_BITS)

    def __call__(self, total: BoundedSum, random: CryptoRandom) -> Float64[Tensor, "..."]:
        """`total` plus noise. The caller has already charged this release, once per query.

        The noises of K queries add up to noise of √K times the standard deviation. It is drawn at once; the K noisy
        tensors never exist individually.

        Guarantees: sum and noise are rounded to one grid and added as integers, so a release does not reveal the
        spacing of floats near the sum (Mironov 2012, "On significance of the least significant bits for differential
        privacy"). Large floats of the noise round to even integers more often than to odd ones. An added independent
        uniform integer makes every low bit of the release a fair coin.

        Raises:
            ValueError: `total` has another sensitivity than this mechanism, or the noise of all its queries together
                is above `MAX_NOISE`.
        """
        if total.sensitivity != self.sensitivity:
            raise ValueError(f"the sum has sensitivity {total.sensitivity}, the mechanism {self.sensitivity}")
        if (whole := math.sqrt(total.queries) * self.noise_multiplier) > MAX_NOISE:
            raise ValueError(f"noise of {whole:g} times the sensitivity is above {MAX_NOISE:g}")
        units = whole * self.sensitivity / self.grid
        noise = random.normal(*total.value.shape).mul_(units).round_().to(torch.int64)
        noise += random.integers(max(1, round(math.log2(units)) - _SMOOTH_BITS), *total.value.shape)
        # Clipping lets no number through that is not finite. One that came here would show through any noise.
        exact = (
            torch.round(total.value.nan_to_num(0.0, 0.0, 0.0) / self.grid).clamp_(-_MAX_SUM, _MAX_SUM).to(torch.int64)
        )
        # float64 rounds integers above 2⁵³ once more. That is post-processing of the exact release.
        return (noise.to(exact.device) + exact).to(torch.float64).mul_(self.grid)
