"""What is released once, before the first step: class counts, mean image, total variance, principal subspace."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.estimators.subspace import (
    Subspace,
    frequencies_above,
    low_frequencies,
    principal_subspace,
    without_noise,
)
from dp_sinkhorn.privacy.clipping import BoundedSum, added
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.plan import CLASS_COUNTS, FIRST_MOMENTS, SECOND_MOMENT
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.statistics import (
    UNIT_SENSITIVITY,
    class_counts,
    first_moments,
    read_first_moments,
    read_second_moment,
    second_moment,
    variance_about,
)
from dp_sinkhorn.settings import BatchRules, RunConfig

# Below this variance per pixel (of a possible 1) an estimate says nothing but "noise".
_MIN_PIXEL_VARIANCE = 1e-3


@dataclass(frozen=True, eq=False)
class ReleasedStatistics:
    """Noisy statistics of the records, public once they exist.

    Args:
        class_counts: (K,) estimated or declared number of records a class, all positive.
        variance: V, estimated variance of the images about the centre: E‖y − centre‖², pixels in [-1, 1].
        subspace: Where costs, contributions and noise live, centred on the noisy mean image.
    """

    class_counts: Float64[Tensor, " K"]
    variance: float
    subspace: Subspace

    def tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors; `from_tensors` reads it back."""
        return {
            "class_counts": self.class_counts,
            "variance": torch.tensor(self.variance, dtype=torch.float64),
            "centre": self.subspace.centre,
            "basis": self.subspace.basis,
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "ReleasedStatistics":
        """The statistics that `tensors` wrote down."""
        subspace = Subspace(tensors["centre"], tensors["basis"])
        return cls(tensors["class_counts"], float(tensors["variance"]), subspace)


def release_statistics(
    data: LabelledImages, config: RunConfig, ledger: Ledger, random: CryptoRandom
) -> ReleasedStatistics:
    """Charge and release the statistics that all but whole batches need."""
    plan, rules = config.privacy, config.rules
    assert not isinstance(rules, BatchRules)  # noqa: S101 - they have no subspace
    counts = release_class_counts(data, config, ledger, random)
    moments = release_first_moments(data, config, ledger, random)
    mean, _ = read_first_moments(moments, plan.num_records, plan.once[FIRST_MOMENTS])
    # The noise on each pixel of the mean.
    stddev = plan.once[FIRST_MOMENTS] * (2.0 * mean.numel()) ** 0.5 / plan.num_records
    centre = without_noise(mean, stddev, data.shape).clamp(-1.0, 1.0).to(torch.float32)
    variance = variance_about(centre, moments, plan.num_records, plan.once[FIRST_MOMENTS])
    frame = second_moment_frame(config)
    matrix = read_second_moment(release_second_moment(data, centre, frame, config, ledger, random), frame.shape[1])
    subspace = principal_subspace(matrix, plan.once[SECOND_MOMENT], centre, frame, rules.min_dimensions)
    return ReleasedStatistics(counts, max(variance, _MIN_PIXEL_VARIANCE * mean.numel()), subspace)


def release_class_counts(
    data: LabelledImages, config: RunConfig, ledger: Ledger, random: CryptoRandom
) -> Float64[Tensor, " K"]:
    """Estimated records a class, all positive: a noisy histogram, charged, or what the user declared."""
    plan = config.privacy
    if CLASS_COUNTS not in plan.once:
        return plan.num_records * declared_prior(config)
    noisy = release_class_histogram(data, config, ledger, random)
    return noisy.clamp(min=max(1.0, plan.once[CLASS_COUNTS]))


def release_class_histogram(
    data: LabelledImages, config: RunConfig, ledger: Ledger, random: CryptoRandom
) -> Float64[Tensor, " K"]:
    """Charge, then release how many records each class has."""
    return release_once(CLASS_COUNTS, class_counts(data.labels, data.num_classes), config, ledger, random)


def release_first_moments(
    data: LabelledImages, config: RunConfig, ledger: Ledger, random: CryptoRandom
) -> Float64[Tensor, " d_plus_1"]:
    """Charge, then release the sum that `read_first_moments` reads."""
    return release_once(FIRST_MOMENTS, added(map(first_moments, data.float_chunks())), config, ledger, random)


def second_moment_frame(config: RunConfig) -> Float64[Tensor, "d s"]:
    """Orthonormal columns in which the second moment is released."""
    plan = config.privacy
    return low_frequencies(*config.data.shape, frequencies_above(plan.once[SECOND_MOMENT], plan.num_records))


def release_second_moment(
    data: LabelledImages,
    centre: Float[Tensor, " d"],
    frame: Float64[Tensor, "d s"],
    config: RunConfig,
    ledger: Ledger,
    random: CryptoRandom,
) -> Float64[Tensor, " packed"]:
    """Charge, then release the sum that `read_second_moment` reads, of coordinates (image − centre) · frame."""

    def framed(chunk: Tensor) -> Tensor:
        # In float64: the row of a float32 matrix product may depend on the other rows of its chunk.
        centred = chunk.to(torch.float64) - centre
        return centred if frame.shape[0] == frame.shape[1] else centred @ frame  # square: the identity

    total = added(second_moment(framed(chunk)) for chunk in data.float_chunks())
    return release_once(SECOND_MOMENT, total, config, ledger, random)


def release_once(name: str, total: BoundedSum, config: RunConfig, ledger: Ledger, random: CryptoRandom) -> Tensor:
    """Charge a release on all records, then make it."""
    (charge,) = (charge for charge in config.privacy.once_charges() if charge.name == name)
    ledger.charge(charge)
    return GaussianMechanism(UNIT_SENSITIVITY, config.privacy.once[name])(total, random)


def exact_coordinates(data: LabelledImages, subspace: Subspace, device: str) -> Iterator[Float64[Tensor, "m r"]]:
    """Coordinates of all records, some thousands at a time.

    In float64: the row of a float32 matrix product may depend on the other rows of its chunk.
    """
    exact = subspace.to(device, torch.float64)
    return (exact.project(chunk.to(device).double()) for chunk in data.float_chunks())


def declared_prior(config: RunConfig) -> Float64[Tensor, " K"]:
    """The class shares that the user declared (one class, or uniform, or a list)."""
    classes = len(config.data.class_names)
    prior = config.settings.class_prior
    shares = prior if isinstance(prior, tuple) else (1.0 / classes,) * classes
    return torch.tensor(shares, dtype=torch.float64)
