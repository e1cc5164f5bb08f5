"""One frozen plan of everything a run releases: subsampler, mechanisms and accounting all come from it."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import (
    MAX_COUNT,
    MAX_NOISE,
    MAX_TARGET_EPSILON,
    MIN_DELTA,
    Charge,
    check_analysable,
    epsilon_pld,
)
from dp_sinkhorn.privacy.calibration import gaussian_noise_multiplier, longest_run, step_noise_multiplier

Sanitize = Literal["record", "batch", "embedding"]

# Shares of the budget (of μ², in which Gaussian releases add up) for what is released once at the start.
CLASS_COUNTS, FIRST_MOMENTS, SECOND_MOMENT, STEP = "class_counts", "first_moments", "second_moment", "step"
CLASS_MOMENTS, CLASS_FEATURES, CLASSIFIER = "class_moments", "class_features", "classifier"
CLASS_EMBEDDING = "class_embedding"
_SHARES = {CLASS_COUNTS: 0.01, SECOND_MOMENT: 0.03}
# The first moments: as much as keeps their noise on the mean square of a pixel below this (1 is the most it can be).
_LEAST_MOMENTS_SHARE, _LARGEST_MOMENTS_SHARE, _MOMENTS_NOISE = 0.01, 0.1, 0.01

# Chosen on MNIST: docs/tried.md. Steps, record by record, of a usual and of a small budget; a small budget is one by
# which a single release of all records would have more noise a record. A tiny one has more than that still: chosen on
# PneumoniaMNIST.
_RECORD_STEPS, _SMALL_BUDGET_STEPS, _SMALL_BUDGET, _TINY_BUDGET = 1000, 2000, 1e-4, 1e-3
# Up to this noise a record an embedding is the default in place of steps, by a small budget. By more it is better for
# some kinds of images only: docs/tried.md. Its share beside steps, unless the budget is tiny, chosen on MNIST.
_EMBEDDING_BUDGET, _EMBEDDING_SHARE = 3e-4, 0.1
_BATCH_STEPS, _BATCH_RECORDS = 20_000, 50
# After the embedding no step costs privacy: they cost time only.
_EMBEDDING_STEPS = 500
CLASSIFIER_STEPS = 200
# Noise a record by which images are useful still, and by which they are not: measured on scikit-learn's digits.
_USEFUL_BUDGET, _HOPELESS_BUDGET = 2.5e-3, 1e-2

_Noise = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
_Release = Annotated[str, Field(pattern="^[a-z_]{1,40}$")]


class SubsampledReleases(BaseModel):
    """`count` Gaussian releases before the first step, each on a Poisson subsample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: _Release
    noise_multiplier: _Noise
    sample_rate: Annotated[float, Field(gt=0.0, le=1.0)]
    count: Annotated[int, Field(ge=1, le=MAX_COUNT)]

    def charge(self) -> Charge:
        """All of them in one charge."""
        return Charge(**self.model_dump())


