"""Stage: mean image, total variance and principal subspace. Later costs, contributions and noise live in it."""

from collections.abc import Iterator
from functools import partial

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dp_sinkhorn.estimators.subspace import (
    frequencies_above,
    hard_threshold,
    low_frequencies,
    principal_subspace,
)
from dp_sinkhorn.estimators.symmetric import packed, unpacked
from dp_sinkhorn.privacy.accounting import Charge
from dp_sinkhorn.privacy.clipping import ROUNDING_ROOM, BoundedSum, added
from dp_sinkhorn.privacy.curator import Curator, Draw
from dp_sinkhorn.privacy.plan import Budget, PrivacyPlan
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.settings import DataFacts, Dimensions, Settings, StageRules, StageSettings
from dp_sinkhorn.stages.base import UNIT_SENSITIVITY, Stage, StageFacts, State, once_problems

_FIRST, _SECOND = "first_moments", "second_moment"
# Share of the first moments, smallest and largest; between them it keeps the noise on the mean square of a pixel, which
# is at most 1, at this value.
_LEAST_FIRST_SHARE, _LARGEST_FIRST_SHARE, _FIRST_NOISE = 0.01, 0.1, 0.01
_MIN_DIMENSIONS = 96
# Variance per pixel, of at most 1, below which an estimate is only noise.
_MIN_PIXEL_VARIANCE = 1e-3
# A shorter row is not stretched to norm 1: it may be a rounding error, which can depend on other records in its chunk.
_SHORTEST = 1e-2


class PrincipalSubspaceSettings(StageSettings):
    """What a user may choose.

    Args:
        min_dimensions: Least number of dimensions of the subspace.
    """

    min_dimensions: Dimensions | None = None


class PrincipalSubspaceRules(StageRules):
    """Constants. max_dimensions: The most dimensions that fit into a release; None: any number fits."""

    min_dimensions: Dimensions
    max_dimensions: Dimensions | None = None


class PrincipalSubspace(Stage):
    """Releases the first moments of all records, then the second moment about the released mean image.

    Both sums have sensitivity 1. Everything computed from the answers is post-processing.
    """

    name = "principal_subspace"
    settings_type = PrincipalSubspaceSettings
    rules_type = PrincipalSubspaceRules
    gives = ("subspace",)
    charged = (f"{name}.{_FIRST}", f"{name}.{_SECOND}")

    def __init__(self, share: float) -> None:
        self.share = share

    def charges(self, settings: Settings, budget: Budget) -> tuple[Charge, ...]:
        """See `Stage`: the smaller the budget, the larger the share of the first moments.

        The noise on E‖y‖²/d is √2·σ/(N·√share), because `first_moments` sums ‖y‖²/d/√2.
        """
        needed = 2.0 * (budget.whole / (budget.num_records * _FIRST_NOISE)) ** 2
        first = min(_LARGEST_FIRST_SHARE, max(_LEAST_FIRST_SHARE, needed))
        return budget.once(self.charged[0], first), budget.once(self.charged[1], self.share)

    def rules(self, settings: Settings, plan: PrivacyPlan, data: DataFacts) -> PrincipalSubspaceRules:
        """See `Stage`."""
        chosen = settings.of(self.name, PrincipalSubspaceSettings)
        return PrincipalSubspaceRules(min_dimensions=chosen.min_dimensions or _MIN_DIMENSIONS)

    def run(self, curator: Curator, state: State) -> Iterator[None]:
        """See `Stage`."""
        if "basis" in state.learnt:
            return
        count, shape = state.plan.num_records, state.config.data.shape
        rules = state.config.rules_of(self.name, PrincipalSubspaceRules)
        first_noise = self.charge(state.plan, _FIRST).noise_multiplier
        second_noise = self.charge(state.plan, _SECOND).noise_multiplier

        moments = self.ask(curator, state, UNIT_SENSITIVITY, sum_first_moments, _FIRST)
        mean, _ = read_first_moments(moments, count, first_noise)
        # Standard deviation of the noise on each pixel of the mean.
        stddev = first_noise * (2.0 * mean.numel()) ** 0.5 / count
        centre = hard_threshold(mean, stddev, shape).clamp(-1.0, 1.0).to(torch.float32)
        variance = variance_about(centre, moments, count, first_noise)

        frame = low_frequencies(*shape, frequencies_above(second_noise, count))
        packed_matrix = self.ask(curator, state, UNIT_SENSITIVITY, partial(sum_second_moment, centre, frame), _SECOND)
        matrix = unpacked(packed_matrix, frame.shape[1])
        subspace = principal_subspace(matrix, second_noise, centre, frame, rules.min_dimensions, rules.max_dimensions)
        state.learnt |= {
            "variance": torch.tensor(max(variance, _MIN_PIXEL_VARIANCE * mean.numel()), dtype=torch.float64),
            "centre": subspace.centre,
            "basis": subspace.basis,
        }
        yield

    def problems(self, facts: StageFacts, card: PrivacyCard) -> Iterator[str]:
        """See `Stage`."""
        return once_problems(self, card)


