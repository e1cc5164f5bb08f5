"""One frozen plan of everything a run releases: curator, mechanism and accountant all read it."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import CHARGE_NAME, MAX_COUNT, MAX_KINDS, MAX_TARGET_EPSILON, MIN_DELTA, Charge
from dp_sinkhorn.privacy.calibration import gaussian_noise_multiplier

Mode = Literal["record", "batch", "embedding"]
"""What the records are asked for: clipped contributions of each record to each step, the clipped gradient of a whole
batch (the paper), or an embedding of the classes, once."""

MAX_RECORDS = 10**12  # more than anybody has; a larger number is damage

_AMPLE = 1e-4  # noise a record
# Noise a record by which images are useful still, and by which they are not: measured on scikit-learn's digits.
_USEFUL_BUDGET, _HOPELESS_BUDGET = 2.5e-3, 1e-2


class PrivacyPlan(BaseModel):
    """What is released, how often and with how much noise; nothing here depends on a record.

    Args:
        num_records: N, treated as public. noise_per_record: See the function.
        sample_rate: q in (0, 1], of the queries on subsamples.
        num_steps: Updates of the generator.
        queries_per_step: Queries of each step, each on a subsample of its own; 0: no step sees a record.
        learns: Name of the charge that gets the rest of the budget. noise_multiplier: Its σ.
        charges: Everything that may be asked, each name once, with its number of releases in all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_epsilon: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    target_delta: Annotated[float, Field(gt=0.0, lt=1.0)]
    num_records: Annotated[int, Field(ge=1, le=MAX_RECORDS)]
    noise_per_record: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    sample_rate: Annotated[float, Field(gt=0.0, le=1.0)]
    num_steps: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    queries_per_step: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    learns: Annotated[str, Field(pattern=CHARGE_NAME)]
    noise_multiplier: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    charges: Annotated[tuple[Charge, ...], Field(max_length=MAX_KINDS)]

    @property
    def expected_batch_size(self) -> float:
        """Expected number of records in a subsample."""
        return self.sample_rate * self.num_records

    def charge(self, name: str) -> Charge | None:
        """All releases of that name; None if there are none."""
        return next((charge for charge in self.charges if charge.name == name), None)


class Budget:
    """The budget of a run, of which each stage takes a share.

    Shares are parts of μ², in which Gaussian releases add up. Only the split rests on them: what a run costs is
    accounted for all charges together.

    Args:
        whole: Noise multiplier of one release of all records that spends everything.
        sample_rate: q of queries on subsamples.
    """

    def __init__(
        self,
        mode: Mode,
        whole: float,
        num_records: int,
        num_classes: int,
        sample_rate: float,
    ) -> None:
        self.mode = mode
        self.num_records, self.num_classes, self.sample_rate = num_records, num_classes, sample_rate
        self.whole, self.taken = whole, 0.0

    @property
    def noise_per_record(self) -> float:
        """See the function."""
        return self.whole / self.num_records

    def once(self, name: str, share: float) -> Charge:
        """One release of all records."""
        self.taken += share
        return Charge(name=name, noise_multiplier=_four_digits(self.whole / math.sqrt(share)))

    def subsampled(self, name: str, share: float, count: int) -> Charge:
        """Releases on subsamples that together are about one Gaussian of μ² = q²·T·(e^(1/σ²) − 1).

        (Bu, Dong, Long and Su 2020, "Deep learning with Gaussian differential privacy", corollary 3.)
        """
        self.taken += share
        noise = math.log1p(share / self.whole**2 / (self.sample_rate**2 * count)) ** -0.5
        return Charge(name=name, noise_multiplier=_four_digits(noise), sample_rate=self.sample_rate, count=count)


def more_steps(noise: float) -> float:
    """How many times as many steps, of as many times fewer images, this noise per record asks for: 1 to 2.

    Chosen on MNIST and PneumoniaMNIST: decision 11. With δ = 1e-5 and 60,000 records more are made below ε = 0.6.
    """
    return min(2.0, max(1.0, noise / _AMPLE))


def noise_per_record(target_epsilon: float, target_delta: float, num_records: int) -> float:
    """Noise multiplier of one release of all records that spends everything, divided by their number.

    Raises:
        InputError: A value is out of range.
    """
    check_target(target_epsilon, target_delta)
    if not 1 <= num_records <= MAX_RECORDS:
        found = "below 1" if num_records < 1 else f"above {MAX_RECORDS}"
        raise InputError(f"num_records={num_records} is {found}; give the number of private records")
    return gaussian_noise_multiplier(target_epsilon, target_delta) / num_records


def delta_warning(target_delta: float, num_records: int) -> str | None:
    """A sentence when δ is too large to mean much for this many records."""
    if target_delta < 1.0 / num_records:
        return None
    return (
        f"delta={target_delta:g} is not below 1/{num_records}: a mechanism that publishes one record outright "
        f"could meet it; choose delta well under {1.0 / num_records:.1e}"
    )


def budget_warnings(target_epsilon: float, target_delta: float, num_records: int) -> tuple[str, ...]:
    """What is to be said of a budget before it is spent (public)."""
    found = delta_warning(target_delta, num_records), noise_warning(target_epsilon, target_delta, num_records)
    return tuple(text for text in found if text)


def noise_warning(target_epsilon: float, target_delta: float, num_records: int) -> str | None:
    """A sentence when so few records share so small a budget that images show next to nothing of them (public).

    On scikit-learn's 8x8 digits a classifier trained on the images is right on 74 % of the real ones with noise of
    0.0026 a record, on 42 % with 0.0083, on 14 % with 0.0114; by chance it is on 10 % (decision 15).
    """
    noise = noise_per_record(target_epsilon, target_delta, num_records)
    if noise <= _HOPELESS_BUDGET:
        return None
    needed = float(f"{noise * num_records / _USEFUL_BUDGET:.1g}")
    return (
        f"{num_records} records are too few for epsilon={target_epsilon:g}: images will be little more than noise; "
        f"useful ones need about {needed:,.0f} records (8x8 digits; larger images more), or a larger epsilon"
    )


def check_target(target_epsilon: float, target_delta: float) -> None:
    """Refuse an ε or δ that no run can aim at."""
    if not (target_epsilon > 0.0 and math.isfinite(target_epsilon)):
        raise InputError(f"epsilon={target_epsilon:g} is not a positive number; give for example 10 or 1")
    if target_epsilon > MAX_TARGET_EPSILON:
        raise InputError(
            f"epsilon={target_epsilon:g} is above {MAX_TARGET_EPSILON:g}, which hides nothing; give for example 10"
        )
    if 0.0 < target_delta < MIN_DELTA:
        raise InputError(f"delta={target_delta:g} is below {MIN_DELTA:g}, which cannot be accounted for; give more")
    if not 0.0 < target_delta < 1.0:
        raise InputError(f"delta={target_delta:g} is not in (0, 1); give less than 1/num_records, for example 1e-5")


def check_count(queries: int) -> None:
    """Refuse more queries than can be accounted for."""
    if queries > MAX_COUNT:
        raise InputError(
            f"{queries} queries in all are more than {MAX_COUNT}; give fewer num_steps or queries_per_step"
        )


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")
