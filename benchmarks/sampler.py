"""How far the noise as it is computed may be from exactly normal noise, and what that can add to ε.

    python benchmarks/sampler.py [--bits 10]

There are two parts. A proof bounds what rounding moves (of log, sqrt, cos, sums and products): each noise is within h
of the exact normal of the same uniform numbers. Uniform integers, w wide, are added, so every probability is right to a
factor of 1 ± 2h/w. What the grid of the uniform numbers does is measured and extrapolated: on grids so coarse that all
their numbers can be counted. The argument is in docs/explanation/privacy.md, section 3.5.
"""

import argparse
import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import ndtr

from dp_sinkhorn.privacy import mechanism

# h ≤ ERRORS · 2⁻⁵³ · (r₁ + r₂)/√2, r the radii of the two Box-Muller pairs of a normal. In units of 2⁻⁵³: the angle is
# right to 8.5, radius and cos + sin to 2 each relative to √2, their product to 1: 13.5. The sum of four adds 3, the
# product with the grid's number 1; 17.5 in all.
ERRORS = 18.0
SMOOTH_BITS = mechanism._SMOOTH_BITS
# The width is a power of two of the grid: up to half a bit less than that.
_LOST_BITS = 0.5
NARROW_BITS = 29  # of version 0.1: there a proof costs half an ε
_SHARE = 1e-3  # of δ, for what the two changes of law may cost

# Numbers released in a whole run of 60,000 records of 28×28 in ten classes: 1,000 steps of 200 images in 96 to 128
# dimensions and 200 gradients of the classifier; and 20,000 steps of whole batches of 50 images.
RUNS = (("record", 10.0, 3.4e7), ("record", 1.0, 3.4e7), ("batch", 10.0, 7.9e8))


def relative_error(smooth_bits: int = SMOOTH_BITS) -> float:
    """Root mean square of 2h/w over the noise: E h² given z is at most (ERRORS · 2⁻⁵³)² (z² + 3), of mean 4."""
    return 2.0 * ERRORS * 2.0**-53 * 2.0 * 2.0 ** (smooth_bits + _LOST_BITS)


def largest_relative_error(smooth_bits: int = SMOOTH_BITS) -> float:
    """The same at the largest noise there is."""
    return relative_error(smooth_bits) / 2.0 * largest_noise()


def largest_noise() -> float:
    """In standard deviations: √2 times the largest radius, that of the smallest uniform number."""
    return math.sqrt(2.0) * math.sqrt(-2.0 * math.log(2.0**-53))


def added_epsilon(numbers: float, epsilon: float, delta: float = 1e-5, smooth_bits: int = SMOOTH_BITS) -> float:
    """What is to be added to ε so that the claim is proved for the noise as it is computed.

    Both changes of law, from computed to exact and back, are (ε₁, δ₁)-close by Rényi divergences of the order α:
    n·α/2·(2h/w)²·(1 + largest)^α, and log(1/δ₁)/(α − 1); δ₁ = δ·e^(−ε)/1000 adds a thousandth to δ.
    """
    spread, largest = numbers * relative_error(smooth_bits) ** 2, largest_relative_error(smooth_bits)
    log_delta = -math.log(_SHARE * delta) + epsilon

    def one_way(log_order: float) -> float:
        order = 1.0 + math.exp(log_order)
        return 0.5 * order * spread * math.exp(order * math.log1p(largest)) + log_delta / (order - 1.0)

    longest = math.log(1.0 / largest)
    return 2.0 * float(minimize_scalar(one_way, bounds=(0.0, longest), method="bounded").fun)


def normals(bits: int) -> np.ndarray:
    """Half of a normal, sorted: r·(cos a + sin a)/√2 for all radii and angles of uniform numbers of so many bits."""
    uniform = (np.arange(2**bits) + 0.5) * 2.0**-bits
    radius, angle = np.sqrt(-2.0 * np.log(uniform)), 2.0 * np.pi * uniform
    return np.sort(np.outer(radius, (np.cos(angle) + np.sin(angle)) / math.sqrt(2.0)).ravel())


def grid_errors(bits: int, points: int = 40, apart: float = 1e-4) -> tuple[float, float]:
    """Of the distribution function of a noise: the largest error, and the root mean square of how it changes nearby.

    The first is a smooth change of law (the tails are short); the second is what could tell one sum from the next.
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
    """Print both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=10, help="of the finest grid that is counted out")
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
