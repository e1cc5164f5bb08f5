"""Measure the rounding error of the accountant's δ.

    python benchmarks/accountant.py [--settings 9]

`dp-accounting` composes T equal releases by raising a discrete Fourier transform to the power T. Its rounding errors
have the same size everywhere, so that they may exceed δ where δ is small. This script composes the same discretised
loss a second time, after an exponential tilt that moves its mean to the ε in question (as in saddle-point methods):
there nothing is small. The difference of the two is the rounding error. `rounding_of_delta` is what the accountant adds
to δ for it.
"""

import argparse
import math

import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from scipy import fft
from scipy.optimize import brentq

from dp_sinkhorn.privacy.accounting import FINE, Charge, rounding_of_delta

# (sample rate, noise multiplier, releases): default runs, runs in mode `batch`, and longer ones than any in use.
SETTINGS = (
    (0.1, 2.43, 1_000),
    (0.25, 30.0, 1_000),
    (0.1, 13.55, 2_000),
    (0.02, 2.0, 20_000),
    (0.01, 21.08, 100_000),
    (50 / 60_000, 2.86, 1_280_000),
    (50 / 60_000, 1.1, 4_466_176),
    (50 / 60_000, 20.0, 4_466_176),
    (0.0005, 1.2, 10_000_000),
)
SHARES = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0)  # δ is compared at these multiples of the ε at δ = 1e-5


def tilted_delta(losses: np.ndarray, masses: np.ndarray, infinite: float, count: int, epsilon: float) -> float:
    """Return δ(ε) of `count` compositions of a loss with the value losses[i] with probability masses[i].

    Args:
        losses: Values of the privacy loss, evenly spaced and ascending.
        masses: Their probabilities.
        infinite: Probability of an infinite loss.
        count: Number of compositions.
        epsilon: ε.
    """
    step = losses[1] - losses[0]
    logs = np.log(np.maximum(masses, 1e-320))

    def tilt(order: float) -> tuple[float, np.ndarray]:
        """Log moment generating function at `order`, and the tilted masses."""
        exponent = logs + order * losses
        largest = exponent.max()
        weights = np.exp(exponent - largest)
        return largest + math.log(weights.sum()), weights / weights.sum()

    order = brentq(lambda order: count * float(tilt(order)[1] @ losses) - epsilon, 0.0, 400.0)
    log_mgf, weights = tilt(order)
    mean = float(weights @ losses)
    spread = math.sqrt(count * float(weights @ (losses - mean) ** 2))
    size = fft.next_fast_len(max(math.ceil(24.0 * spread / step), masses.size))
    shift = round((mean - losses[0]) / step)
    wrapped = np.bincount((np.arange(masses.size) - shift) % size, weights, size)
    composed = np.real(fft.ifft(fft.fft(wrapped) ** count))
    start = count * (losses[0] + shift * step)
    places = np.arange(size) * step
    total = start + places + size * step * np.round((count * mean - start - places) / (size * step))
    beyond = total > epsilon
    scale = np.exp(count * log_mgf - order * total[beyond]) * -np.expm1(epsilon - total[beyond])
    return float(composed[beyond] @ scale) - math.expm1(count * math.log1p(-infinite))


def worst_error(rate: float, noise: float, count: int) -> float:
    """Largest difference over `SHARES` and both orders of the neighbours, among values of δ below 1e-9."""
    one = privacy_loss_distribution.from_gaussian_mechanism(
        noise, value_discretization_interval=FINE, sampling_prob=rate
    )
    whole = one.self_compose(count)
    at = whole.get_epsilon_for_delta(1e-5)
    worst = 0.0
    for single, composed in ((one._pmf_remove, whole._pmf_remove), (one._pmf_add, whole._pmf_add)):
        dense = single.to_dense_pmf()
        losses = (np.arange(dense.size) + dense._lower_loss) * FINE
        for share in SHARES:
            exact = tilted_delta(losses, np.asarray(dense._probs), dense._infinity_mass, count, share * at)
            if exact < 1e-9:
                worst = max(worst, abs(composed.get_delta_for_epsilon(share * at) - exact))
    return worst


def main() -> None:
    """Print one line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, default=len(SETTINGS), help="number of settings, from the first")
    arguments = parser.parse_args()
    print(f"{'rate':>9} {'noise':>7} {'releases':>11} {'error of δ':>11} {'a release':>10} {'allowed':>9}")
    for rate, noise, count in SETTINGS[: arguments.settings]:
        worst = worst_error(rate, noise, count)
        charge = Charge(name="step", noise_multiplier=noise, sample_rate=rate, count=count)
        allowed = rounding_of_delta([charge])
        print(f"{rate:9.3g} {noise:7.4g} {count:11,} {worst:11.1e} {worst / count:10.1e} {allowed:9.1e}", flush=True)


if __name__ == "__main__":
    main()