def sum_first_moments(draw: Draw) -> BoundedSum:
    """`first_moments` of all records, a few thousand at a time."""
    return added(map(first_moments, draw.images.float_chunks()))


def first_moments(images: Float[Tensor, "N d"]) -> BoundedSum:
    """Σ_y (y/√d, ‖y‖²/d)/√2, d+1 numbers, for images in [-1, 1]: mean image and mean square.

    Guarantees: one record changes the sum by at most 1, because every pixel lies in [-1, 1] and so both parts of a
    record have norm at most 1.
    """
    size = images.shape[1]
    rows = images.to(torch.float64).clamp(-1.0, 1.0)
    total = torch.cat([rows.sum(0) / size**0.5, rows.square().sum().unsqueeze(0) / size])
    return BoundedSum((1.0 - ROUNDING_ROOM) * total / 2**0.5, UNIT_SENSITIVITY)


def read_first_moments(
    released: Float64[Tensor, " d_plus_1"], count: int, noise_stddev: float
) -> tuple[Float64[Tensor, " d"], float]:
    """(mean image, total variance) from a noisy `first_moments`; `count` is the public number of records."""
    mean, mean_square = _mean_and_square(released, count)
    size = mean.numel()
    # Remove the bias: the noise on the mean adds its variance to ‖mean‖².
    noise_variance = 2.0 * size * (noise_stddev / count) ** 2
    variance = mean_square - float(mean.square().sum()) + size * noise_variance
    return mean.clamp(-1.0, 1.0), variance


def variance_about(
    centre: Float[Tensor, " d"], released: Float64[Tensor, " d_plus_1"], count: int, noise_stddev: float
) -> float:
    """E‖y − centre‖² from a noisy `first_moments`, at least the noise on E‖y‖².

    The noise on the mean image enters only where the centre is not zero. An estimate with ‖mean‖² would contain all of
    it.
    """
    mean, mean_square = _mean_and_square(released, count)
    exact = centre.to(torch.float64)
    found = mean_square - 2.0 * float(mean @ exact) + float(exact.square().sum())
    return max(found, mean.numel() * 2**0.5 * noise_stddev / count)


def sum_second_moment(centre: Float[Tensor, " d"], frame: Float64[Tensor, "d s"], draw: Draw) -> BoundedSum:
    """`second_moment` of the coordinates (image − centre) · frame of all records, a few thousand at a time."""

    def framed(chunk: Tensor) -> Tensor:
        # In float64: the row of a float32 matrix product may depend on the other rows of its chunk.
        centred = chunk.to(torch.float64) - centre
        return centred if frame.shape[0] == frame.shape[1] else centred @ frame  # square: the identity

    return added(second_moment(framed(chunk)) for chunk in draw.images.float_chunks())


def second_moment(centred: Float[Tensor, "N s"]) -> BoundedSum:
    """Σ_y u uᵀ for u = y/max(‖y‖, 0.01), packed.

    Guarantees: a record adds a vector of norm ‖u‖² ≤ 1.
    """
    rows = centred.to(torch.float64)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=_SHORTEST)
    return BoundedSum((1.0 - ROUNDING_ROOM) * packed(rows.T @ rows), UNIT_SENSITIVITY)


def _mean_and_square(released: Float64[Tensor, " d_plus_1"], count: int) -> tuple[Float64[Tensor, " d"], float]:
    """E y and E‖y‖² from a noisy `first_moments`, both with their noise."""
    size = released.numel() - 1
    scaled = released * 2**0.5 / count
    return scaled[:size] * size**0.5, size * float(scaled[size])
