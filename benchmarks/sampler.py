"""Bound how far computed noise is from exactly normal noise, and what the difference can add to ε.

    python benchmarks/sampler.py [--bits 10]

Rounding    A proof bounds the rounding of log, sqrt, cos, sums and products: each number of the noise is within h of
            the exact normal of the same uniform numbers. Uniform integers of width w are added, so that every
            probability is right up to a factor of 1 ± 2h/w.
Grid        The effect of the uniform numbers' grid is measured on grids so coarse that all their numbers can be
            enumerated, and extrapolated.

Section 3.5 of docs/explanation/privacy.md has the argument.
"""

import argparse
import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import ndtr

from dp_sinkhorn.privacy import mechanism

# h ≤ ERRORS · 2⁻⁵³ · (r₁ + r₂)/√2, with the radii r of the two Box-Muller pairs of a normal. The errors in units of
# 2⁻⁵³: angle 8.5; radius and cos + sin 2 each, relative to √2; their product 1: together 13.5. The sum of four adds 3,
# the product with the grid's number 1: together 17.5.
ERRORS = 18.0
SMOOTH_BITS = mechanism._SMOOTH_BITS
# The width is rounded to a power of two on the grid, which may cost half a bit.
_LOST_BITS = 0.5
NARROW_BITS = 29  # of version 0.1, for which the proof costs half an ε
_SHARE = 1e-3  # of δ, spent on the two changes of distribution

# (mode, ε, numbers released in a run) for 60,000 records of 28×28 in ten classes. Mode `record`: 1,000 steps of 200
# images in 96 to 128 dimensions, and 200 gradients of the classifier. Mode `batch`: 20,000 steps of 50 images.
RUNS = (("record", 10.0, 3.4e7), ("record", 1.0, 3.4e7), ("batch", 10.0, 7.9e8))


def relative_error(smooth_bits: int = SMOOTH_BITS) -> float:
    """Root mean square of 2h/w over the noise: E(h² | z) is at most (ERRORS · 2⁻⁵³)² (z² + 3), which has mean 4."""
    return 2.0 * ERRORS * 2.0**-53 * 2.0 * 2.0 ** (smooth_bits + _LOST_BITS)


def largest_relative_error(smooth_bits: int = SMOOTH_BITS) -> float:
    """2h/w at the largest possible noise."""
    return relative_error(smooth_bits) / 2.0 * largest_noise()


def largest_noise() -> float:
    """Largest possible noise in standard deviations: √2 times the radius of the smallest uniform number."""
    return math.sqrt(2.0) * math.sqrt(-2.0 * math.log(2.0**-53))


def added_epsilon(numbers: float, epsilon: float, delta: float = 1e-5, smooth_bits: int = SMOOTH_BITS) -> float:
    """Return what to add to ε so that the claim is proved for computed noise.

    Both changes of distribution, from computed to exact noise and back, are (ε₁, δ₁)-close. By the Rényi divergence of
    order α, ε₁ = n·α/2·(2h/w)²·(1 + largest)^α + log(1/δ₁)/(α − 1). δ₁ = δ·e^(−ε)/1000 adds a thousandth to δ.
    """
    spread, largest = numbers * relative_error(smooth_bits) ** 2, largest_relative_error(smooth_bits)
    log_delta = -math.log(_SHARE * delta) + epsilon

    def one_way(log_order: float) -> float:
        order = 1.0 + math.exp(log_order)
        return 0.5 * order * spread * math.exp(order * math.log1p(largest)) + log_delta / (order - 1.0)

    longest = math.log(1.0 / largest)
    return 2.0 * float(minimize_scalar(one_way, bounds=(0.0, longest), method="bounded").fun)


def normals(bits: int) -> np.ndarray:
    """All values of r·(cos a + sin a)/√2 for uniform numbers of `bits` bits, sorted. A normal is (one + another)/√2."""
    uniform = (np.arange(2**bits) + 0.5) * 2.0**-bits
    radius, angle = np.sqrt(-2.0 * np.log(uniform)), 2.0 * np.pi * uniform
    return np.sort(np.outer(radius, (np.cos(angle) + np.sin(angle)) / math.sqrt(2.0)).ravel())


def grid_errors(bits: int, points: int = 40, apart: float = 1e-4) -> tuple[float, float]:
    """Return the largest error of the noise's distribution function, and the root mean square of its change nearby.

    The first is a smooth change of the distribution (its tails are short). The second could tell one sum from the next.
    """
    half = normals(bits)

    def error(at: float) -> float:
        below = np.searchsorted(half, math.sqrt(2.0) * at - half, side="right").mean() / half.size
        return float(below - ndtr(at))

    places = np.random.default_rng(0).uniform(0.1, 3.0, points)
    errors = np.array([[error(place), error(place + apart)] for place in places])
    changes = errors[:, 1] - errors[:, 0]
    return float(np.abs(errors).max()), float(np.sqrt(np.square(changes).mean()))


def main() -> None:
    """Print the bound and the measured errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=10, help="bits of the finest grid to enumerate")
    arguments = parser.parse_args()
    print(f"largest noise {largest_noise():.4g} standard deviations")
    for smooth_bits in (SMOOTH_BITS, NARROW_BITS):
        print(f"\nsmoothed over 2^-{smooth_bits} standard deviations: 2h/w = {relative_error(smooth_bits):.2g}")
        for mode, epsilon, numbers in RUNS:
            added = added_epsilon(numbers, epsilon, smooth_bits=smooth_bits)
            print(f"  {mode:7} epsilon {epsilon:4g}, {numbers:.2g} numbers: epsilon + {added:.2g}")
    print(f"\n{'bits':>4} {'error':>9} {'· 2^bits':>9} {'nearby':>9} {'· 4^bits':>9}")
    for bits in range(4, arguments.bits + 1):
        error, nearby = grid_errors(bits)
        print(f"{bits:4} {error:9.2e} {error * 2**bits:9.2e} {nearby:9.2e} {nearby * 4**bits:9.2e}", flush=True)


if __name__ == "__main__":
    main()
