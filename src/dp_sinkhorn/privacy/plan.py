"""The frozen plan of everything that a run releases. Curator, mechanism and accountant all read it."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import CHARGE_NAME, MAX_COUNT, MAX_KINDS, MAX_TARGET_EPSILON, MIN_DELTA, Charge
from dp_sinkhorn.privacy.calibration import gaussian_noise_multiplier, subsampled_noise

Mode = Literal["record", "batch", "embedding"]
"""What trains the generator. `record`: sums of individually clipped contributions, in every step. `batch`: the clipped
gradient of whole batches, in every step (the paper). `embedding`: the mean embeddings of the classes, released once."""

MAX_RECORDS = 10**12  # more than any data set holds; a larger number comes from a damaged file

_AMPLE = 1e-4  # noise per record up to which the budget is ample
# Largest noise per record at which images are useful, and noise per record above which they are not: measured on
# scikit-learn's digits.
_USEFUL_NOISE, _USELESS_NOISE = 2.5e-3, 1e-2


class PrivacyPlan(BaseModel):
    """All releases of a run: their names, counts and noise. Nothing here depends on a record.

    Args:
        num_records: N, treated as public. noise_per_record: See the function.
        sample_rate: q in (0, 1] of the queries on subsamples.
        num_steps: Updates of the generator.
        queries_per_step: Queries per step, each on its own subsample; 0: no step sees a record.
        learns: Name of the charge that gets the rest of the budget. noise_multiplier: Its σ.
        charges: Everything that the stages may ask, one charge per name with its total count.
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
        """The charge of that name; None if there is none."""
        return next((charge for charge in self.charges if charge.name == name), None)


class Budget:
    """The budget of a run, of which each stage takes a share.

    A share is a part of μ² = 1/σ², which adds up over Gaussian releases. Shares only split the budget. The accountant
    composes all charges together.

    Args:
        whole: Noise multiplier of one release on all records that spends the whole budget.
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
        """The charge of one release on all records."""
        self.taken += share
        return Charge(name=name, noise_multiplier=_four_digits(self.whole / math.sqrt(share)))

    def subsampled(self, name: str, share: float, count: int) -> Charge:
        """The charge of `count` releases on subsamples."""
        self.taken += share
        noise = subsampled_noise(share / self.whole**2, self.sample_rate, count)
        return Charge(name=name, noise_multiplier=_four_digits(noise), sample_rate=self.sample_rate, count=count)


def more_steps(noise: float) -> float:
    """Factor in [1, 2] by which this noise per record raises the number of steps and lowers the images of each.

    Chosen on MNIST and PneumoniaMNIST: decision 11. With δ = 1e-5 and 60,000 records more are made below ε = 0.6.
    """
    return min(2.0, max(1.0, noise / _AMPLE))


def noise_per_record(target_epsilon: float, target_delta: float, num_records: int) -> float:
    """Noise multiplier of one release on all records that spends the whole budget, divided by their number.

    Raises:
        InputError: A value is out of range.
    """
    check_target(target_epsilon, target_delta)
    if not 1 <= num_records <= MAX_RECORDS:
        found = "below 1" if num_records < 1 else f"above {MAX_RECORDS}"
        raise InputError(f"num_records={num_records} is {found}; give the number of private records")
    return gaussian_noise_multiplier(target_epsilon, target_delta) / num_records


def delta_warning(target_delta: float, num_records: int) -> str | None:
    """A warning if δ is too large for this many records, else None."""
    if target_delta < 1.0 / num_records:
        return None
    return (
        f"delta={target_delta:g} is not below 1/{num_records}, one over the number of records: the promise would still "
        "hold if one record, drawn at random, were published whole"
    )


def check_delta(target_delta: float, num_records: int) -> None:
    """Refuse a δ that is too large for this many records.

    Raises:
        InputError: It is at least 1 / number of records.
    """
    if warning := delta_warning(target_delta, num_records):
        raise InputError(
            f"{warning}; give a delta well below {1.0 / num_records:.1e}, or --allow-large-delta (in Python "
            'settings={"allow_large_delta": True})'
        )


def budget_warnings(target_epsilon: float, target_delta: float, num_records: int) -> tuple[str, ...]:
    """Warnings about a budget before it is spent. They depend on public numbers only."""
    found = delta_warning(target_delta, num_records), noise_warning(target_epsilon, target_delta, num_records)
    return tuple(text for text in found if text)


def noise_warning(target_epsilon: float, target_delta: float, num_records: int) -> str | None:
    """A warning if the noise per record is so large that images will show almost nothing of the records, else None.

    On scikit-learn's 8x8 digits a classifier trained on the images is right on 74 % of real images at a noise per
    record of 0.0026, on 42 % at 0.0083 and on 14 % at 0.0114. Chance is 10 % (decision 15).
    """
    noise = noise_per_record(target_epsilon, target_delta, num_records)
    if noise <= _USELESS_NOISE:
        return None
    needed = float(f"{noise * num_records / _USEFUL_NOISE:.1g}")
    return (
        f"{num_records} records are too few for epsilon={target_epsilon:g}: images will be little more than noise; "
        f"useful images need about {needed:,.0f} records (8x8 digits; larger images need more), or a larger epsilon"
    )


def check_target(target_epsilon: float, target_delta: float) -> None:
    """Refuse a target ε or δ that no run can have.

    Raises:
        InputError: A value is out of range.
    """
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
    """Refuse more queries than the accountant can handle.

    Raises:
        InputError: There are more than `MAX_COUNT`.
    """
    if queries > MAX_COUNT:
        raise InputError(
            f"{queries} queries in all are more than {MAX_COUNT}; give fewer num_steps or queries_per_step"
        )


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")
