"""The Gaussian mechanism: the only door between private records and everything else."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import MAX_NOISE
from dp_sinkhorn.privacy.clipping import BoundedSum
from dp_sinkhorn.privacy.random import CryptoRandom

# A release is a multiple of about sensitivity · 2⁻³⁴. Rounding n numbers to that grid moves the distance between two
# sums by at most √n · 2⁻³⁴ of the sensitivity: for n up to 2²⁴ a quarter of the room that clipping leaves.
GRID_BITS = 34
# In units of the grid. The noise takes up to MAX_NOISE · 2³⁵ · 18 of the 64 bits; this leaves the sum 2²⁶ records.
_MAX_SUM = 2.0**61
# Of a standard deviation of the noise, the uniform integers that smooth it are 2⁻¹² wide. They raise its variance by a
# share of 5e-9, and are so much wider than what rounding moves that rounding adds 4e-6 to ε at most (docs/explanation/privacy.md,
# section 3.5).
_SMOOTH_BITS = 12


@dataclass(frozen=True)
class GaussianMechanism:
    """Releases a bounded sum with Gaussian noise of standard deviation noise_multiplier · sensitivity.

    Args:
        sensitivity: L2 bound on what adding or removing one record changes.
        noise_multiplier: σ = stddev / sensitivity, the number that accounting needs.
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
        """Power of two of which sums, noise and releases are multiples."""
        return 2.0 ** (math.floor(math.log2(self.sensitivity)) - GRID_BITS)

    def __call__(self, total: BoundedSum, random: CryptoRandom) -> Float64[Tensor, "..."]:
        """`total` plus noise. The caller has charged this release (each of its queries) before.

        K queries, each with noise of its own, add up to noise of √K times the standard deviation: the sum of
        the K noisy tensors is drawn as one, and nothing else of them ever exists.

        Guarantees: sum and noise are rounded to one grid before they meet, as whole numbers, so a release tells nothing
        of how floats near the sum are spaced (Mironov 2012, "On significance of the least significant bits for
        differential privacy"). Floats of the noise are spaced, too, and what they are rounded to is even more often
        than odd: an independent uniform integer beside it makes every low bit of the release a fair coin.

        Raises:
            ValueError: `total` was bounded by something else than this mechanism's sensitivity, or the noise of all
                its queries is above `MAX_NOISE`.
        """
        if total.sensitivity != self.sensitivity:
            raise ValueError(f"a sum of sensitivity {total.sensitivity} met a mechanism for {self.sensitivity}")
        if (whole := math.sqrt(total.queries) * self.noise_multiplier) > MAX_NOISE:
            raise ValueError(f"noise of {whole:g} times the sensitivity is above {MAX_NOISE:g}")
        units = whole * self.sensitivity / self.grid
        noise = random.normal(*total.value.shape).mul_(units).round_().to(torch.int64)
        noise += random.integers(max(1, round(math.log2(units)) - _SMOOTH_BITS), *total.value.shape)
        # A number that is not finite never gets here; if it did, it would stand out of any noise.
        exact = (
            torch.round(total.value.nan_to_num(0.0, 0.0, 0.0) / self.grid).clamp_(-_MAX_SUM, _MAX_SUM).to(torch.int64)
        )
        # Where the whole number exceeds 2⁵³ it is rounded once more, which is a function of the exact one.
        return (noise.to(exact.device) + exact).to(torch.float64).mul_(self.grid)
