"""Upper bounds on membership inference: the largest true-positive rate at each false-positive rate.

The attacker sees the release and guesses whether a record is in the training data. They cannot break AES-256, which
generates the noise (docs/explanation/privacy.md, section 3.8). FPR is the probability that a record outside of the data
is guessed to be in it. TPR is the probability that a record in the data is guessed to be in it. Trade-off functions:
Dong, Roth and Su (2022), "Gaussian differential privacy", J. R. Stat. Soc. B 84(1).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import Charge, privacy_profile

# The smallest δ of the privacy profile, below which the bound at FPR = 0 cannot fall, and the number of its points.
_SMALLEST_DELTA, _TANGENTS = 1e-9, 256
_STRIPS = 10_000  # strips for the area under the curve
_FPRS = tuple(sorted({0.0, 1.0, *(10.0 ** (k / 10) for k in range(-50, 0)), *(k / 50 for k in range(1, 50))}))


@dataclass(frozen=True)
class AttackBounds:
    """Upper bounds on every membership attack against one record, for any side knowledge of the attacker.

    They bound probabilities over the randomness of training. One attack on one run may succeed more often.

    Args:
        tpr_at_1_percent: Largest TPR at a FPR of 1 %. tpr_at_01_percent: The same at 0.1 %.
        advantage: Largest TPR − FPR. auc: Upper bound on the area under the curve, within 1e-4.
        curve: (FPR, largest TPR) from 0 to 1, FPR rising. It bounds at these points only: a chord between two of them
            may lie below the bound.
    """

    tpr_at_1_percent: float
    tpr_at_01_percent: float
    advantage: float
    auc: float
    curve: tuple[tuple[float, float], ...]

    @property
    def tpr_at_fpr(self) -> dict[str, float]:
        """Both TPR bounds, by FPR, under the keys that the audit uses for measured rates."""
        return {"0.01": self.tpr_at_1_percent, "0.001": self.tpr_at_01_percent}


def tpr_bound(fpr: float, epsilon: float, delta: float) -> float:
    """Largest TPR at a FPR under (ε, δ)-DP: 1 − f(FPR), f as in Dong, Roth and Su (2022), section 2.2.

    f(α) = max(0, 1 − δ − e^ε·α, e^(−ε)·(1 − δ − α)).

    Args:
        fpr: In [0, 1]. epsilon: At least 0; inf allowed. delta: In [0, 1].

    Raises:
        InputError: An argument is out of range.
    """
    if not 0.0 <= fpr <= 1.0:
        raise InputError(f"fpr={fpr} is not in [0, 1]; give a share such as 0.01")
    if not epsilon >= 0.0:
        raise InputError(f"epsilon={epsilon} is negative; give 0 or more")
    if not 0.0 <= delta <= 1.0:
        raise InputError(f"delta={delta} is not in [0, 1]; give for example 1e-5")
    return float(_best_tpr(np.array([fpr]), np.array([epsilon]), np.array([delta]))[0])


def attack_bounds(charges: Iterable[Charge]) -> AttackBounds:
    """Bounds from the composition of all charges: far tighter than those of a single (ε, δ).

    The composition is (ε, δ(ε))-DP for every ε. So each ε bounds the trade-off curve by two lines, one for "record in"
    against "record out" and one for the reverse. The curve is the minimum over many ε. δ(ε) is the larger of the values
    for adding and for removing a record, so the curve bounds both tests (its f is symmetric: f = f⁻¹).

    Guarantees: no attack lies above the curve's points, for any number of ε tried.

    Raises:
        InputError: The charges bound no ε.
    """
    epsilons, deltas = privacy_profile(charges, _SMALLEST_DELTA, _TANGENTS)
    one_percent, tenth = _best_tpr(np.array([0.01, 0.001]), epsilons, deltas).tolist()
    # The bound rises, so its values at the right ends of narrow strips over-estimate the area.
    strips = _best_tpr(np.arange(1, _STRIPS + 1) / _STRIPS, epsilons, deltas)
    return AttackBounds(
        tpr_at_1_percent=one_percent,
        tpr_at_01_percent=tenth,
        # TPR − FPR ≤ δ(0), the total variation distance, with equality somewhere on the curve.
        advantage=float(deltas[0]),
        auc=float(strips.mean()),
        curve=tuple(zip(_FPRS, _best_tpr(np.array(_FPRS), epsilons, deltas).tolist(), strict=True)),
    )


def _best_tpr(fprs: np.ndarray, epsilons: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """For each FPR, the smallest bound on TPR over all pairs (ε, δ)."""
    fpr = fprs[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        # At FPR 0 the steep line is δ, even where e^ε overflows.
        steep = deltas + np.where(fpr > 0.0, np.exp(epsilons) * fpr, 0.0)
    flat = 1.0 - np.exp(-epsilons) * (1.0 - deltas - fpr)
    least: np.ndarray = np.minimum(steep, flat).min(1)
    return least.clip(fprs, 1.0)