class PrivacyPlan(BaseModel):
    """What is released, how often and with how much noise; nothing here depends on a record.

    Args:
        num_records: N, treated as public. sample_rate: q in (0, 1].
        num_steps: Updates of the generator. queries_per_step: Releases a step, each on a subsample of its own; 0: the
            steps see no record, as all that they learn from is released once, the class embedding.
        noise_multiplier: σ of each query, or of the class embedding where there are none. once: name → σ of each
            release made once on all records.
        classifier: The releases that train the classifier; None: there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_epsilon: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    target_delta: Annotated[float, Field(gt=0.0, lt=1.0)]
    num_records: Annotated[int, Field(ge=1)]
    sample_rate: Annotated[float, Field(gt=0.0, le=1.0)]
    num_steps: Annotated[int, Field(ge=1)]
    queries_per_step: Annotated[int, Field(ge=0)]
    noise_multiplier: _Noise
    once: Annotated[dict[_Release, _Noise], Field(max_length=10)]
    classifier: SubsampledReleases | None = None

    @model_validator(mode="after")
    def _countable(self) -> "PrivacyPlan":
        _check_count(self.num_steps * self.queries_per_step)
        return self

    @model_validator(mode="after")
    def _trains_on_something(self) -> "PrivacyPlan":
        embedded = self.once.get(CLASS_EMBEDDING)
        if self.queries_per_step == 0 and embedded != self.noise_multiplier:
            raise InputError(
                f"queries_per_step={self.queries_per_step} does not fit the noise of {CLASS_EMBEDDING} ({embedded}): "
                "steps without queries learn from it and from nothing else; put the original back"
            )
        return self

    @property
    def expected_batch_size(self) -> float:
        """Expected number of records in a step."""
        return self.sample_rate * self.num_records

    @property
    def small_budget(self) -> bool:
        """Whether there is so little budget, for so few records, that more steps of fewer images pay (public).

        With δ = 1e-5 and 60,000 records, below ε = 0.6.
        """
        return _is_small(self._noise_of_all, self.num_records)

    @property
    def tiny_budget(self) -> bool:
        """Whether there is next to none: most of what the generator tells of its classes is its own error (public).

        With δ = 1e-4 and 8,000 records, at ε = 0.3 and below.
        """
        return self._noise_of_all / self.num_records > _TINY_BUDGET

    @property
    def _noise_of_all(self) -> float:
        """Noise multiplier of a single release of all records, were the whole budget spent on it."""
        return gaussian_noise_multiplier(self.target_epsilon, self.target_delta)

    def once_charges(self) -> tuple[Charge, ...]:
        """The charges of the releases on all records."""
        return tuple(Charge(name=name, noise_multiplier=noise) for name, noise in self.once.items())

    def step_charges(self, first: int, count: int) -> tuple[Charge, ...]:
        """The charge of the steps first, first+1, …, first+count−1: every query of each; none if they make none."""
        if self.queries_per_step == 0:
            return ()
        charge = Charge(
            name=STEP,
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
            first=first * self.queries_per_step,
            count=count * self.queries_per_step,
        )
        return (charge,)

    def charges(self) -> tuple[Charge, ...]:
        """Everything the whole run releases."""
        trained = () if self.classifier is None else (self.classifier.charge(),)
        return (*self.once_charges(), *trained, *self.step_charges(0, self.num_steps))


def make_plan(
    num_records: int,
    target_epsilon: float,
    target_delta: float,
    num_steps: int | None = None,
    expected_batch_size: int | None = None,
    count_classes: bool = True,
    sanitize: Sanitize = "record",
    queries_per_step: int = 1,
    noise_multiplier: float | None = None,
    moments_share: float = 0.0,
    features_share: float = 0.0,
    classifier_share: float = 0.0,
    embedding_share: float = 0.0,
) -> PrivacyPlan:
    """Fit noise or length of a run to `target_epsilon`.

    Without `noise_multiplier` the noise is calibrated so that the whole run spends at most `target_epsilon`, and
    within 1 % of it. With `noise_multiplier` and without `num_steps`, the run is as long as `target_epsilon`
    allows. With both, the run spends what it spends, at most `target_epsilon`.

    Args:
        num_steps: T. Default record by record: 1,000, or 2,000 by a small budget (`PrivacyPlan.small_budget`); whole
            batches: 20,000; on the embedding: 500.
        expected_batch_size: B. Default record by record: a tenth of the records, or 2,000 where that is more (at
            most all); whole batches: 50.
        count_classes: Whether a noisy class histogram is released.
        moments_share: Share of the budget (of μ²) that releases the moments of each class, in [0, 1); 0: they are not.
        features_share: The same for the mean features of each class. classifier_share: for training the classifier.
            embedding_share: for the class embedding, where steps release something too.
        sanitize: "record" and "embedding" also release the moments that their subspace needs. With "embedding"
            `queries_per_step` is not used: what is left of the budget releases the class embedding, once.

    Raises:
        InputError: A value is out of range, or the target cannot be met.
    """
    check_target(target_epsilon, target_delta)
    if num_records < 1:
        raise InputError(f"num_records={num_records} is below 1; give the number of private records")
    if num_steps is not None and num_steps < 1:
        raise InputError(f"num_steps={num_steps} is below 1; give at least 1")
    if queries_per_step < 1:
        raise InputError(f"queries_per_step={queries_per_step} is below 1; give at least 1")
    batch = _default_batch(num_records, sanitize) if expected_batch_size is None else expected_batch_size
    if batch < 1:
        raise InputError(f"expected_batch_size={batch} is below 1; give at least 1")
    if batch > num_records:
        raise InputError(f"expected_batch_size={batch} exceeds the {num_records} records; give at most {num_records}")
    whole = gaussian_noise_multiplier(target_epsilon, target_delta)
    names = ((CLASS_COUNTS,) if count_classes else ()) + ((FIRST_MOMENTS, SECOND_MOMENT) if sanitize != "batch" else ())
    first_share = _first_moments_share(whole, num_records)
    shares = {name: first_share if name == FIRST_MOMENTS else _SHARES[name] for name in names}
    chosen = {CLASS_MOMENTS: moments_share, CLASS_FEATURES: features_share, CLASS_EMBEDDING: embedding_share}
    shares |= {name: share for name, share in chosen.items() if share > 0.0}
    if (taken := sum(shares.values()) + classifier_share) >= 1.0:
        raise InputError(
            f"what is released before the first step takes {taken:.3g} of the budget, which leaves none for training; "
            "give a smaller moments_share, features_share, classifier_share or embedding_share"
        )
    once = {name: _four_digits(whole / math.sqrt(share)) for name, share in shares.items()}
    sample_rate = batch / num_records
    classifier = _classifier(classifier_share / whole**2, sample_rate) if classifier_share > 0.0 else None
    charges = tuple(Charge(name=name, noise_multiplier=noise) for name, noise in once.items())
    charges += () if classifier is None else (classifier.charge(),)
    if sanitize == "embedding":
        queries_per_step, steps = 0, num_steps or _EMBEDDING_STEPS
        noise = noise_multiplier or step_noise_multiplier(target_epsilon, target_delta, 1.0, 1, charges)
        once[CLASS_EMBEDDING] = noise
        charges += (Charge(name=CLASS_EMBEDDING, noise_multiplier=noise),)
    elif noise_multiplier is None:
        by_record = _SMALL_BUDGET_STEPS if _is_small(whole, num_records) else _RECORD_STEPS
        steps = num_steps or (_BATCH_STEPS if sanitize == "batch" else by_record)
        _check_count(steps * queries_per_step)
        noise = step_noise_multiplier(target_epsilon, target_delta, sample_rate, steps * queries_per_step, charges)
    else:
        noise = noise_multiplier
        longest = longest_run(target_epsilon, target_delta, sample_rate, noise, charges) if num_steps is None else 0
        steps = num_steps or max(1, longest // queries_per_step)
        _check_count(steps * queries_per_step)
    plan = PrivacyPlan(
        target_epsilon=target_epsilon,
        target_delta=target_delta,
        num_records=num_records,
        sample_rate=sample_rate,
        num_steps=steps,
        queries_per_step=queries_per_step,
        noise_multiplier=noise,
        once=once,
        classifier=classifier,
    )
    largest = max([noise * math.sqrt(max(1, queries_per_step)), *(charge.noise_multiplier for charge in charges)])
    if largest > MAX_NOISE:
        raise InputError(
            f"epsilon={target_epsilon:g} needs noise of {largest:.3g} times the sensitivity, more than "
            f"{MAX_NOISE:g}; give a larger epsilon, fewer queries_per_step or larger shares"
        )
    if noise_multiplier is not None:
        check_analysable(plan.charges(), target_delta)
    if noise_multiplier is not None and (spent := epsilon_pld(plan.charges(), target_delta)) > target_epsilon:
        fewer = "fewer num_steps or queries_per_step, or more noise" if queries_per_step else "more noise"
        raise InputError(
            f"{steps} steps with noise_multiplier={noise:g} spend epsilon={spent:.4g}, more than {target_epsilon:g}; "
            f"give {fewer}"
        )
    return plan


def default_sanitize(target_epsilon: float, target_delta: float, num_records: int) -> Sanitize:
    """What is best to sanitise by so much budget for so many records (public): chosen on MNIST and PneumoniaMNIST.

    By a small budget noise is most of what a step learns, and a step forgets what earlier ones learned; an embedding
    that is released once says the same to all of them. By a smaller one still its own noise is what they learn.

    Raises:
        InputError: A value is out of range.
    """
    noise = _noise_a_record(target_epsilon, target_delta, num_records)
    return "embedding" if _SMALL_BUDGET < noise <= _EMBEDDING_BUDGET else "record"


def default_embedding_share(target_epsilon: float, target_delta: float, num_records: int) -> float:
    """Of the budget for a class embedding beside steps record by record (public): none if the budget is tiny.

    Raises:
        InputError: A value is out of range.
    """
    noise = _noise_a_record(target_epsilon, target_delta, num_records)
    return _EMBEDDING_SHARE if noise <= _TINY_BUDGET else 0.0


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
    0.0026 a record, on 42 % with 0.0083, on 14 % with 0.0114; by chance it is on 10 % (docs/tried.md).
    """
    whole = gaussian_noise_multiplier(target_epsilon, target_delta)
    if whole / num_records <= _HOPELESS_BUDGET:
        return None
    needed = float(f"{whole / _USEFUL_BUDGET:.1g}")
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


