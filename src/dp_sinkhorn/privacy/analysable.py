"""Which charges can be analysed at all: a card from elsewhere may hold any numbers, and the accountant trusts them."""

import math
from collections.abc import Iterable

from dp_sinkhorn.privacy.accounting import FINE, Charge, merged

MIN_NOISE, MAX_NOISE = 0.02, 1e7
MIN_RATE = 1e-9
MAX_KINDS = 50
_MAX_CELLS = 2e7
# Below a thousand cells (by our estimate: with room) the accountant first works out cells**count as a whole number,
# which must not get too long.
_SPARSE_CELLS, _MAX_BITS = 3000, 1e7


def why_not_analysable(charges: Iterable[Charge]) -> str | None:
    """What keeps these charges from being analysed in bounded time and memory, as one sentence; None if nothing does.

    Out of these ranges the accountant overflows (some of its Rényi sums to ε = 0) or fills the memory. Runs stay
    inside: their noise is calibrated to at least 0.05 a release.
    """
    kept = merged(charges)
    if len(kept) > MAX_KINDS:
        return f"the card charges {len(kept)} kinds of releases; more than {MAX_KINDS} are not analysed"
    for charge in kept:
        sigma, rate = charge.noise_multiplier, charge.sample_rate
        if not MIN_NOISE <= sigma / math.sqrt(charge.count if rate == 1.0 else 1) <= MAX_NOISE:
            return f"the noise multiplier {sigma:g} of {charge.count} × {charge.name!r} cannot be analysed"
        if rate < MIN_RATE:
            return f"the sample rate {rate:g} of {charge.name!r} cannot be analysed"
        if rate < 1.0 and _too_long(charge):
            return f"{charge.count} releases of {charge.name!r} (noise {sigma:g}, rate {rate:g}) cannot be analysed"
    return None


def _too_long(charge: Charge) -> bool:
    """Whether the discretised loss of the composition does not fit: Chernoff's bound, as the accountant takes it."""
    rate, precision = charge.sample_rate, charge.noise_multiplier**-2.0
    # Where all but 1e-22 of the loss lies: without sampling up to `most`; with sampling from `least` to `largest`.
    most = 0.5 * precision + 10.0 * math.sqrt(precision)
    largest = most + math.log(rate + (1.0 - rate) * math.exp(-min(most, 700.0)))
    least = math.log1p(-rate * -math.expm1(-most))
    # Its standard deviation.
    step = min(rate * math.sqrt(math.expm1(min(precision, 700.0))), most) / FINE
    variance, cells = max(step, step * step), (largest - least) / FINE + 3.0
    if cells < _SPARSE_CELLS and charge.count * math.log2(cells) > _MAX_BITS:
        return True
    return bool(charge.count * variance / (2.0 * cells) > _MAX_CELLS)
