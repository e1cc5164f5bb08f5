"""One frozen plan of everything a run releases: subsampler, mechanisms and accounting all come from it."""

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from dp_sinkhorn.errors import InputError
from dp_sinkhorn.privacy.accounting import Charge
from dp_sinkhorn.privacy.calibration import gaussian_noise_multiplier, step_noise_multiplier

# Shares of the budget (of μ², in which Gaussian releases add up) for what is released once at the start.
CLASS_COUNTS, FIRST_MOMENTS, SECOND_MOMENT, STEP = "class_counts", "first_moments", "second_moment", "step"
_SHARES = {CLASS_COUNTS: 0.01, FIRST_MOMENTS: 0.01, SECOND_MOMENT: 0.03}

_MANY_RECORDS = 10_000

_Noise = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class PrivacyPlan(BaseModel):
    """What is released, how often and with how much noise; nothing here depends on a record.

    Args:
        num_records: N, treated as public. sample_rate: q in (0, 1].
        noise_multiplier: σ of each step. once: name → σ of each release made once on all records.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_epsilon: float
    target_delta: float
    num_records: int
    sample_rate: float
    num_steps: int
    noise_multiplier: _Noise
    once: dict[str, _Noise]

    @property
    def expected_batch_size(self) -> float:
        """Expected number of records in a step."""
        return self.sample_rate * self.num_records

    def once_charges(self) -> tuple[Charge, ...]:
        """The charges of the releases on all records."""
        return tuple(Charge(name=name, noise_multiplier=noise) for name, noise in self.once.items())

    def step_charge(self, first: int, count: int) -> Charge:
        """The charge of the steps first, first+1, …, first+count−1."""
        return Charge(
            name=STEP,
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
            first=first,
            count=count,
        )

    def charges(self) -> tuple[Charge, ...]:
        """Everything the whole run releases."""
        return (*self.once_charges(), self.step_charge(0, self.num_steps))


def make_plan(
    num_records: int,
    target_epsilon: float,
    target_delta: float,
    num_steps: int | None = None,
    expected_batch_size: int | None = None,
    count_classes: bool = True,
) -> PrivacyPlan:
    """Calibrate the noise so that the whole run spends at most `target_epsilon`, and within 1 % of it.

    Args:
        num_steps: T; default: 2,000 from 10,000 records on, else 1,000 (noise, not optimisation, is the limit).
        expected_batch_size: B; default: a tenth of the records, or 2,000 where that is more (at most all).
        count_classes: Whether a noisy class histogram is released.

    Raises:
        InputError: A value is out of range, or no noise reaches the target.
    """
    if num_records < 1:
        raise InputError(f"num_records={num_records} is below 1; give the number of private records")
    if not (target_epsilon > 0.0 and math.isfinite(target_epsilon)):
        raise InputError(f"epsilon={target_epsilon:g} is not a positive number; give for example 10 or 1")
    if not 0.0 < target_delta < 1.0:
        raise InputError(f"delta={target_delta:g} is not in (0, 1); give less than 1/num_records, for example 1e-5")
    steps = (2000 if num_records >= _MANY_RECORDS else 1000) if num_steps is None else num_steps
    if steps < 1:
        raise InputError(f"num_steps={steps} is below 1; give at least 1")
    batch = _default_batch(num_records) if expected_batch_size is None else expected_batch_size
    if batch < 1:
        raise InputError(f"expected_batch_size={batch} is below 1; give at least 1")
    if batch > num_records:
        raise InputError(f"expected_batch_size={batch} exceeds the {num_records} records; give at most {num_records}")
    whole = gaussian_noise_multiplier(target_epsilon, target_delta)
    once = {
        name: _four_digits(whole / math.sqrt(share))
        for name, share in _SHARES.items()
        if count_classes or name != CLASS_COUNTS
    }
    charges = tuple(Charge(name=name, noise_multiplier=noise) for name, noise in once.items())
    sample_rate = batch / num_records
    return PrivacyPlan(
        target_epsilon=target_epsilon,
        target_delta=target_delta,
        num_records=num_records,
        sample_rate=sample_rate,
        num_steps=steps,
        noise_multiplier=step_noise_multiplier(target_epsilon, target_delta, sample_rate, steps, charges),
        once=once,
    )


def delta_warning(target_delta: float, num_records: int) -> str | None:
    """A sentence when δ is too large to mean much for this many records."""
    if target_delta < 1.0 / num_records:
        return None
    return (
        f"delta={target_delta:g} is not below 1/{num_records}: a mechanism that publishes one record outright "
        f"could meet it; choose delta well under {1.0 / num_records:.1e}"
    )


def _default_batch(num_records: int) -> int:
    return min(num_records, max(2000, num_records // 10))


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")
