"""Shrinkage of noisy differences: rules that scale each number, or group of numbers, down by its noise."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.nn.functional import normalize

# The scales c that `empirical_bayes` tries: 0, and 2^-20 to 2^12.
_SCALES = [0.0, *(2.0 ** (0.5 * step) for step in range(-40, 25))]


def shrunk(
    apart: Float64[Tensor, "K b"],
    counts: Float64[Tensor, " K"],
    noise: Float64[Tensor, "K _"],
    rule: Callable[[Tensor, Tensor], Tensor],
) -> Float64[Tensor, "K b"]:
    """Noisy differences, shrunk: first the part common to all classes, then each class individually.

    Args:
        counts: Estimated number of records of each class. noise: (K, b) or (K, 1), standard deviation of each number.
        rule: The shrinkage rule, from rows and the noise on each number to shrunken rows.
    """
    shares = shares_of(counts)
    common = rule(common_of(apart, shares), noise_of_common(noise, shares))
    return common + rule(apart - common, noise)


def shrunk_along_means(
    apart: Float64[Tensor, "K d"],
    means: Float64[Tensor, "K d"],
    counts: Float64[Tensor, " K"],
    noise: Float64[Tensor, "K 1"],
) -> Float64[Tensor, "K d"]:
    """The components of noisy differences along the means, shrunk: first the common part, then each class.

    A component along one direction has the noise of one number in any dimension. So it can show that a mean is mostly
    error even where no individual number does.

    Args:
        means: Of the model. counts: Estimated number of records of each class.
        noise: Standard deviation of each number.
    """
    shares = shares_of(counts)
    common, direction = common_of(apart, shares), common_of(means, shares)

    def along(rows: Tensor, directions: Tensor, of_one: Tensor) -> Tensor:
        units = normalize(directions, dim=-1)
        return garrote((rows * units).sum(-1, keepdim=True), of_one) * units

    shared = along(common, direction, noise_of_common(noise, shares))
    return shared + along(apart - common, means - direction, noise)


def shares_of(counts: Float64[Tensor, " K"]) -> Float64[Tensor, "K 1"]:
    """Share of each class among all records."""
    return (counts / counts.sum()).unsqueeze(1)


def common_of(rows: Float64[Tensor, "K b"], shares: Float64[Tensor, "K 1"]) -> Float64[Tensor, " b"]:
    """The part common to all classes: their mean, weighted by records."""
    return (shares * rows).sum(0)


def noise_of_common(noise: Float64[Tensor, "K _"], shares: Float64[Tensor, "K 1"]) -> Float64[Tensor, " _"]:
    """Standard deviation of the noise on `common_of`."""
    return (shares * noise).square().sum(0).sqrt()


def garrote(values: Float64[Tensor, "*K b"], noise: Float64[Tensor, "*K _"]) -> Float64[Tensor, "*K b"]:
    """Each number v becomes v·max(0, 1 − noise²/v²), the non-negative garrote with threshold `noise` (Gao 1998)."""
    trust = (1.0 - noise.square() / values.square().clamp(min=1e-300)).clamp(min=0.0)
    return trust * values


def universal_garrote(values: Float64[Tensor, "*K d"], noise: Float64[Tensor, "*K _"]) -> Float64[Tensor, "*K d"]:
    """The values that exceed what noise alone is likely to reach: the garrote with the universal threshold.

    The threshold is t = noise·√(2 log n), n the count of all values. A value v beyond t becomes v − t²/v, a smaller one
    0 (Gao 1998, "Wavelet shrinkage denoising using the non-negative garrote"). Noise alone exceeds t in a fifth of all
    cases, and then little of it is left.
    """
    return garrote(values, noise * math.sqrt(2.0 * math.log(values.numel())))


def empirical_bayes(
    values: Float64[Tensor, "*K n"], noise: Float64[Tensor, "*K _"], shape: Float64[Tensor, " n"]
) -> Float64[Tensor, "*K n"]:
    """Posterior means under a normal prior of mean 0 and variances c·`shape`, c of maximum likelihood for each row.

    Parametric empirical Bayes (Morris 1983, "Parametric empirical Bayes inference: theory and applications"). A number
    of small prior variance shrinks more than one of large variance.

    Args:
        noise: Standard deviation of each number. shape: Prior variances up to a factor, positive.
    """
    squares, of_noise = values.square(), noise.square()

    def deviance(scale: float) -> Tensor:
        variances = (scale * shape + of_noise).clamp(min=1e-300)
        return (squares / variances + variances.log()).sum(-1, keepdim=True)

    likeliest = torch.stack([deviance(scale) for scale in _SCALES]).argmin(0)
    variances = values.new_tensor(_SCALES)[likeliest] * shape
    return variances / (variances + of_noise).clamp(min=1e-300) * values


def shrunk_groups(
    values: Float64[Tensor, "*K b"], noise: Float64[Tensor, "*K _"], groups: Int64[Tensor, " b"]
) -> Float64[Tensor, "*K b"]:
    """Each group of numbers times 1 − (noise energy)/(its energy): many small numbers can exceed the noise together.

    A group whose energy noise alone could reach becomes 0. The energy of n numbers of noise exceeds
    n + 2√(n·x) + 2x times its variance with probability at most exp(−x) (Laurent and Massart 2000, lemma 1). Here
    exp(−x) is one over the number of groups.

    Args:
        groups: (b,) the group of each number, from 0; no group is empty.
    """
    sizes = torch.bincount(groups)
    x = math.log(len(sizes))
    reach = (sizes + 2.0 * (sizes * x).sqrt() + 2.0 * x) / sizes

    def energy(numbers: Tensor) -> Tensor:
        return numbers.new_zeros(*numbers.shape[:-1], len(sizes)).index_add(-1, groups, numbers.square())

    found, of_noise = energy(values), energy(noise.expand_as(values))
    trust = torch.where(found > reach * of_noise, 1.0 - of_noise / found.clamp(min=1e-300), 0.0)
    return trust[..., groups] * values