def _noise_a_record(target_epsilon: float, target_delta: float, num_records: int) -> float:
    check_target(target_epsilon, target_delta)
    return gaussian_noise_multiplier(target_epsilon, target_delta) / num_records


def _is_small(noise_of_all: float, num_records: int) -> bool:
    return noise_of_all / num_records > _SMALL_BUDGET


def _check_count(queries: int) -> None:
    if queries > MAX_COUNT:
        raise InputError(
            f"{queries} queries in all are more than {MAX_COUNT}; give fewer num_steps or queries_per_step"
        )


def _classifier(budget: float, sample_rate: float) -> SubsampledReleases:
    """Releases that together are about one Gaussian of μ² = `budget`: μ² = q²·T·(e^(1/σ²) − 1).

    (Bu, Dong, Long and Su 2020, "Deep learning with Gaussian differential privacy", corollary 3.) Only the split of
    the budget rests on it: what they cost is accounted with all the rest.
    """
    noise = math.log1p(budget / (sample_rate**2 * CLASSIFIER_STEPS)) ** -0.5
    return SubsampledReleases(
        name=CLASSIFIER, noise_multiplier=_four_digits(noise), sample_rate=sample_rate, count=CLASSIFIER_STEPS
    )


def _default_batch(num_records: int, sanitize: Sanitize) -> int:
    return min(num_records, _BATCH_RECORDS if sanitize == "batch" else max(2000, num_records // 10))


def _first_moments_share(whole: float, num_records: int) -> float:
    """Of a budget that one release of noise multiplier `whole` would spend: the smaller it is, the larger the share.

    The noise on E‖y‖²/d is √2·whole/(N·√share): `first_moments` adds up ‖y‖²/d/√2.
    """
    needed = 2.0 * (whole / (num_records * _MOMENTS_NOISE)) ** 2
    return min(_LARGEST_MOMENTS_SHARE, max(_LEAST_MOMENTS_SHARE, needed))


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")
